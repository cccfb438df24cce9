"""Edits of a corpus, as facts: what was done, to which ids; and the difference between two versions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from imprint.corpus.corpus import Corpus


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        action: drop, relabel, reweight or append.
        rows: How many examples it changed.
        ids: Which; empty for a reweighting of all examples.
        before: Targets or weights before, one per id (relabel, reweight).
        after: The same afterwards.
    """

    action: str
    rows: int
    ids: tuple[str, ...] = ()
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()

    def spec(self) -> dict[str, Any]:
        """As JSON; values that JSON does not know become strings."""
        return json.loads(json.dumps(asdict(self), default=str))

    @staticmethod
    def from_spec(spec: dict[str, Any]) -> Edit:
        """The inverse of `spec`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()
        }
        return Edit(**fields)

    def __str__(self) -> str:
        return f"{self.action} {self.rows:,} example{'s' if self.rows != 1 else ''}"


SCHEMA = {"id": pl.String, "change": pl.String, "before": pl.String, "after": pl.String}


def difference(new: Corpus, old: Corpus) -> pl.DataFrame:
    """What leads from `old` to `new`: id, position, change (added, dropped, relabelled, reweighted), before, after.

    `before` and `after` are the target, or for "reweighted" the weight, as text. A row that was both relabelled and
    reweighted stands twice.
    """
    mine, theirs = _facts(new), _facts(old)
    both = mine.join(theirs, on="id", how="inner", suffix="_old", maintain_order="left")
    parts = [
        theirs.join(mine, on="id", how="anti", maintain_order="left").select(
            "id", "position", change=pl.lit("dropped"), before="target", after=pl.lit(None, pl.String)
        ),
        both.filter(pl.col("target").ne_missing(pl.col("target_old"))).select(
            "id", "position", change=pl.lit("relabelled"), before="target_old", after="target"
        ),
        both.filter(pl.col("weight") != pl.col("weight_old")).select(
            "id",
            "position",
            change=pl.lit("reweighted"),
            before=pl.col("weight_old").cast(pl.String),
            after=pl.col("weight").cast(pl.String),
        ),
        mine.join(theirs, on="id", how="anti", maintain_order="left").select(
            "id", "position", change=pl.lit("added"), before=pl.lit(None, pl.String), after="target"
        ),
    ]
    return pl.concat(parts, how="vertical_relaxed").select("id", "position", "change", "before", "after")


def as_text(values: pl.Series) -> pl.Series:
    """Targets as text; lists of labels joined by commas.

    >>> as_text(pl.Series([["b", "a"], []])).to_list()
    ['b, a', '']
    """
    if values.dtype == pl.List:
        return values.list.eval(pl.element().cast(pl.String)).list.join(", ")
    return values.cast(pl.String)


def _facts(corpus: Corpus) -> pl.DataFrame:
    weights = (
        pl.Series("weight", corpus.weights)
        if corpus.weights is not None
        else pl.repeat(1.0, len(corpus), dtype=pl.Float32, eager=True)
    )
    return pl.DataFrame(
        {"id": corpus.ids, "position": corpus.positions, "target": as_text(corpus.target), "weight": weights}
    )
