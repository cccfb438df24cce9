"""k-center: examples such that no other is far from the nearest of them.

Farthest-first traversal takes, again and again, the example that is farthest from all that were taken. Its covering radius is at most
twice the best possible one for each number of examples (Gonzalez 1985), and nothing that runs in polynomial time promises less. As the
farthest examples go first, so do outliers and wrong inputs: clean before, or choose within a cluster (`cluster-balance`).

Done step by step, every pick reads all features once, for one product each, and waits for the memory. But distances only fall: an example
outside a pool of the farthest ones cannot become the farthest before the pool's distances have fallen to its own. Picks are made within
the pool until then, and afterwards all of them are put to the other examples in one product of two matrices. The picks are the
same; on 50,000 examples some hundred picks are made per pool, and it takes a tenth of the time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.methods import method
from imprint.neighbours import placed
from imprint.recording.needs import Features, Target
from imprint.selecting.classwise import within_classes
from imprint.selecting.evidence import Budget
from imprint.selecting.picks import Picks

# Examples in a pool: with 128 features they stay in a processor's cache.
POOL = 1024
# Examples that are brought up to date at a time.
BLOCK = 4096


def farthest_first(features: Float[Tensor, "example feature"], budget: int) -> Int[Tensor, " picked"]:
    """Places of examples in the order of farthest-first traversal, by Euclidean distance in float32.

    The first is the example nearest to the mean. Where distances are equal to rounding, any of these examples may come first.

    >>> farthest_first(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 3)
    tensor([2, 3, 0])
    """
    x = placed(features, features, "euclidean")
    square = x.square().sum(1)
    distance = torch.full((len(x),), torch.inf)  # squared, to the nearest taken example; minus infinity for those
    fresh = [int(square.argmin())]
    order = list(fresh)
    while len(order) < min(budget, len(x)):
        _approach(distance, x, square, fresh)
        left = len(x) - len(order)
        far = distance.topk(min(left, POOL + 1))
        others = float(far.values[-1]) if left > POOL else -torch.inf
        pool, near = far.indices[:POOL], far.values[:POOL]
        inside, length = x[pool], square[pool]
        fresh = []
        while len(order) < budget:
            value, place = near.max(0)
            if float(value) < others or value == -torch.inf:
                break
            fresh.append(int(pool[place]))
            order.append(fresh[-1])
            to_pick = torch.addmv(length + length[place], inside, inside[place], alpha=-2)
            near = torch.minimum(near, to_pick)
            near[place] = -torch.inf
    return torch.tensor(order)


def _approach(
    distance: Float[Tensor, " example"], x: Float[Tensor, "example feature"], square: Float[Tensor, " example"],
    fresh: list[int],
) -> None:  # fmt: skip
    """Lower the distances, in place, to those from newly taken examples."""
    centers = x[fresh]
    for begin in range(0, len(x), BLOCK):
        some = slice(begin, begin + BLOCK)
        nearest = torch.addmm(square[fresh], x[some], centers.T, alpha=-2).amin(1).add_(square[some])
        distance[some] = torch.minimum(distance[some], nearest)
    distance[fresh] = -torch.inf


def covering_radius(features: Float[Tensor, "example feature"], order: Int[Tensor, " picked"]) -> float:
    """The largest Euclidean distance of an example from the nearest chosen one, in float64: what k-center keeps small.

    >>> covering_radius(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0]))
    3.0
    """
    x = features.double()
    nearest = (torch.cdist(some, x[order]).amin(1) for some in torch.split(x, BLOCK))
    return float(max(block.max() for block in nearest))


@method(
    "select", "k-center", higher="farther from those before", needs=[Features(), Budget()],
    source="Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5; Sener, Savarese 2018, arXiv:1708.00489",
)  # fmt: skip
def k_center(features: Float[Tensor, "example feature"], budget: int) -> Picks:
    """Examples such that no other is far from the nearest of them, by farthest-first traversal.

    >>> k_center(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).order
    tensor([2, 3])
    """
    return Picks(farthest_first(features, budget))


@method(
    "select", "k-center-class", higher="farther from those before", needs=[Features(), Target(), Budget()], tasks=["classification"],
    source="Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5, within each class",
)  # fmt: skip
def k_center_class(features: Float[Tensor, "example feature"], target: Int[Tensor, " example"], budget: int) -> Picks:
    """Farthest-first traversal within each class, which keeps its share of the examples.

    >>> k_center_class(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1]), 2).order.sort().values
    tensor([0, 2])
    """
    return Picks(within_classes(features, target, budget, farthest_first))
