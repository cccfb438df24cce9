"""Train/test overlap: does the test ask what the training examples have already said? (Zhan et al. 2022, arXiv:2204.11447)

A held-out example that has its like among the training examples tests interpolation, one that has not tests extrapolation. A random
split is nearly all of the first kind, so its accuracy says little of the second. The audit measures, in the model's features (cosine
about the mean of the training examples),

- how near each held-out example is to its nearest training example, beside how near training examples are to each other: those farther
  than nine in ten training examples lie apart, and a random split has a tenth of them,
- how many are exact copies, and how often the nearest training example has the same target,
- the metric on the nearest third and on the farthest third.

And it gives the paper's two ways of splitting anew. `split(bucket)`, ReSTTest: all rows are clustered into five buckets; trained on four
of them, a model interpolates on their held-out rows and extrapolates on those of the fifth. `training(examples, regime)`, ReSTrain: for
a small test set, the training examples most or least like it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

from imprint.cleaning.neighbours import neighbours
from imprint.cleaning.slices import gap_interval, performance
from imprint.errors import MethodError
from imprint.recording.needs import HELD_OUT, Features, Outputs, Rows, Target

if TYPE_CHECKING:
    import plotly.graph_objects as go

BUCKETS = 5
# Training examples whose distance to each other is looked at, as what to compare with.
COMPARED = 5000


@dataclass(frozen=True)
class Overlap:
    """What held-out examples share with training examples.

    Attributes:
        metric: Name of the metric.
        near, far: The metric on the third of the held-out examples that is nearest to training examples, and on the farthest third.
        interval: 95 % interval of near less far.
        copies: Held-out examples with the very inputs of a training example.
        agreement: Share of held-out examples whose nearest training example has the same target (of a quantity: within half a
            standard deviation).
        inside: Median similarity of a training example to the nearest other training example.
        apart: Share of held-out examples that are less similar to any training example than nine in ten training examples are.
        table: id, nearest (id), similarity, same_target, copy, bucket of every held-out example.
        training_table: id, similarity (to the nearest held-out example), bucket of every training example.
        buckets: bucket, training, held_out (counts), lost: classes with nine in ten of their training examples or more in the bucket,
            which a model trained without it can hardly name.
    """

    metric: str
    near: float
    far: float
    interval: tuple[float, float]
    copies: int
    agreement: float
    inside: float
    apart: float
    table: pl.DataFrame = field(repr=False)
    training_table: pl.DataFrame = field(repr=False)
    buckets: pl.DataFrame = field(repr=False)

    def frame(self) -> pl.DataFrame:
        """One row per held-out example: id, nearest, similarity, same_target, copy, bucket."""
        return self.table

    def summary(self) -> str:
        """How near the test is to the training examples, and what that is worth."""
        median = float(self.table["similarity"].median() or 0.0)  # type: ignore[arg-type]
        low, high = self.interval
        kind = "little but interpolation: split anew to see extrapolation" if self.apart < 0.2 else "extrapolation too"
        return (
            f"{len(self.table):,} held-out examples: {self.copies} exact copies of training examples; median similarity {median:.2f} to "
            f"the nearest training example ({self.inside:.2f} among training examples), which has the same target for "
            f"{self.agreement:.0%}. "
            f"{self.metric} {self.near:.3f} on the nearest third and {self.far:.3f} on the farthest: {self.near - self.far:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f}). {self.apart:.0%} lie apart (10 % in a random split): the test asks for {kind}."
        )

    def plot(self) -> go.Figure:
        """Similarity of held-out examples to their nearest training example."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=self.table["similarity"].to_list(), nbinsx=60))
        figure.add_vline(x=self.inside, line_dash="dash", annotation_text="median among training examples")
        figure.update_layout(xaxis_title="similarity to the nearest training example", yaxis_title="held-out examples")
        return figure

    def split(self, bucket: int = 0) -> dict[str, str | None]:
        """A split in which one bucket asks for extrapolation, as `Corpus.resplit` takes it.

        A class that lies in the bucket as a whole is not trained on at all: `buckets` says how many there are.

        Returns:
            id -> "train" (training examples of the other buckets), "test" (their held-out examples: interpolation), "extrapolation" (the
            bucket's held-out examples), or None (its training examples, which are left out).

        Raises:
            MethodError: No such bucket.
        """
        number = int(self.training_table["bucket"].max() or 0) + 1  # type: ignore[arg-type]
        if not 0 <= bucket < number:
            raise MethodError(f"There is no bucket {bucket}.", f"Buckets go from 0 to {number - 1}.")
        found: dict[str, str | None] = {}
        for table, others, own in ((self.training_table, "train", None), (self.table, "test", "extrapolation")):
            for one, place in table.select("id", "bucket").iter_rows():
                found[one] = own if place == bucket else others
        return found

    def training(self, examples: int, regime: Literal["interpolation", "extrapolation"]) -> dict[str, str | None]:
        """A training set of this size that is most like the held-out examples, or least like them, as `Corpus.resplit` takes it.

        Of equally similar examples the earlier goes first. The held-out examples stay as they are.

        Raises:
            MethodError: The regime is unknown, or there are not so many training examples.
        """
        if regime not in ("interpolation", "extrapolation") or not 0 < examples <= len(self.training_table):
            raise MethodError(
                f"No training set of {examples} examples for {regime!r}.",
                f"Ask for 1 to {len(self.training_table)} examples for 'interpolation' or 'extrapolation'.",
            )
        ordered = self.training_table.sort("similarity", descending=regime == "interpolation", maintain_order=True)
        return {one: "train" if place < examples else None for place, one in enumerate(ordered["id"])}


def overlap(run: Any) -> Overlap:
    """What a run's held-out examples share with its training examples, and how to split them anew.

    Args:
        run: A recorded run.

    Raises:
        EvidenceError: All rows are training rows, or features cannot be had.
        MethodError: Fewer than 30 held-out or training examples.
    """
    held = run.gather(
        [Outputs("logits", split=HELD_OUT), Target(split=HELD_OUT), Features(split=HELD_OUT), Rows(split=HELD_OUT)]
    )
    train = run.gather([Target(), Features(), Rows()])
    rows, training = held["rows"].numpy(), train["rows"].numpy()
    if min(len(rows), len(training)) < 30:
        raise MethodError(
            f"{len(rows)} held-out and {len(training)} training examples are too few to compare.",
            "Give at least 30 of each.",
        )
    left, right = directions(held["features"], train["features"]), directions(train["features"], train["features"])
    similarity, nearest = closest(left, right)
    inside = among(right)
    back, _ = closest(right, left)
    own, target = held["target"], train["target"][nearest]
    if own.ndim == 2:
        same = (own == target).all(1).numpy()
    elif own.is_floating_point():
        same = ((own - target).abs() < 0.5 * own.std()).numpy()
    else:
        same = (own == target).numpy()
    value, _, metric = performance(held["logits"], own)
    order = np.argsort(-similarity, kind="stable")
    third = len(order) // 3
    near, far = value[order[:third]], value[order[-third:]]
    buckets = bucketed(np.concatenate([right, left]))
    corpus = run.corpus
    copies = np.isin(corpus.content[rows], corpus.content[training])
    table = pl.DataFrame(
        {
            "id": corpus.ids.gather(rows),
            "nearest": corpus.ids.gather(training[nearest]),
            "similarity": similarity,
            "same_target": same,
            "copy": copies,
            "bucket": buckets[len(training) :],
        }
    )
    training_table = pl.DataFrame(
        {"id": corpus.ids.gather(training), "similarity": back, "bucket": buckets[: len(training)]}
    )
    return Overlap(
        metric, float(near.mean()), float(far.mean()), gap_interval(far, near, 0.95), int(copies.sum()), float(same.mean()),
        float(np.median(inside)), float((similarity < np.quantile(inside, 0.1)).mean()), table, training_table,
        _counted(buckets[: len(training)], buckets[len(training) :], train["target"]),
    )  # fmt: skip


def _counted(training: Int[np.ndarray, " example"], held: Int[np.ndarray, " held_out"], target: Tensor) -> pl.DataFrame:
    """The table of buckets."""
    counts = [np.bincount(side, minlength=BUCKETS) for side in (training, held)]
    lost = np.zeros(BUCKETS, np.int64)
    if target.ndim == 1 and not target.is_floating_point():
        inside = np.zeros((int(target.max()) + 1, BUCKETS), np.int64)
        np.add.at(inside, (target.numpy(), training), 1)
        total = inside.sum(1, keepdims=True)
        lost = ((inside >= 0.9 * total) & (total > 0)).sum(0)
    return pl.DataFrame({"bucket": np.arange(BUCKETS), "training": counts[0], "held_out": counts[1], "lost": lost})


def directions(
    features: Float[Tensor, "row feature"], reference: Float[Tensor, "example feature"]
) -> Float[np.ndarray, "row feature"]:
    """Features about the mean of the reference, at length 1."""
    centred = features.float() - reference.float().mean(0)
    return (centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)).numpy()


def closest(
    rows: Float[np.ndarray, "row feature"], reference: Float[np.ndarray, "example feature"]
) -> tuple[Float[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Cosine with the nearest of the reference, and which it is."""
    distance, found = neighbours(rows, reference, 1)
    return 1 - distance[:, 0].astype(np.float64) ** 2 / 2, found[:, 0]


def among(training: Float[np.ndarray, "example feature"]) -> Float[np.ndarray, " some"]:
    """Cosine of training examples, at most 5000 of them, with the nearest other one."""
    some = np.sort(np.random.default_rng(0).choice(len(training), min(len(training), COMPARED), replace=False))
    distance, found = neighbours(training[some], training, 2)
    other = np.where(found[:, 0] == some, distance[:, 1], distance[:, 0])
    return 1 - other.astype(np.float64) ** 2 / 2


def bucketed(rows: Float[np.ndarray, "row feature"], number: int = BUCKETS) -> Int[np.ndarray, " row"]:
    """Bucket of each row, by k-means; numbered by size, the smallest first, so that the first bucket costs the fewest training examples."""
    import faiss

    means = faiss.Kmeans(rows.shape[1], number, niter=25, seed=0, spherical=True, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(rows, dtype=np.float32))
    found = means.index.search(np.ascontiguousarray(rows, dtype=np.float32), 1)[1][:, 0]
    order = np.argsort(np.bincount(found, minlength=number), kind="stable")
    rank = np.empty(number, np.int64)
    rank[order] = np.arange(number)
    return rank[found]
