"""Scores that are no product of two matrices: exact products of gradients, from their factors or streamed from the model.

The gradient of a layer is an outer product (a sum of them over positions), so a score is a sum over layers and checkpoints of
elementwise products. `Products` holds the factors of all examples, where each layer has one position; `Streamed` holds the gradients of
a block of queries, takes those of the examples again block by block, and keeps nothing that grows with the number of examples but, where
they fit, the scores. Both answer what `Factors` answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import psutil
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.gradients import Examples, LayerGradient, full, products, squared_norms
from imprint.gradients.layer import whole
from imprint.gradients.products import TOUCH
from imprint.tracing.factors import BLOCK_QUERIES, BLOCK_SCORES, Best, check_fits, first_largest, slices

# Factors of all examples, or gradients of a block of queries, or scores that are kept: each at most this, and an eighth of free memory.
HELD_BYTES = 2**30


class Blockwise(ABC):
    """Scores that can be computed some queries and some examples at a time."""

    dtype = torch.float32

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(queries, examples)."""

    @abstractmethod
    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        """The scores of some queries and some examples."""

    def queries_at_a_time(self) -> int:
        """Queries whose scores are computed together."""
        return BLOCK_QUERIES

    def blocks(self, queries: slice) -> Iterator[tuple[slice, Float[Tensor, "query example"]]]:
        """The scores of some queries with all examples, some examples at a time."""
        count = len(range(*queries.indices(self.shape[0])))
        for some in slices(self.shape[1], max(1, BLOCK_SCORES // max(1, count))):
            yield some, self.scores(queries, some)

    def matrix(self) -> Float[Tensor, "query example"]:
        """All scores.

        Raises:
            ResourceError: They would take more than half of the memory that is free.
        """
        check_fits(self.shape, self.dtype)
        return self.scores()

    def top(self, k: int) -> tuple[Best, Best]:
        """The k examples with the highest and the k with the lowest scores of each query; of equal ones the earlier first.

        Returns:
            (highest, the highest first; lowest, the lowest first).
        """
        found = [best(self.blocks(some), k) for some in slices(self.shape[0], self.queries_at_a_time())]
        highest, lowest = zip(*found, strict=True)
        return _stacked(highest), _stacked(lowest)

    def predict(self, membership: Bool[Tensor, "member example"]) -> Float[Tensor, "query member"]:
        """The sum of the scores of the examples that each member saw, in float64."""
        sums = torch.zeros(self.shape[0], len(membership), dtype=torch.float64)
        for queries in slices(self.shape[0], self.queries_at_a_time()):
            for examples, scores in self.blocks(queries):
                sums[queries] += scores.double() @ membership[:, examples].double().T
        return sums


def best(blocks: Iterator[tuple[slice, Float[Tensor, "query example"]]], k: int) -> tuple[Best, Best]:
    """The k highest and the k lowest scores of each query, from consecutive blocks of examples.

    >>> highest, lowest = best(iter([(slice(0, 2), torch.tensor([[1.0, 3.0]])), (slice(2, 3), torch.tensor([[2.0]]))]), 2)
    >>> highest.examples.tolist(), lowest.scores.tolist()
    ([[1, 2]], [[1.0, 2.0]])
    """
    held: dict[int, tuple[Tensor, Tensor]] = {}
    for examples, scores in blocks:
        _finite(scores)
        numbers = torch.arange(examples.start, examples.stop).expand(len(scores), -1)
        for sign in (1, -1):
            value, index = held.get(sign, (scores[:, :0], numbers[:, :0]))
            # What is held so far stands first: its examples come before those of this block.
            candidates, ids = torch.cat([value, sign * scores], 1), torch.cat([index, numbers], 1)
            place = first_largest(candidates, min(k, candidates.shape[1]))
            held[sign] = candidates.gather(1, place), ids.gather(1, place)
    return Best(held[1][1], held[1][0]), Best(held[-1][1], -held[-1][0])


@dataclass(frozen=True, eq=False)
class Term:
    """What one checkpoint adds.

    Attributes:
        queries: The layers' gradients of the queries.
        examples: Those of the examples.
        weight: What their product counts.
    """

    queries: Sequence[LayerGradient]
    examples: Sequence[LayerGradient]
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Products(Blockwise):
    """A sum over checkpoints and layers of inner products of gradients whose factors are held.

    Attributes:
        terms: One per checkpoint.
        cosine: Whether each checkpoint's product is divided by the norms of both gradients.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[3.0]], [[5.0]]]))
    >>> Products((Term([layer[:1]], [layer], weight=0.1),)).scores()
    tensor([[0.9000, 3.0000]])
    """

    terms: tuple[Term, ...]
    cosine: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.terms[0].queries[0]), len(self.terms[0].examples[0])

    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        found: Tensor | None = None
        for term, lengths in zip(self.terms, self._lengths, strict=True):
            one = products([layer[queries] for layer in term.queries], [layer[examples] for layer in term.examples])
            one = one.mul_(term.weight)
            if lengths is not None:
                one = one.div_(lengths[0][queries, None]).div_(lengths[1][examples])
            found = one if found is None else found.add_(one)
        assert found is not None
        return found.cpu()

    @cached_property
    def _lengths(self) -> list[tuple[Tensor, Tensor] | None]:
        if not self.cosine:
            return [None] * len(self.terms)
        return [(lengths(term.queries), lengths(term.examples)) for term in self.terms]


@dataclass(frozen=True, eq=False)
class Streamed(Blockwise):
    """Inner products of gradients that are taken from the model block by block.

    Attributes:
        queries: The queries, one item per checkpoint.
        examples: The training examples, one item per checkpoint, whose weights count.
        cosine: Whether each checkpoint's product is divided by the norms of both gradients.
    """

    queries: tuple[Examples, ...]
    examples: tuple[Examples, ...]
    cosine: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries[0]), len(self.examples[0])

    def queries_at_a_time(self) -> int:
        """As many as have gradients that fit; if all scores are kept, any number is as good."""
        each = sum(max(one.bytes_each, self._written(one)) for one in self.queries)
        return max(1, min(self.shape[0], allowed() // each))

    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        if self._kept is not None:
            return self._kept[queries, examples]
        return self._computed(queries, examples)

    def blocks(self, queries: slice) -> Iterator[tuple[slice, Float[Tensor, "query example"]]]:
        if self._kept is not None:
            yield from super().blocks(queries)
            return
        yield from self._stream(queries, slice(0, self.shape[1]))

    @cached_property
    def _kept(self) -> Tensor | None:
        """All scores, where they fit: they cost a pass over the examples, and are asked for more than once."""
        if 4 * self.shape[0] * self.shape[1] > allowed():
            return None
        return self._computed(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def _computed(self, queries: slice, examples: slice) -> Tensor:
        rows, columns = range(*queries.indices(self.shape[0])), range(*examples.indices(self.shape[1]))
        found = torch.empty(len(rows), len(columns))
        for some in slices(len(rows), self.queries_at_a_time()):
            asked = slice(rows.start + some.start, rows.start + some.stop)
            for place, scores in self._stream(asked, slice(columns.start, columns.stop)):
                found[some, place.start - columns.start : place.stop - columns.start] = scores
        return found

    def _stream(self, queries: slice, examples: slice) -> Iterator[tuple[slice, Tensor]]:
        """The scores of a block of queries, whose gradients are held, with some examples, block by block."""
        held, scales = [], []
        for one in self.queries:
            parts = [[written(layer) for layer in one.layers(some)] for some in within(queries, one.size)]
            layers = [joined([part[number] for part in parts]) for number in range(len(parts[0]))]
            scales.append(lengths(layers) if self.cosine else None)
            held.append(layers)
        for some in within(examples, min(one.size for one in self.examples)):
            found: Tensor | None = None
            for layers, scale, one in zip(held, scales, self.examples, strict=True):
                theirs = one.layers(some)
                scores = products(layers, theirs).mul_(one.weight)
                if scale is not None:
                    scores = scores.div_(scale[:, None]).div_(lengths(theirs))
                found = scores if found is None else found.add_(scores)
            assert found is not None
            yield some, found.float().cpu()

    def _written(self, one: Examples) -> int:
        """Bytes of what a query's gradient is held as."""
        return sum(4 * layer.parameters for layer in one.probe if dear(layer))


def exact(queries: tuple[Examples, ...], examples: tuple[Examples, ...], cosine: bool = False) -> Products | Streamed:
    """Exact products of gradients: with all factors held where each layer has one position and they fit, else streamed."""
    one_position = all(layer.positions == 1 and layer.kind != "embedding" for layer in examples[0].probe)
    held = sum(one.bytes_each * (len(one) + len(asked)) for one, asked in zip(examples, queries, strict=True))
    if not one_position or held > allowed():
        return Streamed(queries, examples, cosine)
    terms = (Term(captured(asked), captured(one), one.weight) for asked, one in zip(queries, examples, strict=True))
    return Products(tuple(terms), cosine)


def dear(layer: LayerGradient) -> bool:
    """Whether products with a layer's gradients are taken with these written out, so that they are worth writing out once."""
    if layer.kind == "embedding":
        return layer.tied is not None
    return layer.positions > 1 and layer.positions**2 * (sum(layer.shape) + TOUCH) > layer.parameters


def written(layer: LayerGradient) -> LayerGradient:
    """A layer's gradients, written out if that is `dear`."""
    return whole(layer.name, "other", full(layer).flatten(1)) if dear(layer) else layer


def captured(examples: Examples) -> list[LayerGradient]:
    """The gradients of all of some examples."""
    parts = [layers for _, layers in examples.blocks()]
    return [joined([part[number] for part in parts]) for number in range(len(parts[0]))]


def joined(parts: Sequence[LayerGradient]) -> LayerGradient:
    """Gradients of one layer for several batches, as those of one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    tied = None if first.tied is None else joined([part.tied for part in parts if part.tied is not None])
    inputs, outputs = torch.cat([part.inputs for part in parts]), torch.cat([part.outputs for part in parts])
    return LayerGradient(first.name, first.kind, inputs, outputs, first.codes, tied)


def lengths(layers: Sequence[LayerGradient]) -> Float[Tensor, " example"]:
    """Norms of gradients; 1 where there is none, so that a cosine with it is 0."""
    found = squared_norms(layers).clamp(min=0).sqrt()
    return torch.where(found > 0, found, 1.0)


def allowed() -> int:
    """Bytes that one of the things that are held may take."""
    return min(HELD_BYTES, psutil.virtual_memory().available // 8)


def within(some: slice, size: int) -> Iterator[slice]:
    return (slice(some.start + one.start, some.start + one.stop) for one in slices(some.stop - some.start, size))


def _stacked(parts: Sequence[Best]) -> Best:
    return Best(torch.cat([part.examples for part in parts]), torch.cat([part.scores for part in parts]))


def _finite(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise EvidenceError(
            "Some scores are not finite numbers.",
            "The training has diverged, or inputs hold infinities: lower the learning rate, clean the inputs.",
        )
