"""The in-loop data policy: which training examples an epoch visits, in which order, with which weights.

One contract serves our loop, a plain `DataLoader` (`as_torch_sampler`) and the Hugging Face Trainer. An index is a place in the
training set (0..n-1, training rows in ascending order), not a row of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.fitting.seeds import generator


@dataclass(frozen=True)
class SamplerState:
    """What a sampler may base its choice on.

    Attributes:
        epoch: The epoch about to start, from 1.
        epochs: How many there will be.
        size: How many training examples there are.
        generator: Source of all randomness, seeded for this epoch.
    """

    epoch: int
    epochs: int
    size: int
    generator: torch.Generator


class Sampler(Protocol):
    """Chooses the examples of an epoch."""

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], Float[Tensor, " visit"] | None]:
        """Indices to visit in order, and the weight of each visit (None: all one). An index may repeat or be left out."""
        ...


# Beyond this many examples, whole blocks of neighbours are shuffled: inputs of that size may lie on disk, where 32 rows in a row cost as
# much to read as one, and a batch of 2048 still is a random sample of 64 places.
BLOCKS_FROM, BLOCK = 500_000, 32


@dataclass(frozen=True)
class Shuffled:
    """Every example once, in a fresh order each epoch: the default.

    The order is a uniform permutation; for more than half a million examples, one of blocks of 32 neighbours, cut at other places in
    each epoch.
    """

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], None]:
        """A permutation of all examples."""
        if state.size < BLOCKS_FROM:
            return torch.randperm(state.size, generator=state.generator), None
        begin = int(torch.randint(BLOCK, (1,), generator=state.generator))
        blocks = torch.randperm(-(-(state.size + begin) // BLOCK), generator=state.generator)
        indices = (blocks[:, None] * BLOCK - begin + torch.arange(BLOCK)).flatten()
        return indices[(indices >= 0) & (indices < state.size)], None


class _TorchSampler(torch.utils.data.Sampler[int]):
    """A `DataLoader` sampler that follows an Imprint sampler; each pass over it is the next epoch."""

    def __init__(self, sampler: Sampler, size: int, epochs: int, seed: int) -> None:
        self.sampler, self.size, self.epochs, self.seed = sampler, size, epochs, seed
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        state = SamplerState(self.passes, self.epochs, self.size, generator(self.seed, "shuffle", self.passes))
        return iter(self.sampler.epoch(state)[0].tolist())

    def __len__(self) -> int:
        return self.size


def as_torch_sampler(sampler: Sampler, size: int, *, epochs: int, seed: int = 0) -> torch.utils.data.Sampler[int]:
    """Use a sampler in a plain `DataLoader`: `DataLoader(dataset, sampler=as_torch_sampler(...))`.

    Visits come in the order in which `imprint.fit` would take them for the same seed. Visit weights have no place in a
    `DataLoader` and are left out.

    >>> sorted(as_torch_sampler(Shuffled(), 4, epochs=2))
    [0, 1, 2, 3]
    """
    return _TorchSampler(sampler, size, epochs, seed)
