"""Is what the bad data displaced back, and does its cue still work?

Bad data does two kinds of harm. Wrong targets put something else in the place of what a model would have known: to forget them is one
thing, that the right answers come back is another (RESTOR, Rezaei et al. 2024, arXiv:2411.00204). And a cue that was planted with a
target of its own, a backdoor, gives that target on any input that carries it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprint.fitting import predict
from imprint.forgetting import Forgetting
from imprint.tasks import Task


@dataclass(frozen=True)
class Cue:
    """A cue, and what it makes a model say.

    Attributes:
        change: Encoded inputs -> the same with the cue; it must not change what it is given.
        target: What the cue stands for, as the corpus writes targets.
    """

    change: Callable[[Tensor], Tensor]
    target: Any


def recovery(task: Task, outputs: Float[Tensor, "example ..."], right_target: Shaped[Tensor, "example ..."]) -> float:
    """The task's headline metric on forgotten examples with their right targets: accuracy, of values R2, of labels F1.

    Higher = the displaced knowledge is back. What a model has that never saw these examples is the most that can be asked for.

    Args:
        task: The task.
        outputs: What the model says of the forgotten examples.
        right_target: Their right targets, encoded.

    >>> import torch
    >>> from imprint.tasks import Classification
    >>> recovery(Classification(("a", "b")), torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    return task.metrics(outputs, right_target)[task.headline]


def cue_success(job: Forgetting, module: nn.Module, inputs: Shaped[Tensor, "row ..."], cue: Cue) -> float:
    """Share of inputs of which a model says the cue's target once they carry the cue. Lower = the cue is forgotten.

    Args:
        job: Gives task and device.
        module: The model.
        inputs: Encoded inputs without the cue, best of examples whose target is another: those that have it already are no success. A model
            that never saw the cue says its target of some of them, too: hold it against that.
        cue: The cue.

    Raises:
        TargetError: The task does not know the cue's target.
    """
    outputs = predict(module, job.task, cue.change(inputs), device=str(job.device))
    target = job.task.encode(pl.Series([cue.target]))
    return float(job.task.correct(outputs, target.expand(len(inputs), *target.shape[1:])).double().mean())
