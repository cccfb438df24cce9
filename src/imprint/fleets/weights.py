"""The members x examples matrix of a fleet: who is trained on what, with which weight, in as few bytes as the plan allows.

Random subsets take a bit per entry, left-out examples a list, folds and mixtures a code per example and a small table, nested sizes
a rank per example, and the product of two plans keeps both factors. Numbers are made only for the block that is asked for.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from imprint.errors import RunError
from imprint.recording.files import replacing

# Members or examples: a slice, places, or a mask.
Index = slice | np.ndarray | Tensor | Sequence[int]
ALL = slice(None)


class Weights(ABC):
    """A members x examples matrix; examples are training rows, ascending. Made by `Plan.bind`; read by blocks."""

    kind: ClassVar[str]
    shape: tuple[int, int]

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""

    @abstractmethod
    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """A block of the matrix, in whichever type is nearest."""

    @abstractmethod
    def counts(self) -> Int[np.ndarray, " member"]:
        """How many examples each member has a weight above zero for."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory, and nearly so on disk."""
        return sum(array.nbytes for array in self.arrays().values())

    def dense(self, members: Index = ALL, examples: Index = ALL) -> Float[Tensor, "member example"]:
        """Weights of a block, float32: of all by default, which may be large."""
        chosen = places(members, self.shape[0]), places(examples, self.shape[1])
        return torch.from_numpy(np.ascontiguousarray(self.block(*chosen), dtype=np.float32))

    def included(self, members: Index = ALL, examples: Index = ALL) -> Bool[Tensor, "member example"]:
        """Who is trained on what: where the weight is above zero."""
        chosen = places(members, self.shape[0]), places(examples, self.shape[1])
        return torch.from_numpy(np.ascontiguousarray(self.block(*chosen) > 0))

    def factors(self) -> tuple[Weights, ...]:
        """What it is a product of."""
        return (self,)

    def digest(self) -> str:
        """16 hexadecimal digits that differ where the matrix is another, or is stored in another way."""
        digest = hashlib.blake2b(digest_size=8)
        for factor in self.factors():
            digest.update(f"{factor.kind}:{factor.shape}".encode())
            for name, array in factor.arrays().items():
                digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write one safetensors file per factor; the folder is there in full or not at all."""
        with replacing(folder) as temporary:
            temporary.mkdir()
            for number, factor in enumerate(self.factors()):
                about = {"kind": factor.kind, "members": str(factor.shape[0]), "examples": str(factor.shape[1])}
                arrays = {name: np.ascontiguousarray(array) for name, array in factor.arrays().items()}
                save_file(arrays, temporary / f"factor-{number}.safetensors", metadata=about)

    @staticmethod
    def load(folder: Path) -> Weights:
        """Read what `save` wrote.

        Raises:
            RunError: It is missing or damaged.
        """
        found = []
        for path in sorted(folder.glob("factor-*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2])):
            try:
                with safe_open(path, "np") as file:
                    about = file.metadata()
                    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                found.append(KINDS[about["kind"]].restore((int(about["members"]), int(about["examples"])), arrays))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"{path} is damaged: {error}.", "Restore it, or train again with resume=False."
                ) from error
        if not found:
            raise RunError(f"{folder} holds no weights.", "Restore it, or train again with resume=False.")
        return product(found)

    @classmethod
    @abstractmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Weights:
        """The inverse of `arrays`."""


def product(factors: Sequence[Weights]) -> Weights:
    """Every member of the first with every member of the second, and so on; the last one changes fastest.

    >>> nested = Nested(np.array([1, 0, 2]), np.array([1, 2]))
    >>> product([nested, Counts(np.array([[2, 1, 0]], dtype=np.uint8))]).dense()
    tensor([[0., 1., 0.],
            [2., 1., 0.]])
    """
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


@dataclass(frozen=True, eq=False)
class Ones(Weights):
    """Every member has every example."""

    shape: tuple[int, int]
    kind: ClassVar[str] = "ones"

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Ones."""
        return np.ones((length(members, self.shape[0]), length(examples, self.shape[1])), dtype=np.uint8)

    def counts(self) -> Int[np.ndarray, " member"]:
        """All examples."""
        return np.full(self.shape[0], self.shape[1])

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Ones:
        """Of that shape."""
        return cls(shape)


@dataclass(frozen=True, eq=False)
class Packed(Weights):
    """In or out: a bit per entry, least significant first.

    >>> Packed(np.packbits(np.array([[1, 0, 1]], dtype=bool), axis=1, bitorder="little"), 3).included()
    tensor([[ True, False,  True]])
    """

    bits: UInt8[np.ndarray, "member byte"]
    examples: int
    kind: ClassVar[str] = "packed"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return len(self.bits), self.examples

    def arrays(self) -> dict[str, np.ndarray]:
        """The bits."""
        return {"bits": self.bits}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Zeros and ones."""
        if isinstance(examples, slice):
            begin, end, step = examples.indices(self.examples)
            if step == 1:
                first = begin // 8
                unpacked = np.unpackbits(self.bits[members, first : -(-end // 8)], axis=1, bitorder="little")
                return unpacked[:, begin - first * 8 : max(begin, end) - first * 8]
            examples = np.arange(begin, end, step)
        return (self.bits[members][:, examples >> 3] >> (examples & 7).astype(np.uint8)) & 1

    def counts(self) -> Int[np.ndarray, " member"]:
        """Bits that are set."""
        return np.bitwise_count(self.bits).sum(1, dtype=np.int64)

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Packed:
        """Of those bits."""
        return cls(arrays["bits"], shape[1])


@dataclass(frozen=True, eq=False)
class Counts(Weights):
    """How often each example was drawn: a byte per entry."""

    drawn: UInt8[np.ndarray, "member example"]
    kind: ClassVar[str] = "counts"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return self.drawn.shape[0], self.drawn.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """The counts."""
        return {"drawn": self.drawn}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Counts."""
        return self.drawn[members][:, examples]

    def counts(self) -> Int[np.ndarray, " member"]:
        """Examples that were drawn."""
        return np.count_nonzero(self.drawn, axis=1)

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Counts:
        """Of those counts."""
        return cls(arrays["drawn"])


@dataclass(frozen=True, eq=False)
class LeftOut(Weights):
    """All examples but a list for each member: the lists one after the other, and where each begins.

    >>> LeftOut(np.array([0, 1, 3]), np.array([1, 0, 2]), 3).dense()
    tensor([[1., 0., 1.],
            [0., 1., 0.]])
    """

    begins: Int[np.ndarray, " member_and_one"]
    places: Int[np.ndarray, " place"]
    examples: int
    kind: ClassVar[str] = "left_out"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return len(self.begins) - 1, self.examples

    def arrays(self) -> dict[str, np.ndarray]:
        """The lists."""
        return {"begins": self.begins, "places": self.places}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Zeros and ones."""
        if not isinstance(examples, slice) or examples.indices(self.examples)[2] != 1:
            return self.block(members, ALL)[:, examples]
        begin, end, _ = examples.indices(self.examples)
        end = max(begin, end)
        first, last = self.begins[:-1][members], self.begins[1:][members]
        sizes = last - first
        member = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(member)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = self.places[np.repeat(first, sizes) + within]
        inside = (place >= begin) & (place < end)
        found = np.ones((len(sizes), end - begin), dtype=np.uint8)
        found[member[inside], place[inside] - begin] = 0
        return found

    def counts(self) -> Int[np.ndarray, " member"]:
        """All examples but those of the list."""
        return self.examples - np.diff(self.begins)

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> LeftOut:
        """Of those lists."""
        return cls(arrays["begins"], arrays["places"], shape[1])


@dataclass(frozen=True, eq=False)
class Coded(Weights):
    """A code per example (fold, class, group), and a weight for each member and code.

    >>> Coded(np.array([0, 1, 1]), np.array([[0.0, 1.0], [1.0, 0.5]])).dense()
    tensor([[0.0000, 1.0000, 1.0000],
            [1.0000, 0.5000, 0.5000]])
    """

    code: Int[np.ndarray, " example"]
    table: Float32[np.ndarray, "member code"]
    kind: ClassVar[str] = "coded"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return len(self.table), len(self.code)

    def arrays(self) -> dict[str, np.ndarray]:
        """Codes and table."""
        return {"code": self.code, "table": self.table}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Entries of the table."""
        return self.table[members][:, self.code[examples]]

    def counts(self) -> Int[np.ndarray, " member"]:
        """Examples of the codes with a weight."""
        return (self.table > 0) @ np.bincount(self.code, minlength=self.table.shape[1])

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Coded:
        """Of those codes and that table."""
        return cls(arrays["code"], arrays["table"])


@dataclass(frozen=True, eq=False)
class Nested(Weights):
    """The first so many examples of one random order: the smaller set lies within the larger.

    >>> Nested(np.array([2, 0, 1]), np.array([1, 3])).included()
    tensor([[False,  True, False],
            [ True,  True,  True]])
    """

    rank: Int[np.ndarray, " example"]
    sizes: Int[np.ndarray, " member"]
    kind: ClassVar[str] = "nested"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return len(self.sizes), len(self.rank)

    def arrays(self) -> dict[str, np.ndarray]:
        """Ranks and sizes."""
        return {"rank": self.rank, "sizes": self.sizes}

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """Whether the rank is below the size."""
        return self.rank[examples] < self.sizes[members, None]

    def counts(self) -> Int[np.ndarray, " member"]:
        """The sizes."""
        return self.sizes

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Nested:
        """Of those ranks and sizes."""
        return cls(arrays["rank"], arrays["sizes"])


@dataclass(frozen=True, eq=False)
class Product(Weights):
    """Every member of one factor with every member of the next; weights multiply."""

    parts: tuple[Weights, ...]
    kind: ClassVar[str] = "product"

    @cached_property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Members, examples."""
        return math.prod(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def factors(self) -> tuple[Weights, ...]:
        """Its parts."""
        return self.parts

    def arrays(self) -> dict[str, np.ndarray]:
        """Those of the parts."""
        return {
            f"{number}/{name}": array for number, part in enumerate(self.parts) for name, array in part.arrays().items()
        }

    def split(self, members: slice | np.ndarray) -> list[np.ndarray]:
        """The member of each part that these members are made of."""
        whole = np.arange(self.shape[0])[members] if isinstance(members, slice) else members
        return list(np.unravel_index(whole, tuple(part.shape[0] for part in self.parts)))

    def block(self, members: slice | np.ndarray, examples: slice | np.ndarray) -> np.ndarray:
        """The product of the parts' blocks."""
        split = self.split(members)
        found: np.ndarray | None = None
        for part, chosen in zip(self.parts, split, strict=True):
            if not isinstance(part, Ones):
                one = part.block(chosen, examples).astype(np.float32)
                found = one if found is None else np.multiply(found, one, out=found)
        return Ones(self.shape).block(split[0], examples) if found is None else found

    def counts(self) -> Int[np.ndarray, " member"]:
        """Examples with a weight in every part."""
        telling = [number for number, part in enumerate(self.parts) if not isinstance(part, Ones)]
        if not telling:
            return np.full(*self.shape)
        if len(telling) == 1:
            return self.parts[telling[0]].counts()[self.split(ALL)[telling[0]]]
        step = max(1, BLOCK // max(1, self.shape[1]))
        blocks = [self.block(slice(begin, begin + step), ALL) for begin in range(0, self.shape[0], step)]
        return np.concatenate([np.count_nonzero(block, axis=1) for block in blocks])

    def empty(self) -> Int[np.ndarray, " member"]:
        """Members that no example is left for. Only those are looked at where the parts leave out more than there is."""
        lacking = sum(
            (part.shape[1] - part.counts())[chosen] for part, chosen in zip(self.parts, self.split(ALL), strict=True)
        )
        doubtful = np.flatnonzero(np.asarray(lacking) >= self.shape[1])
        step = max(1, BLOCK // max(1, self.shape[1]))
        found = [
            part[~self.block(part, ALL).any(1)]
            for part in (doubtful[begin : begin + step] for begin in range(0, len(doubtful), step))
        ]
        return np.concatenate([doubtful[:0], *found])

    @classmethod
    def restore(cls, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> Product:
        """A product is stored by its parts."""
        raise ValueError("a product within a product")


# Entries that are made at a time where a whole matrix has to be gone through.
BLOCK = 2**22
KINDS: dict[str, type[Weights]] = {one.kind: one for one in (Ones, Packed, Counts, LeftOut, Coded, Nested, Product)}


def empty(weights: Weights) -> Int[np.ndarray, " member"]:
    """Members that no example has a weight for."""
    return weights.empty() if isinstance(weights, Product) else np.flatnonzero(weights.counts() == 0)


def places(index: Index, size: int) -> slice | np.ndarray:
    """An index as a slice or as places from 0.

    >>> places([True, False, True], 3), places([-1], 3)
    (array([0, 2]), array([2]))
    """
    if isinstance(index, slice):
        return index
    array = np.asarray(index)
    if array.dtype == bool:
        return np.flatnonzero(array)
    array = array.astype(np.int64).reshape(-1)
    if len(array) and not (-size <= array.min() and array.max() < size):
        raise IndexError(f"place {array.min() if array.min() < -size else array.max()} of {size}")
    return np.where(array < 0, array + size, array)


def length(index: slice | np.ndarray, size: int) -> int:
    """How many places an index names."""
    return len(range(*index.indices(size))) if isinstance(index, slice) else len(index)
