"""What tables of gradients are filled with, block by block: computed in this process, or in shards as tasks of a Ray cluster.

A block is the atom: the same examples go through the model together wherever that happens, so the answer is the same bit for bit. A
shard is a few whole blocks that follow each other; which, follows from the data alone and not from the number of workers. All that is
wanted of a checkpoint is taken from one capture of each block.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.engine import LOCAL, Engine
from imprint.engine.ordered import in_order
from imprint.gradients.capture import Capture, Of
from imprint.gradients.examples import Examples
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import squared_norms
from imprint.gradients.projections import Projection
from imprint.tasks import Task

# Bytes of the inputs and of what is made of them that a shard has at most, if it has several blocks; and so many shards at least, where
# there are as many blocks: work is then spread evenly, and little is lost with a worker.
SHARD_BYTES = 2**22
SHARDS = 64

Columns = dict[str, np.ndarray]


class Rows(Protocol):
    """What one table has of each example."""

    @property
    def nbytes(self) -> int:
        """Bytes of one example."""
        ...

    def __call__(self, values: Float[Tensor, " example"], layers: list[LayerGradient]) -> Columns:
        """The columns of a block, from what was differentiated and the gradients."""
        ...


@dataclass(frozen=True)
class ProjectedRows:
    """Projected gradients, each relative to its own largest number, and what was differentiated."""

    projection: Projection

    def __reduce__(self) -> tuple[type[ProjectedRows], tuple[Projection]]:
        """Random numbers stay here: they are made again, from the seed, where they are used."""
        one = self.projection
        return ProjectedRows, (Projection(one.size, one.seed, one.kind, one.entries),)

    @property
    def nbytes(self) -> int:
        return 2 * self.projection.size + 8

    def __call__(self, values: Float[Tensor, " example"], layers: list[LayerGradient]) -> Columns:
        projected = self.projection.project(layers).float().cpu()
        scale = projected.abs().amax(1)
        kept = projected / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return {"gradient": kept.half().numpy(), "scale": scale.numpy(), "value": values.float().cpu().numpy()}


@dataclass(frozen=True)
class NormRows:
    """Norms of the gradients."""

    nbytes: int = 4

    def __call__(self, values: Float[Tensor, " example"], layers: list[LayerGradient]) -> Columns:
        return {"norm": squared_norms(layers).clamp(min=0).sqrt().float().cpu().numpy()}


@dataclass(frozen=True)
class Wanted:
    """What a table lacks: its rows from the example `begin` on, which is the first of a block."""

    rows: Rows
    begin: int = 0


Block = tuple[slice, list[Columns | None]]


def blocks(examples: Examples, wanted: Sequence[Wanted], engine: Engine = LOCAL) -> Generator[Block]:
    """The columns of all tables, a block of examples at a time, in order, from the first that any table lacks.

    Args:
        examples: All of them, with the model.
        wanted: What each table lacks.
        engine: Where gradients are taken.

    Yields:
        Which examples, and the columns of each table; None of a table that has them.
    """
    begin, total = min(one.begin for one in wanted), len(examples)
    if begin == total:
        return
    if engine.remote:
        yield from _remote(examples, wanted, begin, engine)
        return
    for some in slices(begin, total, examples.size):
        yield some, taken(examples, some, some.start, wanted)


def taken(examples: Examples, some: slice, number: int, wanted: Sequence[Wanted]) -> list[Columns | None]:
    """The columns of one block, whose first example is the `number`th of all: one capture for all tables."""
    values, layers = examples.with_values(some)
    return [one.rows(values, layers) if one.begin <= number else None for one in wanted]


def slices(begin: int, end: int, size: int) -> list[slice]:
    """Pieces of this size; the first one ends where it would if they began at 0.

    >>> slices(4, 11, 4), slices(6, 11, 4)
    ([slice(4, 8, None), slice(8, 11, None)], [slice(6, 8, None), slice(8, 11, None)])
    """
    bounds = [begin, *range((begin // size + 1) * size, end, size), end]
    return [slice(first, last) for first, last in pairwise(bounds)]


def shard_size(total: int, block: int, each: int) -> int:
    """Examples of a shard: some whole blocks.

    Args:
        total: How many examples there are.
        block: How many a block has.
        each: Bytes of one, inputs and results.

    >>> shard_size(total=60_000, block=500, each=2000), shard_size(10_000, 2048, 2000), shard_size(10**7, 2048, 200)
    (500, 2048, 20480)
    """
    return block * max(1, min(-(-total // block) // SHARDS, SHARD_BYTES // (block * each)))


# (number of the first example, encoded inputs, encoded targets)
Inputs = tuple[int, Tensor, Tensor]


@dataclass
class Shard:
    """The job of a worker: called with the blocks of a shard, it gives what each table gets of each of them.

    Attributes:
        module: The model.
        task: Gives the loss.
        of: What is differentiated.
        device: Where.
        wanted: What each table lacks.
        probe: The first examples of all: what the layers are is found out on them, by every worker as by the driver.
    """

    module: nn.Module
    task: Task
    of: Of
    device: torch.device
    wanted: Sequence[Wanted]
    probe: Inputs

    def __post_init__(self) -> None:
        self._capture: Capture | None = None

    def __call__(self, *parts: Inputs) -> list[list[Columns | None]]:
        if self._capture is None:
            self._capture = Capture(self.module.to(self.device), self.task, of=self.of, note=_said_already)
            self._examples(self._capture, self.probe).layers()
        return [taken(self._examples(self._capture, one), slice(None), one[0], self.wanted) for one in parts]

    def _examples(self, capture: Capture, block: Inputs) -> Examples:
        return Examples(lambda _: block[1:], len(block[1]), capture, self.device)


def _said_already(note: str) -> None:
    """The driver looked at the same examples before, and said it."""


def _remote(examples: Examples, wanted: Sequence[Wanted], begin: int, engine: Engine) -> Generator[Block]:
    """The same blocks, computed by a cluster."""
    capture, size, total = examples.capture, examples.size, len(examples)
    probe = _inputs(examples, slice(0, min(4, total)))
    each = (probe[1].nbytes + probe[2].nbytes) // len(probe[1]) + sum(one.rows.nbytes for one in wanted)
    shards = slices(begin, total, shard_size(total, size, each))
    job = Shard(capture.module, capture.task, capture.of, examples.device, wanted, probe)

    def inputs(number: int) -> list[Inputs]:
        return [_inputs(examples, some) for some in slices(shards[number].start, shards[number].stop, size)]

    most = max(some.stop - some.start for some in shards)
    gpus = int(examples.device.type == "cuda")
    with closing(in_order(job, len(shards), inputs, engine, gpus=gpus, part_bytes=most * each)) as done:
        for shard, found in zip(shards, done, strict=True):
            own = [[_copied(columns) for columns in block] for block in found]
            del found
            yield from zip(slices(shard.start, shard.stop, size), own, strict=True)


def _inputs(examples: Examples, some: slice) -> Inputs:
    """Encoded inputs and targets of a block."""
    inputs, target = examples.read(np.arange(some.start, some.stop))
    return some.start, inputs.cpu(), target.cpu()


def _copied(columns: Columns | None) -> Columns | None:
    """Arrays of their own: those of the object store would keep their place there until a table is written."""
    return None if columns is None else {name: value.copy() for name, value in columns.items()}
