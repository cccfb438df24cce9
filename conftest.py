"""What tests and doctests share: names that examples may use without importing them, and a home of their own for stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Corpus stores go to a temporary folder, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.mktemp("imprint-home")))
        yield


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> None:
    """Doctests may say `torch`, `np` and `pl`, and write their files to the current folder, which is a temporary one."""
    if type(request.node).__name__ != "DoctestItem":
        return
    import numpy
    import polars
    import torch

    names: dict[str, Any] = request.getfixturevalue("doctest_namespace")
    names.update(torch=torch, np=numpy, pl=polars)
    request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The folder of the bundled data sets."""
    return Path(__file__).parent / "examples/data"
