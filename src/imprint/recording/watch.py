"""`watch`: record a training loop that is not ours, in about three lines.

    with imprint.watch("runs/mine", corpus, module) as recorder:
        for epoch in range(10):
            for rows, inputs, target in loader:
                logits = module(inputs)
                recorder.batch(rows, logits)
                ...
            recorder.epoch()

The result is a `Run` that the same methods read. It can be asked, not resumed: the loop is the user's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from imprint import tasks
from imprint.errors import EvidenceError, IdError, LearnerError, RunError
from imprint.fitting import Learner
from imprint.fitting.data import training_rows
from imprint.recording import tables
from imprint.recording.checkpoints import Checkpoints
from imprint.recording.collect import write_rows
from imprint.recording.curves import finite
from imprint.recording.files import replacing, write_json
from imprint.recording.fit import finish, update_manifest, write_examples, write_manifest
from imprint.recording.inputs import Inputs, given_data
from imprint.recording.lock import writing
from imprint.recording.recorder import Recorder, losses
from imprint.recording.run import Run, values_of

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Training metrics are computed on at most this many visits of an epoch.
MOST = 20_000

Ids = Sequence[str] | pl.Series | np.ndarray | Tensor


class Watch(AbstractContextManager["Watch"]):
    """Records a loop; made by `watch` and used as a context manager."""

    def __init__(
        self,
        path: Path,
        corpus: Corpus,
        module: nn.Module,
        task: str,
        classes: Sequence[Any] | None,
        encoder: Any,
        infer_epochs: bool,
        inputs: Inputs | None = None,
    ) -> None:
        self.path, self.corpus, self.module, self.encoder, self.infer_epochs = (
            path,
            corpus,
            module,
            encoder,
            infer_epochs,
        )
        if encoder is not None and inputs is not None:
            raise LearnerError("There are both encoder= and inputs=.", "Give one of them: either says what goes in.")
        self.task = tasks.fit(task, corpus.target)
        self.rows = torch.from_numpy(np.asarray(training_rows(corpus), dtype=np.int64))
        self.order = self._order(classes)
        self.encoded = self.task.encode(corpus.target)
        self.inputs = inputs
        if inputs is not None:
            given_data(inputs, self.encoded, self.rows.numpy())  # what does not fit is said before the training
        self.recorder = Recorder(path / "evidence", self.task, self.encoded[self.rows])
        self.checkpoints = Checkpoints(path / "checkpoints", epochs=10**4, keep=10**4)
        self.epochs = self.steps = 0
        self.curves: list[dict[str, Any]] = []
        self.final: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._index = torch.full((len(corpus),), -1).index_copy(0, self.rows, torch.arange(len(self.rows)))
        self._by_id: dict[str, int] | None = None
        self._seen = torch.zeros(len(self.rows), dtype=torch.bool)
        self._open = ExitStack()
        self._began = time.perf_counter()

    def __enter__(self) -> Watch:
        self._open.enter_context(writing(self.path))
        try:
            if (self.path / "manifest.json").exists():
                raise RunError(f"{self.path} holds a run already.", "Choose another folder for this one.")
            learner = Learner(model=self.module, task=self.task.name, record="logits")
            write_manifest(self.path, self.corpus, self.task, learner=learner.spec())
            update_manifest(self.path, watched=True, **({} if self.order is None else {"order": self.order.tolist()}))
            write_examples(self.path, self.corpus, self.encoded)
            if self.encoder is not None:
                with replacing(self.path / "encoder") as temporary:
                    self.encoder.save(temporary)
        except BaseException:
            self._open.close()
            raise
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                update_manifest(self.path, status="interrupted")
                return
            if self.recorder.filled:
                self.epoch()
            if not self.epochs:
                update_manifest(self.path, status="interrupted")
                raise EvidenceError(
                    "The loop ended without a recorded batch.", "Call recorder.batch(ids, logits) for each batch."
                )
            self._write_outputs()
            for name in ("dynamics", "order"):
                tables.tidy(self.path / "evidence" / f"{name}.lance")
            learner = Learner(model=self.module, task=self.task.name, epochs=self.epochs, record="logits")
            update_manifest(self.path, learner=learner.spec())
            finish(self.path)
        finally:
            self._open.close()

    @property
    def run(self) -> Run:
        """The run, once the loop is over."""
        learner = Learner(model=self.module, task=self.task.name, epochs=self.epochs or None, record="logits")
        run = Run(self.path, self.corpus, learner)
        if self.inputs is not None:
            run.give_inputs(self.inputs)
        return run

    def batch(self, ids: Ids, outputs: Tensor) -> None:
        """Record what the model said of a training batch.

        Args:
            ids: Of the examples, in the order of the outputs: ids as strings, or rows of the corpus as integers.
            outputs: Logits `[example, class]` (or values `[example]` for regression), as computed for the loss.

        Raises:
            IdError: An id is unknown, or is not of a training example.
            EvidenceError: The outputs do not fit the ids or the task.
        """
        indices = self._indices(ids)
        said = self._checked(outputs, len(indices))
        if self.infer_epochs and self._seen[indices].any():
            self.epoch()
        self._seen[indices] = True
        self.steps += 1
        self.recorder.on_batch(self.steps, self.epochs + 1, indices, said, said.new_empty(0))

    def epoch(self, learning_rate: float | None = None) -> None:
        """Close an epoch: write its evidence and a checkpoint. Without this call, an epoch ends when an example comes again.

        Args:
            learning_rate: Of its steps, on average; what TracIn weighs the checkpoint with.
        """
        indices, values = self.recorder.visited()
        if not len(indices):
            return
        self.epochs += 1
        said, target = values[:MOST].float(), self.recorder.target[indices[:MOST]]
        seconds = time.perf_counter() - self._began
        self.curves.append(
            {
                "epoch": self.epochs,
                "step": self.steps,
                "loss": float(losses(self.task, said, target).mean()),
                "learning_rate": learning_rate,
                "seconds": round(seconds, 3),
                "train": finite(self.task.metrics(said, target)),
            }
        )
        self.recorder.write(self.epochs)
        self._seen.zero_()
        write_json(self.path / "evidence" / "curves.json", self.curves)
        self.checkpoints.save_weights(self.module, self.epochs, self.steps, seconds)

    def outputs(self, ids: Ids, outputs: Tensor, features: Tensor | None = None) -> None:
        """Record what the final model says of examples of any split, for methods that read outputs or features."""
        rows = self._rows(ids)
        said = self._checked(outputs, len(rows)).float().cpu()
        if features is not None and len(features) != len(rows):
            raise EvidenceError(f"{len(features)} feature vectors for {len(rows)} ids.", "Give one per id.")
        self.final.append((rows, said, None if features is None else features.detach().cpu().float().flatten(1)))

    def _write_outputs(self) -> None:
        if not self.final:
            return
        rows = torch.cat([part[0] for part in self.final])
        if len(torch.unique(rows)) != len(rows):
            raise IdError("recorder.outputs was given some ids twice.", "Give each example once.")
        write_rows(
            self.path / "evidence" / "outputs.lance", rows, "logits", torch.cat([part[1] for part in self.final])
        )
        features = [part[2] for part in self.final]
        if all(part is not None for part in features):
            whole = torch.cat([part for part in features if part is not None]).clamp(-65504, 65504).half()
            write_rows(self.path / "evidence" / "features.lance", rows, "features", whole)

    def _order(self, classes: Sequence[Any] | None) -> Tensor | None:
        """Where each of the task's classes stands among the user's outputs; None where the order is the same."""
        known = list(values_of(self.task))
        if classes is None or list(classes) == known:
            return None
        if sorted(map(str, classes)) != sorted(map(str, known)):
            raise LearnerError(
                f"classes={list(classes)!r} are not the values of the target: {known!r}.", "Give each of them once."
            )
        places = {str(value): place for place, value in enumerate(classes)}
        return torch.tensor([places[str(value)] for value in known])

    def _checked(self, outputs: Tensor, count: int) -> Tensor:
        said = outputs.detach()
        if said.dim() == 1:
            said = said[:, None]
        if said.shape != (count, self.task.width):
            raise EvidenceError(
                f"The outputs have shape {tuple(outputs.shape)}, for {count} ids of a {self.task.name} task.",
                f"Give logits of shape ({count}, {self.task.width}), before softmax.",
            )
        return said if self.order is None else said.index_select(1, self.order.to(said.device))

    def _rows(self, ids: Ids) -> Tensor:
        if isinstance(ids, pl.Series):
            ids = ids.to_numpy()
        values = ids if isinstance(ids, Tensor) else np.asarray(ids)
        if isinstance(values, np.ndarray) and values.dtype.kind in "UOT":
            if self._by_id is None:
                self._by_id = {name: row for row, name in enumerate(self.corpus.ids.to_list())}
            try:
                return torch.tensor([self._by_id[str(name)] for name in values.tolist()], dtype=torch.int64)
            except KeyError as error:
                raise IdError(
                    f"The corpus has no example {error.args[0]!r}.", "Give ids of this corpus, or its rows."
                ) from None
        rows = torch.as_tensor(values).detach().cpu()
        if rows.is_floating_point() or rows.dim() != 1:
            raise IdError(
                f"ids of type {rows.dtype} and shape {tuple(rows.shape)} name no examples.",
                "Give ids, or rows as integers.",
            )
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self.corpus)):
            raise IdError(
                f"Row {int(rows.max())} or {int(rows.min())} is outside 0..{len(self.corpus) - 1}.",
                "Give rows of this corpus.",
            )
        return rows.long()

    def _indices(self, ids: Ids) -> Tensor:
        rows = self._rows(ids)
        indices = self._index[rows]
        if len(indices) and int(indices.min()) < 0:
            stray = self.corpus.ids[int(rows[int(indices.argmin())])]
            raise IdError(
                f"The example {stray!r} is not in the training split.",
                "Record training batches only; see recorder.outputs for others.",
            )
        return indices


def watch(
    path: str | Path,
    corpus: Corpus,
    module: nn.Module,
    *,
    task: str = "auto",
    classes: Sequence[Any] | None = None,
    encoder: Any = None,
    inputs: Inputs | None = None,
    infer_epochs: bool = True,
) -> Watch:
    """Record a loop of one's own.

    Args:
        path: Folder of the run; must not hold one yet.
        corpus: Whose examples the loop trains on.
        module: What is trained; its weights are saved after each epoch.
        task: "auto", "classification", "multilabel" or "regression".
        classes: Values of the target in the order of the module's outputs, where that is not their sorted order.
        encoder: A fitted encoder from raw columns to the module's inputs; with one, outputs, features and gradients can be collected
            later.
        inputs: In place of an encoder: what the module is called with, a tensor with one input per row of the corpus `[row, ...]`, or a
            function that takes rows (an integer array) and returns their inputs. It is not saved; `imprint.load` takes it again.
        infer_epochs: Close an epoch when an example comes again. Switch it off for sampling with replacement, and call `epoch()`.

    Returns:
        A context manager with `batch(ids, outputs)`, `epoch()`, `outputs(ids, outputs, features)` and, afterwards, `run`.
    """
    return Watch(Path(path), corpus, module, task, classes, encoder, infer_epochs, inputs)
