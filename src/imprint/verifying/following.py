"""Follows trainings: how good is the model on the test examples after each epoch, after how many steps and seconds?

An executor of fleets that trains members one after the other, by the loop of a recorded run. What measuring takes is not counted as time
of the training, since the loop's clock stands still between epochs. Nothing it does changes the training: a member that is followed ends
in bitwise the same weights as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting import Progress, State, predict, silent, train
from imprint.fitting.build import build, fit_at_once, has_epochs
from imprint.fleets import Member, Shared
from imprint.fleets.executing import Finished

# What a point of a curve holds.
POINT = ("epoch", "step", "seconds", "metric")
# More would not be seen in a drawing, and each of them is a prediction of the whole test set.
POINTS = 60


@dataclass(frozen=True)
class Followed(Finished):
    """Members that were followed.

    Attributes:
        steps: Optimizer steps of each; 0 of a model that is fitted at once.
        curves: Of each, a row per measurement: epoch, step, seconds and the headline metric on the queries. None where no points were
            asked for.
    """

    steps: list[int] = field(default_factory=list)
    curves: list[Float[Tensor, "point 4"] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Following:
    """The executor that measures members as they are trained.

    Attributes:
        points: Measurements of a training at the most, evenly spread over its epochs and at its end; 0 for none, which leaves the count of
            the steps.
    """

    points: int = POINTS
    name: ClassVar[str] = "sequential"

    def __post_init__(self) -> None:
        if self.points < 0:
            raise LearnerError(f"points={self.points} is not a number of measurements.", "Give 0 or more.")

    def why_not(self, shared: Shared) -> None:
        """It trains whatever a run can train."""
        return

    def run(
        self,
        shared: Shared,
        members: Sequence[Member],
        numbers: Sequence[int],
        queries: Tensor,
        *,
        parameters: bool = False,
        progress: Progress = silent,
    ) -> Iterator[Finished]:
        """Train `members[number]` for each of `numbers`; see `Executor.run`. Queries are measured with the shared targets."""
        for done, number in enumerate(numbers):
            yield self.follow(shared, members[number], number, queries, parameters)
            progress("members", done + 1, len(numbers))

    def follow(self, shared: Shared, member: Member, number: int, queries: Tensor, parameters: bool) -> Followed:
        """Train one member."""
        learner = member.learner(shared.learner)
        data = shared.data.train_on(
            None if member.rows is None else torch.as_tensor(member.rows), member.target, member.weight
        )
        points: list[list[float]] = []
        watch = _Watch(shared, queries, int(learner.epochs or 1), self.points, points)
        if has_epochs(learner.model):
            trained = train(build(learner, shared.encoder, shared.task), shared.task, data, learner, observers=(watch,))
            module, seconds, steps = trained.module, trained.seconds, trained.steps
        else:
            began = time.perf_counter()
            module = fit_at_once(learner, shared.encoder, shared.task, data)
            seconds, steps = time.perf_counter() - began, 0
        said = predict(module, shared.task, shared.data.inputs, queries, device=learner.device)
        if self.points and not points:
            points.append([1.0, 0.0, seconds, _metric(shared, said, queries)])
        weights = [{name: value.detach().cpu() for name, value in module.state_dict().items()}] if parameters else None
        curve = torch.tensor(points, dtype=torch.float64) if self.points else None
        return Followed([number], said[None], [seconds], weights, [steps], [curve])


@dataclass(frozen=True)
class _Watch:
    """Measures the model after epochs; plugs into the loop as what records a run does."""

    shared: Shared
    queries: Tensor
    epochs: int
    wanted: int
    points: list[list[float]]

    def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
        """Nothing is read within an epoch."""

    def on_epoch(self, state: State, loss: float) -> None:
        """Measure if this is one of the epochs after which to."""
        if not due(state.epoch, self.epochs, self.wanted):
            return
        shared = self.shared
        said = predict(state.model, shared.task, shared.data.inputs, self.queries, device=shared.learner.device)
        self.points.append([float(state.epoch), float(state.step), state.seconds, _metric(shared, said, self.queries)])


def _metric(shared: Shared, said: Tensor, queries: Tensor) -> float:
    return float(shared.task.credit(said, shared.data.target[queries]).mean())


def due(epoch: int, epochs: int, wanted: int) -> bool:
    """Whether to measure after an epoch, so that there are at most `wanted` measurements, the last one after the last epoch.

    >>> [epoch for epoch in range(1, 11) if due(epoch, 10, 4)]
    [3, 5, 8, 10]
    >>> sum(due(epoch, 1000, 60) for epoch in range(1, 1001)), sum(due(epoch, 5, 60) for epoch in range(1, 6))
    (60, 5)
    """
    wanted = min(wanted, epochs)
    return wanted * epoch // epochs > wanted * (epoch - 1) // epochs
