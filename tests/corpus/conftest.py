"""Stores of the tests go to a folder of their own, never to the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all stores that the test makes."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("IMPRINT_HOME", str(folder))
    return folder
