"""Choosing within each class apart, and one order of what was chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.selecting.picks import proportional


def classes_of(target: Tensor) -> Int[Tensor, " example"]:
    """The class of each example; one class of all, where the target is a quantity or has several labels.

    >>> classes_of(torch.tensor([0.3, 2.5]))
    tensor([0, 0])
    """
    if target.ndim == 1 and not target.is_floating_point():
        return target.long()
    return torch.zeros(len(target), dtype=torch.int64)


def within_classes(
    features: Float[Tensor, "example feature"],
    classes: Int[Tensor, " example"],
    budget: int,
    choose: Callable[[Float[Tensor, "member feature"], int], Int[Tensor, " picked"]],
) -> Int[Tensor, " picked"]:
    """What a method chooses within each class, which gets its share of the budget (largest remainder).

    Each class is spread evenly over the order, so that the beginning of it is balanced too.

    Args:
        features: Feature vectors.
        classes: Class of each example.
        budget: How many to choose in all.
        choose: From the feature vectors of a class and a number to that many of their places, the most wanted first.
    """
    quotas = proportional(torch.bincount(classes), budget)
    order, when = [], []
    for code, quota in enumerate(quotas.tolist()):
        if quota:
            members = (classes == code).nonzero().squeeze(1)
            order.append(members[choose(features[members], quota)])
            when.append((torch.arange(quota, dtype=torch.float64) + 0.5) / quota)
    return torch.cat(order)[torch.cat(when).argsort(stable=True)]
