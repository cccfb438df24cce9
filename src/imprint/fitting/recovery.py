"""RCAL: class distributions behind wrong labels and a long tail, and a head trained on what they say (Zhang et al. 2023, arXiv:2211.10955).

Features of each true class are taken to be Gaussian. Wrong labels mix the classes, and a rare class has too few examples to be
estimated. So, class by class:

1. examples that are outliers among those with their label (local outlier factor) are left out of its mean and covariance;
2. a rare class (fewer examples than the average class) borrows from the `q` frequent ones whose means are nearest to its own, weighted by
   their sizes: `mean' = (1 - g) mean + g sum_i w_i mean_i`, and its covariance likewise;
3. further features are drawn from the Gaussians until the classes are equally frequent;
4. a logistic head is solved on all examples and those that were drawn.

Of the paper's fourth part, learned features are held near the ones that contrastive learning gave: here features are frozen, so
that it has nothing to do; and mixup is left out. Outliers are left out of the distributions alone, as in the paper: among them are
many right labels of what is rare within a class, and a head that never saw these was worse on real data.

Chosen here, where the paper has constants: frequent classes count by their sizes; the outlier factor looks at half of a class (a smaller
neighbourhood takes wrong labels that lie together for a class of their own), and an outlier is three robust deviations above the
median; `g` of the means is `v / (v + D^2)`, v the variance of the class's mean and D the distance to the borrowed one, and
`d / (d + n)` of the covariance.

Covariances are never written out: a draw is a random combination of centred examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting.logistic import logistic

NEAREST_HEADS = 3
# Neighbours of the outlier factor as a share of a class, and how many robust deviations above the median are one too many.
NEIGHBOURS, DEVIATIONS = 0.5, 3.0
LEAST_JUDGED = 8
# Examples of a class that its outlier factors and its covariance are read from; more say nothing new.
MOST_READ = 2000
# Rows that are judged or drawn at a time: 64 MB of distances or normal numbers.
BLOCK = 4096
# Of a normal distribution, the standard deviation in median absolute deviations.
ROBUST = 1.4826
# At most this many examples are drawn for each that there is; what lacks then counts more.
MOST_DRAWN = 2.0


@dataclass(frozen=True)
class Part:
    """One term of a class's covariance.

    Attributes:
        centred: Examples about their mean; of at most `MOST_READ`.
        share: Weight of their covariance.
    """

    centred: Float[Tensor, "example feature"]
    share: float


@dataclass(frozen=True)
class Recovered:
    """The Gaussians behind the labels.

    Attributes:
        kept: Which examples are no outliers of their label.
        counts: Of the examples that are kept, by class.
        mean: Of each class; of a class without examples zero.
        parts: Of each class, what its covariance is made of.
        tail: Which classes borrowed from others.
    """

    kept: Bool[Tensor, " example"]
    counts: Int[Tensor, " class"]
    mean: Float[Tensor, "class feature"]
    parts: list[list[Part]]
    tail: Bool[Tensor, " class"]

    def covariance(self, code: int) -> Float[Tensor, "feature feature"]:
        """The covariance of a class, written out."""
        return torch.stack(
            [one.share * one.centred.T @ one.centred / len(one.centred) for one in self.parts[code]]
        ).sum(0)

    def draw(self, code: int, count: int, random: torch.Generator) -> Float[Tensor, "draw feature"]:
        """Features drawn from a class."""
        found = self.mean[code].expand(count, -1).clone()
        for rows in torch.split(found, BLOCK):
            for part in self.parts[code]:
                normal = torch.randn(len(rows), len(part.centred), generator=random, dtype=found.dtype)
                rows += normal @ part.centred * (part.share / len(part.centred)) ** 0.5
        return found


def recover(
    features: Float[Tensor, "example feature"],
    target: Int[Tensor, " example"],
    classes: int,
    heads: int = NEAREST_HEADS,
) -> Recovered:
    """The Gaussians of features behind labels of which some are wrong.

    Args:
        features: Frozen features.
        target: Given class codes.
        classes: How many there are.
        heads: How many frequent classes a rare one borrows from.
    """
    features = features.double()
    kept = torch.ones(len(target), dtype=torch.bool)
    for code in range(classes):
        rows = (target == code).nonzero()[:, 0]
        kept[rows] = inliers(features[rows])
    counts = torch.bincount(target[kept], minlength=classes)
    own = [features[kept & (target == code)] for code in range(classes)]
    mean = torch.stack([one.mean(0) if len(one) else features.new_zeros(features.shape[1]) for one in own])
    centred = [spread_out(one, MOST_READ) - mean[code] for code, one in enumerate(own)]
    there = counts > 0
    tail = there & (counts < counts.sum() / there.sum())
    frequent = (there & ~tail).nonzero()[:, 0]
    found, parts = mean.clone(), [[Part(one, 1.0)] if len(one) else [] for one in centred]
    for code in tail.nonzero()[:, 0].tolist():
        nearest = frequent[torch.cdist(mean[code][None], mean[frequent])[0].argsort(stable=True)[:heads]]
        share = counts[nearest] / counts[nearest].sum()
        borrowed = share.double() @ mean[nearest]
        scatter = torch.stack([centred[one].square().sum() / len(centred[one]) for one in nearest.tolist()])
        variance = share.double() @ scatter / counts[code]
        weight = variance / (variance + (borrowed - mean[code]).square().sum()).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        found[code] = (1 - weight) * mean[code] + weight * borrowed
        far = features.shape[1] / (features.shape[1] + int(counts[code]))
        parts[code] = [Part(centred[code], 1 - far)] + [
            Part(centred[one], far * float(part)) for one, part in zip(nearest.tolist(), share, strict=True)
        ]
    return Recovered(kept, counts, found, parts, tail)


def inliers(features: Float[Tensor, "example feature"]) -> Bool[Tensor, " example"]:
    """Which examples of one label are no outliers among them; all, where there are too few to say.

    >>> cloud = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    >>> inliers(torch.cat([cloud, torch.full((4, 2), 9.0) + cloud[:4]]))[-4:]
    tensor([False, False, False, False])
    """
    from sklearn.neighbors import LocalOutlierFactor

    if len(features) < LEAST_JUDGED:
        return torch.ones(len(features), dtype=torch.bool)
    read = spread_out(features, MOST_READ).numpy()
    judge = LocalOutlierFactor(n_neighbors=max(2, int(NEIGHBOURS * len(read))), novelty=len(read) < len(features))
    judge.fit(read)
    factor = -judge.negative_outlier_factor_
    if judge.novelty:
        factor = -np.concatenate([judge.score_samples(rows.numpy()) for rows in torch.split(features, BLOCK)])
    middle = np.median(factor)
    reach = DEVIATIONS * ROBUST * np.median(np.abs(factor - middle))
    return torch.from_numpy(factor <= middle + reach)


def spread_out(rows: Tensor, most: int) -> Tensor:
    """At most so many of these rows, evenly spaced."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def recovered_head(
    features: Float[Tensor, "example feature"],
    target: Int[Tensor, " example"],
    classes: int,
    weight: Float[Tensor, " example"] | None,
    decay: float,
    random: torch.Generator,
) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"]]:
    """Weights and intercept of a logistic head on features as they are and drawn ones, in float64.

    Args:
        features: Frozen features.
        target: Given class codes.
        classes: How many there are.
        weight: Of each example, or None for all one; what is drawn counts as an average one.
        decay: The penalty of `imprint.fitting.logistic`.
        random: Draws the features.

    Raises:
        LearnerError: No class has an example.
    """
    if not len(target):
        raise LearnerError("There is no training example.", "Give some rows the split 'train'.")
    found = recover(features, target, classes)
    weight = (
        torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double() / weight.double().mean()
    )
    inputs, codes, counted = [features.double()], [target], [weight]
    # A class is to count as much as the largest does.
    mass = torch.bincount(target, weights=weight, minlength=classes)
    most = max(1, int(MOST_DRAWN * len(target) / max(1, int((found.counts > 0).sum()))))
    for code in (found.counts > 0).nonzero()[:, 0].tolist():
        lack = float(mass.max() - mass[code])
        count = min(most, round(lack))
        if count:
            inputs.append(found.draw(code, count, random))
            codes.append(torch.full((count,), code))
            counted.append(torch.full((count,), lack / count, dtype=torch.float64))
    return logistic(torch.cat(inputs), torch.cat(codes), torch.cat(counted), decay, classes=classes)
