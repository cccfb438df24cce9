"""The k-nearest-neighbour predictor in a feature space: who its neighbours are, and what each example is worth to it.

The utility of a set of examples S for a query is the share of its k nearest examples in S that have the query's label,

    v(S) = 1/k * sum over ranks r <= min(k, |S|) of [label of the r-th nearest in S = label of the query],

and it needs no training, so that Shapley values and leave-one-out values of N examples have closed forms in the ranks of the
distances alone (Jia et al. 2019, arXiv:1908.08619): with the examples sorted by their distance and m[r] = 1 where the r-th nearest
has the query's label,

    s[N] = m[N] w[N],    s[r] = s[r + 1] + (m[r] - m[r + 1]) w[r],    w[r] = min(k, r) / (k r).

Summed by parts this is `s[r] = m[r] w[r] - sum over j > r of m[j] (w[j - 1] - w[j])`: one cumulative sum along the ranks, for all
queries of a block at once. For a quantity the utility is minus the squared error of the mean, `v(S) = -(1/k sum y - y[q])^2`, and the
recursion has two more such sums (`values_of_quantities`). What takes the time is the sorting: a distance and the number of its example
are one 64-bit integer, so that one pass of vector instructions sorts both.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import normalize

Metric = Literal["cosine", "euclidean"]

# Pairs of a query and an example in memory at a time: 16 MiB as 64-bit numbers.
PAIRS = 2**21
# Numbers of the features of candidates in memory at a time: 32 MiB in float64.
NUMBERS = 2**22
# Candidates of the search in float32 beyond the k nearest: its rounding can move an example by a rank or two, not by more unless as
# many are at one distance.
SPARE = 4
# Squared distances of the search that are nearer to each other than this many times sqrt(features) roundings are computed again.
ROUNDINGS = 8
# Comes after every distance.
FARTHEST = np.iinfo(np.int64).max
NUMBER = 2**32 - 1


def nearest(
    queries: Float[Tensor, "query feature"],
    examples: Float[Tensor, "example feature"],
    k: int,
    metric: Metric = "cosine",
    own: Int[Tensor, " query"] | None = None,
) -> Int[Tensor, "query k"]:
    """The k nearest examples of each query, the nearest first; exact, in float64, of equal distances the earlier example first.

    Args:
        queries: Feature vectors.
        examples: Feature vectors.
        k: How many; fewer if there are fewer examples.
        metric: "cosine" (1 less the cosine of the angle) or "euclidean".
        own: The example that each query is itself, and which is no neighbour of it.

    >>> nearest(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), 2, "euclidean")
    tensor([[1, 2]])
    """
    import faiss

    left_out = int(own is not None)
    k = min(k, len(examples) - left_out)
    left, right = placed(queries, examples, metric), placed(examples, examples, metric)
    index = faiss.IndexFlatL2(examples.shape[1])
    index.add(right.numpy())
    candidates = min(len(examples), k + SPARE + left_out)
    rounding = ROUNDINGS * examples.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
    reach = right.norm(dim=1).max()
    found = torch.empty(len(queries), k, dtype=torch.int64)
    for some in _blocks(len(queries), NUMBERS // (candidates * examples.shape[1])):
        distance, place = (torch.from_numpy(side) for side in index.search(left[some].numpy(), candidates))
        place, order = place.sort(dim=1)
        near = (
            distance.diff(dim=1)[:, : k + left_out]
            <= rounding * (left[some].norm(dim=1, keepdim=True) + reach).square()
        )
        unsure = near.any(1)
        distance = distance.double().gather(1, order)
        distance[unsure] = _distance(queries[some][unsure].double(), examples[place[unsure]].double(), metric)
        if own is not None:
            distance[place == own[some, None]] = torch.inf
        found[some] = place.gather(1, distance.sort(dim=1, stable=True).indices[:, :k])
    return found


def placed(
    features: Float[Tensor, "row feature"], examples: Float[Tensor, "example feature"], metric: Metric
) -> Float[Tensor, "row feature"]:
    """Features whose Euclidean distances in float32 sort as the metric's: of length one, or about the examples' mean."""
    if metric == "cosine":
        return normalize(features.double(), dim=1).float().contiguous()
    # Small numbers cancel with less error.
    return (features.double() - examples.mean(0, dtype=torch.float64)).float().contiguous()


def ranked(
    queries: Float[Tensor, "query feature"],
    examples: Float[Tensor, "example feature"],
    metric: Metric = "cosine",
    own: Int[Tensor, " query"] | None = None,
) -> Iterator[tuple[slice, Int[np.ndarray, "query rank"]]]:
    """All examples by their distance from each query, the nearest first, for one block of queries after the other.

    Distances are in float32: examples whose distances differ by less than some 10^-7 of the features' squared length may change places.

    Args:
        queries: Feature vectors.
        examples: Feature vectors.
        metric: As of `nearest`.
        own: The example that each query is itself, and which is left out.

    >>> next(ranked(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), "euclidean"))[1]
    array([[1, 2, 0]])
    """
    right = placed(examples, examples, metric)
    square = right.square().sum(1)
    numbers = torch.arange(len(right))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for some in _blocks(len(queries), PAIRS // len(examples)):
            left = placed(queries[some], examples, metric)
            distance = torch.addmm(square, left, right.T, alpha=-2).add_(left.square().sum(1, keepdim=True))
            # The bits of a float that is not negative sort as its value; + 0 makes -0 a 0.
            keys = (
                distance.clamp_(min=0).add_(0.0).view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(numbers)
            )
            if own is not None:
                keys.scatter_(1, own[some, None], FARTHEST)
            parts = np.array_split(keys.numpy(), torch.get_num_threads())
            list(pool.map(lambda part: part.sort(axis=1), parts))
            if own is not None:
                keys = keys[:, :-1]
            yield some, keys.bitwise_and_(NUMBER).numpy()


def values(match: Bool[Tensor, "query rank"], k: int, whole: bool = True) -> Float[Tensor, "query rank"]:
    """Shapley values of examples sorted by their distance, see the module; float64.

    Args:
        match: Whether the example of a rank has the query's label.
        k: Neighbours of the classifier.
        whole: Whether these are all examples. Otherwise the last of them counts as worth 0, like all that are farther: no value
            is then off by more than 1 / (number of ranks), if that is at least k (Theorem 2 of the paper).

    >>> values(torch.tensor([[True, False]]), 1)
    tensor([[1., 0.]], dtype=torch.float64)
    >>> values(torch.tensor([[False, True]]), 1)
    tensor([[-0.5000,  0.5000]], dtype=torch.float64)
    """
    rank = torch.arange(1, match.shape[1] + 1, dtype=torch.float64)
    weight = rank.clamp(max=k) / (k * rank)
    if not whole:
        weight[-1] = 0
    drop = torch.cat([weight[:1] - weight[:1], weight[:-1] - weight[1:]])
    number = match.double()
    beyond = (number * drop).cumsum_(1)
    beyond -= beyond[:, -1:].clone()
    return beyond.addcmul_(number, weight)


def values_of_quantities(
    sorted_target: Float[Tensor, "query rank"], query_target: Float[Tensor, " query"], k: int
) -> Float[Tensor, "query rank"]:
    """Shapley values of examples sorted by their distance, for minus the squared error of the mean of the k nearest; float64.

    Of two neighbours in rank, r and r + 1, the one can take the other's place in any set, so that (Theorem 6 of the paper, with
    `y[l]` the target of the l-th nearest and `m = min(k, r)`)

        s[r] - s[r + 1] = (y[r + 1] - y[r]) / k * (((y[r] + y[r + 1]) / k - 2 y[q]) m / r + 2 / k * others[r]),
        others[r] = m (m - 1) / (2 r (r - 1)) * sum over l < r of y[l]  +  sum over l > r + 1 of y[l] h[l],
        h[l] = n (n + 1) / (2 (l - 1) (l - 2)),  n = min(k - 1, l - 2),

    where the factors are the chances that l is among the k - 1 nearest of a random set that r may join. The last of all adds to sets
    of fewer than k, as if `y[r + 1]` were 0.

    Args:
        sorted_target: Of all examples, the nearest first.
        query_target: What is to be predicted.
        k: Neighbours of the predictor.

    >>> values_of_quantities(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]), 1)
    tensor([[ 2.5000, -1.5000]], dtype=torch.float64)
    """
    y = sorted_target.double()
    rank = torch.arange(1, y.shape[1] + 1, dtype=torch.float64)
    seats = rank.clamp(max=k)
    before = seats * (seats - 1) / (2 * rank * (rank - 1)).clamp(min=1)
    taken = (rank - 2).clamp(min=0, max=k - 1)
    after = taken * (taken + 1) / (2 * (rank - 1) * (rank - 2)).clamp(min=1)
    following = torch.cat([y[:, 1:], torch.zeros_like(y[:, :1])], 1)
    weighted = y * after
    beyond = weighted.sum(1, keepdim=True) - weighted.cumsum(1)  # of those after r
    beyond[:, :-1] -= weighted[:, 1:]
    beyond[:, -1] = 0
    others = before * (y.cumsum(1) - y) + beyond
    step = (
        (following - y)
        / k
        * (((y + following) / k - 2 * query_target[:, None].double()) * seats / rank + 2 / k * others)
    )
    return step.flip(1).cumsum(1).flip(1)


def shapley(
    queries: Float[Tensor, "query feature"],
    query_target: Shaped[Tensor, " query"],
    examples: Float[Tensor, "example feature"],
    target: Shaped[Tensor, " example"],
    k: int = 10,
    metric: Metric = "cosine",
    own: Int[Tensor, " query"] | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "query example"]]]:
    """Shapley value of every example for each query, for one block of queries after the other; float64.

    The values of a query sum to the share of its label among its k nearest examples; of a quantity, to the squared error of the answer 0
    less that of the mean of the k nearest.

    Args:
        queries: Feature vectors.
        query_target: Labels (whole numbers) or quantities of the queries.
        examples: Feature vectors.
        target: Labels or quantities of the examples.
        k: Neighbours of the predictor.
        metric: As of `nearest`.
        own: The example that each query is itself, whose value is 0.

    >>> next(shapley(torch.tensor([[0.0]]), torch.tensor([1]), torch.tensor([[9.0], [1.0]]), torch.tensor([1, 0]), 1, "euclidean"))[1]
    tensor([[ 0.5000, -0.5000]], dtype=torch.float64)
    """
    kind = torch.float64 if target.is_floating_point() else torch.int32
    known, asked = target.to(kind).numpy(), query_target.to(kind)
    for some, order in ranked(queries, examples, metric, own):
        near = torch.from_numpy(np.take(known, order))
        quantity = target.is_floating_point()
        worth = values_of_quantities(near, asked[some], k) if quantity else values(near == asked[some, None], k)
        found = torch.zeros(len(near), len(examples), dtype=torch.float64)
        yield some, found.scatter_(1, torch.from_numpy(order), worth)


def _distance(
    queries: Float[Tensor, "query feature"], examples: Float[Tensor, "query candidate feature"], metric: Metric
) -> Float[Tensor, "query candidate"]:
    product = torch.bmm(examples, queries[:, :, None]).squeeze(2)
    if metric == "cosine":
        return 1 - product / (queries.norm(dim=1, keepdim=True) * examples.norm(dim=2)).clamp(min=1e-300)
    return queries.square().sum(1, keepdim=True) + examples.square().sum(2) - 2 * product


def _blocks(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))
