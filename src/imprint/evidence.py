"""Evidence of any examples of a run, in any order: of the queries of a trace, or of the examples that a selection is to be good at.

`Run.gather` reads the evidence of a split. A method that also reads it of examples that a user names declares a need whose split is a
name of its verb's own (`QUERIES`, `TARGET`), and `gather` puts those examples' rows in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.corpus import Corpus
from imprint.engine import LOCAL, Engine
from imprint.errors import EvidenceError, IdError
from imprint.fitting import Progress, generator, silent
from imprint.fleets.evidence import fleet_of
from imprint.gradients.evidence import of_rows as gradients_of
from imprint.recording.needs import Features, GradientNorms, Gradients, LayerGradients, Need, Rows, Subsets, Target

if TYPE_CHECKING:
    from imprint.recording import Run

# Examples as a user names them: a split, a part of the corpus, ids, or rows.
Named = str | Corpus | Sequence[str] | Sequence[int] | np.ndarray
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
    """Texts of the examples of a split, as `texts` makes them: a series `[example]`."""

    field: str = "texts"
    split: str | None = "train"


def gather(
    run: Run,
    needs: Iterable[Need],
    named: Mapping[str, Int[np.ndarray, " example"]],
    progress: Progress = silent,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """The values of needs by name; what is missing is collected first.

    Args:
        run: The run.
        needs: What a method reads.
        named: Split of a need -> the rows of the corpus that it stands for, in their order.
        progress: Told what is collected.
        engine: Where what takes long is done.
    """
    needs = list(needs)
    collect(run, needs, named, progress, engine)
    return {need.name: value(run, need, named) for need in needs}


def collect(
    run: Run, needs: Iterable[Need], named: Iterable[str], progress: Progress = silent, engine: Engine = LOCAL
) -> None:
    """Collect what needs lack; those about named examples are collected of all rows."""
    named = set(named)
    of_all = [replace(need, split=None) if split_of(need) in named else need for need in needs]  # type: ignore[call-arg]
    run.collect([need for need in of_all if need.kind is not None], progress, engine)


def split_of(need: Need) -> str | None:
    """The split that a need is about; None where it has none."""
    return getattr(need, "split", None)


def value(run: Run, need: Need, named: Mapping[str, Int[np.ndarray, " example"]]) -> Any:
    """The value of a need that has been collected, of named examples or of a split."""
    split = split_of(need)
    if split is not None and split in named:
        return of_rows(run, need, named[split])
    return of_rows(run, need, run.rows(split)) if isinstance(need, Inputs | Texts) else run.gather([need])[need.name]


def of_rows(run: Run, need: Need, rows: Int[np.ndarray, " example"]) -> Any:
    """The value of a need that has been collected, of these rows in their order."""
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
            return texts(run.corpus, rows)
        case Gradients() | GradientNorms() | LayerGradients():
            return gradients_of(run, need, rows)
    raise TypeError(f"{need} cannot be had of examples that are named.")


def inputs(run: Run, rows: Int[np.ndarray, " example"]) -> Float[Tensor, "example number"]:
    """Encoded inputs of rows in their order, flattened; projected where there are more than `WIDEST` numbers."""
    ascending, place = np.unique(rows, return_inverse=True)
    if run.data is not None:
        blocks: Iterator[Tensor] = (
            run.data.inputs[torch.from_numpy(some)]
            for some in np.array_split(ascending, -(-len(ascending) // 1024) or 1)
        )
    else:
        model = run.model()
        blocks = (model.encode(frame) for _, frame in run.corpus.batches(ascending, size=1024))
    return flattened(blocks)[torch.from_numpy(place)]


def flattened(blocks: Iterable[Tensor]) -> Float[Tensor, "example number"]:
    """Blocks of encoded examples as one matrix, projected where there are more than `WIDEST` numbers."""
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
    return torch.cat(parts)


def texts(corpus: Corpus, rows: Int[np.ndarray, " example"]) -> pl.Series:
    """Texts of rows in their order: the text columns, joined by a space; of a table all its cells, each by the name of its column.

    Raises:
        EvidenceError: There is no column that can be read as text.
    """
    ascending, place = np.unique(rows, return_inverse=True)
    table = corpus.modality == "table"
    columns = [name for name, kind in corpus.kinds.items() if kind == "text" or (table and kind != "array")]
    if not columns:
        raise EvidenceError(
            f"The corpus has no texts: its inputs are {corpus.modality} data.", "Choose a method that reads features."
        )
    if table:
        said = pl.concat_str([_cell(name) for name in columns], ignore_nulls=True)
    else:
        said = pl.concat_str([pl.col(name).fill_null("") for name in columns], separator=" ")
    joined = [frame.select(said).to_series() for _, frame in corpus.batches(ascending, columns, size=16_384)]
    return pl.concat(joined).gather(place).rename("text")


def _cell(name: str) -> pl.Expr:
    """A cell as text, "age 39; "; null where the cell is."""
    return pl.lit(f"{name} ") + pl.col(name).cast(pl.String) + pl.lit("; ")


def named_rows(run: Run, named: Named, what: str = "queries") -> Int[np.ndarray, " example"]:
    """Rows of the run's corpus that were named, in their order, each once.

    Args:
        run: The run.
        named: A split's name, a part of the corpus, ids, or rows.
        what: What they are, for messages.

    Raises:
        IdError: An id or row is not of the run's corpus, or there is none.
        RunError: There is no such split.
    """
    if isinstance(named, str):
        return run.rows(named)
    asked = np.asarray(named.ids.to_list() if isinstance(named, Corpus) else named)
    if asked.ndim != 1 or not len(asked):
        raise IdError(f"No {what} were given.", "Give a split's name, a list of ids, or rows.")
    if np.issubdtype(asked.dtype, np.integer):
        total = len(run.examples)
        outside = asked[(asked < 0) | (asked >= total)]
        if len(outside):
            raise IdError(f"There is no row {outside[0]}; the corpus has {total:,}.", "Rows count from 0; or give ids.")
        rows = asked.astype(np.int64)
    else:
        known = pl.DataFrame({"id": asked.astype(str)}).join(
            run.examples.select("id", "row"), on="id", how="left", maintain_order="left"
        )
        unknown = known.filter(pl.col("row").is_null())["id"]
        if len(unknown):
            some = ", ".join(repr(one) for one in unknown[:3])
            raise IdError(
                f"{len(unknown)} of {len(asked)} {what} are not of this run's corpus: {some}.",
                f"Ids are like {run.examples['id'][0]!r}; a split is named by a plain text: {', '.join(run.manifest['corpus']['splits'])}.",
            )
        rows = known["row"].to_numpy().astype(np.int64)
    return rows[np.sort(np.unique(rows, return_index=True)[1])]
