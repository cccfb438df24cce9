"""How the tests call the command line: in this process, as a user would type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from imprint.cli import main


@dataclass
class Said:
    """What a command line answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Imprint = Callable[..., Said]


@pytest.fixture
def imprint(capsys: pytest.CaptureFixture[str]) -> Imprint:
    """`imprint("show", path)` runs the command and gives its status, standard output and standard error."""

    def call(*words: object) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of tests are kept in a folder of their own, and texts are as wide as on no terminal."""
    monkeypatch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
    monkeypatch.setenv("COLUMNS", "80")


def separable(rows: int = 240, wrong: int = 12) -> pl.DataFrame:
    """A table that a linear model learns: the label is the sign of x. `wrong` labels of clear cases are flipped."""
    x = [((i * 37) % rows - rows / 2 + 0.5) / (rows / 8) for i in range(rows)]
    label = ["high" if value > 0 else "low" for value in x]
    clear = [i for i, value in enumerate(x) if abs(value) > 2][:wrong]
    for i in clear:
        label[i] = "low" if label[i] == "high" else "high"
    return pl.DataFrame(
        {
            "key": [f"r{i:03d}" for i in range(rows)],
            "x": x,
            "noise": [(i * 7919 % 101) / 101 for i in range(rows)],
            "label": label,
            "split": ["test" if i % 4 == 0 else "train" for i in range(rows)],
        }
    )


@pytest.fixture
def table_csv(tmp_path: Path) -> Path:
    """A small CSV in a folder whose name has a space."""
    folder = tmp_path / "my data"
    folder.mkdir()
    separable().write_csv(folder / "a table.csv")
    return folder / "a table.csv"
