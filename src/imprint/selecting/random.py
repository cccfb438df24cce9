"""Selecting without looking at the examples: the controls that every other method has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from imprint.methods import method
from imprint.recording.needs import Rows, Target
from imprint.selecting.evidence import Budget, Random
from imprint.selecting.picks import Picks, drawn, proportional


@method("select", "random", higher="drawn earlier", needs=[Rows(), Budget(), Random()], source="control")
def random(rows: Int[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
    """Examples drawn at random, each with the same chance.

    >>> len(random(torch.arange(10), 3, torch.Generator()).order)
    3
    """
    return Picks(torch.randperm(len(rows), generator=generator)[:budget])


@method(
    "select", "stratified", higher="drawn earlier", needs=[Target(), Budget(), Random()], tasks=["classification"],
    source="control; Neyman 1934, doi:10.2307/2342192",
)  # fmt: skip
def stratified(target: Int[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
    """Examples drawn at random within each class, as many as its share of the budget (largest remainder).

    A class whose share is below half an example may get none.

    >>> target = torch.tensor([0] * 8 + [1] * 4)
    >>> target[stratified(target, 3, torch.Generator()).order].bincount()
    tensor([2, 1])
    """
    return Picks(drawn(target, proportional(torch.bincount(target), budget), generator))
