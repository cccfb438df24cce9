"""The loop of every method that forgets by optimizer steps: blocks of examples in an order of the seed, a few epochs at a low rate.

By default a method takes a tenth of the parent's epochs, at least one, which puts its price at a tenth of a training, times what it reads
in an epoch. What only goes down goes at three tenths of the parent's peak learning rate, what goes up at a tenth: on digits (MLP, Adam;
a tenth at random, a class, a mislabelled tenth) a tenth hardly moves the former, and three tenths throw the latter far beyond
retrained models. With SGD, Jia et al. 2023 take 10 epochs of 182 at a tenth (github.com/OPTML-Group/Unlearn-Sparse).

All randomness comes from generators of (seed, purpose, epoch or step), so that a request gives the same weights again on one machine.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from imprint.errors import LearnerError, MethodError
from imprint.fitting import derive, generator
from imprint.fitting.augment import flip_crop
from imprint.fitting.loop import PROGRESS_SECONDS, optimizer_for
from imprint.forgetting.job import Forgetting, Part

# Shares of the parent's epochs, and of its peak learning rate on the way down and on the way up.
EPOCHS, RATE, ASCENT = 0.1, 0.3, 0.1


@dataclass(frozen=True)
class Share:
    """A share of the parent's own setting of the same name: how a grid (`SEARCH`) says learning rates and epochs.

    Attributes:
        of: One is the parent's own.

    >>> Share(0.3).times(0.01), Share(0.1).times(25), Share(0.1).times(3)
    (0.003, 2, 1)
    """

    of: float

    def times(self, own: float) -> float | int:
        """That share of the parent's; of a whole number a whole number, at least one."""
        return max(1, round(self.of * own)) if isinstance(own, int) else self.of * own


@dataclass(frozen=True)
class Block:
    """Some examples on their way through a module, on its device.

    Attributes:
        inputs: Encoded inputs.
        target: Encoded targets.
        places: Which examples of the split.
        weight: Their weights, on average one over the part; None for all one.
    """

    inputs: Shaped[Tensor, "example ..."]
    target: Shaped[Tensor, "example ..."]
    places: Int[Tensor, " example"]
    weight: Float[Tensor, " example"] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def mean(self, values: Float[Tensor, " example"]) -> Float[Tensor, ""]:
        """Mean over the examples, weighted as they are trained on."""
        return values.mean() if self.weight is None else (values * self.weight).mean()


def blocks(
    job: Forgetting,
    part: Part,
    epoch: int,
    size: int | None = None,
    target: Shaped[Tensor, "example ..."] | None = None,
) -> Iterator[Block]:
    """One epoch over a part in blocks, in an order of (seed, epoch), augmented as the parent's training was.

    Args:
        job: The request.
        part: Which examples.
        epoch: From 0.
        size: Examples per block; None for the parent's batch size.
        target: Other targets to give them, in the order of `part.places`.
    """
    weight = part.weight
    if weight is not None:
        weight = weight / weight.mean().clamp(min=torch.finfo(torch.float32).tiny)
    order = generator(job.seed, "forget", "order", epoch)
    for number, (inputs, own, places) in enumerate(part.batches(size or batch_size(job), order)):
        inputs = inputs.to(job.device)
        if job.learner.augment == "flip-crop":
            random = generator(job.seed, "forget", "augment", epoch, number, device=job.device)
            inputs = flip_crop(inputs, random)
        if target is not None:
            own = target[torch.searchsorted(part.places, places)]
        weighed = None if weight is None else weight[torch.searchsorted(part.places, places)]
        yield Block(inputs, own.to(job.device), places, None if weighed is None else weighed.to(job.device))


def cycled(job: Forgetting, part: Part, size: int | None = None) -> Iterator[Block]:
    """Blocks of a part without end: after an epoch the next one, in a new order."""
    epoch = 0
    while True:
        yield from blocks(job, part, epoch, size)
        epoch += 1


def steps_of(job: Forgetting, part: Part, size: int | None = None) -> int:
    """How many blocks an epoch over a part has."""
    return max(1, -(-len(part) // (size or batch_size(job))))


def some(part: Part, count: int, random: torch.Generator) -> Part:
    """So many examples of a part, drawn without replacement; all of them where it has no more."""
    drawn = torch.randperm(len(part), generator=random)[:count]
    return replace(part, places=part.places[drawn.sort().values])


def batch_size(job: Forgetting) -> int:
    """The parent's."""
    return job.learner.batch_size or 256


def epochs_of(job: Forgetting, epochs: int | None, share: float = EPOCHS) -> int:
    """So many epochs, or by default a share of the parent's, at least one.

    Raises:
        MethodError: It is no whole number above 0.
    """
    if epochs is None:
        return max(1, round(share * (job.learner.epochs or 1)))
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise MethodError(f"epochs={epochs!r} is not a whole number above 0.", "Give 1 or more, or leave it out.")
    return epochs


def rate_of(job: Forgetting, learning_rate: float | None, share: float = RATE) -> float:
    """This learning rate, or by default a share of the parent's peak rate.

    Raises:
        MethodError: It is no number above 0.
    """
    if learning_rate is None:
        return share * (job.learner.learning_rate or 1e-3)
    return within("learning_rate", learning_rate, 0, math.inf, open_low=True)


def within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> float:
    """A setting that must be a number in a range.

    Raises:
        MethodError: It is not.

    >>> within("share", 0.5, 0, 1)
    0.5
    """
    good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not good or not (low < value if open_low else low <= value) or not value <= high:
        said = f"above {low:g}" if open_low else f"from {low:g}"
        raise MethodError(
            f"{name}={value!r} is not a number {said}{'' if high == math.inf else f' to {high:g}'}.",
            f"Give one, or leave {name} out.",
        )
    return float(value)


class Steps:
    """Optimizer steps on a job's module, with the parent's kind of optimizer.

    Args:
        job: The request.
        rate: Learning rate.
        total: How many steps there will be, for progress.
        parameters: Which to change; None for all of the module's that are trained.
        optimizer: Another kind than the parent's: "adamw" or "sgd".
        decay: Another weight decay than the parent's.

    Raises:
        MethodError: The module has no weights that gradients could change.
    """

    def __init__(
        self,
        job: Forgetting,
        rate: float,
        total: int,
        parameters: list[nn.Parameter] | None = None,
        optimizer: str | None = None,
        decay: float | None = None,
    ) -> None:
        self.job, self.rate, self.total, self.count = job, rate, total, 0
        parameters = weights(job) if parameters is None else parameters
        learner = replace(
            job.learner,
            learning_rate=rate,
            optimizer=optimizer or job.learner.optimizer,
            weight_decay=job.learner.weight_decay if decay is None else decay,
        )
        self.optimizer = optimizer_for(parameters, learner)
        self._losses: list[Tensor] = []
        self._shown = time.perf_counter()

    def __call__(self, loss: Float[Tensor, ""], rate: float | None = None) -> None:
        """One step down this loss, at another rate if one is given."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if rate is None else rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.count += 1
        self._losses.append(loss.detach())
        now = time.perf_counter()
        if now - self._shown > PROGRESS_SECONDS:
            self._shown = now
            self.job.progress("forget", self.count, max(self.total, self.count))

    def check(self) -> float:
        """Mean loss since the last check; called once an epoch, so that nothing waits for the device within it.

        Raises:
            LearnerError: It is not finite.
        """
        loss = float(torch.stack(self._losses).mean()) if self._losses else 0.0
        self._losses = []
        if not math.isfinite(loss):
            raise LearnerError(
                f"Forgetting diverged: the loss is {loss} after {self.count} steps at the learning rate {self.rate:g}.",
                f"Lower it, learning_rate={self.rate / 10:.1g}, or take fewer epochs.",
            )
        return loss

    def close(self) -> int:
        """Check the last losses and the weights, and say how many steps were taken.

        Raises:
            LearnerError: A loss or a weight is not finite.
        """
        self.check()
        finite(self.job.module, self.rate)
        self.job.progress("forget", self.count, self.count)
        self.job.module.eval()
        return self.count


def weights(job: Forgetting) -> list[nn.Parameter]:
    """The weights that steps may change.

    Raises:
        MethodError: There are none.
    """
    found = job.parameters()
    if not found:
        raise MethodError(
            f"The model of {job.run.path} has no weights that gradients could change.", "Choose method='retrain'."
        )
    return found


def finite(module: nn.Module, rate: float | None = None) -> None:
    """Raise `LearnerError` if a weight of a module is not finite."""
    broken = [name for name, one in module.named_parameters() if not bool(torch.isfinite(one).all())]
    if broken:
        raise LearnerError(
            f"Forgetting diverged: {', '.join(broken[:3])} {'is' if len(broken) == 1 else 'are'} not finite.",
            "Make the step smaller: more damping, or a smaller scale."
            if rate is None
            else f"Lower learning_rate (now {rate:g}), or take fewer epochs.",
        )


@contextmanager
def training(job: Forgetting, module: nn.Module | None = None) -> Iterator[nn.Module]:
    """The job's module (or another) in training mode, its dropout drawn from the seed; the caller keeps its random state."""
    module = job.module if module is None else module
    with torch.random.fork_rng([job.device] if job.device.type == "cuda" else []):
        torch.manual_seed(derive(job.seed, "forget", "dropout"))
        module.train()
        try:
            yield module
        finally:
            module.eval()


def fine_tune(
    job: Forgetting,
    part: Part,
    epochs: int,
    rate: float,
    *,
    target: Shaped[Tensor, "example ..."] | None = None,
    penalty: Callable[[int], Float[Tensor, ""]] | None = None,
    after: Callable[[], None] | None = None,
) -> int:
    """Train a job's module on a part, with the parent's loss; the number of steps.

    Args:
        job: The request.
        part: Which examples.
        epochs: How many.
        rate: Learning rate.
        target: Other targets, in the order of `part.places`.
        penalty: Epoch, from 0 -> what is added to the loss.
        after: Called after each step, without gradients.
    """
    steps = Steps(job, rate, epochs * steps_of(job, part))
    with training(job):
        for epoch in range(epochs):
            for block in blocks(job, part, epoch, target=target):
                loss = block.mean(job.loss(job.forward(block.inputs), block.target))
                steps(loss if penalty is None else loss + penalty(epoch))
                if after is not None:
                    with torch.no_grad():
                        after()
            steps.check()
    return steps.close()


def teacher_of(job: Forgetting) -> nn.Module:
    """A copy of the job's module as it is now, in evaluation mode and without gradients."""
    return copy.deepcopy(job.module).eval().requires_grad_(False)


def united(first: Part, second: Part) -> Part:
    """The examples of two parts of one split, ascending."""
    return replace(first, places=torch.cat([first.places, second.places]).sort().values)
