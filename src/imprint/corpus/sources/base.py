"""What every source gives: a sample of its first rows, then all rows in batches, with what had to be set aside on the way.

A source knows how its data is laid out and nothing about roles, ids or storage. It never holds more than one batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from imprint.corpus.roles import Asked

# Rows from which roles, kinds and types are inferred. Never depends on the size of a batch, so neither does what is inferred.
SAMPLE_ROWS = 10_000


class Widened(Exception):
    """A later row did not fit the types inferred from the sample. The source has widened its types: start again."""


@dataclass
class Batch:
    """Rows on their way into a corpus: storable columns and the positions in the source ([row] int64 or str)."""

    frame: pl.DataFrame
    positions: pl.Series


@dataclass
class Aside:
    """Rows that could not be read: where they stand and why."""

    positions: list[pl.Series] = field(default_factory=list)
    reasons: list[pl.Series] = field(default_factory=list)

    def add(
        self, positions: pl.Series | Sequence[int] | Sequence[str] | np.ndarray, reason: str | Sequence[str]
    ) -> None:
        """Set rows aside, for one reason or for one each."""
        kept = pl.Series("position", positions)
        if len(kept):
            self.positions.append(kept)
            reasons = [reason] * len(kept) if isinstance(reason, str) else list(reason)
            self.reasons.append(pl.Series("reason", reasons, dtype=pl.String))

    def frame(self, position: pl.DataType | type[pl.DataType]) -> pl.DataFrame:
        """position, reason; in the order of the source as far as positions are numbers."""
        schema = {"position": position, "reason": pl.String}
        if not self.positions:
            return pl.DataFrame(schema=schema)
        table = pl.DataFrame(
            {"position": pl.concat([one.cast(position) for one in self.positions]), "reason": pl.concat(self.reasons)}
        )
        return table.sort("position", maintain_order=True)

    def __len__(self) -> int:
        return sum(map(len, self.positions))


class Source(ABC):
    """A data set as it lies somewhere.

    Attributes:
        name: How messages call it (a path, or "the data frame").
        total: How many rows there are, where it is known beforehand.
        size: Bytes that it takes where it lies, for estimates of disk space; 0 if unknown.
        identity: JSON-able value that changes when the data changes (path, size, modification time), or None for data in
            memory, which has none.
        asked: Roles that the source itself lays down (an image folder's target).
        named_inputs: True when the source itself says which columns are inputs, so that only these are taken.
        root: Folder that image paths are relative to, if images stay where they are.
        read_files: True where `image` columns hold paths under `root`.
        notes: What the source found out about itself, in words.
        text_target: True where values are text from which missing-value words must be recognised.
    """

    name: str = "the source"
    total: int | None = None
    size: int = 0
    identity: Any = None
    asked: Asked = Asked()
    root: Path | None = None
    position_dtype: pl.DataType | type[pl.DataType] = pl.Int64
    missing_words: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.aside = Aside()

    @abstractmethod
    def sample(self) -> pl.DataFrame:
        """The first `SAMPLE_ROWS` rows (or fewer) in storable types; raises `SourceError` when there is nothing to read."""

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """All rows in the sample's columns and types. May raise `Widened` once; then `sample` and `batches` are called anew."""

    def restart(self) -> None:
        """Forget what an aborted pass set aside."""
        self.aside = Aside()


def numbered(frames: Iterator[pl.DataFrame]) -> Iterator[Batch]:
    """Batches whose positions are the row numbers."""
    start = 0
    for frame in frames:
        yield Batch(frame, pl.Series("position", np.arange(start, start + len(frame), dtype=np.int64)))
        start += len(frame)
