"""Scores of training examples for queries, as the product of two matrices, so that all of them never need to be in memory.

The score of example `i` for query `q` is the inner product of row `q` of one matrix and row `i` of another. For 50,000 examples
and 10,000 queries the scores themselves take 2 GB; the factors take megabytes. The best examples of each query are found block by
block with a running list, and the outcome that a set of examples predicts is a product of small matrices:

    predicted[q, m] = sum over the examples i that m saw of score[q, i] = queries[q] @ (examples^T @ membership[m]).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from imprint.errors import EvidenceError, ResourceError

# Scores in memory at a time: 16 MiB of float32, which stay in a processor's cache while their best are picked.
BLOCK_SCORES = 2**22
BLOCK_QUERIES = 512

Side = Tensor | Any


@dataclass(frozen=True)
class Best:
    """The best examples of each query, the first one first.

    Attributes:
        examples: Which they are: rows of `Factors.examples`.
        scores: Their scores.
    """

    examples: Int[Tensor, "query k"]
    scores: Float[Tensor, "query k"]


@dataclass(frozen=True, eq=False)
class Factors:
    """The two matrices; dense (of any number type: blocks are computed in that of `queries`), or both sparse.

    Attributes:
        queries: `[query, r]`.
        examples: `[example, r]`.

    >>> factors = Factors(torch.tensor([[1.0, 0.0], [1.0, -1.0]]), torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 2.0]]))
    >>> factors.scores()
    tensor([[ 1.,  3.,  2.],
            [-1.,  3.,  0.]])
    >>> helpful, harmful = factors.top(2)
    >>> helpful.examples.tolist(), harmful.examples.tolist()
    ([[1, 2], [1, 2]], [[0, 2], [0, 2]])
    """

    queries: Float[Tensor, "query r"] | sparse.csr_array
    examples: Float[Tensor, "example r"] | sparse.csr_array

    def __post_init__(self) -> None:
        if self.queries.shape[1] != self.examples.shape[1] or isinstance(self.queries, Tensor) != isinstance(
            self.examples, Tensor
        ):
            raise ValueError(f"Factors of {self.queries.shape} and {self.examples.shape} cannot be multiplied.")
        for side in (self.queries, self.examples):
            numbers = side if isinstance(side, Tensor) else torch.from_numpy(side.data)
            if numbers.is_floating_point() and not bool(torch.isfinite(numbers).all()):
                raise EvidenceError(
                    "Some scores are not finite numbers.",
                    "A training of the fleet has diverged, or inputs hold infinities: lower the learning rate, clean the inputs.",
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, examples)."""
        return int(self.queries.shape[0]), int(self.examples.shape[0])

    @cached_property
    def dtype(self) -> torch.dtype:
        """The number type of scores."""
        return self.queries.dtype if isinstance(self.queries, Tensor) else torch.from_numpy(self.queries.data[:0]).dtype

    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        """The scores of some queries and some examples."""
        return self._product(self.queries[queries], self._block(examples))

    def matrix(self) -> Float[Tensor, "query example"]:
        """All scores.

        Raises:
            ResourceError: They would take more than half of the memory that is free.
        """
        check_fits(self.shape, self.dtype)
        return self.scores()

    def top(self, k: int, block_scores: int = BLOCK_SCORES) -> tuple[Best, Best]:
        """The k examples with the highest and the k with the lowest scores of each query.

        Of equal scores the earlier example comes first, whatever the size of the blocks.

        Args:
            k: How many; at most as many as there are examples.
            block_scores: Scores in memory at a time.

        Returns:
            (highest, the highest first; lowest, the lowest first).
        """
        count, total = self.shape
        k = min(k, total)
        signs = (1, -1)
        value = {sign: torch.empty(count, 0, dtype=self.dtype) for sign in signs}
        index = {sign: torch.empty(count, 0, dtype=torch.int64) for sign in signs}
        rows = min(BLOCK_QUERIES, max(1, count))
        for examples in slices(total, max(1, block_scores // rows)):
            block = self._block(examples)
            numbers = torch.arange(examples.start, examples.stop)
            kept = min(k, examples.stop)
            new_value = {sign: torch.empty(count, kept, dtype=self.dtype) for sign in signs}
            new_index = {sign: torch.empty(count, kept, dtype=torch.int64) for sign in signs}
            for some in slices(count, rows):
                scores = self._product(self.queries[some], block)
                for sign in signs:
                    # What is kept so far stands first: its examples come before those of this block.
                    candidates = torch.cat([value[sign][some], scores if sign > 0 else -scores], 1)
                    place = first_largest(candidates, kept)
                    ids = torch.cat([index[sign][some], numbers.expand(len(scores), -1)], 1)
                    new_value[sign][some], new_index[sign][some] = candidates.gather(1, place), ids.gather(1, place)
            value, index = new_value, new_index
        return Best(index[1], value[1]), Best(index[-1], -value[-1])

    def predict(self, membership: Bool[Tensor, "member example"]) -> Float[Tensor, "query member"]:
        """The sum of the scores of the examples that each member saw: what the scores predict of it, but for a constant.

        Sums are taken in float64, over blocks of examples.
        """
        width, members = self.queries.shape[1], len(membership)
        sums = torch.zeros(width, members, dtype=torch.float64)
        for examples in slices(self.shape[1], max(1, BLOCK_SCORES // max(1, width if self._dense else members))):
            seen = membership[:, examples].double().T
            block = self.examples[examples]
            if isinstance(block, Tensor):
                sums += block.double().T @ seen
            else:
                sums += torch.from_numpy(np.asarray(block.T @ seen.numpy()))
        if isinstance(self.queries, Tensor):
            return self.queries.double() @ sums
        return torch.from_numpy(np.asarray(self.queries @ sums.numpy()))

    @property
    def _dense(self) -> bool:
        return isinstance(self.queries, Tensor)

    def _block(self, examples: slice) -> Side:
        block = self.examples[examples]
        return block.to(self.dtype) if isinstance(block, Tensor) else block

    @staticmethod
    def _product(queries: Side, block: Side) -> Tensor:
        if isinstance(queries, Tensor):
            assert isinstance(block, Tensor)
            return queries @ block.T
        return torch.from_numpy((queries @ block.T).toarray())


def check_fits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Raise `ResourceError` if scores of queries x examples would take more than half of the memory that is free."""
    need, free = shape[0] * shape[1] * dtype.itemsize, psutil.virtual_memory().available
    if need > free / 2:
        raise ResourceError(
            f"{shape[0]:,} queries x {shape[1]:,} examples take {need / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free.",
            "Ask for the best examples only (`frame()`), or trace fewer queries.",
        )


def first_largest(values: Float[Tensor, "row column"], k: int) -> Int[Tensor, "row k"]:
    """Columns of the k largest values of each row, the largest first, and of equal ones the first columns first.

    `torch.topk` picks any of equal values; rows where it had a choice are sorted in full.

    >>> first_largest(torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 3.0, 3.0, 3.0]]), 2)
    tensor([[1, 0],
            [1, 2]])
    """
    found, place = values.topk(k, dim=1, sorted=False)
    tied = (values >= found.amin(1, keepdim=True)).sum(1) > k
    if bool(tied.any()):
        place[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    place = place.sort(dim=1).values
    return place.gather(1, values.gather(1, place).sort(dim=1, descending=True, stable=True).indices)


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `length`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
