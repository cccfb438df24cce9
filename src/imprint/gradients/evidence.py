"""Projected gradients and gradient norms as evidence of a run: one pass over its corpus, kept in `RUN/evidence`.

    gradients-SIZE-PROJECTION-OF-CHECKPOINT.lance     row, gradient float16[size], scale, value
    gradient-norms-CHECKPOINT.lance                   row, norm

Gradients shrink by orders of magnitude as a model learns its examples, below what float16 can hold, so each is kept relative to its own
largest number (`scale`); `value` is the loss or margin that was differentiated. Blocks are appended to a table that is not yet visible;
a pass that was interrupted goes on behind the last of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from imprint.errors import EvidenceError, nearest
from imprint.fitting import Progress, silent
from imprint.gradients.examples import Examples, check_differentiable, examples_of, kept_checkpoints
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import squared_norms
from imprint.gradients.projections import KINDS, Projection
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
)

if TYPE_CHECKING:
    from imprint.recording import Run

# Bytes that are appended to a table at a time, at least: fragments are then few, and little is lost with an interrupted pass.
CHUNK_BYTES = 2**25
SEED = 0
ALL = "kept"
EARLY = "early"
# Of the epochs, as `el2n` reads them.
EARLY_SHARE = 0.2

Columns = dict[str, Tensor]


def collect_gradients(run: Run, need: Need, progress: Progress = silent) -> None:
    """Project the gradients of every row of the corpus, at each checkpoint that the need names."""
    assert isinstance(need, Gradients)
    for checkpoint, _ in _checkpoints(run, need.checkpoint):
        examples = examples_of(run, run.rows(None), checkpoint, need.of)
        projection = Projection.of(examples.capture.module, need.size, SEED, need.projection)  # type: ignore[arg-type]
        projection.project(examples.probe)
        blocks = {name: [one.start, one.stop] for name, one in projection.blocks.items()}

        def columns(values: Tensor, layers: list[LayerGradient], projection: Projection = projection) -> Columns:
            projected = projection.project(layers).float().cpu()
            scale = projected.abs().amax(1)
            kept = projected / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            return {"gradient": kept.half(), "scale": scale, "value": values.float().cpu()}

        _write(run, need, examples, columns, {"blocks": json.dumps(blocks)}, progress)


def collect_norms(run: Run, need: Need, progress: Progress = silent) -> None:
    """The norm of the gradient of the loss of every row of the corpus."""
    assert isinstance(need, GradientNorms)
    for checkpoint, _ in _checkpoints(run, need.checkpoint):
        examples = examples_of(run, run.rows(None), checkpoint)

        def columns(values: Tensor, layers: list[LayerGradient]) -> Columns:
            return {"norm": squared_norms(layers).clamp(min=0).sqrt().float().cpu()}

        _write(run, need, examples, columns, {}, progress)


def _write(
    run: Run,
    need: Need,
    examples: Examples,
    columns: Callable[[Tensor, list[LayerGradient]], Columns],
    about: dict[str, str],
    progress: Progress,
) -> None:
    """Append what `columns` gives of each block; visible when all of them are there."""
    final = _path(run, need, examples.checkpoint)
    described = {**_state(run, examples.checkpoint), **about}
    partial = final.with_name(f".{final.name}.partial")
    done = 0
    if tables.exists(partial):
        table = tables.open_table(partial)
        if _metadata(table) == described:
            done = table.count_rows()
        else:
            remove(partial)
    waiting: list[pa.Table] = []
    total, schema = len(examples), None
    while done < total:
        some = slice(done, min(done + examples.size, total))
        values = columns(*examples.with_values(some))
        arrays = {"row": pa.array(np.arange(some.start, some.stop, dtype=np.int64))}
        arrays |= {name: tables.fixed(value.contiguous()) for name, value in values.items()}
        schema = schema or pa.schema([(name, one.type) for name, one in arrays.items()], metadata=described)
        waiting.append(pa.table(list(arrays.values()), schema=schema))
        done = some.stop
        if done == total or sum(one.nbytes for one in waiting) >= CHUNK_BYTES:
            tables.append(partial, pa.concat_tables(waiting))
            waiting = []
        progress("gradients", done, total)
    remove(final)
    partial.replace(final)


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
    for checkpoint, _ in _checkpoints(run, _named(need)):
        path = _path(run, need, checkpoint)
        if not path.exists():
            return False
        found = _metadata(tables.open_table(path))
        if any(found.get(key) != value for key, value in _state(run, checkpoint).items()):
            return False
    return True


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
        `GradientBlocks`: name -> slice. `LearningRates`: `[checkpoint]`. `LayerGradients`: a tuple of `Examples`, one per checkpoint.
    """
    if isinstance(need, GradientBlocks):
        return _blocks(run, need)
    if isinstance(need, LearningRates):
        return torch.tensor([weight for _, weight in _checkpoints(run, need.checkpoint)])
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


COLLECTORS["gradients"] = collect_gradients
COLLECTORS["gradient_norms"] = collect_norms
for _kind in ("gradients", "gradient_norms", "layer_gradients"):
    SOURCES[_kind] = Source(_has, _check, _read, _spent)
