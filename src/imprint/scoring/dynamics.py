"""Scores from training dynamics: what the model said of each example while it was being trained on it.

All of them read the recorded trajectory and cost no training. `[epoch, example, ...]` in, `[example]` out. An epoch in which a
sampler left an example out is NaN in the record, and is left out of the example's averages.
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

    Unit: nats (classification), half squared standard deviations of the target (regression).

    >>> mean_loss(torch.tensor([[1.0, 0.0], [3.0, 0.5]]))
    tensor([2.0000, 0.2500])
    """
    return loss.nanmean(0)


@method(
    "score", "margin", higher="easier", needs=[Dynamics("margin", epochs=-1)],
    source="Bartlett et al. 1998, Annals of Statistics 26(5)",
)  # fmt: skip
def last_margin(margin: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Margin in the last epoch: the target's logit less the largest other; below zero = the model disagrees.

    Multilabel: the smallest margin over labels. Regression: minus the absolute error, in standard deviations of the target.

    >>> last_margin(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    tensor([3., 0.])
    """
    return margin[-1]


@method(
    "score", "entropy", higher="less certain", needs=[Dynamics("probabilities", epochs=-1)], tasks=["classification"],
    source="Shannon 1948; as uncertainty: Settles 2009, TR 1648",
)  # fmt: skip
def entropy(probabilities: Float[Tensor, "epoch example class"]) -> Float[Tensor, " example"]:
    """Entropy of the predicted distribution in the last epoch, in nats; from 0 to log(classes). It does not see the target.

    >>> entropy(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]))
    tensor([0.6931, 0.0000])
    """
    return torch.special.entr(probabilities[-1]).sum(-1)


@method(
    "score", "confidence", higher="easier", needs=[Dynamics("loss")], tasks=["classification", "multilabel"],
    source="Swayamdipta et al. 2020 (data maps), arXiv:2009.10795",
)  # fmt: skip
def confidence(loss: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Probability that the model gave to the target, averaged over epochs.

    It is read off the loss, exp(-cross-entropy), which is recorded however many classes there are. Multilabel: the geometric
    mean over labels of the probability given to what the target says.

    >>> confidence(-torch.tensor([[0.5, 1.0], [0.7, 0.0]]).log())
    tensor([0.6000, 0.5000])
    """
    return (-loss).exp().nanmean(0)


@method(
    "score", "variability", higher="more ambiguous", needs=[Dynamics("loss")], tasks=["classification", "multilabel"],
    source="Swayamdipta et al. 2020 (data maps), arXiv:2009.10795",
)  # fmt: skip
def variability(loss: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Standard deviation over epochs of the probability given to the target (of the population, as in the authors' code).

    >>> variability(-torch.tensor([[0.5, 1.0], [0.7, 0.0]]).log())
    tensor([0.1000, 0.5000])
    """
    own = (-loss).exp()
    return (own - own.nanmean(0)).square().nanmean(0).sqrt()


@method(
    "score", "aum", higher="easier", needs=[Dynamics("margin")], tasks=["classification", "multilabel"],
    source="Pleiss et al. 2020, arXiv:2001.10528",
)  # fmt: skip
def aum(margin: Float[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Area under the margin: the margin (in logits) averaged over epochs; low values mark wrong labels.

    >>> aum(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    tensor([ 2., -1.])
    """
    return margin.nanmean(0)


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
    return (probabilities.square().sum(2) - 2 * own + 1).clamp(min=0).sqrt().nanmean(0)


@method(
    "score", "forgetting", higher="harder", needs=[Dynamics("correct")], tasks=["classification", "multilabel"],
    source="Toneva et al. 2019, arXiv:1812.05159",
)  # fmt: skip
def forgetting(correct: Bool[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Forgetting events: how often the example was right in one epoch and wrong in the next.

    As in the authors' code, an example that was never right counts as forgotten in every epoch, which puts it above all
    others. Between 0 ("unforgettable") and the number of epochs.

    >>> forgetting(torch.tensor([[True, False, True], [False, False, True], [True, False, True]]))
    tensor([1., 3., 0.])
    """
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return torch.where(correct.any(0), events, len(correct)).float()


@method(
    "score", "learning-time", higher="harder", needs=[Dynamics("correct")], tasks=["classification", "multilabel"],
    source="Toneva et al. 2019, arXiv:1812.05159 (presentations needed to learn)",
)  # fmt: skip
def learning_time(correct: Bool[Tensor, "epoch example"]) -> Float[Tensor, " example"]:
    """Epochs until the example was learned for good: the number of the last epoch in which it was wrong.

    0 = right from the first epoch on; the number of epochs = wrong in the last one, so not learned.

    >>> learning_time(torch.tensor([[True, False, False], [True, True, False], [True, True, False]]))
    tensor([0., 1., 3.])
    """
    epoch = torch.arange(1, len(correct) + 1, device=correct.device)[:, None]
    return torch.where(correct, 0, epoch).amax(0).float()
