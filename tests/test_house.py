"""The rules of the house that no other tool holds: it starts fast, runs no stranger's code, and documents what it names."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import imprint

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/imprint").rglob("*.py"))
MODULES = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
HEAVY = ("torch", "polars", "lance", "pyarrow", "sklearn", "scipy", "pandas", "numpy", "plotly")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Start-up. The least of five runs is compared: other work on the machine only ever adds time, so the least is the nearest to
# what the code itself takes. The limits are those of the issue "the spine".


def test_import_is_fast_and_lazy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import imprint; "
        "print(time.perf_counter() - start, *sorted(m for m in sys.modules if '.' not in m))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(5)]
    loaded = set(runs[0][1:])
    assert "imprint" in loaded
    assert not loaded.intersection(HEAVY)
    assert min(float(run[0]) for run in runs) < 0.5


def test_help_is_fast() -> None:
    command = [str(Path(sys.executable).with_name("imprint")), "--help"]

    def seconds() -> float:
        start = time.perf_counter()
        output = subprocess.check_output(command, text=True)
        assert "audit" in output
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.7


# Opening a stranger's run, corpus or recipe executes nothing.

# What a job says to its own worker processes, in memory. Nothing that it says is ever in a file.
SENDING = ("engine/ordered.py", "fleets/cluster.py", "fleets/processes.py", "fleets/sending.py")
BETWEEN_PROCESSES = {ROOT / "src/imprint" / name for name in SENDING}
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
EXECUTING = {
    "eval", "exec", "torch.load", "torch.save", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "cloudpickle.dump", "cloudpickle.load", "pd.read_pickle", "pandas.read_pickle", "os.system", "os.popen",
}  # fmt: skip

UNSAFE = ("allow_pickle", "shell", "trust_remote_code")


@MODULES
def test_nothing_is_pickled_or_executed(path: Path) -> None:
    allowed = {"cloudpickle"} if path in BETWEEN_PROCESSES else set()
    assert not {name.split(".")[0] for name in imported(path)} & PICKLING - allowed
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            where = f"{path}:{node.lineno}"
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            # With weights_only PyTorch reads tensors and runs nothing.
            tensors = ast.unparse(node.func) == "torch.load" and words.get("weights_only") == "True"
            assert tensors or ast.unparse(node.func) not in EXECUTING, where
            assert all(words.get(name, "False") == "False" for name in UNSAFE), where


# Imports. import-linter holds the direction between the parts; these hold what it does not see.


@MODULES
def test_parts_import_each_other_by_their_own_names(path: Path) -> None:
    """`from imprint import score` would go around the layers: the package's own names are for its users."""
    if path == ROOT / "src/imprint/__init__.py":
        return
    through_the_front = {
        name for name in imported(path)
        if name == "imprint" or (name.count(".") == 1 and name.removeprefix("imprint.") in imprint.__all__)
    }  # fmt: skip
    assert not through_the_front


def test_every_dependency_is_declared_and_every_declared_one_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=~! ;]", one)[0].lower().replace("_", "-") for one in requirements}

    core = names(project["dependencies"])
    extras = {name: names(some) for name, some in project["optional-dependencies"].items()}
    # What a user's own code brings along: parts in `integrations` and sources in `corpus` serve it where it is installed.
    brought = {
        "pandas",
        "datasets",
        "transformers",
        "lightning",
        "pytorch-lightning",
        "sentence-transformers",
        "timm",
        "accelerate",
    }
    owners = importlib.metadata.packages_distributions()
    used = {
        owner.lower().replace("_", "-")
        for path in SOURCES
        for name in imported(path)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names and top != "imprint"
        for owner in owners.get(top, [top])
    }
    assert used - brought <= core.union(*extras.values())
    assert core <= used


def test_extras_that_errors_tell_to_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = {
        node.args[0].value
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "MissingExtra"
        and isinstance(node.args[0], ast.Constant)
    }
    assert told
    assert told <= set(extras)


# Documentation.


@MODULES
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("name", imprint.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(imprint, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
        members = {
            key: member for key, member in own.items()
            if callable(member) or isinstance(member, property | classmethod | staticmethod)
        }  # fmt: skip
        assert not [key for key in members if not inspect.getdoc(getattr(value, key))]


@pytest.mark.parametrize("page", ["methods.md", "cli.md"])
def test_generated_pages_are_up_to_date(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make docs` writes them; a new method or option must be on them."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generate = importlib.import_module("generate")
    assert (ROOT / "docs/reference" / page).read_text(encoding="utf-8") == generate.PAGES[page]()
