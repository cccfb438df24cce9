"""Answers in a run: `answer.json` says what was asked, `table.lance` holds the rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lance
import polars as pl

from imprint.errors import RunError, nearest
from imprint.recording import tables
from imprint.recording.files import read_json, remove, replacing, write_json

NAME = re.compile(r"[\w][\w.+-]*")


class Saveable(Protocol):
    """What an answer must have in order to be stored."""

    @property
    def name(self) -> str: ...
    def spec(self) -> dict[str, Any]: ...
    def frame(self) -> pl.DataFrame: ...


@dataclass(frozen=True)
class StoredAnswer:
    """An answer read back from a run."""

    name: str
    path: Path

    def spec(self) -> dict[str, Any]:
        """What was asked and what it cost."""
        spec = read_json(self.path / "answer.json")
        if not isinstance(spec, dict):
            raise RunError(f"{self.path / 'answer.json'} is damaged.", "Ask again.")
        return spec

    def frame(self) -> pl.DataFrame:
        """Its rows."""
        found = pl.from_arrow(tables.everything(self.path / "table.lance"))
        assert isinstance(found, pl.DataFrame)
        return found


def names(folder: Path) -> list[str]:
    """Names of the stored answers, sorted."""
    return sorted(path.parent.name for path in folder.glob("*/answer.json") if not path.parent.name.startswith("."))


def read(folder: Path, name: str) -> StoredAnswer:
    """A stored answer; an unknown name raises `RunError` with the nearest one."""
    if name not in names(folder):
        raise RunError(f"The run has no answer '{name}'.", nearest(name, names(folder)))
    return StoredAnswer(name, folder / name)


def save(folder: Path, answer: Saveable) -> Path:
    """Store an answer, replacing one of the same name. It is either there in full or not at all."""
    if not NAME.fullmatch(answer.name):
        raise RunError(
            f"An answer cannot be called {answer.name!r}.", "Use letters, digits, dots, dashes and underscores."
        )
    with replacing(folder / answer.name) as temporary:
        remove(temporary)
        temporary.mkdir()
        lance.write_dataset(answer.frame().to_arrow(), str(temporary / "table.lance"))
        write_json(temporary / "answer.json", answer.spec())
    return folder / answer.name
