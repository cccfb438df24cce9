"""Every code block of the README, the docs and the contributing guide runs as it stands.

A page's blocks run in order, in one namespace and one folder that holds `examples/data`: the bundled sets under their own
names, cut small so that a page takes seconds. A block that cannot run here says why in a comment before it:

    <!-- not run: needs transformers -->
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from imprint import methods

ROOT = Path(__file__).parents[1]
# Interfaces and decisions show signatures, not programs.
WITHOUT_CODE = {
    "concepts/contracts.md", "concepts/fleets.md", "concepts/selecting.md", "concepts/forgetting.md", "reference/methods.md",
    "reference/cli.md",
}  # fmt: skip
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if page.parent.name != "decisions" and f"{page.parent.name}/{page.name}" not in WITHOUT_CODE
    ),
]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n+)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "bash", "text", "yaml", "json", "toml"}
# Commands that fetch or install; CI's own `make` targets stand for them.
OUTSIDE = ("git", "pip", "make", "cd", "uv")
ROWS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else "\n" for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(page, line, match["language"], code, match["reason"]))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, bundled: Path) -> Path:
    """`examples/data` with the first rows of each bundled set (of the text set, rows spread over all of it)."""
    folder = tmp_path_factory.mktemp("docs") / "examples/data"
    folder.mkdir(parents=True)
    pl.read_parquet(bundled / "notmnist.parquet").head(ROWS).write_parquet(folder / "notmnist.parquet")
    pl.read_csv(bundled / "banking.csv").gather_every(4).write_csv(folder / "banking.csv")
    return folder


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a page registers as its reader's own method is forgotten after it."""
    methods.registered()  # all of Imprint's own are there before
    known = dict(methods._METHODS)
    yield
    methods._METHODS.clear()
    methods._METHODS.update(known)


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """Run a block in the page's namespace; a traceback shows the page's own line."""
    padded = "\n" * (block.line - 1) + block.code
    exec(compile(padded, str(block.page), "exec"), namespace)


def run_bash(block: Block, folder: Path) -> None:
    """Run a block in a shell where `imprint` is this one. Blocks that only fetch or install are left to CI itself."""
    words = [shlex.split(line, comments=True) for line in block.code.replace("\\\n", " ").splitlines()]
    commands = [line[0] for line in words if line]
    if all(command in OUTSIDE for command in commands):
        return
    here = str(Path(sys.executable).parent)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env={**os.environ, "PATH": here + os.pathsep + os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        check=True,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small, tmp_path / "examples/data")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}: a block in {block.language}"
        if block.reason:
            continue
        if block.language == "python":
            run_python(block, namespace)
        elif block.language == "bash":
            run_bash(block, tmp_path)


def test_few_blocks_are_left_out() -> None:
    """A reason must be a missing package or a missing accelerator; a page full of unrun code is a page of claims."""
    left_out = [block for page in PAGES for block in blocks(page) if block.reason]
    runnable = [block for page in PAGES for block in blocks(page) if block.language in ("python", "bash")]
    assert len(left_out) <= 0.15 * len(runnable)
    assert all(block.reason and block.reason.startswith("needs ") for block in left_out)


def test_links_between_pages_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [
            ROOT / "README.md",
            ROOT / "CONTRIBUTING.md",
            ROOT / "CHANGELOG.md",
            *(ROOT / "docs").rglob("*.md"),
        ]
        for target in link.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        if not (page.parent / target).exists()
    ]
    assert not broken


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_the_recipes_run(script: Path, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "examples/data")
    shutil.copy(script, tmp_path / "examples")
    subprocess.run(
        [sys.executable, f"examples/{script.name}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        check=True,
    )
