"""Shapley values of examples: what each adds to the held-out metric, averaged over the orders in which examples may arrive.

The trainings are those of `imprint.fleets.permutations`: random orders, walked through side by side and left when little is to be
gained. That is up to one training per example and order, so it is for small sets (up to about a thousand examples).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from imprint.methods import method
from imprint.recording.needs import Permutations


@method(
    "score", "shapley", higher="more valuable", needs=[Permutations()],
    source="Ghorbani, Zou 2019 (truncated Monte Carlo), arXiv:1904.02868",
)  # fmt: skip
def shapley(marginals: Float[Tensor, "order example"]) -> Float[Tensor, " example"]:
    """What the example adds to the held-out metric when it joins those before it, averaged over random orders (float64).

    The metric is the task's headline one (accuracy, F1, R2) on the validation split if there is one, else on the test split. Over all
    orders the values sum to the metric of all examples less that of the best constant answer; a truncated order leaves out at most
    the tolerance (0.01). For sets of more than about a thousand examples use "banzhaf", which takes a fixed number of trainings.

    >>> import torch
    >>> shapley(torch.tensor([[0.2, 0.0], [0.4, 0.1]]))
    tensor([0.3000, 0.0500])
    """
    return marginals.mean(0)


def standard_error(marginals: Float[Tensor, "order example"]) -> Float[Tensor, " example"]:
    """Monte Carlo standard error of each Shapley value: how far another draw of as many orders would move it.

    >>> import torch
    >>> standard_error(torch.tensor([[0.0, 0.1], [0.2, 0.1]]))
    tensor([0.1000, 0.0000])
    """
    return marginals.std(0) / len(marginals) ** 0.5
