"""LESS: examples whose gradients point where those of a target point, along the training.

A step on example z lowers the loss of a target example by the inner product of their gradients. Long texts and hard examples have long
gradients and would win by that alone, so LESS compares directions (Xia et al. 2024):

    influence(z, s) = sum over checkpoints i of rate[i] * mean over t in s of cos(gradient[i](z), gradient[i](t)),

for each subtask s of the target, and takes the largest over subtasks: an example has to serve one of them, not their average. Subtasks
here are the classes of the target; other tasks have one. Target gradients are normalised one by one before they are averaged, as
in the authors' code.

It is for a pool of many kinds, few of which are the target's. To thin a pool that is all of its kind take another: cosines are higher in
some classes than in others, and the others get nothing.

What is adapted: gradients are of all weights, not of LoRA's; and of the run itself, at its kept checkpoints with the learning rates that
these stand for, not of a warm-up of four epochs on 5 % of the data. `less` reads projected gradients, which other methods read too.

On the training side LESS has Adam's next step in the place of the gradient, and no projection of a gradient says what that is.
`less-adam` scales the gradients as that step does, at the last checkpoint, where a run keeps Adam's running means of squares. It takes
them anew and needs no projection: with u[s] the mean of the target's unit gradients, the mean cosine is <scaled, u[s]> / |scaled|. It
leaves out the step's momentum, which is the same for all examples: when a training is over it is longer than the gradient of an example
that is learnt, and all of these point its way. With momentum, wrong labels of Adult are found with an AUROC of 0.71, without with one
of 0.81; plain gradients along the training give 0.83 (`benchmarks/targeting.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imprint.gradients import Examples, full, squared_norms
from imprint.gradients.moments import Moments
from imprint.methods import method
from imprint.recording.needs import Gradients, LayerGradients, LearningRates, SecondMoments, Target
from imprint.selecting.classwise import classes_of
from imprint.selecting.evidence import TARGET, Budget, Random
from imprint.selecting.picks import Picks, ranked

# Examples at a time.
BLOCK = 16_384
# Numbers of written-out gradients at a time: 64 MiB; a few such blocks are held.
NUMBERS = 2**24


def directions(
    gradients: Float[Tensor, "target size"], subtasks: Int[Tensor, " target"]
) -> Float[Tensor, "subtask size"]:
    """The mean direction of each subtask's gradients, subtasks in ascending order; a gradient of zero has none and counts as that.

    >>> directions(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([4, 4, 7]))
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    codes, place = torch.unique(subtasks, return_inverse=True)
    sums = gradients.new_zeros(len(codes), gradients.shape[1]).index_add_(0, place, F.normalize(gradients, dim=1))
    return sums / torch.bincount(place)[:, None]


def influence(
    gradients: Float[Tensor, "checkpoint example size"],
    target_gradients: Float[Tensor, "checkpoint target size"],
    subtasks: Int[Tensor, " target"],
    rates: Float[Tensor, " checkpoint"],
) -> Float[Tensor, "example subtask"]:
    """How much training on each example serves each subtask: mean cosines, averaged over checkpoints by learning rate; -1 to 1.

    >>> gradients, target = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]]), torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    >>> influence(gradients, target, torch.tensor([0, 1]), torch.ones(1))
    tensor([[1., 0.],
            [0., 1.]])
    """
    share = rates / rates.sum()
    total = gradients.new_zeros(gradients.shape[1], len(torch.unique(subtasks)))
    for one, (own, aim) in enumerate(zip(gradients, target_gradients, strict=True)):
        wanted = share[one] * directions(aim, subtasks).T
        for begin in range(0, len(own), BLOCK):
            some = slice(begin, begin + BLOCK)
            total[some] += F.normalize(own[some], dim=1) @ wanted
    return total


@method(
    "select", "less", higher="its gradient points where that of a class of the target points",
    needs=[
        Gradients("target_gradients", split=TARGET, checkpoint="kept", projection="paired"),
        Gradients(checkpoint="kept", projection="paired"), LearningRates(), Target("target_target", split=TARGET), Budget(), Random(),
    ],
    source="Xia et al. 2024 (LESS), arXiv:2402.04333; plain gradients",
)  # fmt: skip
def less(
    target_gradients: Float[Tensor, "checkpoint target size"], gradients: Float[Tensor, "checkpoint example size"],
    rates: Float[Tensor, " checkpoint"], target_target: Tensor, budget: int, generator: torch.Generator,
) -> Picks:  # fmt: skip
    """Examples whose gradients point where those of a target point, along the training; the best over the target's classes.

    Memory is that of the gradients: 2 KiB per example and kept checkpoint.

    >>> gradients, target = torch.tensor([[[-1.0, 0.0], [0.1, 0.9]]]), torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    >>> less(target, gradients, torch.ones(1), torch.tensor([0, 1]), 1, torch.Generator()).order
    tensor([1])
    """
    value = influence(gradients, target_gradients, classes_of(target_target), rates).amax(1)
    return Picks(ranked(value, budget, generator), value=value)


def adam_influence(
    examples: Examples, target: Examples, subtasks: Int[Tensor, " target"], moments: Moments
) -> Float[Tensor, "example subtask"]:
    """Mean cosines of each example's gradient, scaled as Adam does, with the gradients of each subtask's target examples; -1 to 1.

    Gradients are written out, some examples at a time: each number of each gradient is touched a few times.

    Args:
        examples: The training examples.
        target: The target's, at the same checkpoint.
        subtasks: Of the target's examples.
        moments: What Adam scales by there.
    """
    codes, place = torch.unique(subtasks, return_inverse=True)
    mean = F.one_hot(place, len(codes)).float() / torch.bincount(place)
    wanted: dict[str, Tensor] = {}
    for some, layers in target.blocks(_height(target)):
        lengths = squared_norms(layers).sqrt()
        share = mean[some].to(lengths) * torch.where(lengths > 0, 1 / lengths, 0.0)[:, None]
        for layer in layers:
            sums = share.T @ full(layer).flatten(1)
            wanted[layer.name] = wanted[layer.name] + sums if layer.name in wanted else sums
    found = []
    for _, layers in examples.blocks(_height(examples)):
        scaled = ((layer.name, moments.scaled(layer)) for layer in layers)
        parts = [(one @ wanted[name].T, one.square().sum(1)) for name, one in scaled]
        along, squares = (torch.stack(some).sum(0) for some in zip(*parts, strict=True))
        found.append((along / squares.sqrt().clamp(min=torch.finfo(along.dtype).tiny)[:, None]).cpu())
    return torch.cat(found)


def _height(examples: Examples) -> int:
    """How many examples' gradients are written out at a time."""
    return max(1, min(examples.size, NUMBERS // sum(layer.parameters for layer in examples.probe)))


@method(
    "select", "less-adam", higher="its gradient, scaled by Adam, points where that of a class of the target points",
    needs=[
        LayerGradients("target_examples", split=TARGET), LayerGradients(), SecondMoments(), Target("target_target", split=TARGET),
        Budget(), Random(),
    ],
    source="Xia et al. 2024 (LESS), arXiv:2402.04333; the last checkpoint",
)  # fmt: skip
def less_adam(
    target_examples: tuple[Examples, ...], examples: tuple[Examples, ...], moments: Moments, target_target: Tensor, budget: int,
    generator: torch.Generator,
) -> Picks:  # fmt: skip
    """Examples whose gradients, scaled as Adam scales them, point where those of a target point; the best over the target's classes.

    Needs a run of our own loop with Adam. Each gradient is written out once: for a large model take `less`.
    """
    value = adam_influence(examples[0], target_examples[0], classes_of(target_target), moments).amax(1)
    return Picks(ranked(value, budget, generator), value=value)
