"""What all members of a fleet have in common: the learner, the task, the encoder, and the inputs, encoded once."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import Data, Learner, Progress, encode, silent, training_rows
from imprint.fitting.build import encoder_for, fit_task
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.recording import Run


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
    if run.encoder is None or run.manifest.get("watched"):
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
