"""Diversity as training goes: the model's own features say, again and again, which examples are redundant."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from imprint.fitting import DynamicDiversity
from imprint.methods import method
from imprint.recording.needs import Rows
from imprint.selecting.evidence import Budget


@method(
    "select", "dynamic-diversity", higher="less redundant", needs=[Rows(), Budget()], source="Kerdreux et al. 2025, arXiv:2504.06962",
)  # fmt: skip
def dynamic_diversity(rows: Int[Tensor, " example"], budget: int) -> DynamicDiversity:
    """Equal shares of clusters of the current features without the most redundant examples, chosen again every three epochs: a policy.

    See `imprint.fitting.DynamicDiversity`. The first three epochs visit fresh random subsets.

    >>> import torch
    >>> dynamic_diversity(torch.arange(100), 10)
    DynamicDiversity(fraction=0.1, every=3)
    """
    return DynamicDiversity(budget / len(rows))
