"""Repeated random subsets: as cheap per epoch as a coreset, and nothing is left out for good."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from imprint.fitting import Repeated
from imprint.methods import method
from imprint.recording.needs import Rows
from imprint.selecting.evidence import Budget

SOURCE = "Okanovic et al. 2024, arXiv:2305.18424 (RS2)"


@method("select", "rs2", higher="visited sooner", needs=[Rows(), Budget()], source=SOURCE)
def rs2(rows: Int[Tensor, " example"], budget: int) -> Repeated:
    """The next part of a random order of all examples in every epoch (RS2 without replacement): a policy.

    Every example is visited after as many epochs as the budget goes into their number, and each epoch costs what it costs to train on
    a fixed choice of this size. The order is drawn anew when it is through. It is the control that a costly choice has to beat.

    >>> import torch
    >>> rs2(torch.arange(100), 10)
    Repeated(fraction=0.1, replace=False)
    """
    return Repeated(budget / len(rows))


@method("select", "rs2-replace", higher="visited sooner", needs=[Rows(), Budget()], source=SOURCE)
def rs2_replace(rows: Int[Tensor, " example"], budget: int) -> Repeated:
    """A fresh random subset of all examples in every epoch (RS2 with replacement): a policy.

    Within an epoch no example is visited twice; from epoch to epoch the draws know nothing of each other.

    >>> import torch
    >>> rs2_replace(torch.arange(100), 10)
    Repeated(fraction=0.1, replace=True)
    """
    return Repeated(budget / len(rows), replace=True)
