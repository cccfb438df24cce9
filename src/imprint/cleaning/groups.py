"""What to do about groups of copies: the rules shared by exact and near duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from imprint.cleaning.flags import Flags
from imprint.tasks import infer

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Severity of an exact copy; of a near copy, times its similarity. A leak falsifies the measured accuracy, a contradiction is a
# wrong label for sure, a plain copy only weighs an example twice, and outside the training split it only weighs it in the metric.
LEAK, CONTRADICTION, COPY, COPY_ELSEWHERE = 1.0, 0.8, 0.5, 0.3
# From this similarity on a copy may be dropped without looking at it.
SAME = 0.95


def connected(pairs: Int[np.ndarray, "pair two"], count: int) -> Int[np.ndarray, " row"]:
    """Connected components of the pairs over `count` rows: a group number for rows in a pair, -1 for the rest.

    >>> connected(np.array([[0, 3], [3, 4]]), 6)
    array([ 0, -1, -1,  0,  0, -1])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    touched, local = np.unique(pairs, return_inverse=True)
    edges = local.reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(touched), len(touched)))
    group = np.full(count, -1)
    group[touched] = connected_components(graph, directed=False)[1]
    return group


def judge_groups(
    corpus: Corpus,
    group: Int[np.ndarray, " row"],
    similarity: Float[np.ndarray, " row"] | None = None,
    what: str = "the same inputs as",
) -> Flags:
    """Flags for groups of copies.

    - A group in the training split and in another one is a leak: its training members are to be dropped, since the other split is
      what the model is measured on. The same copy in two other splits is a leak to review.
    - A group whose members have different targets is a contradiction: all of them are to be reviewed. (Regression: targets that
      differ by more than one standard deviation.)
    - A near copy (similarity below 0.95) is never dropped for that alone: it is for review.
    - Of any other group the first member stays and the further training members are to be dropped; further members in
      other splits are for review, since dropping them changes what is measured.

    Args:
        corpus: The corpus whose rows these are.
        group: Group number of each row, -1 for none.
        similarity: Similarity of each row with its group, 1 for exact copies (the default).
        what: How the evidence names the relation.
    """
    rows = np.flatnonzero(group >= 0)
    if not len(rows):
        return Flags.none()
    frame = pl.DataFrame(
        {
            "row": rows,
            "group": group[rows],
            "similarity": np.ones(len(rows)) if similarity is None else similarity[rows],
            "train": corpus.split_names.gather(rows) == "train",
            "split": corpus.split_names.gather(rows),
        }
    ).with_columns(_contradicts(corpus, rows, group[rows]))
    elsewhere = ~pl.col("train")
    frame = frame.with_columns(
        (pl.col("split").n_unique() > 1).over("group").alias("spans"),
        (pl.col("train").any() & elsewhere.any()).over("group").alias("leaks"),
        # The member that stays: the first outside the training split where it leaks, else the first.
        pl.coalesce(
            pl.col("row").filter(elsewhere & pl.col("train").any()).min().over("group"),
            pl.col("row").min().over("group"),
        ).alias("stays"),
        pl.len().over("group").alias("size"),
    )
    leak = (pl.col("leaks") & pl.col("train")) | (
        pl.col("spans") & ~pl.col("leaks") & (pl.col("row") != pl.col("stays"))
    )
    frame = frame.with_columns(
        pl.when(leak).then(LEAK).when("contradicts").then(CONTRADICTION)
        .when("train").then(COPY).otherwise(COPY_ELSEWHERE).alias("severity"),
        pl.when(leak).then(pl.lit("leak")).otherwise(pl.lit("duplicate")).alias("kind"),
        pl.when(pl.col("train") & (leak | ~pl.col("contradicts")) & (pl.col("similarity") >= SAME))
        .then(pl.lit("drop")).otherwise(pl.lit("review")).alias("suggestion"),
    ).filter((pl.col("row") != pl.col("stays")) | (pl.col("contradicts") & ~pl.col("leaks")))  # fmt: skip
    # A member that stays and is to be reviewed is shown beside another one.
    other = pl.col("row").filter(pl.col("row") != pl.col("stays")).min().over("group")
    frame = frame.with_columns(
        pl.when(pl.col("row") == pl.col("stays")).then(other).otherwise("stays").alias("related")
    ).sort("row")
    ids = corpus.ids.gather(frame["related"])
    homes = corpus.split_names.gather(frame["related"])
    words = frame.select(
        pl.concat_str(
            pl.format("{} '{}'", pl.lit(what), ids),
            pl.when(pl.col("kind") == "leak").then(pl.format(" in the split '{}'", homes)).otherwise(pl.lit("")),
            pl.when("contradicts").then(pl.lit(", and the targets differ")).otherwise(pl.lit("")),
            pl.when(pl.col("size") > 2).then(pl.format(" (one of {} copies)", "size")).otherwise(pl.lit("")),
        )
    ).to_series()
    return Flags(
        row=frame["row"].to_numpy(),
        severity=(frame["severity"] * frame["similarity"]).to_numpy().astype(np.float32),
        suggestion=frame["suggestion"].to_list(),
        evidence=words.to_list(),
        kind=frame["kind"].to_list(),
        related=frame["related"].to_numpy(),
        over="corpus",
    )


def _contradicts(corpus: Corpus, rows: Int[np.ndarray, " member"], group: Int[np.ndarray, " member"]) -> pl.Series:
    """Whether the targets of each member's group differ."""
    target = corpus.target.gather(rows)
    if infer(corpus.target) == "regression":
        spread = corpus.target.drop_nulls().cast(pl.Float64).std()
        differ = (pl.col("target").max() - pl.col("target").min() > spread).over("group")
    else:
        if target.dtype == pl.List:
            target = target.list.unique().list.sort().cast(pl.List(pl.String)).list.join("\x1f")
        differ = (pl.col("target").n_unique() > 1).over("group")
    return pl.DataFrame({"group": group, "target": target}).select(differ.alias("contradicts")).to_series()
