"""What a select method returns: which training examples, the most wanted first, with which weights; and how a budget becomes a number."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import MethodError


@dataclass(frozen=True)
class Picks:
    """A choice of training examples.

    Attributes:
        order: Places among the training examples (0..n-1), the most wanted first, each once; as many as the budget.
        weights: Of the examples in `order`, with mean 1; None where all are one.
        value: What was ranked by, of all training examples (higher = more wanted); None where there is no such thing.
        note: What to know of it, in a sentence.
    """

    order: Int[Tensor, " picked"]
    weights: Float[Tensor, " picked"] | None = None
    value: Float[Tensor, " example"] | None = None
    note: str = ""

    def checked(self, budget: int, examples: int) -> Picks:
        """The same, if it keeps what a method promises.

        Raises:
            MethodError: It does not choose `budget` distinct training examples, or its weights or values are not of them.
        """
        order = self.order
        distinct = np.unique(order.numpy())
        within = not len(distinct) or (distinct[0] >= 0 and distinct[-1] < examples)
        if len(order) != budget or len(distinct) != budget or not within:
            raise MethodError(
                f"The method chose {len(distinct):,} different examples in {len(order):,} places, first {order[:3].tolist()}.",
                f"It must choose {budget:,} different ones of the places 0 to {examples - 1:,}.",
            )
        if self.weights is not None:
            weights = self.weights.double()
            if weights.shape != order.shape or not bool((weights >= 0).all()) or abs(float(weights.mean()) - 1) > 1e-3:
                raise MethodError(
                    f"The method's weights are {tuple(weights.shape)} numbers with mean {float(weights.mean()):.4g}.",
                    f"It must give {budget:,} of them, 0 or more, with mean 1.",
                )
        if self.value is not None and len(self.value) != examples:
            raise MethodError(
                f"The method gives {len(self.value):,} values for {examples:,} training examples.", "Give one each."
            )
        return self


def ranked(value: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Int[Tensor, " picked"]:
    """Places of the highest values, the highest first. Equal values come in random order, unknown ones (nan) last.

    Many scores are whole numbers, and the examples of one class often stand together: ties taken as they stand would favour it.

    >>> ranked(torch.tensor([0.1, 0.9, 0.5]), 2, torch.Generator())
    tensor([1, 2])
    """
    mixed = torch.randperm(len(value), generator=generator)
    known = torch.where(value.isnan(), -torch.inf, value)[mixed]
    return mixed[known.argsort(descending=True, stable=True)[:budget]]


def drawn(
    groups: Int[Tensor, " example"], quotas: Int[Tensor, " group"], generator: torch.Generator
) -> Int[Tensor, " picked"]:
    """Places of as many random examples of each group as its quota says, in random order.

    >>> drawn(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2]), torch.Generator()).sort().values
    tensor([1, 3])
    """
    mixed = torch.randperm(len(groups), generator=generator)
    own = groups[mixed]
    by_group = own.argsort(stable=True)
    sizes = torch.bincount(own, minlength=len(quotas))
    begins = sizes.cumsum(0) - sizes
    number = torch.empty_like(own)
    number[by_group] = torch.arange(len(own)) - begins[own[by_group]]
    return mixed[number < quotas[own]]


def proportional(sizes: Int[Tensor, " group"], budget: int) -> Int[Tensor, " group"]:
    """How much of a budget each group gets in proportion to its size, by the largest remainder (ties: the larger group).

    >>> proportional(torch.tensor([60, 30, 10]), 5)
    tensor([3, 2, 0])
    """
    exact = [(budget * int(size), int(sizes.sum())) for size in sizes]
    quotas = torch.tensor([over // total for over, total in exact])
    left = sorted(range(len(sizes)), key=lambda group: (-(exact[group][0] % exact[group][1]), -int(sizes[group])))
    quotas[left[: budget - int(quotas.sum())]] += 1
    return quotas


def picked(budget: float, examples: int) -> int:
    """How many of the examples a budget is.

    Args:
        budget: A share in (0, 1] (float), or a number of examples (int).
        examples: How many there are.

    Raises:
        MethodError: It is neither.

    >>> picked(0.3, 1000), picked(50, 1000), picked(1.0, 1000)
    (300, 50, 1000)
    """
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    whole = number and isinstance(budget, Integral)
    if whole and 1 <= budget <= examples:
        return int(budget)
    if number and not whole and 0 < budget <= 1:
        return max(1, round(float(budget) * examples))
    if whole and budget > examples:
        raise MethodError(
            f"A budget of {budget:,} examples is more than the {examples:,} that there are.", "Ask for fewer."
        )
    raise MethodError(
        f"budget={budget!r} is neither a share nor a number of examples.",
        f"Give a share above 0 and up to 1 (0.3), or a whole number from 1 to {examples:,}.",
    )


def spaced(size: int, most: int) -> Int[Tensor, " place"]:
    """Places 0 to size - 1, or as many of them as allowed, evenly spaced: a sample that every run of equal examples has its share of.

    >>> spaced(3, 5), spaced(9, 3)
    (tensor([0, 1, 2]), tensor([0, 4, 8]))
    """
    return torch.linspace(0, size - 1, min(size, most), dtype=torch.float64).round().long()
