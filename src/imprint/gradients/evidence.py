"""Projected gradients and gradient norms as evidence of a run: one pass over its corpus, kept in `RUN/evidence`.

    gradients-SIZE-PROJECTION-OF-CHECKPOINT.lance     row, gradient float16[size], scale, value
    gradient-norms-CHECKPOINT.lance                   row, norm

Gradients shrink by orders of magnitude as a model learns its examples, below what float16 can hold, so each is kept relative to its own
largest number (`scale`); `value` is the loss or margin that was differentiated. All that is
lacking of a checkpoint is taken in one pass. Blocks are appended to tables that are not yet visible; a pass that was interrupted goes on
behind the last of them, here or on a cluster, whichever began it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from imprint.engine import LOCAL, Engine
from imprint.engine.connection import held
from imprint.engine.ordered import AHEAD_BYTES
from imprint.errors import EvidenceError, nearest
from imprint.fitting import Progress, silent
from imprint.gradients.examples import Examples, check_differentiable, examples_of, kept_checkpoints
from imprint.gradients.moments import moments_of
from imprint.gradients.projections import KINDS, Projection
from imprint.gradients.sharded import Columns, NormRows, ProjectedRows, Rows, Wanted, blocks
from imprint.recording import tables
from imprint.recording.collect import COLLECTORS, SOURCES, Source
from imprint.recording.evidence import RowsReader
from imprint.recording.files import remove
from imprint.recording.needs import (
    GradientBlocks,
    GradientNorms,
    Gradients,
    GradientValues,
    LayerGradients,
    LearningRates,
    Need,
    SecondMoments,
)

if TYPE_CHECKING:
    from imprint.recording import Run

# A table is appended to when this much waits, or this long after the last time: an interruption loses no more.
CHUNK_BYTES = 2**25
CHUNK_SECONDS = 60.0
SEED = 0
ALL = "kept"
EARLY = "early"
# Of the epochs, as `el2n` reads them.
EARLY_SHARE = 0.2


def collect_gradients(run: Run, needs: Sequence[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Project the gradients, and take their norms, of every row of the corpus, at each checkpoint that the needs name.

    Needs of one checkpoint that differentiate the same share a pass, in which each block of examples is captured once.

    Args:
        run: The run.
        needs: `Gradients` and `GradientNorms`.
        progress: Told the examples done.
        engine: Where gradients are taken.
    """
    passes: dict[tuple[str, str], dict[Path, Need]] = {}
    for need in needs:
        for checkpoint, _ in _checkpoints(run, _named(need)):
            if not _is_there(run, need, checkpoint):
                of = need.of if isinstance(need, Gradients) else "loss"
                passes.setdefault((checkpoint, of), {})[_path(run, need, checkpoint)] = need
    with ExitStack() as connection:
        for number, ((checkpoint, of), wanted) in enumerate(passes.items()):
            examples = examples_of(run, run.rows(None), checkpoint, of)
            state = {**_state(run, checkpoint), "block": str(examples.size)}
            growing = [Growing(path, *_rows(need, examples), state) for path, need in wanted.items()]
            if len(passes) > 1 and not number:
                weights = sum(one.nbytes for one in examples.capture.module.parameters())
                connection.enter_context(held(engine, AHEAD_BYTES + 2 * weights))
            fill(growing, examples, progress, engine)


def fill(growing: Sequence[Growing], examples: Examples, progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Append to each table what it lacks, in one pass; each becomes visible when all of it is there."""
    wanted = [Wanted(one.rows, one.done) for one in growing]
    with closing(blocks(examples, wanted, engine)) as found:
        for some, columns in found:
            for one, own in zip(growing, columns, strict=True):
                if own is not None:
                    one.add(some, own, len(examples))
            progress("gradients", some.stop, len(examples))
    for one in growing:
        one.finish()


class Growing:
    """A table that is filled block by block, and not yet visible; one that was begun earlier goes on.

    Args:
        path: Where it will be.
        rows: What it has of each example.
        about: What readers must know.
        state: What it is made of and how: a table that was begun otherwise is begun again.
    """

    def __init__(self, path: Path, rows: Rows, about: dict[str, str], state: dict[str, str]) -> None:
        self.path, self.rows, self.described = path, rows, {**state, **about}
        self.partial = path.with_name(f".{path.name}.partial")
        self.waiting: list[pa.Table] = []
        self.done, self.written = 0, time.monotonic()
        if tables.exists(self.partial):
            begun = tables.open_table(self.partial)
            if _metadata(begun) == self.described:
                self.done = begun.count_rows()
            else:
                remove(self.partial)

    def add(self, some: slice, columns: Columns, total: int) -> None:
        """Take a block; blocks that wait are appended when there are enough of them, or for long enough, or no more to come."""
        arrays = {"row": pa.array(np.arange(some.start, some.stop, dtype=np.int64))}
        arrays |= {name: tables.fixed(values) for name, values in columns.items()}
        schema = pa.schema([(name, one.type) for name, one in arrays.items()], metadata=self.described)
        self.waiting.append(pa.table(list(arrays.values()), schema=schema))
        late = time.monotonic() - self.written > CHUNK_SECONDS
        if late or some.stop == total or sum(one.nbytes for one in self.waiting) >= CHUNK_BYTES:
            tables.append(self.partial, pa.concat_tables(self.waiting))
            self.waiting, self.written = [], time.monotonic()

    def finish(self) -> None:
        """Make it visible."""
        remove(self.path)
        self.partial.replace(self.path)


def _rows(need: Need, examples: Examples) -> tuple[Rows, dict[str, str]]:
    """What the table of a need has of each example, and what readers of it must know."""
    if isinstance(need, GradientNorms):
        return NormRows(), {}
    assert isinstance(need, Gradients)
    projection = Projection.of(examples.capture.module, need.size, SEED, need.projection)  # type: ignore[arg-type]
    projection.project(examples.probe)
    ends = {name: [one.start, one.stop] for name, one in projection.blocks.items()}
    return ProjectedRows(projection), {"blocks": json.dumps(ends)}


def _path(run: Run, need: Need, checkpoint: str) -> Path:
    return run.path / "evidence" / f"{str(need.store).removesuffix(f'-{_named(need)}')}-{checkpoint}.lance"


def _named(need: Need) -> str | int:
    assert isinstance(need, Gradients | GradientNorms)
    return need.checkpoint


def _state(run: Run, checkpoint: str) -> dict[str, str]:
    """What says that evidence is of the weights that the checkpoint now holds."""
    files = run.checkpoints.named(checkpoint).description["files"]
    return {"weights": str(files[f"{checkpoint}.safetensors"]["blake2b"])}


def _metadata(table: lance.LanceDataset) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _checkpoints(run: Run, checkpoint: str | int) -> list[tuple[str, float]]:
    """The checkpoints that a need names, with their weights."""
    if checkpoint == ALL:
        return kept_checkpoints(run)
    if checkpoint == EARLY:
        complete = [one for one in run.checkpoints.all() if one.complete] or [run.checkpoints.named("first")]
        until = math.ceil(EARLY_SHARE * complete[-1].epoch)
        return [(one.name, 1.0) for one in complete if one.epoch <= max(until, complete[0].epoch)]
    return [(run.checkpoints.named(str(checkpoint)).name, 1.0)]


# ------------------------------------------------------------------------------------------------------------------- reading


def _has(run: Run, need: Need) -> bool:
    if isinstance(need, LayerGradients):
        return True  # nothing of it is kept
    return all(_is_there(run, need, checkpoint) for checkpoint, _ in _checkpoints(run, _named(need)))


def _is_there(run: Run, need: Need, checkpoint: str) -> bool:
    path = _path(run, need, checkpoint)
    return path.exists() and _state(run, checkpoint).items() <= _metadata(tables.open_table(path)).items()


def _check(run: Run, need: Need) -> None:
    check_differentiable(run)
    assert isinstance(need, Gradients | GradientNorms | LayerGradients)
    _checkpoints(run, need.checkpoint)
    if isinstance(need, Gradients) and need.projection not in KINDS:
        raise EvidenceError(f"No projection is called '{need.projection}'.", nearest(need.projection, KINDS))


def of_rows(run: Run, need: Need, rows: Int[np.ndarray, " example"]) -> Any:
    """The value of a need about some rows of the corpus, in their order; it must have been collected.

    Returns:
        `Gradients`: `[example, size]`. `GradientValues`, `GradientNorms`: `[example]`. Of several checkpoints these are stacked in front.
        `GradientBlocks`: name -> slice. `LearningRates`: `[checkpoint]`. `SecondMoments`: a `Moments`.
        `LayerGradients`: a tuple of `Examples`, one per checkpoint.
    """
    if isinstance(need, GradientBlocks):
        return _blocks(run, need)
    if isinstance(need, LearningRates):
        return torch.tensor([weight for _, weight in _checkpoints(run, need.checkpoint)])
    if isinstance(need, SecondMoments):
        return moments_of(run, need.checkpoint)
    if isinstance(need, LayerGradients):
        return tuple(
            examples_of(run, rows, checkpoint, need.of, weight=weight)
            for checkpoint, weight in _checkpoints(run, need.checkpoint)
        )
    ascending, place = np.unique(rows, return_inverse=True)
    column = "norm" if isinstance(need, GradientNorms) else "value" if isinstance(need, GradientValues) else "gradient"
    found = []
    for checkpoint, _ in _checkpoints(run, _named(need)):
        path = _path(run, need, checkpoint)
        values = RowsReader(path, column).read(ascending)
        if column == "gradient":
            values *= RowsReader(path, "scale").read(ascending)[:, None]
        found.append(values[torch.from_numpy(place)])
    return torch.stack(found) if _named(need) in (ALL, EARLY) else found[0]


def _read(run: Run, need: Need, block: slice) -> Any:
    return of_rows(run, need, run.rows(need.split)[block])  # type: ignore[attr-defined]


def _blocks(run: Run, need: Gradients) -> dict[str, slice]:
    """Which columns of projected gradients are of which layer."""
    checkpoint = _checkpoints(run, need.checkpoint)[0][0]
    said = json.loads(_metadata(tables.open_table(_path(run, need, checkpoint)))["blocks"])
    return {name: slice(*ends) for name, ends in said.items()}


def _spent(run: Run, need: Need) -> tuple[int, str]:
    return 0, ""


COLLECTORS["gradients"] = COLLECTORS["gradient_norms"] = collect_gradients
for _kind in ("gradients", "gradient_norms", "layer_gradients"):
    SOURCES[_kind] = Source(_has, _check, _read, _spent)
