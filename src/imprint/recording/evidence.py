"""Readers of evidence: from tables on disk to tensors, by blocks of examples.

Each reader is small: it knows one table. `dynamics` and `out_of_fold` are over training examples in ascending row order; `outputs` and
`features` are over all rows of the corpus.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import EvidenceError, RunError
from imprint.recording import tables
from imprint.recording.recorder import SUMMARY, losses
from imprint.tasks import Task


class DynamicsReader:
    """What the model said of each training example while it was trained on it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.table = tables.open_table(path)
        self.columns = tuple(name for name in self.table.schema.names if name not in ("epoch", "index"))
        rows = self.table.count_rows()
        if rows % size:
            raise RunError(f"{path} holds {rows} rows, not a multiple of the {size} training examples.", "Fit again.")
        self.epochs = rows // size
        # One fragment per epoch as we write it; a table that another tool compacted is read through a filter.
        self.aligned = all(fragment.count_rows() == size for fragment in self.table.get_fragments())

    def select(self, epochs: float | None) -> range:
        """The epochs (from 0) that a need asks for: None all, k the first k, -k the last k, a fraction in (0, 1) the first of them."""
        if epochs is None:
            return range(self.epochs)
        count = max(1, math.ceil(epochs * self.epochs)) if 0 < epochs < 1 else min(abs(int(epochs)), self.epochs)
        return range(count) if epochs > 0 else range(self.epochs - count, self.epochs)

    def read(self, column: str, epochs: float | None = None, block: slice | None = None) -> Tensor:
        """`[epoch, example]` or, for logits, `[epoch, example, class]`, float32."""
        if column not in self.columns:
            have = ", ".join(self.columns)
            raise EvidenceError(
                f"{self.path} holds {have}, not {column}.", "Fit again with Learner(record='logits') into a new folder."
            )
        begin, end, _ = (block or slice(None)).indices(self.size)
        found: Tensor | None = None
        chosen = self.select(epochs)
        for place, epoch in enumerate(chosen):
            values = self._epoch(column, epoch, begin, end)
            if found is None:
                found = torch.empty(len(chosen), *values.shape)
            found[place] = values
        if found is None:
            raise EvidenceError(
                f"{self.path} holds no complete epoch.", "Let the training go on: imprint.fit(..., resume=True)."
            )
        return found

    def _epoch(self, column: str, epoch: int, begin: int, end: int) -> Tensor:
        if self.aligned:
            return tables.tensor(tables.read(self.table, [column], begin, end, fragment=epoch)[column])
        where = f"epoch = {epoch + 1} AND index >= {begin} AND index < {end}"
        chosen = tables.select(self.table, ["index", column], where).sort_by("index")
        return tables.tensor(chosen[column])


class OrderReader:
    """Which examples were seen, when."""

    def __init__(self, path: Path, ids: pl.Series) -> None:
        self.path, self.ids = path, ids
        self.table = tables.open_table(path)

    def batch(self, step: int) -> pl.Series:
        """Ids of the examples of one optimizer step (from 1), in order."""
        found = tables.select(self.table, ["index"], f"step = {int(step)}")
        if not found.num_rows:
            last = int(tables.read(self.table, ["step"])["step"].to_numpy().max(initial=0))
            raise EvidenceError(f"No step {step} in {self.path}.", f"Steps go from 1 to {last}.")
        return self.ids.gather(found["index"].to_numpy())

    def visits(self, epoch: int) -> pl.DataFrame:
        """`step, id` of every visit of one epoch (from 1), in order."""
        found = tables.select(self.table, ["step", "index"], f"epoch = {int(epoch)}")
        return pl.DataFrame({"step": found["step"].to_numpy(), "id": self.ids.gather(found["index"].to_numpy())})

    def steps(self, ids: list[str] | pl.Series) -> pl.DataFrame:
        """`id, epoch, step` of every visit of these examples."""
        wanted = pl.DataFrame({"id": self.ids, "index": np.arange(len(self.ids), dtype=np.int32)}).filter(
            pl.col("id").is_in(list(ids))
        )
        numbers = ", ".join(map(str, wanted["index"].to_list())) or "-1"
        visits = pl.from_arrow(tables.select(self.table, ["epoch", "step", "index"], f"index IN ({numbers})"))
        assert isinstance(visits, pl.DataFrame)
        return visits.join(wanted, on="index").select("id", "epoch", "step").sort("step")

    def seen(self, step: int) -> Int[Tensor, " example"]:
        """How often each training example had been seen when optimizer step `step` was done: what a checkpoint knows."""
        counts = torch.zeros(len(self.ids), dtype=torch.int64)
        for batch in self.table.to_batches(columns=["index"], filter=f"step <= {int(step)}"):
            counts += torch.bincount(
                torch.from_numpy(batch["index"].to_numpy().astype(np.int64)), minlength=len(counts)
            )
        return counts


class RowsReader:
    """A table with one vector per row: `outputs`, `features`, `out_of_fold`."""

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self.table = tables.open_table(path)

    @cached_property
    def rows(self) -> Int[Tensor, " example"]:
        """The rows that it holds, ascending."""
        return tables.tensor(tables.read(self.table, ["row"])["row"]).long()

    def read(self, rows: Tensor | np.ndarray | None = None) -> Float[Tensor, "example width"]:
        """Vectors of these rows (ascending), or of all; float32. Memory is bounded by the span of the rows."""
        if rows is None:
            return tables.tensor(tables.read(self.table, [self.column])[self.column]).float()
        wanted = torch.as_tensor(np.asarray(rows))
        if not len(wanted):
            return torch.empty(0, self.table.schema.field(self.column).type.list_size)
        places = torch.searchsorted(self.rows, wanted)
        if int(places.max()) >= len(self.rows) or not torch.equal(self.rows[places], wanted):
            raise EvidenceError(
                f"{self.path} does not hold all rows that were asked for.", "Remove it; it is collected again."
            )
        begin, end = int(places.min()), int(places.max()) + 1
        values = tables.tensor(tables.read(self.table, [self.column], begin, end)[self.column])
        if end - begin != len(places):
            values = values[places - begin]
        return values.float()


def derive_field(task: Task, field: str, logits: Tensor, target: Tensor) -> Tensor:
    """A field from logits `[..., example, class]` and targets `[example, ...]`, in float32; leading axes are epochs.

    Raises:
        MethodError: The task has no such field (probabilities of a regression).
    """
    if field == "logits":
        return logits
    if field == "probabilities":
        return task.probabilities(logits)
    if logits.dim() == 3:
        return torch.stack([derive_field(task, field, epoch, target) for epoch in logits])
    if field == "predicted":
        return task.predict(logits)
    if field == "loss":
        return losses(task, logits, target)
    if field == "confidence":
        return (-losses(task, logits, target)).exp()
    if field == "margin":
        return task.margin(logits, target)
    if field == "correct":
        return task.correct(logits, target)
    raise EvidenceError(
        f"No field '{field}' can be derived from logits.",
        "Fields: logits, probabilities, predicted, " + ", ".join(SUMMARY),
    )
