"""Facility location: examples such that every example has a similar one among them, on average.

    F(S) = mean over examples i of max over j in S of s[i, j],      s[i, j] = (1 + cosine) / 2, and 0 where S is empty.

F is monotone and submodular, so that taking the example of the largest gain, again and again, comes to at least 1 - 1/e of the best
F (Nemhauser, Wolsey, Fisher 1978). This is that greedy choice without the n x n matrix:

1. With best[i] the similarity of i to the nearest chosen one, the gains are `sum over i of max(s[i, j] - best[i], 0)`. A pick changes best
   only of those examples that it is nearest to, and only their rows of s are computed again, for what they lose. After t picks that is
   about n/t rows: ln(t) times the work of one pass.
2. Only pairs with s[i, j] > best[i] still count, about n^2/t. As soon as they fit in memory (`PAIRS`) they are listed, in one pass over
   half of s, and from then on a pick takes less than a millisecond. Nothing is left out: best only rises.

Up to `ROWS` examples this is the greedy choice exactly. Of more, the gains in 1 are summed over a sample of the rows, and of the
`CANDIDATES` with the highest of these the one with the highest exact gain is picked. That concerns some dozens of the first picks; all
later ones are exact.

Time grows with the square of the examples: for more than some 200,000, choose within clusters or from a random share.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from imprint.methods import method
from imprint.neighbours import placed
from imprint.recording.needs import Features
from imprint.selecting.evidence import Budget
from imprint.selecting.picks import Picks, spaced

# Pairs that are listed: 128 MiB.
PAIRS = 2**24
# Picks before pairs are listed: before that so many pairs still count that listing them and going through their lists takes longer than
# the products of matrices that it saves.
PICKS = 32
# Rows and columns of similarities in memory at a time: a tile stays in a processor's cache.
TILE = (1024, 512)
# Examples by which the number of pairs is estimated.
SAMPLE = 512
# Rows that gains are summed over before pairs are listed. On 9,000 examples the choice was that of the plain greedy, pick by pick.
ROWS = 4096
# Examples whose exact gains are looked at then.
CANDIDATES = 64


def greedy(features: Float[Tensor, "example feature"], budget: int) -> Int[Tensor, " picked"]:
    """Places of examples in the order of the greedy choice for facility location; cosine similarities in float32.

    >>> greedy(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2)
    tensor([1, 2])
    """
    # Cosines: s is a constant and half of them, which changes no choice.
    x = placed(features, features, "cosine")
    order = [int((x.double() @ x.sum(0, dtype=torch.float64)).argmax())]
    best = x @ x[order[0]]
    rows = spaced(len(x), ROWS)
    sample = x[rows]
    gains = _between(x, sample, best[rows], torch.full((len(rows),), torch.inf))
    check = PICKS
    while len(order) < min(budget, len(x)):
        if len(order) >= check:
            if _share_of_pairs(x, best) * len(x) ** 2 <= PAIRS:
                return torch.tensor(_through_lists(x, best, order, budget))
            check = len(order) + len(order) // 4
        gains[order[-1]] = -torch.inf
        pick = gains.argmax()
        if len(rows) < len(x):
            likely = gains.topk(min(CANDIDATES, len(x) - len(order))).indices
            pick = likely[_between(x[likely], x, best, torch.full_like(best, torch.inf)).argmax()]
        order.append(int(pick))
        similarity = x @ x[order[-1]]
        low, high = best[rows], similarity[rows]
        nearer = high > low
        gains -= _between(x, sample[nearer], low[nearer], high[nearer])
        best = torch.maximum(best, similarity)
    return torch.tensor(order)


def _between(
    candidates: Float[Tensor, "candidate feature"], rows: Float[Tensor, "row feature"],
    low: Float[Tensor, " row"], high: Float[Tensor, " row"],
) -> Float[Tensor, " candidate"]:  # fmt: skip
    """How much of `low..high` the similarities to a candidate reach, summed over rows: `sum of min(max(s, low), high) - low`; float64."""
    found = torch.zeros(len(candidates), dtype=torch.float64)
    height, width = TILE
    ones = torch.ones(height)  # a product with them is a faster sum
    memory = torch.empty(height * width)
    for row in range(0, len(rows), height):
        some = slice(row, row + height)
        floor, room = -low[some, None], (high - low)[some, None]
        for column in range(0, len(candidates), width):
            columns = candidates[column : column + width].T
            tile = memory[: len(floor) * columns.shape[1]].view(len(floor), -1)
            torch.addmm(floor, rows[some], columns, out=tile)
            found[column : column + width] += ones[: len(tile)] @ torch.minimum(tile, room, out=tile).clamp_(min=0)
    return found


def _share_of_pairs(x: Float[Tensor, "example feature"], best: Float[Tensor, " example"]) -> float:
    """Share of pairs that are more similar than one of the two is to the chosen: of those of some examples, evenly spaced."""
    some = spaced(len(x), SAMPLE)
    counts = (_counting(one, x, best).sum() for one in torch.split(some, 64))
    return int(sum(counts)) / (len(some) * len(x))


def _counting(
    rows: Int[Tensor, " row"], x: Float[Tensor, "example feature"], best: Float[Tensor, " example"]
) -> Tensor:
    similarity = x[rows] @ x.T
    return similarity.gt(best[rows, None]).logical_or_(similarity > best)


def _listed(x: Float[Tensor, "example feature"], best: Float[Tensor, " example"]) -> csr_array:
    """Similarities of the pairs that are more similar than one of the two is to the chosen; each pair both ways.

    A similarity is computed once for both ways: in tiles on and above the diagonal. With the examples in the order of `best` the first of
    the two is the one that is less similar to the chosen, and there is one comparison to make.
    """
    order = best.argsort(stable=True)
    x, best, name = x[order], best[order, None], order.numpy().astype(np.int32)
    ways = []
    height, width = TILE
    tiles, above = torch.empty(height * width), torch.empty(height * width, dtype=torch.bool)
    for row in range(0, len(x), height):
        some = x[row : row + height]
        for column in range(row, len(x), width):
            others = x[column : column + width]
            shape, size = (len(some), len(others)), len(some) * len(others)
            tile = torch.mm(some, others.T, out=tiles[:size].view(shape))
            still = torch.gt(tile, best[row : row + height], out=above[:size].view(shape))
            on_diagonal = column < row + height
            if on_diagonal:
                still.triu_(row - column)
            place = np.flatnonzero(still.numpy())
            first = place // len(others)
            one, other = name[first + row], name[place - first * len(others) + column]
            similarity = tile.numpy().ravel()[place]
            ways.append((one, other, similarity))
            if on_diagonal:
                apart = one != other
                one, other, similarity = one[apart], other[apart], similarity[apart]
            ways.append((other, one, similarity))
    one, other, similarity = (np.concatenate(parts) for parts in zip(*ways, strict=True))
    pairs = coo_array((similarity, (one, other)), shape=(len(x), len(x)))
    pairs.has_canonical_format = True  # no pair is there twice; to look for them would take longer than all else here
    return pairs.tocsr()


def _gains(pairs: csr_array, best: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    """What each example would add to the sum of best similarities; float64."""
    added = np.maximum(pairs.data - best[pairs.indices], 0)
    return csr_array((added, pairs.indices, pairs.indptr), pairs.shape) @ np.ones(len(best))


def _take(
    pairs: csr_array, example: int, best: Float[np.ndarray, " example"], gains: Float[np.ndarray, " example"]
) -> None:
    """Take an example: raise, in place, the best similarities that it raises, and lower the gains by what is gained thereby."""
    own = slice(pairs.indptr[example], pairs.indptr[example + 1])
    nearer = pairs.data[own] > best[pairs.indices[own]]
    raised, to = pairs.indices[own][nearer], pairs.data[own][nearer]
    begins = pairs.indptr[raised]
    counts = pairs.indptr[raised + 1] - begins
    listed = np.arange(counts.sum()) + np.repeat(begins - (counts.cumsum() - counts), counts)
    floor, room = np.repeat(best[raised], counts), np.repeat(to - best[raised], counts)
    lost = np.minimum(np.maximum(pairs.data[listed] - floor, 0), room)
    gains -= np.bincount(pairs.indices[listed], weights=lost, minlength=len(gains))
    best[raised] = to


def _through_lists(
    x: Float[Tensor, "example feature"], best: Float[Tensor, " example"], order: list[int], budget: int
) -> list[int]:
    """The rest of the greedy choice, with the pairs that still count in lists."""
    pairs, nearest, order = _listed(x, best), best.numpy().copy(), list(order)
    gains = _gains(pairs, nearest)
    gains[order] = -np.inf
    while len(order) < min(budget, len(x)):
        order.append(int(gains.argmax()))
        _take(pairs, order[-1], nearest, gains)
        gains[order[-1]] = -np.inf
    return order


def objective(features: Float[Tensor, "example feature"], order: Int[Tensor, " picked"]) -> float:
    """F: mean similarity of the examples to the most similar chosen one, from 0 to 1; what facility location makes large.

    >>> round(objective(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0])), 6)
    0.75
    """
    x = placed(features, features, "cosine")
    nearest = torch.cat([(some @ x[order].T).amax(1) for some in torch.split(x, max(1, 2**22 // len(order)))])
    return float(nearest.double().add(1).div(2).mean())


@method(
    "select", "facility-location", higher="more that is not covered yet", needs=[Features(), Budget()],
    source="Nemhauser, Wolsey, Fisher 1978, doi:10.1007/BF01588971; Wei, Iyer, Bilmes 2015, PMLR 37",
)  # fmt: skip
def facility_location(features: Float[Tensor, "example feature"], budget: int) -> Picks:
    """Examples such that every example has a similar one among them, by the greedy choice.

    >>> facility_location(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2).order
    tensor([1, 2])
    """
    return Picks(greedy(features, budget))
