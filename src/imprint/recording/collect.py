"""Evidence that is collected when it is first asked for: outputs and features in one shared forward pass over all rows.

What takes trainings of its own is collected by a later part of the system, which registers itself in `COLLECTORS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from imprint.engine import LOCAL, Engine
from imprint.errors import EvidenceError
from imprint.fitting import Progress, silent
from imprint.recording import tables
from imprint.recording.files import replacing
from imprint.recording.held_out import held_out
from imprint.recording.lock import writing
from imprint.recording.needs import HELD_OUT, Need

if TYPE_CHECKING:
    from imprint.recording.run import Run


@dataclass(frozen=True)
class Source:
    """How a kind of evidence is kept that only a later part of the system knows.

    Attributes:
        has: Whether all of it is there.
        check: Raises `EvidenceError` where it cannot be had, before anything is trained for it.
        read: Its value; of the examples of the need's split only those in the slice.
        spent: How many trainings it took, and what to know of it, in a sentence.
    """

    has: Callable[[Run, Need], bool]
    check: Callable[[Run, Need], None]
    read: Callable[[Run, Need, slice], Any]
    spent: Callable[[Run, Need], tuple[int, str]]


# Collects all that is missing of the kinds that it is registered for, where the engine says.
Collector = Callable[["Run", Sequence[Need], Progress, Engine], None]
# kind -> what collects it, and where that is registered: a later part of the system, which this one does not know.
COLLECTORS: dict[str, Collector] = {}
SOURCES: dict[str, Source] = {}
REGISTERED_BY = {
    "out_of_fold": "imprint.fleets",
    "subsets": "imprint.fleets.evidence",
    "bags": "imprint.fleets.evidence",
    "permutations": "imprint.fleets.permutations",
    "gradients": "imprint.gradients.evidence",
    "gradient_norms": "imprint.gradients.evidence",
    "layer_gradients": "imprint.gradients.evidence",
    "curvature": "imprint.gradients.curvature_evidence",
}
FORWARD = ("outputs", "features")
RECORDED = ("order", "dynamics")
# A feature vector wider than this is a sign of raw inputs, and would fill the disk.
WIDEST = 4096


def source(kind: str | None) -> Source | None:
    """How a kind of evidence is kept that a later part of the system registers; None for what a run itself reads."""
    if kind is not None and kind in REGISTERED_BY:
        importlib.import_module(REGISTERED_BY[kind])
        return SOURCES.get(kind)
    return None


def spent(run: Run, needs: Iterable[Need]) -> tuple[int, tuple[str, ...]]:
    """How many trainings the evidence of these needs took, and what to know of their fleets, one sentence per fleet."""
    trainings, notes = 0, []
    for need in {need.store: need for need in sorted(needs, key=repr)}.values():
        kept = source(need.kind)
        count, note = (need.trainings, "") if kept is None else kept.spent(run, need)
        trainings += count
        notes += [note] if note else []
    return trainings, tuple(notes)


def missing(run: Run, needs: Iterable[Need]) -> list[Need]:
    """The needs whose evidence is not on disk, one per store."""
    found: dict[str, Need] = {}
    for need in needs:
        if need.store is not None and need.store not in found and not run.has(need):
            found[need.store] = need
    return list(found.values())


def collect(run: Run, needs: Iterable[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Collect what these needs lack.

    Args:
        run: The run.
        needs: What is asked for.
        progress: Told what is done.
        engine: Where what takes long is done: trainings of fleets, and gradients. The rest is done here.

    Raises:
        EvidenceError: Something can only be recorded while training, or the data do not allow it.
        RunLocked: Another process is writing the run.
    """
    needs = list(needs)
    if any(getattr(need, "split", None) == HELD_OUT for need in needs):
        held_out(run)
    for need in needs:
        if (kept := source(need.kind)) is not None:
            kept.check(run, need)
    wanted = missing(run, needs)
    if not wanted:
        return
    for need in wanted:
        if need.kind in RECORDED:
            raise EvidenceError(_unrecorded(run, str(need.kind)), _recordable(run))
        if need.kind in REGISTERED_BY:
            importlib.import_module(REGISTERED_BY[need.kind])
        if need.kind not in FORWARD and need.kind not in COLLECTORS:
            raise EvidenceError(
                f"Nothing collects the evidence '{need.kind}'.",
                f"Known: {', '.join((*RECORDED, *FORWARD, *COLLECTORS))}.",
            )
    with writing(run.path):
        forward = [str(need.kind) for need in wanted if need.kind in FORWARD]
        if forward:
            _forward(run, forward, progress)
        shared: dict[Collector, list[Need]] = {}
        for need in wanted:
            if need.kind in COLLECTORS:
                shared.setdefault(COLLECTORS[need.kind], []).append(need)
        for one, some in shared.items():
            one(run, some, progress, engine)


def _unrecorded(run: Run, kind: str) -> str:
    if run.manifest.get("deletable"):
        return (
            f"The run {run.path} was trained in shards, each with stages of its own: there is no '{kind}' of the whole."
        )
    at_once = run.manifest.get("estimator") or run.manifest.get("solved")
    if at_once:
        return f"The run {run.path} trained a {at_once}, which has no epochs: there is no '{kind}'."
    if run.manifest.get("forgot"):
        return f"The run {run.path} forgot by '{run.manifest['forgot']['method']}', with no training of its own: no '{kind}'."
    return f"The run {run.path} recorded no '{kind}'."


def _recordable(run: Run) -> str:
    """How to come by evidence that only a training can record."""
    if run.manifest.get("deletable"):
        return "Choose what takes a pass over the examples, such as score('gradient-norm'), or fit without deletable=."
    if run.manifest.get("forgot"):
        return "Choose what takes a pass over the examples, such as score('gradient-norm'), or forget with method='retrain'."
    return "Fit with a torch model (model='auto') and record='auto'."


def _forward(run: Run, kinds: list[str], progress: Progress) -> None:
    """One pass over all rows that writes each of `kinds`."""
    model = run.model()
    with ExitStack() as stack:
        files = {
            kind: _Stream(stack.enter_context(replacing(run.path / "evidence" / f"{kind}.lance")), kind)
            for kind in kinds
        }
        done, total = 0, len(run.corpus)
        for rows, inputs in _inputs(run, model):
            if "outputs" in files:
                files["outputs"].add(rows, model.forward(inputs).flatten(1))
            if "features" in files:
                features = model.features(inputs)
                if features.shape[1] > WIDEST:
                    raise EvidenceError(
                        f"The features have {features.shape[1]} dimensions; more than {WIDEST} are not stored.",
                        "Use a model that ends in a linear layer, or give its class a method features(x).",
                    )
                files["features"].add(rows, features.clamp(-65504, 65504).half())
            done += len(rows)
            progress("outputs", done, total)


def _inputs(run: Run, model: Any) -> Iterator[tuple[np.ndarray, Tensor]]:
    """`(rows, encoded inputs)` over the corpus: what the fit still holds in memory, else encoded again by batches."""
    if run.data is not None:
        for begin in range(0, len(run.data.inputs), tables.CHUNK):
            end = min(begin + tables.CHUNK, len(run.data.inputs))
            yield np.arange(begin, end), run.data.inputs[begin:end]
    else:
        for rows, frame in run.corpus.batches(size=tables.CHUNK):
            yield rows, model.encode(frame)


class _Stream:
    """Appends blocks of one vector per row to a Lance table that is not visible yet."""

    def __init__(self, path: Any, kind: str) -> None:
        self.path, self.column, self.written = path, {"outputs": "logits", "features": "features"}[kind], False

    def add(self, rows: np.ndarray, values: Tensor) -> None:
        """Append one block."""
        table = pa.table({"row": np.asarray(rows, dtype=np.int64), self.column: tables.fixed(values.contiguous())})
        lance.write_dataset(
            table, str(self.path), mode="append" if self.written else "create", max_rows_per_file=tables.ROWS_PER_FILE
        )
        self.written = True


def write_rows(path: Any, rows: Tensor, column: str, values: Tensor, **more: Tensor) -> None:
    """Write a whole table of one vector per row, atomically; rows ascending."""
    order = torch.argsort(rows)
    columns = {"row": rows[order].numpy(), column: tables.fixed(values.flatten(1)[order].contiguous())}
    columns |= {name: value[order].numpy() for name, value in more.items()}
    with replacing(path) as temporary:
        lance.write_dataset(pa.table(columns), str(temporary), max_rows_per_file=tables.ROWS_PER_FILE)
