"""`Learner(deletable=...)`: trainings that examples can be taken back from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from imprint.errors import LearnerError
from imprint.fitting.data import Data
from imprint.fitting.progress import Progress, silent
from imprint.fitting.sequenced import EXAMPLE, Sequenced, Sequencing, train_sequenced
from imprint.fitting.sharded import Sharding, Stages, train_sharded
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.fitting.learner import Learner


def scheme(text: str) -> Sharding | Sequencing:
    """How a training set is parted.

    Raises:
        LearnerError: The text says neither "sisa(...)" nor "s3t(...)".

    >>> scheme("sisa(shards=5)"), scheme("s3t(shards=2)")
    (Sharding(shards=5, slices=1), Sequencing(shards=2, slices=4, orders=4, rank=64))
    """
    name = text.strip().partition("(")[0] if isinstance(text, str) else None
    if name == "s3t":
        return Sequencing.read(text)
    if name == "sisa":
        return Sharding.read(text)
    raise LearnerError(
        f"deletable={text!r} is unknown.", f"Write deletable='sisa(shards=5, slices=4)' or deletable={EXAMPLE!r}."
    )


def train_deletable(
    learner: Learner,
    module: nn.Module,
    task: Task,
    data: Data,
    *,
    folder: Path | None = None,
    found: Path | None = None,
    progress: Progress = silent,
) -> Stages | Sequenced:
    """Train as `learner.deletable` says; see `train_sharded` and `train_sequenced`."""
    train = train_sequenced if isinstance(scheme(str(learner.deletable)), Sequencing) else train_sharded
    return train(learner, module, task, data, folder=folder, found=found, progress=progress)
