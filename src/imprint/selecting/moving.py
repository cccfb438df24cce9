"""Visits that follow the training: policies that read the losses and gradients of the model as it is trained."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from imprint.fitting import NaiveSplit, Proportional
from imprint.methods import method
from imprint.recording.needs import Rows
from imprint.selecting.evidence import Budget


@method(
    "select", "gradient-norm-proportional", higher="visited more", needs=[Rows(), Budget()],
    source="Lu et al. 2023, arXiv:2302.14772 (PA&DA)",
)  # fmt: skip
def gradient_norm_proportional(rows: Int[Tensor, " example"], budget: int) -> Proportional:
    """Visits in proportion to a bound of the gradient's norm, with weights that keep the mean gradient unbiased: a policy.

    See `imprint.fitting.Proportional`. The bound is the norm of the gradient with respect to the outputs, at the last visit.

    >>> import torch
    >>> gradient_norm_proportional(torch.arange(100), 10)
    Proportional(to='bound', fraction=0.1, trust=None)
    """
    return Proportional("bound", budget / len(rows))


@method(
    "select", "loss-proportional", higher="visited more", needs=[Rows(), Budget()],
    source="Katharopoulos & Fleuret 2018, arXiv:1803.00942 (its loss control)",
)  # fmt: skip
def loss_proportional(rows: Int[Tensor, " example"], budget: int) -> Proportional:
    """Visits in proportion to the loss at the last visit, with weights that keep the mean gradient unbiased: a policy.

    The same as `gradient-norm-proportional` with the loss in the place of the bound: no better founded, and without a bound on the
    outputs' gradient to compute.

    >>> import torch
    >>> loss_proportional(torch.arange(100), 10)
    Proportional(to='loss', fraction=0.1, trust=None)
    """
    return Proportional("loss", budget / len(rows))


@method(
    "select", "saa", higher="visited more", needs=[Rows(), Budget()], source="Gui et al. 2023, arXiv:2309.03598 (its split)",
)  # fmt: skip
def saa(rows: Int[Tensor, " example"], budget: int) -> NaiveSplit:
    """Fewer visits to examples whose loss lies below Otsu's threshold, the naive ones; the split of SAA: a policy.

    SAA augments naive unlabelled examples more; this visits them less. See `imprint.fitting.NaiveSplit`. Nothing corrects for the
    change of distribution, and wrongly labelled examples are visited most.

    >>> import torch
    >>> saa(torch.arange(100), 10)
    NaiveSplit(fraction=0.1, naive=0.2, warmup=0.4)
    """
    return NaiveSplit(budget / len(rows))
