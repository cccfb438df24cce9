"""Herding: examples whose mean is the mean of all, and stays near it however many of them are taken.

With features phi of length one and mu their mean, the next example is the one that brings the mean of the chosen ones nearest to mu,

    argmin over x of |mu - (phi(x) + sum of phi of the chosen) / t|  =  argmax over x of <phi(x), t mu - sum of phi of the chosen>,

which is Welling's herding (2009) without taking an example twice, and, within each class, how iCaRL keeps its exemplars. The error of the
mean falls like 1/t, that of random examples like 1/sqrt(t). What is chosen first is typical: rare kinds of a class come late.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.methods import method
from imprint.neighbours import placed
from imprint.recording.needs import Features, Target
from imprint.selecting.classwise import classes_of, within_classes
from imprint.selecting.evidence import Budget
from imprint.selecting.picks import Picks


def herded(features: Float[Tensor, "example feature"], budget: int) -> Int[Tensor, " picked"]:
    """Places of examples in the order of herding, by cosine features.

    >>> herded(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 3)
    tensor([0, 2, 1])
    """
    x = placed(features, features, "cosine")
    mean = x.mean(0, dtype=torch.float64)
    wanted = mean.clone()  # t mu less the sum of the chosen
    taken = torch.zeros(len(x))
    order = []
    for _ in range(min(budget, len(x))):
        order.append(int(torch.addmv(taken, x, wanted.float()).argmax()))
        taken[order[-1]] = -torch.inf
        wanted += mean - x[order[-1]]
    return torch.tensor(order)


@method(
    "select", "herding", higher="brings the mean of the chosen nearer to that of all", needs=[Features(), Target(), Budget()],
    source="Welling 2009, doi:10.1145/1553374.1553517; Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725",
)  # fmt: skip
def herding(features: Float[Tensor, "example feature"], target: Tensor, budget: int) -> Picks:
    """Examples whose mean feature stays nearest to the mean of their class (to that of all, for other tasks than classification).

    >>> herding(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, 0]), 1).order
    tensor([2])
    """
    return Picks(within_classes(features, classes_of(target), budget, herded))
