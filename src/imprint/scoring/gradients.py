"""Scores from gradients: how far training on an example would move the model, and how much its explanation moves while training.

The norms of the gradients with respect to the weights are collected in one pass over the corpus per checkpoint and kept; the gradients
themselves are never written out. The gradients with respect to the inputs stream from the recorded checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.fitting import as_input
from imprint.gradients import Examples
from imprint.methods import method
from imprint.recording.needs import GradientNorms, LayerGradients, LearningRates, Target
from imprint.tasks import Batch

# Numbers of the inputs of a block of examples: 16 MiB of float32, of which a few copies are held, and what the backward pass holds.
BLOCK = 2**22
MOST = 1024


@method(
    "score", "gradient-norm", higher="would move the model more", needs=[GradientNorms()],
    source="Katharopoulos, Fleuret 2018, arXiv:1803.00942",
)  # fmt: skip
def gradient_norm(norms: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Norm of the gradient of the example's loss with respect to all trained weights, at the end of the training.

    Unit: nats per unit of weight (regression: half squared standard deviations of the target). High: the example is not learned, as
    a wrong label that the model did not memorise; with nearly all examples learned it says little, and `grand` more.

    >>> gradient_norm(torch.tensor([0.5, 2.0]))
    tensor([0.5000, 2.0000])
    """
    return norms


@method(
    "score", "grand", higher="harder", needs=[GradientNorms(checkpoint="early")],
    source="Paul, Ganguli, Dziugaite 2021, arXiv:2107.07075",
)  # fmt: skip
def grand(norms: Float[Tensor, "checkpoint example"]) -> Float[Tensor, " example"]:
    """Norm of the gradient of the example's loss early in the training: the mean over the checkpoints of the first fifth of the epochs.

    The paper takes the mean over several initialisations after a few epochs; one recorded run gives the mean over its early checkpoints
    instead, as `el2n` does, which the paper derives from it and which costs nothing.

    >>> grand(torch.tensor([[0.5, 2.0], [1.5, 2.0]]))
    tensor([1., 2.])
    """
    return norms.mean(0)


@method(
    "score", "self-influence", higher="more memorised", needs=[GradientNorms(checkpoint="kept"), LearningRates()],
    source="Pruthi et al. 2020 (TracIn), arXiv:2002.08484",
)  # fmt: skip
def self_influence(
    norms: Float[Tensor, "checkpoint example"], rates: Float[Tensor, " checkpoint"]
) -> Float[Tensor, " example"]:
    """What steps on the example took off its own loss (TracIn of the example with itself), over the recorded checkpoints.

        score[i] = sum over checkpoints c of learning_rate[c] * |gradient[c, i]|^2

    Unit: nats, were each step plain gradient descent on the example alone; of an adaptive optimizer only the order of the examples
    means something. A checkpoint stands for the epochs since the one before it, with the sum of their learning rates. High values are
    of examples that no others teach: rare ones and wrong labels.

    >>> self_influence(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.1, 0.5]))
    tensor([2.1000, 0.9000])
    """
    return rates @ norms.square()


@method(
    "score", "vog", higher="harder", needs=[LayerGradients(checkpoint="kept"), Target()], tasks=["classification"],
    rowwise=False, source="Agarwal, D'souza, Hooker 2022, arXiv:2008.11600",
)  # fmt: skip
def vog(examples: Sequence[Examples], target: Int[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Variance over the recorded checkpoints of the gradient of the label's logit with respect to the input, within the class.

        variance[i] = mean over inputs p of the variance over checkpoints c of d logit[c, i, label of i] / d input[i, p]
        score[i]    = (variance[i] - mean of the class) / standard deviation of the class

    An example whose explanation keeps changing is hard. The constant that the paper multiplies the variance by falls out of the score.
    Unit: standard deviations within the class (0 where a class has none). It takes the logit of the label that is given: whether a wrong
    label raises or lowers it depends on the data, so look at both ends. The input is what the model is given: encoded columns, pixels
    of an image; a model of token codes has no such gradient.

    Raises:
        EvidenceError: Fewer than two checkpoints were recorded, or inputs are codes and no numbers.
    """
    if len(examples) < 2:
        raise EvidenceError(
            f"There is {len(examples)} checkpoint, and a variance over checkpoints takes two.",
            "Fit a torch model for more epochs, or ask for 'gradient-norm'.",
        )
    return within_class(input_variance(examples), target)


def input_variance(examples: Sequence[Examples]) -> Float[Tensor, " example"]:
    """Variance over checkpoints of the gradient of the label's logit with respect to the input, averaged over the input.

    Blocks of examples go through all checkpoints in turn, so that mean and sum of squares (Welford's, which do not cancel) are all
    that is held.

    Args:
        examples: The same examples at each checkpoint.
    """
    found = torch.empty(len(examples[0]))
    size = BLOCK // max(1, examples[0].read(np.arange(1))[0].numel())
    size = max(1, min(MOST, size))
    for begin in range(0, len(found), size):
        some = slice(begin, min(begin + size, len(found)))
        mean: Tensor | None = None
        for number, one in enumerate(examples, start=1):
            gradient = input_gradients(one, some)
            if mean is None:
                mean, spread = torch.zeros_like(gradient), torch.zeros_like(gradient)
            off = gradient - mean
            mean += off / number
            spread.addcmul_(off, gradient - mean)
        found[some] = (spread / len(examples)).flatten(1).mean(1).cpu()
    return found


def input_gradients(examples: Examples, some: slice) -> Float[Tensor, "example ..."]:
    """Gradient of the logit of each example's label with respect to its input."""
    encoded, target = examples.read(np.arange(some.start, some.stop))
    inputs = as_input(encoded.to(examples.device), examples.device)
    module, task = examples.capture.module.eval(), examples.capture.task
    target = target.to(examples.device)
    if not inputs.is_floating_point():
        inputs = _numbers(module, inputs)
    inputs = inputs.detach().requires_grad_()
    with torch.enable_grad():
        logits = task.outputs(module, Batch(inputs, target))
        return torch.autograd.grad(logits.gather(1, target[:, None]).sum(), inputs)[0]


def _numbers(module: nn.Module, inputs: Tensor) -> Tensor:
    """The bytes of images as numbers that the module reads alike; of anything else that is not made of numbers, an error."""
    if inputs.dtype == torch.uint8:
        with torch.no_grad():
            few = inputs[:2]
            if torch.allclose(module(few), module(few.float()), rtol=1e-4, atol=1e-4):
                return inputs.float()
    raise EvidenceError(
        f"The model reads inputs of type {str(inputs.dtype).removeprefix('torch.')} as codes, which have no gradient.",
        "Ask for 'grand' or 'gradient-norm', which take the gradient with respect to the weights.",
    )


def within_class(values: Float[Tensor, " example"], target: Int[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Values less the mean of their class, in standard deviations of it (of the population, as NumPy's); 0 where it has none.

    >>> within_class(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    number = values.double()
    classes = int(target.max()) + 1
    count = torch.bincount(target, minlength=classes).clamp(min=1)
    off = number - (torch.bincount(target, number, minlength=classes) / count)[target]
    spread = (torch.bincount(target, off.square(), minlength=classes) / count).sqrt()[target]
    return torch.where(spread > 0, off / spread.clamp(min=torch.finfo(torch.float64).tiny), 0.0).float()
