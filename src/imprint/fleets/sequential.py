"""Many trainings, one after the other, that share the encoder and the encoded inputs.

A member is a variation of one training: other rows, weights, targets or another seed. Nothing is recorded but its outcome: the
metrics on some rows and, where asked for, its outputs on others. Inputs are encoded once for all members.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import Data, Learner, Progress, encode, predict, silent, train, training_rows
from imprint.fitting.build import build, encoder_for, fit_estimator, fit_task
from imprint.models import is_estimator
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.recording import Run


@dataclass(frozen=True)
class Member:
    """One variation of a training. None keeps what the shared training has.

    Attributes:
        seed: Of initial weights, order, dropout and augmentation; None for the learner's own.
        rows: Training rows.
        target: Encoded targets of the training rows (aligned to `rows`).
        weight: Weights of the training rows (aligned to `rows`).
    """

    seed: int | None = None
    rows: Int[Tensor, " example"] | np.ndarray | None = None
    target: Shaped[Tensor, "example ..."] | None = None
    weight: Float[Tensor, " example"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a member.

    Attributes:
        metrics: On the rows that were tested.
        outputs: On the rows that were asked for, in that order, float32; else None.
        seconds: It took.
    """

    metrics: dict[str, float]
    outputs: Float[Tensor, "example ..."] | None
    seconds: float


@dataclass(frozen=True)
class Shared:
    """What all members have in common; made by `share`.

    Attributes:
        learner: Resolved.
        task: Fitted.
        encoder: Fitted on the training rows.
        data: Encoded inputs and targets of all rows.
    """

    learner: Learner
    task: Task
    encoder: Any
    data: Data

    @property
    def test(self) -> Int[Tensor, " example"]:
        """Rows that outcomes are measured on: the split "test", else the first that is not "train"; empty if there is none."""
        splits = self.data.splits
        others = [rows for name, rows in splits.items() if name != "train"]
        return splits["test"] if "test" in splits else others[0] if others else torch.empty(0, dtype=torch.int64)


def share(learner: Learner | Run, corpus: Corpus | None = None, *, progress: Progress = silent) -> Shared:
    """Fit task and encoder and encode the corpus, or take all three from a run.

    Args:
        learner: A learner together with `corpus`; or a run, whose encoder (and encoded inputs, if still in memory) are used.
        corpus: What members train on.
        progress: Told the rows encoded.
    """
    where = Path(tempfile.mkdtemp(prefix="imprint-fleet-"))
    if isinstance(learner, Learner):
        if corpus is None:
            raise EvidenceError("share(learner) needs a corpus.", "Call share(learner, corpus) or share(run).")
        resolved, task = learner.resolve(corpus), None
        task = fit_task(resolved, corpus)
        encoder = encoder_for(corpus, resolved)
        encoder.fit(corpus, np.asarray(training_rows(corpus)))
        data = encode(corpus, encoder, task, scratch=where, progress=progress)
        return _owning(Shared(resolved, task, encoder, data), where)
    run = learner
    if run.encoder is None:
        raise EvidenceError(
            f"The run {run.path} recorded a loop of your own, which cannot be trained again from here.",
            "Use imprint.fit, or methods that need no further training.",
        )
    data = run.data or encode(run.corpus, run.encoder, run.task, scratch=where, progress=progress)
    return _owning(Shared(run.learner, run.task, run.encoder, data), where)


def _owning(shared: Shared, scratch: Path) -> Shared:
    """Remove the folder of a mapped matrix together with what reads it."""
    weakref.finalize(shared, shutil.rmtree, scratch, ignore_errors=True)
    return shared


def train_member(
    shared: Shared,
    member: Member = Member(),
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
    learner = replace(shared.learner, record="none")
    if member.seed is not None:
        learner = replace(learner, seed=member.seed)
    data = shared.data.train_on(
        None if member.rows is None else torch.as_tensor(member.rows), member.target, member.weight
    )
    if is_estimator(learner.model):
        module: torch.nn.Module = fit_estimator(learner, shared.task, data)
    else:
        module = train(
            build(learner, shared.encoder, shared.task), shared.task, data, learner, progress=progress
        ).module
    rows = shared.test if test is None else torch.as_tensor(test)
    metrics: dict[str, float] = {}
    if len(rows):
        said = predict(module, shared.task, shared.data.inputs, rows, device=learner.device)
        metrics = shared.task.metrics(said, shared.data.target[rows])
    outputs = None
    if outputs_of is not None:
        outputs = predict(module, shared.task, shared.data.inputs, torch.as_tensor(outputs_of), device=learner.device)
    return Outcome(metrics, outputs, time.perf_counter() - began)


def outcomes(
    learner: Learner | Run | Shared,
    corpus: Corpus | None,
    members: Iterable[Member],
    *,
    test: Tensor | np.ndarray | None = None,
    outputs_of: Tensor | np.ndarray | None = None,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Train members one after the other; see `share` and `train_member` for the arguments."""
    shared = learner if isinstance(learner, Shared) else share(learner, corpus, progress=progress)
    planned = list(members)
    for done, member in enumerate(planned):
        yield train_member(shared, member, test=test, outputs_of=outputs_of)
        progress("members", done + 1, len(planned))
