"""What a clean method returns: the examples that it objects to, before ids and positions are put beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Flags:
    """Flagged examples, one entry per flag in every field.

    Attributes:
        row: Index of the example among those that the method was shown; -1 = the flag is about no single example.
        severity: 0..1, higher = worse.
        suggestion: "drop", "relabel" or "review".
        evidence: In words, why.
        suggested: Encoded target to relabel to; read where the suggestion is "relabel".
        kind: Kind of each finding, where a method gives several; None = the method's kind.
        related: Example that the flag is held against, such as the copy that stays; -1 = none.
        column: Column that the flag is about.
        position: Position in the source of what has no row, such as an unreadable file.
        over: What `row` and `related` count: training examples, or all rows of the corpus.
    """

    row: Int[np.ndarray, " flag"]
    severity: Float[np.ndarray, " flag"]
    suggestion: Sequence[str]
    evidence: Sequence[str]
    suggested: Tensor | None = None
    kind: Sequence[str] | None = None
    related: Int[np.ndarray, " flag"] | None = None
    column: Sequence[str] | None = None
    position: pl.Series | None = None
    over: Literal["train", "corpus"] = "train"

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def none(cls) -> Self:
        """Nothing flagged."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), [], [])

    @classmethod
    def about_columns(cls, found: Sequence[tuple[str, float, str]]) -> Self:
        """Flags about columns: (column, severity, evidence), all to review."""
        return cls(
            row=np.full(len(found), -1),
            severity=np.array([severity for _, severity, _ in found], np.float32),
            suggestion=["review"] * len(found),
            evidence=[evidence for _, _, evidence in found],
            column=[column for column, _, _ in found],
        )


SCHEMA = ("id", "position", "kind", "severity", "suggestion", "suggested_value", "method", "evidence", "related")


def findings_table(flags: Flags, method: str, kind: str, run: Any) -> pl.DataFrame:
    """Flags with ids, positions and decoded suggestions: the columns `SCHEMA`."""
    corpus = run.corpus
    rows = run.rows("train") if flags.over == "train" else np.arange(len(corpus))
    value = pl.Series("suggested_value", [None] * len(flags), dtype=corpus.target.dtype)
    relabel = np.flatnonzero(np.asarray(flags.suggestion, dtype=str) == "relabel")
    if flags.suggested is not None and len(relabel):
        decoded = run.task.decode(flags.suggested[relabel]).cast(corpus.target.dtype)
        place = pl.DataFrame({"at": relabel.astype(np.int64), "value": decoded})
        value = pl.DataFrame({"at": np.arange(len(flags))}).join(place, on="at", how="left", maintain_order="left")[
            "value"
        ]
    related = _at(corpus.ids, rows, flags.related, len(flags)) if flags.column is None else pl.Series(flags.column)
    position = flags.position if flags.position is not None else _at(corpus.positions, rows, flags.row, len(flags))
    return pl.DataFrame(
        {
            "id": _at(corpus.ids, rows, flags.row, len(flags)),
            "position": position.cast(corpus.positions.dtype),
            "kind": pl.Series(flags.kind if flags.kind is not None else [kind] * len(flags), dtype=pl.String),
            "severity": pl.Series(flags.severity, dtype=pl.Float32),
            "suggestion": pl.Series(list(flags.suggestion), dtype=pl.String),
            "suggested_value": value.alias("suggested_value"),
            "method": pl.Series([method] * len(flags), dtype=pl.String),
            "evidence": pl.Series(list(flags.evidence), dtype=pl.String),
            "related": related.cast(pl.String),
        }
    )


def _at(values: pl.Series, rows: np.ndarray, index: np.ndarray | None, count: int) -> pl.Series:
    """The values at `rows[index]`, null where the index is -1."""
    if index is None:
        return pl.Series([None] * count, dtype=values.dtype)
    found = pl.Series(np.where(index >= 0, rows[index] if len(rows) else -1, -1), dtype=pl.Int64)
    return values.gather(found.set(found < 0, None).cast(pl.UInt32))
