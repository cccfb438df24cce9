"""Selective synaptic dampening: weights that matter to the forgotten examples out of all proportion are made smaller.

    where F_forgotten > alpha F_others:    weight <- weight x min(1, dampening F_others / F_forgotten)

with the diagonals of the empirical Fisher matrix, the mean squared gradients of examples. No training.

The paper compares with all training examples. But these hold the forgotten ones: F_all is at least (share forgotten) F_forgotten, so
that with alpha = 10 not one weight would be chosen where a tenth is to be forgotten, as a class of ten. The authors' code escapes that
as it squares the gradients of batches. Here the others are the retained examples; for small requests that is the same. Of the means over
all, the forgotten and the retained examples two give the third: where the run has recorded that of all, only the forgotten are looked at.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import MethodError, nearest
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.layout import by_parameter, diagonals, examples_of
from imprint.forgetting.stepping import within
from imprint.methods import method

SEARCH = {"alpha": (10.0, 3.0, 30.0, 1.0, 100.0, 1000.0), "dampening": (1.0, 0.3, 3.0)}


@method(
    "forget", "ssd", higher="forgets more", needs=(), exact=False, search=SEARCH,
    source="Foster, Schoepf, Brintrup 2024, arXiv:2308.07707",
)  # fmt: skip
def ssd(job: Forgetting, *, alpha: float = 10.0, dampening: float = 1.0, against: str = "retained") -> Forgotten:
    """Dampen the weights that are disproportionately important to the forgotten examples (selective synaptic dampening).

    Args:
        job: The request.
        alpha: How many times as important as to the others a weight has to be; 10 with the authors on CIFAR-10. The lower, the more weights
            are touched: where forgotten gradients are far larger, as those of mislabelled examples are, 10 leaves little of the model.
        dampening: Lambda of the paper: by how much; lower = more.
        against: "retained", or "all" as in the paper.

    Raises:
        MethodError: A setting is impossible.
    """
    if against not in ("retained", "all"):
        raise MethodError(f"against={against!r} says nothing of which examples.", nearest(against, ["retained", "all"]))
    alpha, dampening = within("alpha", alpha, 0, 1e9), within("dampening", dampening, 0, 1e9)
    examples = examples_of(job, job.forget)
    forgotten, everything = diagonals(job)
    share = len(job.forget) / (len(job.forget) + len(job.retain)) if against == "retained" else 0.0

    def others(every: Tensor, gone: Tensor) -> Tensor:
        return ((every - share * gone) / (1 - share)).clamp(min=0)

    factor = by_parameter(
        examples,
        {
            name: dampened(one.values, others(everything[name].values.to(one.values), one.values), alpha, dampening)
            for name, one in forgotten.layers.items()
        },
        fill=1.0,
    )
    touched = 0
    total = 0
    with torch.no_grad():
        for name, weight in job.module.named_parameters():
            if name in factor:
                weight.mul_(factor[name].to(weight))
                touched += int((factor[name] < 1).sum())
                total += weight.numel()
    notes = (f"{touched:,} of {total:,} weights were dampened.",)
    return Forgotten(job.module.eval(), False, NONE, notes=notes)


def dampened(
    forgotten: Float[Tensor, "..."], everything: Float[Tensor, "..."], alpha: float, dampening: float
) -> Float[Tensor, "..."]:
    """What each weight is multiplied with.

    >>> dampened(torch.tensor([1.0, 20.0, 5.0]), torch.tensor([1.0, 1.0, 0.0]), alpha=10.0, dampening=1.0)
    tensor([1.0000, 0.0500, 0.0000])
    """
    # What is selected is above zero; elsewhere the ratio may be anything.
    return torch.where(forgotten > alpha * everything, (dampening * everything / forgotten).clamp(max=1), 1)
