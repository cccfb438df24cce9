"""KLoM: how far the margins of models that forgot are distributed from those of models that never saw the examples.

For each example, margins of both kinds are clipped, counted in bins between the least and the largest of all of them, and

    KLoM = sum over bins of p log(p / q),     p of the models that forgot, q of those that never saw, at least 1e-5 where p is not zero

in nats, with q scaled to sum to one again (Georgiev et al. 2024, arXiv:2410.23232; github.com/RoyRin/data-unlearning-bench). Equal
distributions have 0, and such that share no bin about 11.5. A few models from one distribution do not have 0 either: hold it against the
same number of models that never saw the examples.

In two points this is not the authors' code. What equals the largest margin is counted, in the last bin, where theirs is open and leaves it
out: of few models that is much, and where all agree all. And margins that all lie within 1e-4 of each other are taken as equal: models of
a learner without chance differ by rounding, which has no distribution.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import EvidenceError

# Least share of a bin of the judges, where the models have something.
LEAST = 1e-5
# Margins nearer to each other than this are the same: so far, a probability moves by less than 1 in 10,000.
SAME = 1e-4
# Counts that are held at a time.
NUMBERS = 2**24


def klom(
    ours: Float[Tensor, "model example"], judges: Float[Tensor, "judge example"], *, bins: int = 20, clip: float = 100.0
) -> Float[Tensor, " example"]:
    """Divergence of the margins of models that forgot from those of models that never saw the examples, in nats.

    Args:
        ours: Margins of models that forgot (`imprint.forgetting.oracles.margins`).
        judges: Margins of models that never saw the examples.
        bins: Of the histograms.
        clip: Margins beyond are taken to be there; what is not a number is taken to be at the lower end.

    Raises:
        EvidenceError: There are no models, or not the same examples.

    >>> ours, judges = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.1], [0.9], [1.0]])
    >>> klom(ours, ours), klom(ours, judges, bins=2), round(float(klom(ours[:1], ours[:1] - 5)), 1)
    (tensor([0.]), tensor([0.]), 11.5)
    """
    if ours.shape[1:] != judges.shape[1:] or not len(ours) or not len(judges):
        raise EvidenceError(
            f"Margins of {tuple(ours.shape)} and {tuple(judges.shape)} cannot be compared.",
            "Give [model, example] of the same examples, from at least one model each.",
        )
    size = max(1, NUMBERS // bins)
    pieces = zip(torch.split(ours, size, 1), torch.split(judges, size, 1), strict=True)
    found = [_divergence(_clipped(one, clip), _clipped(other, clip), bins) for one, other in pieces]
    return torch.cat(found).float()


def _divergence(
    ours: Float[Tensor, "model example"], judges: Float[Tensor, "judge example"], bins: int
) -> Float[Tensor, " example"]:
    low, high = torch.minimum(ours.amin(0), judges.amin(0)), torch.maximum(ours.amax(0), judges.amax(0))
    high = torch.where(high - low > SAME, high, low + 1)
    p, q = shares(ours, low, high, bins), shares(judges, low, high, bins)
    q = torch.where(p > 0, q.clamp(min=LEAST), q)
    q = q / q.sum(0)
    return torch.xlogy(p, torch.where(p > 0, p / q, 1)).sum(0)


def shares(
    margins: Float[Tensor, "model example"],
    low: Float[Tensor, " example"],
    high: Float[Tensor, " example"],
    bins: int,
) -> Float[Tensor, "bin example"]:
    """Which share of the models has its margin in each of the bins from `low` to `high`, of each example."""
    edges = low + (high - low) * (torch.arange(1, bins, dtype=low.dtype) / bins)[:, None]  # [bin - 1, example]
    place = torch.searchsorted(edges.T.contiguous(), margins.T.contiguous(), right=True).T
    counts = torch.zeros(bins, margins.shape[1], dtype=low.dtype)
    return counts.scatter_add_(0, place, torch.ones_like(margins)) / len(margins)


def _clipped(margins: Float[Tensor, "model example"], clip: float) -> Float[Tensor, "model example"]:
    return margins.double().nan_to_num(nan=-clip, posinf=clip, neginf=-clip).clamp(-clip, clip)
