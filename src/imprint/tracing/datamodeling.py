"""The linear datamodeling score, and its interval.

An attribution says what each training example adds to a query's margin, so it predicts, but for a constant, what a model trained on
any subset will say: the sum of the scores of the subset's examples. Over models that were trained on random subsets, the score of a
query is Spearman's rank correlation of prediction and truth; that of the attribution is the mean over queries.

The interval is a bootstrap over both that could have been others: the subset models, which all queries share, and the queries. A
resample is a weight per model and per query. The centred rank of model `m` among models with the weights `w` is

    rank[m] = sum over models j of sign(value[m] - value[j]) * w[j] / 2        (models with the same value share their mean rank)

so that the ranks of all resamples are one matrix product, and nothing is sorted again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

# Resamples: an end of a 95 % interval then has about a twentieth of its width as standard error.
RESAMPLES = 500
# Ranks in memory at a time: 8 MiB of float32, which stay in a processor's cache.
BLOCK_RANKS = 2**21


def centred_ranks(
    values: Float[Tensor, "query member"], weight: Float[Tensor, "member resample"]
) -> Float[Tensor, "query member resample"]:
    """Twice the ranks less their mean of members that are there `weight` times, in each resample.

    >>> centred_ranks(torch.tensor([[5.0, 7.0, 5.0]]), torch.ones(3, 1)).flatten()
    tensor([-1.,  2., -1.])
    """
    return torch.sign(values[:, :, None] - values[:, None, :]).float() @ weight


def correlation(
    left: Float[Tensor, "query member resample"],
    right: Float[Tensor, "query member resample"],
    weight: Float[Tensor, "member resample"],
) -> Float[Tensor, "query resample"]:
    """Weighted correlation of centred values; 0 where one side is constant and says nothing."""
    weighted = left * weight
    product, square, other = (weighted * right).sum(1), (weighted * left).sum(1), (right * right * weight).sum(1)
    scale = (square.double() * other).sqrt()
    return torch.where(scale > 0, product / scale.clamp(min=1e-300), 0.0)


def spearman(predicted: Float[Tensor, "query member"], truth: Float[Tensor, "query member"]) -> Float[Tensor, " query"]:
    """Spearman's rank correlation over members, for each query.

    >>> spearman(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), torch.tensor([[0.1, 0.5, 9.0], [3.0, 2.0, 1.0]]))
    tensor([ 1., -1.], dtype=torch.float64)
    """
    even = torch.ones(truth.shape[1], 1)
    parts = [
        correlation(centred_ranks(predicted[some], even), centred_ranks(truth[some], even), even)[:, 0]
        for some in blocks(truth, 1)
    ]
    return torch.cat(parts)


def resampled(
    predicted: Mapping[str, Float[Tensor, "query member"]],
    truth: Float[Tensor, "query member"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Float[Tensor, " resample"]]:
    """Mean rank correlation of each of several predictions in bootstrap resamples of members and queries.

    Resamples are the same for all predictions, so that the difference of two of them is paired.
    """
    queries, members = truth.shape
    random = torch.Generator().manual_seed(seed)
    there = drawn(queries, resamples, random).double() / queries
    weight = drawn(members, resamples, random)
    total = {name: torch.zeros(resamples, dtype=torch.float64) for name in predicted}
    for some in blocks(truth, resamples):
        right = centred_ranks(truth[some], weight)
        for name, values in predicted.items():
            total[name] += (correlation(centred_ranks(values[some], weight), right, weight) * there[some]).sum(0)
    return total


def drawn(count: int, resamples: int, random: torch.Generator) -> Float[Tensor, "one resample"]:
    """How often each of `count` is in each resample: as many as there are, with replacement."""
    picked = torch.randint(count, (resamples, count), generator=random)
    return torch.zeros(resamples, count).scatter_add_(1, picked, torch.ones(resamples, count)).T.contiguous()


def blocks(truth: Float[Tensor, "query member"], resamples: int) -> list[slice]:
    """Queries at a time."""
    queries, members = truth.shape
    size = max(1, BLOCK_RANKS // (members * max(members, resamples)))
    return [slice(start, start + size) for start in range(0, queries, size)]


def percentiles(values: Float[Tensor, " resample"], level: float) -> tuple[float, float]:
    """The middle `level` of the values."""
    low, high = torch.quantile(values, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)).tolist()
    return low, high
