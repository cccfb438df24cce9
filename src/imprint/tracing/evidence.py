"""What a trace method reads: evidence of the training examples, and evidence of the queries.

A need whose split is `QUERIES` is about the queries that were asked for, whichever rows these are. Where a method reads the same
evidence of both, it gives that of the queries a name of its own: `Features("query_features", split=QUERIES), Features()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.fitting import Progress, generator, silent
from imprint.fleets.evidence import fleet_of
from imprint.gradients.evidence import of_rows
from imprint.gradients.examples import kept_checkpoints
from imprint.recording.needs import Features, GradientNorms, Gradients, LayerGradients, Need, Rows, Subsets, Target

if TYPE_CHECKING:
    from imprint.recording import Run

QUERIES = "<queries>"
# Encoded inputs with more numbers than this are projected to as many random directions, which keep distances to a few percent
# (Johnson-Lindenstrauss); a folder of photographs would not fit in memory otherwise.
WIDEST = 4096


@dataclass(frozen=True)
class Inputs(Need):
    """Encoded inputs of the examples of a split, flattened: `[example, number]` float32."""

    field: str = "inputs"
    split: str | None = "train"


@dataclass(frozen=True)
class Texts(Need):
    """Texts of the examples of a split, columns joined by a space: a series `[example]`."""

    field: str = "texts"
    split: str | None = "train"


def gather(
    run: Run, needs: Iterable[Need], queries: Int[np.ndarray, " query"], progress: Progress = silent
) -> dict[str, Any]:
    """The values of needs by name; what is missing is collected first.

    Args:
        run: The run.
        needs: What a method reads.
        queries: Rows of the corpus that the queries are, in their order.
        progress: Told what is collected.
    """
    needs = list(needs)
    of_all = {need: replace(need, split=None) if asks_queries(need) else need for need in needs}  # type: ignore[call-arg]
    run.collect([need for need in of_all.values() if need.kind is not None], progress)
    return {need.name: _value(run, need, queries) for need in needs}


def asks_queries(need: Need) -> bool:
    """Whether a need is about the queries."""
    return getattr(need, "split", None) == QUERIES


def _value(run: Run, need: Need, queries: np.ndarray) -> Any:
    if not asks_queries(need) and not isinstance(need, Inputs | Texts):
        return run.gather([need])[need.name]
    rows = queries if asks_queries(need) else run.rows(need.split)  # type: ignore[attr-defined]
    match need:
        case Subsets(field=field):
            return fleet_of(run, need).outcomes(field, rows=rows)
        case Features():
            ascending, place = np.unique(rows, return_inverse=True)
            return run.evidence("features").read(ascending)[torch.from_numpy(place)]
        case Rows():
            return torch.from_numpy(rows)
        case Target():
            return run.target(None)[torch.from_numpy(rows)]
        case Inputs():
            return inputs(run, rows)
        case Texts():
            return texts(run, rows)
        case Gradients() | GradientNorms() | LayerGradients():
            return of_rows(run, need, rows)
    raise TypeError(f"{need} cannot be had of queries.")


def bytes_read(run: Run, needs: Iterable[Need]) -> int:
    """Bytes on disk of the evidence that these needs are read from; the corpus and the checkpoints are not counted.

    Args:
        run: The run.
        needs: What a method reads.
    """
    stores = {str(need.store): need for need in needs if need.store is not None}
    total = 0
    for store, need in stores.items():
        checkpoint = getattr(need, "checkpoint", None)
        files = [run.path / "fleets" / store, *(run.path / "evidence").glob(f"{store}.*")]
        if checkpoint is not None:  # on disk a checkpoint has its own name
            kept = (
                kept_checkpoints(run) if checkpoint == "kept" else [(run.checkpoints.named(str(checkpoint)).name, 1.0)]
            )
            files += [run.path / "evidence" / f"{store.removesuffix(str(checkpoint))}{name}.lance" for name, _ in kept]
        total += sum(file.stat().st_size for folder in files for file in (folder, *folder.rglob("*")) if file.is_file())
    return total


def inputs(run: Run, rows: Int[np.ndarray, " example"]) -> Float[Tensor, "example number"]:
    """Encoded inputs of rows in their order, flattened; projected where there are more than `WIDEST` numbers."""
    ascending, place = np.unique(rows, return_inverse=True)
    if run.data is not None:
        blocks = (
            run.data.inputs[torch.from_numpy(some)]
            for some in np.array_split(ascending, -(-len(ascending) // 1024) or 1)
        )
    else:
        model = run.model()
        blocks = (model.encode(frame) for _, frame in run.corpus.batches(ascending, size=1024))
    parts = []
    directions: Tensor | None = None
    for block in blocks:
        flat = block.flatten(1).float()
        if flat.shape[1] > WIDEST:
            if directions is None:
                random = generator(0, "directions")
                directions = torch.randn(flat.shape[1], WIDEST, generator=random) / math.sqrt(WIDEST)
            flat = flat @ directions
        parts.append(flat)
    return torch.cat(parts)[torch.from_numpy(place)]


def texts(run: Run, rows: Int[np.ndarray, " example"]) -> pl.Series:
    """Texts of rows in their order."""
    ascending, place = np.unique(rows, return_inverse=True)
    columns = [name for name, kind in run.corpus.kinds.items() if kind == "text"]
    joined = [
        frame.select(pl.concat_str([pl.col(name).fill_null("") for name in columns], separator=" ")).to_series()
        for _, frame in run.corpus.batches(ascending, columns, size=16_384)
    ]
    return pl.concat(joined).gather(place).rename("text")
