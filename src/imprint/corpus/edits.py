"""Edits of a corpus, as facts: what was done, to which ids; and the difference between two versions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from imprint.errors import MethodError

if TYPE_CHECKING:
    from imprint.corpus.corpus import Corpus


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        action: drop, relabel, reweight, resplit or append.
        rows: How many examples it changed.
        ids: Which; empty for a reweighting of all examples.
        before: Targets, weights or splits before, one per id (relabel, reweight, resplit).
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


def keep_selected(corpus: Corpus, answer: Any, frame: pl.DataFrame) -> Corpus:
    """The version with only the chosen ones of the training examples, weighted; other splits stay as they are.

    Args:
        corpus: The version that was chosen from, or one that was made from it.
        answer: The selection, or its frame.
        frame: Its frame: id, weight.

    Raises:
        MethodError: It chooses anew in each epoch, or an example is in it twice.
        IdError: A chosen example is not in this version.
    """
    if getattr(answer, "dynamic", False):
        raise MethodError(
            f"'{answer.method}' chooses anew in each epoch, which no version of a corpus can say.",
            "Train with it: imprint.Learner(sampler=selection.sampler()).",
        )
    if frame["id"].is_duplicated().any():
        raise MethodError("An example is in the selection twice.", "Give each once, and a weight for what counts more.")
    rows = corpus.rows_of(frame["id"])
    training = corpus.rows("train") if "train" in corpus.splits else corpus.rows()
    kept = corpus.drop(corpus.ids.gather(np.setdiff1d(training, rows)))
    weights = frame["weight"].cast(pl.Float32).to_numpy()
    if (weights == 1).all():
        return kept
    own = np.ones(len(rows), np.float32) if corpus.weights is None else corpus.weights[rows]
    return kept.reweight(dict(zip(frame["id"].to_list(), (own * weights).tolist(), strict=True)))


SCHEMA = {"id": pl.String, "change": pl.String, "before": pl.String, "after": pl.String}


def difference(new: Corpus, old: Corpus) -> pl.DataFrame:
    """What leads from `old` to `new`: id, position, change (added, dropped, relabelled, reweighted, resplit), before, after.

    `before` and `after` are the target, for "reweighted" the weight, for "resplit" the split, as text. A row that was both
    relabelled and reweighted stands twice.
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
        both.filter(pl.col("split") != pl.col("split_old")).select(
            "id", "position", change=pl.lit("resplit"), before="split_old", after="split"
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
        {
            "id": corpus.ids,
            "position": corpus.positions,
            "target": as_text(corpus.target),
            "weight": weights,
            "split": corpus.split_names,
        }
    )
