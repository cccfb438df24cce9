"""Every malformed input, typed as a user would: no traceback, status 2, the place and the remedy; or it opens and says what it left out.

The inputs are those of `tests/malformed`, which opens them in Python.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Imprint, Said


def load_generator() -> ModuleType:
    """`tests/malformed/generate.py`, which is no package of this one."""
    path = Path(__file__).parents[1] / "malformed" / "generate.py"
    spec = importlib.util.spec_from_file_location("malformed_generate", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """All cases that can be typed: shares for two or three splits, names that are text."""
    found = load_generator().cases(tmp_path_factory.mktemp("malformed"))
    typed = [case for case in found if all(can_be_typed(value) for value in case.kwargs.values())]
    assert len(typed) >= 200  # issue 2, "Done shows" 5
    return typed


def can_be_typed(value: Any) -> bool:
    return len(value) in (2, 3) if isinstance(value, dict) else isinstance(value, str | list)


def options(kwargs: dict[str, Any], id_option: str) -> list[str]:
    """Arguments of `imprint.open` as options."""
    words = []
    for name, value in kwargs.items():
        if isinstance(value, dict):
            value = "/".join(map(str, value.values()))
        elif isinstance(value, list | tuple):
            value = ",".join(value)
        words += [id_option if name == "id" else f"--{name}", str(value)]
    return words


def wrong_with(case: Any, said: Said) -> str | None:
    """What is wrong with how a command ended, or None."""
    if "Traceback" in said.err or "bug in Imprint" in said.err:
        return said.err
    if case.expectation == "opens":
        return None if said.status == 0 else f"status {said.status}: {said.err}"
    problem, _, remedy = said.err.removeprefix("error: ").rpartition("\n  ")
    if said.status != 2 or not said.err.startswith("error: ") or not problem or not remedy.strip():
        return f"status {said.status}, said: {said.err!r}"
    return None if case.place in said.err else f"does not name {case.place!r}: {said.err}"


def test_show(cases: list[Any], imprint: Imprint) -> None:
    """One test over all of them, so that all failures are seen at once."""
    wrong = []
    for case in cases:
        said = imprint("show", case.path, "--head", 2, *options(case.kwargs, "--id-column"))
        if problem := wrong_with(case, said):
            wrong.append(f"{case.name}: {problem}")
        elif case.aside and f"Set aside, unreadable: {case.aside}" not in said.out:
            wrong.append(f"{case.name}: does not say that {case.aside} rows were set aside")
    assert not wrong, "\n".join(wrong)


def test_audit_of_what_cannot_be_opened(cases: list[Any], imprint: Imprint, tmp_path: Path) -> None:
    """A sample of those that fail, since they all fail before any training; nothing is left behind."""
    failing = [case for case in cases if case.expectation == "error"][::12]
    assert len(failing) >= 10
    wrong = []
    for number, case in enumerate(failing):
        out = tmp_path / str(number)
        said = imprint("audit", case.path, "--out", out, "--epochs", 1, "--no-verify", *options(case.kwargs, "--id"))
        if problem := wrong_with(case, said):
            wrong.append(f"{case.name}: {problem}")
        elif out.exists():
            wrong.append(f"{case.name}: left {list(out.iterdir())}")
    assert not wrong, "\n".join(wrong)
