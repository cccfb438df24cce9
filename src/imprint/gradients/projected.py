"""A table of projected gradients that was recorded outside a run (`imprint.gradients.project`): read and multiplied by blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.recording import tables

# Numbers of gradients in memory at a time: 64 MiB of float32.
BLOCK_NUMBERS = 2**24
# What two tables must have in common for products between them to mean something.
COMMON = ("model", "projection", "choice of layers")


@dataclass(frozen=True, eq=False)
class Projected:
    """Projected gradients: one row per example, or per token that has a loss of its own.

    Attributes:
        table: Columns `row` (number of the example), `position` (of the token in it), `loss` (nats), `gradient` and its `scale`.
    """

    table: Any

    @classmethod
    def open(cls, path: str | Path) -> Projected:
        """A table on disk."""
        return cls(tables.open_table(Path(path)))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, numbers per row)."""
        return int(self.table.count_rows() if hasattr(self.table, "count_rows") else self.table.num_rows), int(
            self.table.schema.field("gradient").type.list_size
        )

    @cached_property
    def about(self) -> dict[str, str]:
        """What was recorded, of which model, by which projection."""
        return {key.decode(): value.decode() for key, value in self.table.schema.metadata.items()}

    @property
    def tokens(self) -> bool:
        """Whether rows are tokens."""
        return self.about["unit"] == "token"

    @cached_property
    def blocks(self) -> dict[str, slice]:
        """Which numbers are of which layer (of a factored projection; else all are of all)."""
        return {name: slice(*ends) for name, ends in json.loads(self.about["blocks"]).items()}

    @cached_property
    def examples(self) -> Int[Tensor, " row"]:
        """The number of the example that each row is of, in the order in which they were read."""
        return self._column("row")

    @cached_property
    def positions(self) -> Int[Tensor, " row"]:
        """The position of the token that each row is of."""
        return self._column("position").long()

    @cached_property
    def losses(self) -> Float[Tensor, " row"]:
        """The loss (nats) whose gradient each row is."""
        return self._column("loss")

    def read(self, rows: slice = slice(None)) -> Float[Tensor, "row size"]:
        """The gradients of some rows, float32."""
        begin, end, step = rows.indices(self.shape[0])
        found = self._column("gradient", begin, end).float() * self._column("scale", begin, end)[:, None]
        return found[::step]

    def scores(self, queries: Projected, *, tokens: bool = False) -> Float[Tensor, "query example"]:
        """Inner products of the gradients of queries with these: positive = training on the example lowers the query's loss.

        Args:
            queries: Recorded with the same model and projection.
            tokens: Whether rows that are tokens stay apart; else they are summed to their documents (up to the last that has any).

        Raises:
            EvidenceError: The two tables cannot be multiplied.
        """
        for name in COMMON:
            if self.about[name] != queries.about[name]:
                raise EvidenceError(
                    f"The gradients of the queries are of another {name}.",
                    "Record both with the same model, size, kind, seed and layers.",
                )
        left = queries.read() if tokens or not queries.tokens else queries.summed()
        parts = [left @ self.read(block).T for block in self._slices()]
        found = torch.cat(parts, 1)
        if tokens or not self.tokens:
            return found
        return found.new_zeros(len(left), int(self.examples[-1]) + 1).index_add_(1, self.examples, found)

    def summed(self) -> Float[Tensor, "example size"]:
        """The gradients of documents: those of their tokens, summed. An example without a row has none: zero."""
        found = torch.zeros(int(self.examples[-1]) + 1, self.shape[1])
        for block in self._slices():
            found.index_add_(0, self.examples[block], self.read(block))
        return found

    def _slices(self) -> Iterator[slice]:
        rows, size = self.shape
        step = max(1, BLOCK_NUMBERS // size)
        return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def _column(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        if isinstance(self.table, pa.Table):
            return tables.tensor(self.table[name].slice(begin, None if end is None else end - begin))
        return tables.tensor(tables.read(self.table, [name], begin, end)[name])
