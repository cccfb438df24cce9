"""`fit`: train a learner on a corpus and record the training in a folder, going on where an earlier sitting stopped."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from imprint import tasks
from imprint.errors import ImprintError, LearnerError, RunError
from imprint.fitting import Data, Learner, Progress, encode, reporter, train
from imprint.fitting.build import build, encoder_for, fit_estimator, fit_task
from imprint.fitting.data import training_rows
from imprint.fitting.deletable import train_deletable
from imprint.fitting.heads import solved
from imprint.fitting.learner import shown
from imprint.models import Estimator, is_estimator, load_encoder, solver_of
from imprint.recording import tables
from imprint.recording.checkpoints import KEPT, SECONDS, Checkpoints
from imprint.recording.curves import Curves
from imprint.recording.files import read_json, remove, replacing, room, save_tensors, write_json
from imprint.recording.lock import writing
from imprint.recording.recorder import Recorder
from imprint.recording.run import FORMAT, Run

if TYPE_CHECKING:
    from imprint.corpus import Corpus

PACKAGES = ("imprint", "torch", "numpy", "polars", "pylance", "pyarrow", "scikit-learn", "skrub")
# What a run holds besides its lock; `resume=False` starts over from none of it.
CONTENTS = (
    "manifest.json",
    "examples.lance",
    "encoder",
    "checkpoints",
    "evidence",
    "fleets",
    "answers",
    "scratch",
    "shards",
    "request.json",
    "deletion.html",
    "deletion.json",
)
# Evidence of the final model: stale once the training goes on, as its fleets are.
FINAL = ("outputs", "features", "out_of_fold")
# The moments that a ridge head was solved from, kept up to this many features (32 MB in float64).
MOMENTS, WIDEST_MOMENTS = "moments.safetensors", 2048
# Rows of `examples.lance` that are put together at a time.
CHUNK = 2**19


def fit(
    learner: Learner,
    corpus: Corpus,
    path: str | Path,
    resume: bool = True,
    progress: Progress | Literal[False] | None = None,
    *,
    checkpoint_seconds: float = SECONDS,
    keep: int = KEPT,
) -> Run:
    """Train and record.

    Args:
        learner: What to train; every "auto" is resolved by the corpus.
        corpus: What to train on: its split "train", or all rows if there is none. Other splits are evaluated after each epoch.
        path: Folder of the run.
        resume: Go on with a run that was interrupted, and return one that is complete. False starts over and removes what
            was there (also its answers).
        progress: Told how far the training is; None shows a bar if standard error is a terminal, False nothing.
        checkpoint_seconds: A checkpoint is saved at the end of each epoch, and within an epoch after this long.
        keep: How many evenly spaced checkpoints are kept besides the best one.

    Returns:
        The run, complete. Interrupted at any moment, even by kill -9, it opens at its last complete checkpoint; called again with the
        same arguments it ends in bitwise the same weights (same machine and number of threads).

    Raises:
        LearnerError: A setting is impossible, or the training diverged.
        RunError: The folder holds a run of another learner or corpus, or its files are damaged.
        RunLocked: Another process is writing this run.
        ResourceError: Not enough memory or disk; the run stays as it was at its last checkpoint.
    """
    path = Path(path)
    resolved = learner.resolve(corpus)
    if not len(training_rows(corpus)):
        raise LearnerError("The corpus has no training rows.", "Give some rows the split 'train'.")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file.", "Give a folder for the run.")
    with writing(path), reporter(progress) as report:
        if not resume:
            for name in CONTENTS:
                remove(path / name)
        if (path / "manifest.json").exists():
            _check_same(path, resolved, corpus)
            before = Run(path, corpus, resolved)
            if before.status == "complete":
                return before
            threads = before.manifest["machine"]["threads"]
            if threads != torch.get_num_threads():
                warnings.warn(
                    f"{path} was begun with {threads} threads and goes on with {torch.get_num_threads()}: the weights may "
                    "differ in the last bits from those of an uninterrupted training.",
                    stacklevel=2,
                )
        elif any((path / name).exists() for name in ("checkpoints", "evidence")):
            raise RunError(
                f"{path / 'manifest.json'} is missing, but the folder holds a run.", "Restore it, or use resume=False."
            )
        remove(path / "scratch")
        try:
            with room(path), _status(path):
                return _fit(resolved, corpus, path, report, checkpoint_seconds, keep)
        finally:
            remove(path / "scratch")


def _fit(learner: Learner, corpus: Corpus, path: Path, progress: Progress, seconds: float, keep: int) -> Run:
    task = fit_task(learner, corpus)
    write_manifest(path, corpus, task, learner=learner.spec(), keep=keep)
    if (path / "encoder").exists():  # of an earlier sitting; fitted again it might differ in the last bit
        encoder = load_encoder(path / "encoder", None if isinstance(learner.model, str) else learner.model)
    else:
        encoder = encoder_for(corpus, learner)
        encoder.fit(corpus, np.asarray(training_rows(corpus)))
        with replacing(path / "encoder") as temporary:
            encoder.save(temporary)
    data = encode(corpus, encoder, task, scratch=path / "scratch", progress=progress)
    write_examples(path, corpus, data.target)
    remove(path / "fleets")
    if is_estimator(learner.model):
        _fit_estimator(learner, task, data, path)
    elif learner.deletable is not None:
        _train_deletable(learner, encoder, task, data, path, progress)
    elif solver_of(learner.model):
        _solve(learner, encoder, task, data, path)
    else:
        _train(learner, encoder, task, data, path, progress, seconds, keep)
    finish(path)
    mapped = (path / "scratch").exists()
    return Run(path, corpus, learner, None if mapped else data)


def _train(
    learner: Learner,
    encoder: Any,
    task: tasks.Task,
    data: Data,
    path: Path,
    progress: Progress,
    seconds: float,
    keep: int,
) -> None:
    for kind in FINAL:
        remove(path / "evidence" / f"{kind}.lance")
    module = build(learner, encoder, task)
    update_manifest(path, module=_described(module, task, data))
    recorder = (
        Recorder(path / "evidence", task, data.target[data.rows], learner.record) if learner.record != "none" else None
    )
    curves = Curves(path / "evidence" / "curves.json", task, data, recorder, learner.device)
    checkpoints = Checkpoints(
        path / "checkpoints", learner.epochs or 1, seconds=seconds, partial=recorder, score=curves.headline, keep=keep
    )
    found, wrong = checkpoints.latest()
    for problem in wrong:
        warnings.warn(f"{problem} The training goes on from {found.name if found else 'the start'}.", stacklevel=4)
    last = 0 if found is None else found.epoch - (0 if found.complete else 1)
    curves.cut(last)
    if recorder is not None:
        recorder.cut(last)
    train(
        module,
        task,
        data,
        learner,
        observers=[curves] if recorder is None else [curves, recorder],
        saver=checkpoints,
        resume=None if found is None else lambda state: checkpoints.restore(found, state),
        progress=progress,
    )
    checkpoints.settle()
    if recorder is not None:
        for kind in ("dynamics", "order"):
            tables.tidy(path / "evidence" / f"{kind}.lance")
    update_manifest(
        path, checkpoints={**_policy(keep), "judged_on": curves.judge, "kept": [one.name for one in checkpoints.all()]}
    )


def _train_deletable(
    learner: Learner, encoder: Any, task: tasks.Task, data: Data, path: Path, progress: Progress
) -> None:
    """Modules of shards, whose stages are kept in `shards/`; the whole has no epochs."""
    began = time.perf_counter()
    module = build(learner, encoder, task)
    done = train_deletable(learner, module, task, data, folder=path / "shards", progress=progress)
    seconds = time.perf_counter() - began
    curves = Curves(path / "evidence" / "curves.json", task, data, None, learner.device)
    curves.once(done.module, seconds)
    Checkpoints(path / "checkpoints", score=curves.headline).save_weights(
        done.module, epoch=1, step=max(1, done.steps), seconds=seconds
    )
    update_manifest(path, deletable=learner.deletable, module=_described(module, task, data))


def _solve(learner: Learner, encoder: Any, task: tasks.Task, data: Data, path: Path) -> None:
    """A head that is solved at once: one checkpoint and one row of curves, and nothing that has epochs."""
    began = time.perf_counter()
    module, summed = solved(learner, build(learner, encoder, task), task, data)
    seconds = time.perf_counter() - began
    if summed is not None and len(summed.origin) <= WIDEST_MOMENTS:  # what `forget` takes examples away from
        save_tensors(path / "evidence" / MOMENTS, summed.tensors())
    curves = Curves(path / "evidence" / "curves.json", task, data, None, learner.device)
    curves.once(module, seconds)
    Checkpoints(path / "checkpoints", score=curves.headline).save_weights(module, epoch=1, step=1, seconds=seconds)
    update_manifest(path, solved=f"{solver_of(learner.model)} head", module=_described(module, task, data))


def _described(module: torch.nn.Module, task: tasks.Task, data: Data) -> dict[str, Any]:
    return {
        "class": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "shape": list(data.shape),
        "width": task.width,
    }


def _fit_estimator(learner: Learner, task: tasks.Task, data: Data, path: Path) -> None:
    update_manifest(path, estimator=type(learner.model).__name__)
    estimator = fit_estimator(learner, task, data)
    with replacing(path / "checkpoints") as temporary:
        estimator.save(temporary)
        try:
            Estimator.load(temporary)
        except RunError as error:
            raise LearnerError(
                f"{estimator.name} cannot be stored without pickle: {error.problem}",
                "Use an estimator of scikit-learn, or a torch model.",
            ) from error


# ------------------------------------------------------------------------------------------------------------ manifest and examples


def write_manifest(path: Path, corpus: Corpus, task: tasks.Task, *, learner: dict[str, Any], keep: int = KEPT) -> None:
    """Write the manifest of a run that begins or goes on; the time of the first sitting stays."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = read_json(path / "manifest.json") if (path / "manifest.json").exists() else {}
    folder = _folder(corpus)
    write_json(
        path / "manifest.json",
        {
            "format": FORMAT,
            "status": "running",
            "started": before.get("started", now),
            "sittings": [*before.get("sittings", []), now],
            "learner": learner,
            "task": task.spec(),
            "corpus": {
                "fingerprint": corpus.fingerprint,
                "parent": corpus.parent,
                "rows": len(corpus),
                "training": len(training_rows(corpus)),
                "splits": dict(corpus.splits),
                "modality": corpus.modality,
                "kinds": dict(corpus.kinds),
                "folder": None if folder is None else str(folder),
                "beside": None if folder is None else os.path.relpath(folder, path.resolve()),
            },
            "checkpoints": _policy(keep),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
        },
    )


def update_manifest(path: Path, **changes: Any) -> None:
    """Change some entries of the manifest."""
    write_json(path / "manifest.json", {**read_json(path / "manifest.json"), **changes})


def finish(path: Path) -> None:
    """Mark a run as complete, with the seconds of training that its curves add up to."""
    curves = path / "evidence" / "curves.json"
    rows = read_json(curves) if curves.exists() else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    update_manifest(path, status="complete", finished=now, seconds=rows[-1]["seconds"] if rows else None)


def write_examples(path: Path, corpus: Corpus, target: Tensor) -> None:
    """Write `examples.lance`: a run is aligned to ids without its corpus."""
    weights = corpus.weights
    total = len(corpus)

    def chunk(begin: int) -> pa.RecordBatch:
        end = min(begin + CHUNK, total)
        frame = pl.DataFrame(
            {
                "row": np.arange(begin, end, dtype=np.int64),
                "id": corpus.ids[begin:end],
                "position": corpus.positions[begin:end],
                "split": corpus.split_names[begin:end].cast(pl.String),
                "weight": np.ones(end - begin, np.float32)
                if weights is None
                else np.asarray(weights[begin:end], np.float32),
            }
        ).to_arrow()
        return frame.append_column("target", tables.fixed(target[begin:end])).combine_chunks().to_batches()[0]

    import lance

    first = chunk(0)
    with replacing(path / "examples.lance") as temporary:
        batches = (first if begin == 0 else chunk(begin) for begin in range(0, total, CHUNK))
        reader = pa.RecordBatchReader.from_batches(first.schema, batches)
        lance.write_dataset(reader, str(temporary), max_rows_per_file=tables.ROWS_PER_FILE)


def _policy(keep: int) -> dict[str, Any]:
    return {"rule": f"first, last, best and {keep} evenly spaced epochs; within an epoch only the newest", "keep": keep}


def _check_same(path: Path, learner: Learner, corpus: Corpus) -> None:
    manifest = Run(path).manifest
    there = manifest["corpus"]["fingerprint"]
    if there != corpus.fingerprint:
        raise RunError(
            f"{path} holds a run on the corpus {there}, and this one is {corpus.fingerprint}.",
            "Choose another folder, or use resume=False to replace the run.",
        )
    ours = learner.spec()
    # A run of before there were losses to choose from has the task's own, which has a name and no numbers.
    theirs = {"loss": ours["loss"] if isinstance(ours["loss"], str) else "auto", **manifest["learner"]}
    different = [name for name in ours if name not in ("device",) and ours[name] != theirs.get(name)]
    if different:
        said = ", ".join(f"{name}={shown(theirs.get(name))} there, {shown(ours[name])} here" for name in different)
        raise RunError(
            f"{path} holds a run of another learner: {said}.",
            "Choose another folder, or use resume=False to replace the run.",
        )


@contextmanager
def _status(path: Path) -> Iterator[None]:
    """Whatever ends a sitting early, the manifest says "interrupted" if it still can be written."""
    try:
        yield
    except BaseException:
        with suppress(ImprintError, OSError):
            if (path / "manifest.json").exists():
                update_manifest(path, status="interrupted")
        raise


def _folder(corpus: Corpus) -> Path | None:
    """Where `imprint.load` finds the corpus again: its store. An edited version has none of its own and must be given."""
    return corpus.stores[0].folder if len(corpus.stores) == 1 and not corpus.edits else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
