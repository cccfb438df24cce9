"""Slices: groups of examples on which the model does worse than on the others, found among many and corrected for that.

Candidates are the values of every cheap attribute (of a table: of every column), all pairs of them, and clusters of the model's features.
They are laid out without looking at what the model gets right, on held-out examples, so that each candidate is an honest test of
"is the model as good here as elsewhere?":

- right or wrong: exact, conditional on how many are wrong in all (the hypergeometric distribution, Fisher 1922),
- a quantity: Welch's t.

With thousands of candidates some look bad by chance. The Benjamini-Hochberg procedure holds the expected share of false findings at 5 %,
and the intervals of the selected gaps are widened to match (Benjamini, Yekutieli 2005: level 1 - R q / m for R selected of m). Slices
overlap: a pair is left out unless it is clearly worse than either of its parts, and of the rest, in the order of their evidence, one is
reported only if it still stands out among the examples that those before it leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.cleaning.attributes import Cuts, attributes, cut
from imprint.cleaning.flags import Flags
from imprint.cleaning.outlying import standardised
from imprint.clusters import kmeans
from imprint.methods import method
from imprint.recording.needs import HELD_OUT, Classes, Features, Outputs, Rows, Table, Target

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Held-out examples in the smallest slice, and outside the largest.
LEAST = 30
# A gap matters from this much of the headline metric on (5 points of accuracy), however sure it is.
MATTERS = 0.05
# Expected share of false findings.
RATE = 0.05
# At most this many slices are reported, those with the strongest evidence.
REPORTED = 10
# Held-out examples that are looked at, and single slices that are combined to pairs: those that divide the examples most evenly,
# since pairs of rare slices are too small to test.
EXAMPLES, PAIRED = 50_000, 400
# One cluster for this many examples, and never more than MOST.
PER_CLUSTER, MOST = 60, 40


@dataclass(frozen=True)
class Slice:
    """A slice that underperforms.

    Attributes:
        name: In words.
        member: Which of the examples are in it.
        count: How many.
        inside, outside: Mean of the metric in it and among the others.
        gap: The second less the first.
        interval: Confidence interval of the gap, corrected for selection.
        adjusted: p-value, corrected for the number of slices tested.
        tested: How many were tested.
        cluster: Whether it is a cluster of the features.
    """

    name: str
    member: Bool[np.ndarray, " example"]
    count: int
    inside: float
    outside: float
    gap: float
    interval: tuple[float, float]
    adjusted: float
    tested: int
    cluster: bool


@method(
    "clean", "subgroups", kind="subgroup", higher="the metric is this much lower on the slice than elsewhere",
    needs=[
        Outputs("logits", split=HELD_OUT), Target(split=HELD_OUT), Features(split=HELD_OUT), Rows(split=HELD_OUT), Table(), Classes(),
    ],
    source="slices of columns and pairs: Chung et al. 2020, arXiv:1807.06068; corrected by Benjamini, Hochberg 1995 and Benjamini, "
    "Yekutieli 2005",
)  # fmt: skip
def subgroups(
    logits: Float[Tensor, "example output"],
    target: Tensor,
    features: Float[Tensor, "example feature"],
    rows: Int[Tensor, " example"],
    corpus: Corpus,
    classes: Sequence[Any],
) -> Flags:
    """Slices of held-out examples on which the model does worse: column values, pairs of them, clusters; at most ten findings, no id.

    A slice has at least 30 held-out examples and a metric (accuracy, share with all labels right, R2) lower by at least 0.05, at a false
    discovery rate of 5 % over all slices tested. Severity = the gap.
    """
    count = len(logits)
    if count < 2 * LEAST:
        return Flags.none()
    if count > EXAMPLES:
        some = torch.from_numpy(np.sort(np.random.default_rng(0).choice(count, EXAMPLES, replace=False)))
        logits, target, features, rows = logits[some], target[some], features[some], rows[some]
    value, expected, metric = performance(logits, target)
    places = rows.numpy()
    cuts = cut(attributes(corpus, places), LEAST)
    cluster = clusters(features)
    found = worst(value, cuts, cluster)
    words = []
    for one in found:
        what = f"{metric} {one.inside:.2f} on the {one.count} held-out examples {'in' if one.cluster else 'with'} {one.name}"
        if one.cluster:
            what += f" ({described(one.member, cuts, features, target, corpus, places, classes)})"
        low, high = one.interval
        what += f", {one.outside:.2f} on the others: {one.gap:.2f} lower "
        what += f"(interval {low:.2f} to {high:.2f}, corrected for {one.tested:,} slices)"
        if expected is not None:
            what += f"; the model expects {expected[one.member].mean():.2f} there"
        words.append(what)
    return Flags.about_columns(
        [(one.name, float(min(1.0, one.gap)), text) for one, text in zip(found, words, strict=True)]
    )


def performance(
    logits: Float[Tensor, "example output"], target: Tensor
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"] | None, str]:
    """What each example adds to the metric, what the model expects it to add (None of a quantity), and the metric's name."""
    if target.ndim == 2:
        right = ((logits > 0) == (target > 0.5)).all(1)
        sure = torch.sigmoid(logits.double().abs()).prod(1)
        return right.double().numpy(), sure.numpy(), "share with all labels right"
    if target.is_floating_point():
        square = (logits.squeeze(1).double() - target.double()).square()
        return (1 - square / target.double().var(correction=0).clamp(min=1e-12)).numpy(), None, "R2"
    sure = logits.double().softmax(1).amax(1)
    return (logits.argmax(1) == target).double().numpy(), sure.numpy(), "accuracy"


def clusters(features: Float[Tensor, "example feature"]) -> Int[np.ndarray, " example"]:
    """Cluster of each example: k-means of standardised features, one cluster for 60 examples up to 40."""
    scaled = standardised(features)
    number = min(MOST, len(scaled) // PER_CLUSTER)
    if number < 2:
        return np.full(len(scaled), -1)
    return kmeans(scaled, number, torch.Generator().manual_seed(0))[0].numpy()


def worst(
    value: Float[np.ndarray, " example"],
    cuts: Cuts,
    cluster: Int[np.ndarray, " example"] | None = None,
    least: int = LEAST,
    matters: float = MATTERS,
    rate: float = RATE,
    most: int = REPORTED,
) -> list[Slice]:
    """The slices whose mean value is lower than that of the others, corrected interval and all, strongest evidence first.

    Args:
        value: Of each example; 0 and 1 only gives an exact test.
        cuts: Its attributes, cut.
        cluster: A cluster of each example, -1 = none.
        least: Smallest slice, and fewest examples outside.
        matters: Smallest gap.
        rate: False discovery rate.
        most: At most this many slices.
    """
    candidates = Candidates.of(cuts, cluster, value, least)
    if not len(candidates.count):
        return []
    tested = len(candidates.count)
    gap, p = compare(candidates.count, candidates.total, candidates.square, value, matters)
    adjusted = benjamini_hochberg(p)
    selected = np.flatnonzero((adjusted <= rate) & (gap >= matters))
    if not len(selected):
        return []
    threshold = p[selected].max()
    level = 1 - len(selected) * rate / tested
    selected = selected[candidates.worse_than_parts(selected, gap, matters / 2)]
    # Of slices with equal evidence the larger one says more.
    order = selected[np.lexsort((-candidates.count[selected], p[selected]))].tolist()
    found: list[Slice] = []
    left = np.ones(len(value), bool)
    for place in order:
        member = candidates.member(place)
        if found:
            inside = member & left
            rest = value[left]
            count = np.array([inside.sum()])
            if count[0] < least or len(rest) - count[0] < least:
                continue
            again, p_again = compare(
                count, np.array([value[inside].sum()]), np.array([(value[inside] ** 2).sum()]), rest, matters
            )
            if again[0] < matters or p_again[0] > threshold:
                continue
        interval = gap_interval(value[member], value[~member], level)
        if interval[0] <= 0:
            continue
        found.append(
            Slice(
                candidates.name(place), member, int(member.sum()), float(value[member].mean()), float(value[~member].mean()),
                float(gap[place]), interval, float(adjusted[place]), tested, bool(candidates.first[place, 0] < 0),
            )
        )  # fmt: skip
        left &= ~member
        if len(found) == most:
            break
    return found


@dataclass(frozen=True)
class Candidates:
    """Slices to test, with the sums that the tests need.

    Attributes:
        first, second: (attribute, part) of each; attribute -1 = a cluster, second -1 = no pair.
        count, total, square: Number of examples, sum of their values and of the squares.
    """

    cuts: Cuts
    cluster: Int[np.ndarray, " example"] | None
    first: Int[np.ndarray, "slice two"]
    second: Int[np.ndarray, "slice two"]
    count: Float[np.ndarray, " slice"]
    total: Float[np.ndarray, " slice"]
    square: Float[np.ndarray, " slice"]

    @classmethod
    def of(
        cls,
        cuts: Cuts,
        cluster: Int[np.ndarray, " example"] | None,
        value: Float[np.ndarray, " example"],
        least: int,
    ) -> Candidates:
        """Single slices, pairs of slices of different attributes, and clusters, that are large enough and leave enough."""
        singles = np.array(
            [(place, part) for place, names in enumerate(cuts.names) for part in range(len(names))], np.int64
        ).reshape(-1, 2)
        moments = np.stack([np.ones_like(value), value, value**2])
        # Per attribute: sums of every part at once.
        sums = [np.empty((0, 3))]
        for place, names in enumerate(cuts.names):
            code = cuts.code[:, place].astype(np.int64) + 1
            sums.append(np.stack([np.bincount(code, one, len(names) + 1)[1:] for one in moments], 1))
        single = np.concatenate(sums)
        share = single[:, 0] / len(value)
        combined = np.sort(np.argsort(-share * (1 - share), kind="stable")[:PAIRED])
        pairs, paired = _pairs(cuts, singles[combined], moments)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(singles, np.full_like(singles, -1), single)]
        parts.append((singles[combined][pairs[:, 0]], singles[combined][pairs[:, 1]], paired))
        if cluster is not None and len(cluster) and cluster.max() >= 0:
            number = int(cluster.max()) + 1
            own = np.stack([np.bincount(cluster + 1, one, number + 1)[1:] for one in moments], 1)
            parts.append((np.stack([np.full(number, -1), np.arange(number)], 1), np.full((number, 2), -1), own))
        first, second, both = (np.concatenate([part[side] for part in parts]) for side in range(3))
        enough = (both[:, 0] >= least) & (both[:, 0] <= len(value) - least)
        count, total, square = both[enough].T
        return cls(cuts, cluster, first[enough], second[enough], count, total, square)

    def member(self, place: int) -> Bool[np.ndarray, " example"]:
        """The examples in a slice."""
        attribute, part = self.first[place]
        if attribute < 0:
            assert self.cluster is not None
            return self.cluster == part
        mask = self.cuts.mask(attribute, part)
        return mask & self.cuts.mask(*self.second[place]) if self.second[place, 0] >= 0 else mask

    def worse_than_parts(
        self, places: Int[np.ndarray, " some"], gap: Float[np.ndarray, " slice"], more: float
    ) -> Bool[np.ndarray, " some"]:
        """Which of these slices are no pairs, or pairs whose gap is larger by `more` than that of either part."""
        single = {tuple(self.first[place]): gap[place] for place in np.flatnonzero(self.second[:, 0] < 0)}
        parts = [
            [single.get(tuple(side[place]), -np.inf) for side in (self.first, self.second)]
            if self.second[place, 0] >= 0
            else [-np.inf]
            for place in places
        ]
        return np.array([gap[place] >= max(own) + more for place, own in zip(places, parts, strict=True)], bool)

    def name(self, place: int) -> str:
        """A slice in words."""
        attribute, part = self.first[place]
        if attribute < 0:
            return f"cluster {part}"
        words = self.cuts.names[attribute][part]
        other, piece = self.second[place]
        return f"{words} and {self.cuts.names[other][piece]}" if other >= 0 else words


def _pairs(
    cuts: Cuts, singles: Int[np.ndarray, "single two"], moments: Float[np.ndarray, "three example"]
) -> tuple[Int[np.ndarray, "pair two"], Float[np.ndarray, "pair three"]]:
    """Pairs of singles of different attributes, and their sums: products of indicator matrices, block by block."""
    number = len(singles)
    sums = np.zeros((3, number, number))
    # Counts are exact in float32; sums of quantities want more digits.
    kind = np.float32 if np.isin(moments, (0.0, 1.0)).all() else np.float64
    for start in range(0, moments.shape[1], 4096):
        block = slice(start, start + 4096)
        inside = (cuts.code[block][:, singles[:, 0]] == singles[:, 1]).astype(kind)
        for place in range(3):
            sums[place] += inside.T @ (inside * moments[place, block, None].astype(kind))
    pairs = np.argwhere(np.triu(singles[:, 0][:, None] != singles[:, 0], 1))
    return pairs, sums[:, pairs[:, 0], pairs[:, 1]].T


def compare(
    count: Float[np.ndarray, " slice"],
    total: Float[np.ndarray, " slice"],
    square: Float[np.ndarray, " slice"],
    value: Float[np.ndarray, " example"],
    matters: float = 0.0,
) -> tuple[Float[np.ndarray, " slice"], Float[np.ndarray, " slice"]]:
    """Gap (mean outside less mean inside) and one-sided p-value of each slice; 1 where the gap is too small to matter.

    >>> gap, p = compare(np.array([4.0]), np.array([0.0]), np.array([0.0]), np.array([0.0] * 4 + [1.0] * 4))
    >>> gap.tolist(), p.round(4).tolist()  # 1 of the 70 ways to choose 4 of 8
    ([1.0], [0.0143])
    """
    from scipy.stats import hypergeom, t

    size, whole, squares = len(value), float(value.sum()), float((value**2).sum())
    others = size - count
    inside, outside = total / count, (whole - total) / others
    gap = outside - inside
    p = np.ones(len(count))
    asked = np.flatnonzero(gap >= max(matters, 1e-12))
    if np.isin(value, (0.0, 1.0)).all():
        p[asked] = hypergeom.cdf(np.rint(total[asked]), size, round(whole), np.rint(count[asked]))
        return gap, p
    spread = np.maximum(square / count - inside**2, 0) / np.maximum(count - 1, 1)
    spread_outside = np.maximum((squares - square) / others - outside**2, 0) / np.maximum(others - 1, 1)
    error = spread + spread_outside
    freedom = error**2 / np.maximum(
        spread**2 / np.maximum(count - 1, 1) + spread_outside**2 / np.maximum(others - 1, 1), 1e-300
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        p[asked] = t.sf(gap[asked] / np.sqrt(error[asked]), np.maximum(freedom[asked], 1))
    return gap, np.nan_to_num(p, nan=0.0)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values: those at most q are found at a false discovery rate of q (Benjamini, Hochberg 1995).

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    order = np.argsort(p)[::-1]
    rank = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(p[order] * len(p) / rank)
    return np.minimum(adjusted, 1)


def gap_interval(
    inside: Float[np.ndarray, " example"], outside: Float[np.ndarray, " other"], level: float
) -> tuple[float, float]:
    """Interval of the difference of means, outside less inside.

    Of right and wrong with one of each added on both sides (Agresti, Caffo 2000), so that a slice without a single error is no certainty;
    else by Welch.
    """
    from scipy.stats import norm, t

    if np.isin(inside, (0.0, 1.0)).all() and np.isin(outside, (0.0, 1.0)).all():
        shares = [(part.sum() + 1) / (len(part) + 2) for part in (inside, outside)]
        error = sum(
            share * (1 - share) / (len(part) + 2) for share, part in zip(shares, (inside, outside), strict=True)
        )
        half = float(norm.isf((1 - level) / 2)) * error**0.5
        gap = shares[1] - shares[0]
        return max(-1.0, float(gap - half)), min(1.0, float(gap + half))
    parts = [part.var(ddof=1) / len(part) for part in (inside, outside)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(one) - 1) for part, one in zip(parts, (inside, outside), strict=True)
    )
    half = float(t.isf((1 - level) / 2, freedom)) * sum(parts) ** 0.5
    gap = outside.mean() - inside.mean()
    return float(gap - half), float(gap + half)


def described(
    member: Bool[np.ndarray, " example"],
    cuts: Cuts,
    features: Float[Tensor, "example feature"],
    target: Tensor,
    corpus: Corpus,
    rows: Int[np.ndarray, " example"],
    classes: Sequence[Any],
) -> str:
    """A cluster in words: its usual label, what is commoner in it than elsewhere, and the examples nearest to its centre."""
    parts = []
    if target.dtype == torch.int64 and target.ndim == 1:
        label, number = max(enumerate(np.bincount(target[member].numpy()).tolist()), key=lambda one: one[1])
        parts.append(f"{number / member.sum():.0%} labelled {classes[label]}")
    columns = [name for name, kind in corpus.kinds.items() if kind == "text"]
    if columns:
        parts.append("words such as " + ", ".join(_words(corpus, rows, columns, member)))
    typical = []
    for place, names in enumerate(cuts.names):
        code = cuts.code[:, place].astype(np.int64) + 1
        here, there = (np.bincount(code[side], minlength=len(names) + 1)[1:] / side.sum() for side in (member, ~member))
        typical += [(here[part] - there[part], here[part], name) for part, name in enumerate(names)]
    parts += [f"{share:.0%} {name}" for more, share, name in sorted(typical, reverse=True)[:2] if more > 0.25]
    own = features[torch.from_numpy(member)].double()
    near = (own - own.mean(0)).square().sum(1).topk(min(3, len(own)), largest=False).indices.numpy()
    ids = corpus.ids.gather(rows[np.flatnonzero(member)[near]])
    parts.append("such as " + ", ".join(f"'{one}'" for one in ids))
    return "; ".join(parts)


def _words(
    corpus: Corpus, rows: Int[np.ndarray, " example"], columns: list[str], member: Bool[np.ndarray, " example"]
) -> list[str]:
    """Three words that are commoner in the slice than elsewhere, by the difference of the shares of texts that hold them."""
    rng = np.random.default_rng(0)
    sides = [
        np.sort(rng.choice(where, min(len(where), 2000), replace=False))
        for where in map(np.flatnonzero, (member, ~member))
    ]
    shares = []
    for side in sides:
        texts = (
            corpus.read(rows[side], columns)
            .select(pl.concat_str(pl.col(columns).fill_null(""), separator=" "))
            .to_series()
        )
        words = texts.str.to_lowercase().str.extract_all(r"\p{L}{3,}").list.unique().explode().drop_nulls()
        shares.append(words.value_counts().rename({words.name: "word"}).with_columns(pl.col("count") / len(side)))
    both = shares[0].join(shares[1], on="word", how="left").fill_null(0.0)
    return both.sort(pl.col("count_right") - pl.col("count"), "word")["word"].head(3).to_list()
