"""Label issues of a regression: targets farther from the prediction than noise at their place explains.

A residual is large because the target is wrong, because targets there are noisy (aleatoric), or because the model knows little
there (epistemic). A residual out of fold holds the two latter with the spread that they have, and so do those of its
neighbours: their robust spread is the scale that it is judged by. (cleanlab adds the standard deviation of bootstrapped predictions
to one aleatoric figure for all examples, Zhou et al. 2023, arXiv:2305.16583, which costs five times two trainings more.)

How many are flagged follows from one bound. Where noise is normal with a spread that is even among neighbours, a residual over the
robust spread of k others follows Student's t with about k / 2.72 degrees of freedom. Of its tail probabilities the
Benjamini-Hochberg procedure flags so many that in expectation at most 5 % of the flagged are noise; where no target is wrong,
anything is flagged with a probability of 5 % at most. Residuals of real tables often have heavier tails, and more of them are flagged
(3.6 % of California housing as it is): what is flagged is for review.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from imprint.cleaning.flags import Flags
from imprint.cleaning.neighbours import neighbours
from imprint.cleaning.outlying import standardised
from imprint.methods import Derived, method
from imprint.recording.needs import Dynamics, Features, OutOfFold, Target

# Robust z from which a mean residual of the recorded training is flagged: 1 in 170 under the double exponential law, whose tails are
# about as heavy as those of residuals on real tables (at the customary 3.5, meant for normal ones, 4 % of California housing would be).
RESIDUAL_Z = 5.0
# Neighbours whose residuals give the spread: a twentieth of the examples, so that they are alike, at least 20 and at most 100, with which
# its standard error is 1.17 / sqrt(100), 12 %.
SHARE, FEWEST, MOST = 20, 20, 100
# The neighbours are sought among at most this many examples, drawn at random.
REFERENCE = 30_000
# Degrees of freedom per neighbour: k / 2.72 of a normal sample's standard deviation vary as much as the absolute deviation's median of k.
FREEDOM = 1 / 2.72
# A median absolute deviation times this is a standard deviation, where the law is normal.
NORMAL = 1.4826
# Expected share of noise among the flagged.
NOISE = 0.05
# The local spread is never below this share of the global one: neighbours with equal targets do not make everything else an error.
LEAST = 0.2


def neighbourhood(count: int) -> int:
    """How many neighbours give the spread at one of `count` examples.

    >>> [neighbourhood(count) for count in (10, 300, 1000, 10_000)]
    [9, 20, 50, 100]
    """
    return min(count - 1, MOST, max(FEWEST, count // SHARE))


def local_spread(
    residual: Float[np.ndarray, " example"], features: Float[np.ndarray, "example feature"]
) -> Float[np.ndarray, " example"]:
    """Robust standard deviation of the residuals of the nearest others in the feature space.

    >>> even = local_spread(np.array([-1.0, 1.0, -1.0, 1.0]), np.arange(4.0)[:, None])
    >>> even.round(4)
    array([1.4826, 1.4826, 1.4826, 1.4826])
    """
    count = len(residual)
    away = np.abs(residual - np.median(residual))
    pool = np.sort(np.random.default_rng(0).choice(count, min(count, REFERENCE), replace=False))
    _, found = neighbours(features, features[pool], neighbourhood(count) + 1)
    # Where fewer were found (-1: neighbouring cells hold no more), the nearest one stands in.
    near = pool[np.where(found >= 0, found, found[:, :1])]
    itself = near == np.arange(count)[:, None]
    # One of them leaves: the example itself where it is among them, else the farthest.
    itself[:, -1] |= ~itself.any(1)
    first = itself.argmax(1)
    keep = np.arange(near.shape[1]) != first[:, None]
    local = np.median(away[near[keep].reshape(count, -1)], axis=1)
    return NORMAL * np.maximum(local, LEAST * np.median(away))


def residual_issues(
    residual: Float[np.ndarray, " example"], spread: Float[np.ndarray, " example"], freedom: float, noise: float = NOISE
) -> Bool[np.ndarray, " example"]:
    """Flag residuals by the Benjamini-Hochberg procedure on two-sided tail probabilities of Student's t.

    Args:
        residual: Target less prediction, by a model that did not see the target.
        spread: Its scale.
        freedom: Degrees of freedom with which the scale was estimated.
        noise: Expected share of noise among the flagged, at most.

    >>> residual_issues(np.r_[np.linspace(-1, 1, 20), 9.0], np.ones(21), 30.0).nonzero()
    (array([20]),)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spread > 0, np.abs(residual - np.median(residual)) / spread, 0.0)
    tail = 2 * stats.t.sf(z, freedom)
    order = np.argsort(tail, kind="stable")
    under = np.flatnonzero(tail[order] <= noise * np.arange(1, len(tail) + 1) / len(tail))
    flagged = np.zeros(len(tail), dtype=bool)
    flagged[order[: under[-1] + 1 if len(under) else 0]] = True
    return flagged


def residual_quality(
    residual: Float[np.ndarray, " example"], spread: Float[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """Trust in each target: exp(-|residual| / spread, in units of the median one); 1 = on the prediction, 0.37 = at the median.

    It is the label quality of cleanlab's `CleanLearning` for the same residuals and spread.

    >>> residual_quality(np.array([0.0, 1.0, 2.0]), np.ones(3)).round(3)
    array([1.   , 0.368, 0.135])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spread > 0, np.abs(residual) / spread, 0.0)
    return np.exp(-z / max(float(np.median(z)), np.finfo(np.float64).tiny))


def residuals_of(
    logits: Float[Tensor, "example one"], target: Float[Tensor, " example"], features: Float[Tensor, "example feature"]
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]]:
    """Residuals out of fold, and their local spread in the model's features; in standard deviations of the target."""
    residual = (target - logits.squeeze(1)).double().numpy()
    return residual, local_spread(residual, standardised(features).numpy())


@method(
    "clean", "out-of-fold-residual", kind="label", tasks=["regression"],
    needs=[OutOfFold("logits"), Target(), Features()],
    higher="the target is farther from the out-of-fold prediction, for the spread of its neighbours' residuals",
    source="residuals over their uncertainty (Zhou et al. 2023, arXiv:2305.16583), flagged by Benjamini, Hochberg 1995",
)  # fmt: skip
def out_of_fold_residual(
    logits: Float[Tensor, "example one"], target: Float[Tensor, " example"], features: Float[Tensor, "example feature"]
) -> Flags:
    """Targets farther from the prediction of models that had not seen them than noise at their place explains. One training per fold.

    The spread is that of the residuals of the nearest examples (up to 100) in the model's features. Flagged by tail probability, so that in
    expectation at most 5 % of the flagged are noise where noise is normal. Severity = 1 - t / (2 z): one half for the least of the
    flagged (z = t spreads), towards 1 far beyond it.
    """
    if len(target) < 3:
        return Flags.none()
    residual, spread = residuals_of(logits, target, features)
    row = np.flatnonzero(residual_issues(residual, spread, neighbourhood(len(target)) * FREEDOM))
    if not len(row):
        return Flags.none()
    z = np.abs(residual - np.median(residual))[row] / spread[row]
    words = pl.select(
        pl.format(
            "the target is {} standard deviations from the prediction out of fold, {} times the spread among its neighbours",
            pl.Series(residual[row]).round(2), pl.Series(z).round(1),
        )
    ).to_series()  # fmt: skip
    return Flags(row, (1 - z.min() / (2 * z)).astype(np.float32), ["review"] * len(row), words.to_list())


def residual_order(
    logits: Float[Tensor, "example one"], target: Float[Tensor, " example"], features: Float[Tensor, "example feature"]
) -> Float[Tensor, " example"]:
    """Trust in each target by its residual out of fold: `residual_quality`."""
    return torch.from_numpy(residual_quality(*residuals_of(logits, target, features)))


def mean_residual(
    logits: Float[Tensor, "epoch example one"], target: Float[Tensor, " example"]
) -> Float[Tensor, " example"]:
    """Target less prediction, averaged over epochs, in standard deviations of the target."""
    return target - logits.squeeze(2).nanmean(0)


RESIDUAL = Derived("residual", function=mean_residual, needs=(Dynamics("logits"), Target()))


@method(
    "clean", "trajectory-residual", kind="label", tasks=["regression"], needs=[RESIDUAL],
    higher="the target is farther from what was predicted during training",
    source="residuals by robust z (Iglewicz, Hoaglin 1993), averaged over training",
)  # fmt: skip
def trajectory_residual(residual: Float[Tensor, " example"]) -> Flags:
    """Targets that stayed far from the prediction during training: robust z of the mean residual above 5.

    Robust z = (residual - median) / (1.4826 x median absolute deviation). Severity = 1 - 5 / (2 |z|): one half at the
    threshold, towards 1 far beyond it.
    """
    centred = residual - residual.median()
    spread = 1.4826 * centred.abs().median()
    if not spread > 0:
        return Flags.none()
    z = (centred / spread).numpy()
    row = np.flatnonzero(np.abs(z) > RESIDUAL_Z)
    words = pl.select(
        pl.format(
            "the target is {} standard deviations from the prediction averaged over training (robust z {})",
            pl.Series(residual.numpy()[row]).round(2), pl.Series(z[row]).round(1),
        )
    ).to_series()  # fmt: skip
    return Flags(row, 1 - RESIDUAL_Z / (2 * np.abs(z[row])), ["review"] * len(row), words.to_list())


def residual_trust(residual: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Trust in a regression target: minus the distance of the mean residual from the median one."""
    return -(residual - residual.median()).abs()
