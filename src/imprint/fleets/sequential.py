"""Many trainings, one after the other, that share the encoder and the encoded inputs: the executor that trains anything.

It is the reference that the others are held to: a member is trained by the same loop as a recorded run. Nothing is recorded but
its outcome: the metrics on some rows and, where asked for, its outputs on others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting import Progress, predict, silent, train
from imprint.fitting.build import build, fit_at_once, has_epochs, with_loss
from imprint.fitting.deletable import train_deletable
from imprint.fleets.executing import Finished
from imprint.fleets.member import Member, Outcome
from imprint.fleets.shared import Shared

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Sequential:
    """The executor that trains members one after the other.

    Attributes:
        processes: How many at a time, each in a process of its own with its share of the threads.
    """

    processes: int = 1
    name: ClassVar[str] = "sequential"

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise LearnerError(f"processes={self.processes} is not a number of processes.", "Give 1 or more.")

    def why_not(self, shared: Shared) -> str | None:
        """It trains whatever a run can train; several processes need a learner that can be sent to them."""
        from imprint.fleets.sending import why_not_sent

        return None if self.processes == 1 else why_not_sent(shared)

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
        """Train `members[number]` for each of `numbers`; see `Executor.run`."""
        if self.processes > 1:
            from imprint.fleets import processes

            yield from processes.run(
                shared,
                members,
                numbers,
                queries,
                processes=self.processes,
                parameters=parameters,
                progress=progress,
            )
            return
        for done, number in enumerate(numbers):
            yield train_finished(shared, members[number], number, queries, parameters)
            progress("members", done + 1, len(numbers))


def train_finished(shared: Shared, member: Member, number: int, queries: Tensor, parameters: bool = False) -> Finished:
    """One member, trained, with what it says of the queries; see `Executor.run`."""
    began = time.perf_counter()
    module = train_module(shared, member)
    said = predict(module, shared.task, shared.data.inputs, queries, device=shared.learner.device)
    weights = None
    if parameters:
        weights = [{name: value.detach().cpu() for name, value in module.state_dict().items()}]
    return Finished([number], said[None], [time.perf_counter() - began], weights)


def train_module(shared: Shared, member: Member, progress: Progress = silent) -> torch.nn.Module:
    """The trained module of one member, in evaluation mode."""
    learner = replace(member.learner(shared.learner), sampler=member.sampler(shared.learner, shared.data.rows))
    data = shared.data.train_on(
        None if member.rows is None else torch.as_tensor(member.rows), member.target, member.weight
    )
    if not has_epochs(learner.model):
        return fit_at_once(learner, shared.encoder, shared.task, data)
    task = with_loss(shared.task, learner)
    if learner.deletable is not None:
        return train_deletable(learner, build(learner, shared.encoder, task), task, data, progress=progress).module
    return train(build(learner, shared.encoder, task), task, data, learner, progress=progress).module


PLAIN = Member()


def train_member(
    shared: Shared,
    member: Member = PLAIN,
    *,
    test: Tensor | np.ndarray | None = None,
    outputs_of: Tensor | np.ndarray | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Train one member in memory.

    Args:
        shared: What it has in common with the others.
        member: Its variation.
        test: Rows to measure the metrics on, with the shared targets; None for `shared.test`.
        outputs_of: Rows whose outputs are wanted.
        progress: Told the examples seen.

    Returns:
        Its outcome. The same member gives bitwise the same outcome (same machine, same number of threads).
    """
    began = time.perf_counter()
    module = train_module(shared, member, progress)
    rows = shared.test if test is None else torch.as_tensor(test)
    metrics: dict[str, float] = {}
    if len(rows):
        said = predict(module, shared.task, shared.data.inputs, rows, device=shared.learner.device)
        metrics = shared.task.metrics(said, shared.data.target[rows])
    outputs = None
    if outputs_of is not None:
        outputs = predict(
            module, shared.task, shared.data.inputs, torch.as_tensor(outputs_of), device=shared.learner.device
        )
    return Outcome(metrics, outputs, time.perf_counter() - began)
