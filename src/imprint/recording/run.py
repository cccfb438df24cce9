"""A run: one recorded training on disk, and everything that can be asked of it.

Readers need no lock and hold nothing in memory but what they were asked for. Missing evidence is collected when first asked for.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from imprint import tasks
from imprint.engine import LOCAL, Engine, engine_of
from imprint.errors import EvidenceError, ImprintError, RunError, nearest
from imprint.fitting import Data, Learner, Progress, Sampler, reporter
from imprint.fitting.build import build, require_code
from imprint.fitting.losses import loss_from
from imprint.models import Estimator, load_encoder
from imprint.recording import answers, tables
from imprint.recording.checkpoints import Checkpoints
from imprint.recording.collect import collect, missing, source
from imprint.recording.evidence import DynamicsReader, OrderReader, RowsReader, derive_field
from imprint.recording.files import read_json, write_json
from imprint.recording.held_out import held_out
from imprint.recording.inputs import Inputs, given_data
from imprint.recording.lock import held, writing
from imprint.recording.model import Model, Reordered
from imprint.recording.needs import (
    HELD_OUT,
    Classes,
    Dynamics,
    Features,
    HeldOutLoss,
    Need,
    OutOfFold,
    Outputs,
    Rows,
    Table,
    Target,
)

if TYPE_CHECKING:
    from imprint.answers import Answer
    from imprint.corpus import Corpus

FORMAT = 1
COLUMNS = {"outputs": "logits", "features": "features", "out_of_fold": "logits"}
# What is collected when evidence is asked for by its kind alone.
DEFAULTS: dict[str, Need] = {
    "order": Need("order", "order"),
    "dynamics": Dynamics("logits"),
    "outputs": Outputs("logits"),
    "features": Features(),
    "out_of_fold": OutOfFold("logits"),
}


class Run:
    """One recorded training.

    Args:
        path: Its folder.
        corpus: The corpus version that it was trained on, if at hand.
        learner: The learner with the user's own model factory, if at hand; else the one in the manifest.
        data: Encoded inputs that the fit still holds.

    Attributes:
        path: Its folder.
        manifest: What was trained, on what, with which versions.
    """

    def __init__(
        self, path: Path, corpus: Corpus | None = None, learner: Learner | None = None, data: Data | None = None
    ) -> None:
        self.path = path
        self.manifest: dict[str, Any] = _manifest(path)
        self._corpus = corpus
        self._learner = learner
        self.data = data
        self._noted: list[str] = []
        if corpus is not None and corpus.fingerprint != self.fingerprint:
            raise RunError(
                f"The run {path} was trained on the corpus {self.fingerprint}, and this one is {corpus.fingerprint}.",
                "Open the version that it was trained on, or fit again on this one.",
            )

    def __repr__(self) -> str:
        about = self.manifest["corpus"]
        return f"Run({str(self.path)!r}, {self.status}, {about['training']} training examples, task {self.task.name})"

    @property
    def status(self) -> str:
        """One of "running", "interrupted" and "complete", read afresh. A run whose writer was killed is interrupted."""
        status = str(_manifest(self.path)["status"])
        return "interrupted" if status == "running" and not held(self.path) else status

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpus version that it was trained on."""
        return str(self.manifest["corpus"]["fingerprint"])

    @property
    def corpus(self) -> Corpus:
        """The corpus version that it was trained on.

        Raises:
            RunError: It was not given and is not where the manifest says.
        """
        if self._corpus is None:
            self._corpus = _find_corpus(self)
        return self._corpus

    @cached_property
    def task(self) -> tasks.Task:
        """The fitted task."""
        loss = self.manifest["learner"].get("loss", "auto")  # older runs name none
        return replace(tasks.from_spec(self.manifest["task"]), criterion=loss_from(loss))

    @cached_property
    def learner(self) -> Learner:
        """The resolved learner. Of a loaded run, a user's own model is a name until `imprint.load(path, model=...)` gives it."""
        return self._learner or Learner.from_spec(self.manifest["learner"])

    @cached_property
    def examples(self) -> pl.DataFrame:
        """`row, id, position, split, target, weight` of every row of the corpus; `target` encoded."""
        found = pl.from_arrow(tables.everything(self.path / "examples.lance"))
        assert isinstance(found, pl.DataFrame)
        return found

    @property
    def ids(self) -> pl.Series:
        """Ids of the training examples, in the order of `dynamics` and of `gather`."""
        return self.examples["id"].gather(self.rows())

    def __len__(self) -> int:
        return int(self.manifest["corpus"]["training"])

    def rows(self, split: str | None = "train") -> np.ndarray:
        """Rows of a split, ascending; None for all. Training rows are all rows where the corpus has no split "train"."""
        if split == HELD_OUT:
            return held_out(self)[1]
        names = self.examples["split"]
        present = set(self.manifest["corpus"]["splits"])
        if split is None or (split == "train" and "train" not in present):
            return np.arange(len(names), dtype=np.int64)
        if split not in present:
            raise RunError(f"The corpus has no split '{split}'.", f"There are: {', '.join(sorted(present))}.")
        return np.flatnonzero((names == split).to_numpy()).astype(np.int64)

    def target(self, split: str | None = "train") -> Tensor:
        """Encoded targets of a split's rows."""
        return self._targets[torch.from_numpy(self.rows(split))]

    @cached_property
    def _targets(self) -> Tensor:
        column = self.examples["target"]
        if column.dtype in (pl.List, pl.Array):
            return (
                torch.from_numpy(np.array(column.to_list(), dtype=np.float32))
                if column.dtype == pl.List
                else column.to_torch()
            )
        return torch.from_numpy(column.to_numpy().copy())

    # ------------------------------------------------------------------------------------------------------------------ model

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints on disk."""
        return Checkpoints(self.path / "checkpoints")

    @cached_property
    def encoder(self) -> Any:
        """The fitted encoder; None for a recorded loop of the user's own that has none."""
        if not (self.path / "encoder").exists():
            return None
        own = None if isinstance(self.learner.model, str) else self.learner.model
        return load_encoder(self.path / "encoder", own)

    def model(self, checkpoint: str | int = "last") -> Model:
        """The trained model.

        Args:
            checkpoint: "last", "first", "best", an epoch, or a checkpoint's name.

        Raises:
            RunError: There is no such checkpoint, it is damaged, or the model is a user's own and was not given.
        """
        encoder = self.encoder
        if self.manifest.get("estimator"):
            return Model(Estimator.load(self.path / "checkpoints"), encoder, self.task)
        module = self._module(encoder)
        module.load_state_dict(self.checkpoints.named(str(checkpoint)).weights())
        if order := self.manifest.get("order"):
            module = Reordered(module, torch.tensor(order))
        return Model(module.eval(), encoder, self.task, self.learner.device if torch.cuda.is_available() else "cpu")

    def _module(self, encoder: Any) -> torch.nn.Module:
        model = self.learner.model
        if self.manifest.get("watched"):
            require_code(model)
            return copy.deepcopy(model) if isinstance(model, torch.nn.Module) else model()
        return build(self.learner, encoder, self.task)

    # ---------------------------------------------------------------------------------------------------------------- evidence

    def has(self, need: Need | str) -> bool:
        """Whether evidence is on disk (for out-of-fold predictions: with as many folds; for a fleet: all of its members)."""
        kind = need if isinstance(need, str) else need.kind
        if kind is None:
            return True
        if isinstance(need, Need) and (kept := source(kind)) is not None:
            return kept.has(self, need)
        path = self.path / "evidence" / f"{kind}.lance"
        if not path.exists():
            return False
        if isinstance(need, OutOfFold):
            folds = RowsReader(path, "logits").table.schema.metadata or {}
            return int(folds.get(b"folds", need.folds)) == need.folds
        return True

    def missing(self, needs: Iterable[Need]) -> list[Need]:
        """Which of these needs would have to be collected."""
        return missing(self, needs)

    def collect(
        self, needs: Iterable[Need], progress: Progress | bool | None = False, engine: str | Engine = LOCAL
    ) -> None:
        """Collect what these needs lack, in one shared pass.

        Args:
            needs: What is asked for.
            progress: Told what is done; None shows a bar if standard error is a terminal, False nothing.
            engine: Where gradients are taken and fleets are trained: "local", "ray", or an `imprint.engine.Engine` with an address.
        """
        with reporter(progress) as report:  # type: ignore[arg-type]
            collect(self, needs, report, engine_of(engine))

    def evidence(self, kind: str) -> Any:
        """The reader of one kind of evidence; it is collected if it is missing.

        Args:
            kind: "order", "dynamics", "outputs", "features", "out_of_fold" or "curves".
        """
        if kind == "curves":
            return self.curves()
        if kind not in DEFAULTS:
            raise EvidenceError(f"No evidence '{kind}'.", nearest(kind, [*DEFAULTS, "curves"]))
        if not self.has(kind):  # what is there is read, with however many folds it was collected
            collect(self, [DEFAULTS[kind]])
        path = self.path / "evidence" / f"{kind}.lance"
        if kind == "dynamics":
            return DynamicsReader(path, len(self))
        if kind == "order":
            return OrderReader(path, self.ids)
        return RowsReader(path, COLUMNS[kind])

    def gather(self, needs: Iterable[Need], block: slice | None = None) -> dict[str, Any]:
        """The values of needs, by name, as a method's function takes them.

        Args:
            needs: What is asked for; what is missing is collected first.
            block: Only these of the examples of each need's split (a slice over their order), so that a method which works row by
                row can be computed in pieces; None for all.

        Returns:
            Name -> tensor (float32, or as the task encodes targets), rows as int64 tensor, classes as tuple, corpus as `Corpus`.
        """
        needs = list(needs)
        collect(self, needs)
        shared: dict[Any, Any] = {}
        return {need.name: self._value(need, block or slice(None), shared) for need in needs}

    def _value(self, need: Need, block: slice, shared: dict[Any, Any]) -> Any:
        if isinstance(need, Table):
            return self.corpus
        if isinstance(need, Classes):
            return values_of(self.task)
        if isinstance(need, HeldOutLoss):
            return self.held_out_loss()
        if isinstance(need, Dynamics):
            return self._dynamics(need, block, shared)
        if (kept := source(need.kind)) is not None:
            return kept.read(self, need, block)
        rows = self.rows(getattr(need, "split", "train"))[block]
        if isinstance(need, Rows):
            return torch.from_numpy(rows)
        if isinstance(need, Target):
            return self._targets[torch.from_numpy(rows)]
        if isinstance(need, Features | Outputs | OutOfFold):
            kind = str(need.kind)
            key = (kind, getattr(need, "split", "train"))
            if key not in shared:
                shared[key] = RowsReader(self.path / "evidence" / f"{kind}.lance", COLUMNS[kind]).read(rows)
            if isinstance(need, Features):
                return shared[key]
            return derive_field(self.task, need.field, shared[key], self._targets[torch.from_numpy(rows)])
        raise EvidenceError(f"A run does not know the need {need}.", "Needs are declared in imprint.recording.needs.")

    def _dynamics(self, need: Dynamics, block: slice, shared: dict[Any, Any]) -> Tensor:
        if "dynamics" not in shared:
            shared["dynamics"] = DynamicsReader(self.path / "evidence" / "dynamics.lance", len(self))
        reader: DynamicsReader = shared["dynamics"]
        if "logits" not in reader.columns:
            if need.field == "correct":
                return reader.read(need.field, need.epochs, block) > 0.5
            return reader.read(need.field, need.epochs, block)
        key = ("dynamics", need.epochs)
        if key not in shared:
            shared[key] = reader.read("logits", need.epochs, block)
        return derive_field(self.task, need.field, shared[key], self._targets[torch.from_numpy(self.rows()[block])])

    def curves(self) -> pl.DataFrame:
        """One row per epoch: `epoch, step, loss, learning_rate, seconds` and `SPLIT_METRIC` for each split and metric."""
        path = self.path / "evidence" / "curves.json"
        flat = []
        for row in read_json(path) if path.exists() else []:
            one = {name: value for name, value in row.items() if not isinstance(value, dict)}
            for split, metrics in row.items():
                if isinstance(metrics, dict):
                    one |= {f"{split}_{metric}": value for metric, value in metrics.items()}
            flat.append(one)
        return pl.DataFrame(flat, infer_schema_length=None)

    def held_out_loss(self) -> Tensor:
        """Mean loss in nats on the validation split (else the test split) after each epoch; empty where it was not measured."""
        curves = self.curves()
        names = [name for name in curves.columns if name.endswith("_nll") and not name.startswith("train_")]
        judge = next((name for name in names if name.startswith("val")), names[0] if names else None)
        if judge is None or curves[judge].null_count():
            return torch.empty(0)
        return torch.from_numpy(curves[judge].to_numpy().copy()).float()

    def metrics(self, split: str) -> dict[str, float]:
        """Metrics of the final model over all rows of a split."""
        values = self.gather([Outputs("logits", split=split), Target(split=split)])
        return self.task.metrics(values["logits"], values["target"])

    # ----------------------------------------------------------------------------------------------------------------- answers

    def answers(self) -> list[str]:
        """Names of the stored answers."""
        return answers.names(self.path / "answers")

    def answer(self, name: str) -> Answer:
        """A stored answer, as the type that was saved."""
        return answers.read(self.path / "answers", name)

    def save_answer(self, answer: Answer, name: str | None = None) -> Path:
        """Store an answer under a name (by default that of its type); it is there in full or not at all."""
        with writing(self.path):
            return answers.save(self.path / "answers", answer, name)

    def release(self) -> None:
        """Let go of encoded inputs that the fit still holds; they are encoded again when needed. Inputs that a user gave stay."""
        if self.encoder is not None:
            self.data = None

    def give_inputs(self, inputs: Inputs) -> None:
        """Say what the module of a watched run is called with.

        Args:
            inputs: Of every row of the corpus, in its order `[row, ...]`; or a function of rows (an integer array) that returns theirs.

        Raises:
            RunError: The run encodes its inputs itself.
            EvidenceError: There is not one input per row.
        """
        if self.encoder is not None:
            raise RunError(
                f"The run {self.path} has an encoder, which makes the inputs from the corpus.", "Leave out inputs=."
            )
        self.data = given_data(inputs, self._targets, self.rows())

    # ------------------------------------------------------------------------------------------------------------------- notes

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found out about the model while evidence was taken of it, such as layers that have no rule."""
        path = self.path / "evidence" / "notes.json"
        kept = read_json(path) if path.exists() else []
        return tuple(dict.fromkeys([*kept, *self._noted]))

    def note(self, text: str) -> None:
        """Keep a note, and warn of it the first time that it is made."""
        if text in self.notes:
            return
        self._noted.append(text)
        with contextlib.suppress(OSError, ImprintError):  # a run that cannot be written can be asked all the same
            write_json(self.path / "evidence" / "notes.json", list(self.notes))
        warnings.warn(text, stacklevel=2)


def load(
    path: str | Path,
    corpus: Corpus | None = None,
    model: Any = None,
    sampler: Sampler | None = None,
    *,
    inputs: Inputs | None = None,
) -> Run:
    """Open a run. Nothing in its folder is executed.

    Args:
        path: Its folder.
        corpus: The corpus version that it was trained on; None looks where the manifest says.
        model: The user's own model factory or class, if it was trained with one; of a watched run, its module.
        sampler: The user's own sampler, if it was trained with one and is to be trained again (folds).
        inputs: What the module of a watched run without an encoder is called with: a tensor with one input per row of the corpus, or a
            function of rows; see `imprint.watch`.

    Raises:
        RunError: The folder is no run, is damaged, or is of another corpus; or its inputs were given and it encodes them itself.
        EvidenceError: There is not one input per row.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"There is no run at {path}.", "Check the path; imprint.fit(learner, corpus, path) makes one.")
    run = Run(path, corpus)
    if model is not None or sampler is not None:
        run._learner = Learner.from_spec(run.manifest["learner"], model=model, sampler=sampler)
    if inputs is not None:
        run.give_inputs(inputs)
    return run


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, Mapping) or not {"format", "status", "learner", "task", "corpus"} <= set(manifest):
        raise RunError(
            f"{path / 'manifest.json'} is damaged: {json.dumps(manifest)[:80]}.", "Restore it, or fit again."
        )
    if manifest["format"] != FORMAT:
        raise RunError(f"{path} has format {manifest['format']}; this Imprint reads {FORMAT}.", "Update imprint.")
    return dict(manifest)


def values_of(task: tasks.Task) -> tuple[Any, ...]:
    """The values of a task's classes or labels, in the order of its outputs; empty for regression."""
    return tuple(getattr(task, "classes", ()) or getattr(task, "labels", ()))


def _find_corpus(run: Run) -> Corpus:
    from imprint.corpus import Corpus

    about = run.manifest["corpus"]
    # A run and a store that lie together may be moved together.
    places = [Path(about["folder"])] if about.get("folder") else []
    places += [run.path / about["beside"]] if about.get("beside") else []
    for folder in places:
        if folder.is_dir():
            corpus = Corpus.load(folder)
            if about.get("part"):  # a child that forgot some: its corpus is the parent's less those rows
                left = corpus.ids.filter(~corpus.ids.is_in(run.examples["id"].implode()))
                corpus = corpus.drop(left)
            if corpus.fingerprint == run.fingerprint:
                return corpus
    raise RunError(
        f"The corpus {run.fingerprint} of the run {run.path} is not at hand.",
        "Give it: imprint.load(path, corpus=imprint.open(...)).",
    )


__all__ = ["Run", "load"]
