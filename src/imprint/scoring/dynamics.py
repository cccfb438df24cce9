"""Scores from training dynamics: what the model said of each example while it was being trained on it.

All of them read the recorded trajectory and cost no training. `[epoch, example, ...]` in, `[example]` out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.methods import method
from imprint.recording.needs import Dynamics, Target

# EL2N is meant for early training: after about a tenth of it the hard examples stand out, and the noisy ones are not yet learned.
EARLY = 0.2


@method("score", "loss", higher="harder", needs=[Dynamics("loss")], source="Arpit et al. 2017, arXiv:1706.05394")
def mean_loss(loss: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Loss of the example, averaged over all epochs.

    Unit: nats (classification), squared standard deviations of the target (regression).

    >>> mean_loss(torch.tensor([[1.0, 0.0], [3.0, 0.5]]))
    tensor([2.0000, 0.2500])
    """
    return loss.mean(0)


@method(
    "score",
    "margin",
    higher="easier",
    needs=[Dynamics("margin", epochs=-1)],
    source="Bartlett et al. 1998, Annals of Statistics 26(5)",
)
def last_margin(margin: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Margin in the last epoch: the target's logit less the largest other; below zero = the model disagrees."""
    return margin[-1]


@method(
    "score", "aum", higher="easier", needs=[Dynamics("margin")], tasks=["classification", "multilabel"],
    source="Pleiss et al. 2020, arXiv:2001.10528",
)  # fmt: skip
def aum(margin: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Area under the margin: the margin averaged over epochs; low values mark wrong labels.

    >>> aum(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    tensor([ 2., -1.])
    """
    return margin.mean(0)


@method(
    "score", "el2n", higher="harder", needs=[Dynamics("probabilities", epochs=EARLY), Target()], tasks=["classification"],
    source="Paul, Ganguli, Dziugaite 2021, arXiv:2107.07075",
)  # fmt: skip
def el2n(
    probabilities: Float[Tensor, "epoch example class"], target: Int[Tensor, " example"]
) -> Float[Tensor, " example"]:
    """L2 norm of the error vector (softmax less one-hot), averaged over the early epochs; between 0 and the square root of 2.

    The paper averages over several initialisations at one early epoch; one recorded run gives the average over its early
    epochs instead. Use a fleet of seeds when the ranking must be tighter.

    >>> el2n(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([1, 1]))
    tensor([0.0000, 1.4142])
    """
    own = probabilities.gather(2, target[None, :, None].expand(len(probabilities), -1, 1)).squeeze(2)
    return (probabilities.square().sum(2) - 2 * own + 1).clamp(min=0).sqrt().mean(0)
