"""Losses to train with: `Learner(loss="dice")`. Each is a small frozen value that gives the loss of every example of a batch.

A task's own loss is its negative log-likelihood, which counts every example alike; it is the default, and it stays what is recorded, scored
and called "loss" in nats (`Task.loss`). A learner's loss replaces it where the model learns (`Task.objective`): in the training
loop, in the batched fleet and in per-example gradients.

- `Dice`, for classes of very different sizes (Li et al. 2020, arXiv:1911.02855): an F1 of each example, which easy negatives hardly move;
- `Focal`, its relative (Lin et al. 2017, arXiv:1708.02002): the log-likelihood, less of it where the model is sure already;
- `PositiveUnlabelled`, for label sets of which only what is there can be trusted (Yuan et al. 2024, arXiv:2306.16016);
- `WeakNegatives`, for the same (Cole et al. 2021, arXiv:2106.09708): absent labels count as negatives, but little.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from imprint.errors import LearnerError, nearest

# The loss that a task has by itself, by name.
OWN = {"classification": "cross-entropy", "multilabel": "cross-entropy", "regression": "squared-error"}


@dataclass(frozen=True)
class Loss(ABC):
    """What a learner may be trained with: a few numbers, which a manifest holds.

    Attributes:
        kind: Its name.
        tasks: Those that it serves.
        by_example: Whether the loss of an example depends on that example alone.
    """

    kind: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multilabel")
    by_example: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, outputs: Float[Tensor, "example output"], target: Shaped[Tensor, "example ..."]
    ) -> Float[Tensor, " example"]:
        """Loss of each example. Where it is one of the whole batch, what each example adds: their mean is the batch's loss."""

    def spec(self) -> dict[str, Any]:
        """Name and numbers, from which `loss_from` rebuilds it."""
        return {"loss": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Dice(Loss):
    """One less the Sørensen-Dice coefficient (F1) of an example's probabilities and what is true of it.

    With `q = (1 - p)^alpha p` that is `1 - (2 q y + smooth) / (q^2 + y + smooth)`, summed over classes; of label sets there is one
    coefficient of the whole set, with sums over labels above and below. A negative that the model is sure of has next to no
    gradient, however many there are of them. `alpha` above 0 lowers the weight of what is easy; note that q is largest at
    `p = 1 / (1 + alpha)`, where it stops to push: the authors train with 0.01.

    Attributes:
        alpha: How much easy examples are played down; 0 for plain dice.
        smooth: Added to numerator and denominator; without it a negative would have no gradient at all.
        square: Whether the denominator holds squares (Milletari et al. 2016), as in the authors' trainings.

    >>> Dice(square=False)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))            # p = 1/2: 1 - 2/2.5, and 1 - 1/1.5
    tensor([0.5333])
    """

    alpha: float = 0.0
    smooth: float = 1.0
    square: bool = True
    kind: ClassVar[str] = "dice"

    def __post_init__(self) -> None:
        _from_zero(self, "alpha")
        if not self.smooth > 0:
            raise LearnerError(f"smooth={self.smooth!r} of the dice loss is not above 0.", "Try 1.")

    def __call__(
        self, outputs: Float[Tensor, "example output"], target: Shaped[Tensor, "example ..."]
    ) -> Float[Tensor, " example"]:
        labels = target.dim() == 2
        p = outputs.sigmoid() if labels else outputs.softmax(1)
        y = target if labels else (target[:, None] == torch.arange(outputs.shape[1], device=p.device)).to(p)
        q = _rest(p) ** self.alpha * p if self.alpha else p
        both, below = 2 * q * y, q.square() + y if self.square else q + y  # y is its own square
        if labels:
            return 1 - (both.sum(1) + self.smooth) / (below.sum(1) + self.smooth)
        return (1 - (both + self.smooth) / (below + self.smooth)).sum(1)


@dataclass(frozen=True)
class Focal(Loss):
    """`-(1 - p)^gamma log p` of the probability that the model gives the truth; of labels the mean over them, in nats.

    Attributes:
        gamma: How much less an example counts that the model is sure of; 0 is the cross-entropy, 2 the authors' choice.

    >>> Focal(gamma=1.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))                       # log(2) / 2
    tensor([0.3466])
    """

    gamma: float = 2.0
    kind: ClassVar[str] = "focal"

    def __post_init__(self) -> None:
        _from_zero(self, "gamma")

    def __call__(
        self, outputs: Float[Tensor, "example output"], target: Shaped[Tensor, "example ..."]
    ) -> Float[Tensor, " example"]:
        if target.dim() == 2:
            log = F.logsigmoid(torch.where(target > 0.5, outputs, -outputs))
            return (-(_rest(log.exp()) ** self.gamma) * log).mean(1)
        log = outputs.log_softmax(1).gather(1, target[:, None])[:, 0]
        return -(_rest(log.exp()) ** self.gamma) * log


@dataclass(frozen=True)
class WeakNegatives(Loss):
    """Binary cross-entropy in which a label that is absent counts as a negative of this weight; mean over labels, in nats.

    Where only some of the true labels were ever written down, an absent label is mostly, but not always, a negative.

    Attributes:
        weight: Of an absent label; None for `1 / (labels - 1)`: all of them count as much as one that is there.

    >>> WeakNegatives()(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))                  # (1 + 2/2) log(2) / 3
    tensor([0.4621])
    """

    weight: float | None = None
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)
    kind: ClassVar[str] = "weak-negatives"

    def __post_init__(self) -> None:
        if self.weight is not None:
            _from_zero(self, "weight")

    def __call__(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> Float[Tensor, " example"]:
        weight = 1 / max(1, outputs.shape[1] - 1) if self.weight is None else self.weight
        each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return (torch.where(target > 0.5, 1.0, weight) * each).mean(1)


@dataclass(frozen=True)
class PositiveUnlabelled(Loss):
    """The loss of PU-MLC: labels that are there are positives, of those that are absent nothing is known.

    Of each label, over a batch: `w log(mean of p) - mean over its positives of log p`, which is least where p is the probability
    that an example is as the positives are; then the mean over labels. Two factors adapt to the batch: the temperature `p =
    sigmoid(f / t)`, `t = min(1, alpha * deviation of f)`, sharpens probabilities that are all alike, and the balance
    `w = (mean of p)^gamma` lets a rare label's positives count more. No gradient goes through either.

    The authors add a consistency of mixed inputs, which this loss of outputs has not, and do not average over labels.

    Attributes:
        gamma: Of the balance; the authors take 0.55 for 80 labels, 0.85 for 20.
        alpha: Of the temperature; the authors take 1 for 80 labels, 2 for 20.

    >>> logits, target = torch.tensor([[2.0], [-2.0]]), torch.tensor([[1.0], [0.0]])
    >>> PositiveUnlabelled()(logits, target).mean()                             # -log sigmoid(2) + (1/2)^0.55 log(1/2)
    tensor(-0.3465)
    """

    gamma: float = 0.55
    alpha: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)
    by_example: ClassVar[bool] = False
    kind: ClassVar[str] = "positive-unlabelled"

    def __post_init__(self) -> None:
        _from_zero(self, "gamma")
        if not self.alpha > 0:
            raise LearnerError(f"alpha={self.alpha!r} of the positive-unlabelled loss is not above 0.", "Try 1.")

    def __call__(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> Float[Tensor, " example"]:
        deviation = outputs.detach().std(0, correction=0)
        temperature = (self.alpha * deviation).clamp(LEAST_TEMPERATURE, 1.0)
        log = F.logsigmoid(outputs / temperature)
        mean = log.exp().mean(0).clamp(min=LEAST_PROBABILITY)
        balance = mean.detach() ** self.gamma
        positives = target.sum(0)
        share = target * (len(target) / positives.clamp(min=1))  # its mean over the batch is a mean over the positives
        return (balance * mean.log() - share * log).mean(1)


# Logits that are all alike, as those of a batch of one: the temperature does not fall below this.
LEAST_TEMPERATURE = 1e-2
LEAST_PROBABILITY = 1e-10

# Every name that a learner may give, and what it stands for; the tasks' own losses are in `OWN`.
LOSSES: dict[str, Callable[..., Loss]] = {
    "dice": Dice,
    "adaptive-dice": lambda **numbers: Dice(**{"alpha": 0.01, **numbers}),
    "focal": Focal,
    "weak-negatives": WeakNegatives,
    "positive-unlabelled": PositiveUnlabelled,
}


def loss_from(said: str | Mapping[str, Any] | Loss) -> Loss | None:
    """The loss that a learner or a manifest says; None for "auto" and for what tasks do by themselves.

    Raises:
        LearnerError: Unknown name (says the nearest), or impossible numbers.

    >>> loss_from("focal"), loss_from({"loss": "dice", "alpha": 0.5, "smooth": 1.0, "square": True}), loss_from("cross-entropy")
    (Focal(gamma=2.0), Dice(alpha=0.5, smooth=1.0, square=True), None)
    """
    if isinstance(said, Loss):
        return said
    if not isinstance(said, str | Mapping):
        raise LearnerError(f"loss={said!r} is no loss.", f"Give one of {', '.join(names())}.")
    name, numbers = (said, {}) if isinstance(said, str) else (said.get("loss"), {**said})
    numbers.pop("loss", None)
    if name == "auto" or name in OWN.values():
        return None
    if name not in LOSSES:
        raise LearnerError(f"loss={name!r} is unknown.", nearest(str(name), names()))
    try:
        return LOSSES[str(name)](**numbers)
    except TypeError as error:
        raise LearnerError(f"The loss '{name}' has no such numbers: {error}.", "See imprint.fitting.losses.") from error


def names() -> list[str]:
    """Every name of a loss."""
    return ["auto", *dict.fromkeys(OWN.values()), *LOSSES]


def resolved(said: str | Loss, task: str, at_once: str | None = None) -> str | Loss:
    """The loss of a training for this task, named in full: what a manifest holds.

    Args:
        said: What the learner says.
        task: Name of the task.
        at_once: What is fitted at once and so has a loss of its own, in words; it stays "auto".

    Raises:
        LearnerError: It is not one for this task, or the model has another.

    >>> resolved("auto", "regression"), resolved("adaptive-dice", "classification")
    ('squared-error', Dice(alpha=0.01, smooth=1.0, square=True))
    """
    found = loss_from(said)
    if at_once is not None:
        if found is not None:
            raise LearnerError(
                f"{at_once} is fitted at once, to a loss of its own, and not to {said!r}.",
                "Leave loss out, or use a model that is trained, such as 'linear' or 'mlp'.",
            )
        return "auto"
    if found is None:
        if said not in ("auto", OWN[task]):
            raise LearnerError(f"loss={said!r} is not one for {task}.", f"Its own is {OWN[task]!r}.")
        return OWN[task]
    if task not in found.tasks:
        fit = [OWN[task], *(name for name, one in LOSSES.items() if task in one().tasks)]
        raise LearnerError(
            f"loss={said!r} is for {' and '.join(found.tasks)}, not for {task}.", f"Use {', '.join(fit)}."
        )
    return found


def _rest(p: Tensor) -> Tensor:
    """1 - p, never zero: a power of it below one has no slope there."""
    return (1 - p).clamp(min=torch.finfo(p.dtype).eps)


def _from_zero(loss: Any, name: str) -> None:
    value = getattr(loss, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise LearnerError(f"{name}={value!r} of the loss '{loss.kind}' is not a number from 0.", "Give 0 or more.")
