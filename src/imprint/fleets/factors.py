"""The factors that plans are made of: each says in which one respect members differ, and draws what is random about it.

A factor is a small frozen value without data. `bind` meets it with a training set and gives the weights of its members, their
columns in the member table, and what decides their seeds and settings.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Int
from torch import Tensor

from imprint.errors import EvidenceError, PlanError, nearest
from imprint.fitting import derive
from imprint.fleets.folds import assign
from imprint.fleets.weights import BLOCK, Coded, Counts, LeftOut, Nested, Ones, Packed, Weights
from imprint.tasks import Classification, Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus

Literal = str | int | float | bool | None


@dataclass(frozen=True)
class Ground:
    """The training set that a plan meets.

    Attributes:
        rows: Training rows, ascending: the examples.
        target: Their encoded targets.
        task: What the codes mean.
        seed: Of the learner.
        corpus: For ids and groups; None where a plan needs neither.
        occurrence: How many factors of the same kind stand before this one in the plan.
    """

    rows: Int[np.ndarray, " example"]
    target: Tensor
    task: Task
    seed: int
    corpus: Corpus | None = None
    occurrence: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def random(self, purpose: str) -> np.random.Generator:
        """A generator for one purpose, another one for each occurrence of a factor."""
        return np.random.default_rng(derive(self.seed, "plan", purpose, self.occurrence))

    def ids(self, needed_for: str) -> pl.Series:
        """Ids of the examples."""
        return self._corpus(needed_for).ids.gather(self.rows)

    def groups(self, needed_for: str) -> tuple[Int[np.ndarray, " example"], list[Any]]:
        """A code for each example's group, and the groups, sorted."""
        groups = self._corpus(needed_for).groups
        if groups is None:
            raise PlanError(f"{needed_for} needs groups, and the corpus has none.", "Open it with group=COLUMN.")
        return coded(groups.gather(self.rows))

    def classes(self, needed_for: str) -> tuple[Int[np.ndarray, " example"], list[Any]]:
        """A code for each example's class, and the classes that occur, sorted."""
        if not isinstance(self.task, Classification):
            raise PlanError(
                f"{needed_for} needs one class for each example, and the task is {self.task.name}.",
                "Use groups (open the corpus with group=COLUMN), or lists of ids.",
            )
        codes, inverse = np.unique(self.target.numpy(), return_inverse=True)
        return inverse, [self.task.classes[code] for code in codes]

    def _corpus(self, needed_for: str) -> Corpus:
        if self.corpus is None:
            raise PlanError(
                f"{needed_for} needs the corpus, for its ids and groups.", "Call plan.bind(shared, corpus)."
            )
        return self.corpus


@dataclass(frozen=True)
class Bound:
    """A factor that has met its training set.

    Attributes:
        weights: `[member, example]`.
        columns: Of the member table.
        own_seed: Whether each member has a seed of its own.
        seeds: Seeds that are given.
        settings: Fields of the learner that differ.
    """

    weights: Weights
    columns: Mapping[str, pl.Series]
    own_seed: bool = False
    seeds: Sequence[int] | None = None
    settings: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return self.weights.shape[0]


class Factor(ABC):
    """In which respect members differ."""

    name: ClassVar[str]

    @abstractmethod
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """What its function was called with: positional and named, as JSON-able literals; defaults are left out."""

    @abstractmethod
    def bind(self, ground: Ground) -> Bound:
        """Meet a training set; raises `PlanError` where it does not fit."""

    def members(self) -> int | None:
        """How many there are, where that is known without data."""
        return None

    def __str__(self) -> str:
        positional, named = self.arguments()
        return (
            f"{self.name}({', '.join([*map(repr, positional), *(f'{key}={value!r}' for key, value in named.items())])})"
        )


@dataclass(frozen=True)
class Folds(Factor):
    """All folds but one."""

    k: int
    name: ClassVar[str] = "folds"

    def __post_init__(self) -> None:
        whole("folds", "k", self.k, least=2)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`k`."""
        return [self.k], {}

    def members(self) -> int:
        """One per fold."""
        return self.k

    def bind(self, ground: Ground) -> Bound:
        """Stratified by target; groups of the corpus stay together."""
        groups = None if ground.corpus is None or ground.corpus.groups is None else ground.groups("folds")[0]
        try:
            # A run's out-of-fold predictions come of the same folds.
            seed = derive(ground.seed, "plan", "folds", ground.occurrence) if ground.occurrence else ground.seed
            fold = assign(ground.target, self.k, seed, groups)
        except EvidenceError as error:
            raise PlanError(error.problem, "Ask for fewer folds (at least 2).") from error
        table = 1 - np.eye(self.k, dtype=np.float32)
        return Bound(Coded(smallest(fold, self.k), table), {"fold": numbers("fold", self.k)}, own_seed=True)


@dataclass(frozen=True)
class Subsets(Factor):
    """Random subsets."""

    count: int
    fraction: float | None = 0.5
    sizes: tuple[int | float, ...] | None = None
    stratify: bool = False
    independent: bool = False
    name: ClassVar[str] = "subsets"

    def __post_init__(self) -> None:
        whole("subsets", "members", self.count)
        if self.sizes is None and not (is_number(self.fraction) and 0 < self.fraction <= 1):  # type: ignore[operator]
            raise PlanError(
                f"subsets: fraction={self.fraction!r} is not a share of the training set.",
                "Give a number above 0, at most 1; for numbers of examples use sizes=[...].",
            )
        if self.sizes is None:
            object.__setattr__(self, "fraction", float(self.fraction or 0))
        else:
            schedule("subsets", self.sizes)
            if self.fraction not in (None, 0.5):
                raise PlanError(
                    f"subsets: both fraction={self.fraction!r} and sizes are given.", "Leave one of them out."
                )
            object.__setattr__(self, "fraction", None)
        if self.stratify and self.independent:
            raise PlanError(
                "subsets: stratify and independent contradict each other.",
                "Independent draws cannot keep class shares; leave one of them out.",
            )

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`members`, `fraction` or `sizes`, and what is switched on."""
        named: dict[str, Any] = {} if self.sizes is None else {"sizes": list(self.sizes)}
        named |= {key: True for key in ("stratify", "independent") if getattr(self, key)}
        return [self.count, *([] if self.fraction is None else [self.fraction])], named

    def members(self) -> int:
        """As many as were asked for."""
        return self.count

    def bind(self, ground: Ground) -> Bound:
        """Draw them."""
        n, asked = len(ground), [self.fraction] if self.sizes is None else self.sizes
        sizes = np.resize([examples("subsets", one, n) for one in asked], self.count)
        random = ground.random("subsets")
        if self.independent:
            shares = [one if isinstance(one, float) else int(one or 0) / n for one in asked]
            weights = flip(random, np.resize(shares, self.count), n)
        else:
            strata = ground.classes("subsets(stratify=True)")[0] if self.stratify else None
            weights = draw(random, sizes, n, strata)
        return Bound(weights, {"subset": numbers("subset", self.count)}, own_seed=True)


@dataclass(frozen=True)
class Bootstrap(Factor):
    """As many examples as there are, drawn with replacement."""

    count: int
    name: ClassVar[str] = "bootstrap"

    def __post_init__(self) -> None:
        whole("bootstrap", "members", self.count)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`members`."""
        return [self.count], {}

    def members(self) -> int:
        """As many as were asked for."""
        return self.count

    def bind(self, ground: Ground) -> Bound:
        """Draw them."""
        random, n = ground.random("bootstrap"), len(ground)
        drawn = np.empty((self.count, n), dtype=np.uint8)
        step = max(1, BLOCK // max(1, n))
        for begin in range(0, self.count, step):
            block = drawn[begin : begin + step]
            places = random.integers(0, n, block.shape) + n * np.arange(len(block))[:, None]
            block[:] = np.bincount(places.reshape(-1), minlength=block.size).reshape(block.shape)
        return Bound(Counts(drawn), {"bootstrap": numbers("bootstrap", self.count)}, own_seed=True)


@dataclass(frozen=True)
class LeaveOut(Factor):
    """All but one example, group, class or given list of ids."""

    what: str | tuple[tuple[str, ...], ...]
    name: ClassVar[str] = "leave_out"

    def __post_init__(self) -> None:
        if isinstance(self.what, str):
            known = ("example", "group", "target")
            if self.what not in known:
                raise PlanError(
                    f"leave_out: {self.what!r} is unknown.",
                    nearest(self.what, known) + " Or give a list of lists of ids.",
                )
        elif not self.what:
            raise PlanError("leave_out: the list of lists is empty.", "Give at least one list of ids.")

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`what`."""
        return [self.what if isinstance(self.what, str) else [list(one) for one in self.what]], {}

    def members(self) -> int | None:
        """One per list."""
        return None if isinstance(self.what, str) else len(self.what)

    def bind(self, ground: Ground) -> Bound:
        """Lists of places that are left out."""
        n = len(ground)
        if not isinstance(self.what, str):
            places = [self._places(ground, ids) for ids in self.what]
            begins = np.cumsum([0, *map(len, places)])
            weights = LeftOut(begins, np.concatenate([np.zeros(0, np.int64), *places]), n)
            return Bound(weights, {"left_out": numbers("left_out", len(places))})
        if self.what == "example":
            values = ground.ids("leave_out('example')")
            return Bound(LeftOut(np.arange(n + 1), np.arange(n), n), {"left_out": values.rename("left_out")})
        found = ground.groups if self.what == "group" else ground.classes
        code, kinds = found(f"leave_out({self.what!r})")
        sizes = np.bincount(code, minlength=len(kinds))
        weights = LeftOut(np.concatenate([[0], np.cumsum(sizes)]), np.argsort(code, kind="stable"), n)
        return Bound(weights, {"left_out": pl.Series("left_out", kinds)})

    @staticmethod
    def _places(ground: Ground, ids: tuple[str, ...]) -> Int[np.ndarray, " place"]:
        known = ground.ids("leave_out of ids")
        table = pl.DataFrame({"id": known, "place": np.arange(len(known))})
        asked = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).unique(maintain_order=True)
        places = asked.join(table, on="id", how="left", maintain_order="left")
        unknown = places.filter(pl.col("place").is_null())["id"]
        if len(unknown):
            shown = ", ".join(map(repr, unknown.head(5)))
            raise PlanError(
                f"leave_out: {len(unknown)} of {len(asked)} ids are not training examples of this corpus: {shown}.",
                "Take ids from corpus.ids, of the rows corpus.rows('train').",
            )
        return places["place"].sort().to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Sizes(Factor):
    """Nested random subsets."""

    schedule: tuple[int | float, ...]
    name: ClassVar[str] = "sizes"

    def __post_init__(self) -> None:
        schedule("sizes", self.schedule)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`schedule`."""
        return [list(self.schedule)], {}

    def members(self) -> int:
        """One per size."""
        return len(self.schedule)

    def bind(self, ground: Ground) -> Bound:
        """One random order; a member has its first examples."""
        sizes = np.array([examples("sizes", one, len(ground)) for one in self.schedule])
        rank = ground.random("sizes").permutation(len(ground)).astype(np.int32)
        return Bound(Nested(rank, sizes), {"size": pl.Series("size", sizes, dtype=pl.Int64)})


@dataclass(frozen=True)
class Mixtures(Factor):
    """One weight per class or group."""

    weights: tuple[tuple[tuple[Literal, float], ...], ...]
    by: str = "target"
    name: ClassVar[str] = "mixtures"

    def __post_init__(self) -> None:
        if not self.weights:
            raise PlanError("mixtures: no mixture is given.", "Give a list of {value: weight}.")
        if self.by not in ("target", "group"):
            raise PlanError(f"mixtures: by={self.by!r} is unknown.", nearest(str(self.by), ("target", "group")))
        for number, mixture in enumerate(self.weights):
            for value, weight in mixture:
                if not (is_number(weight) and 0 <= weight < math.inf):
                    raise PlanError(
                        f"mixtures: mixture {number} gives {value!r} the weight {weight!r}.", "Give a number from 0."
                    )
            if not any(weight > 0 for _, weight in mixture):
                raise PlanError(
                    f"mixtures: mixture {number} has no weight above 0.", "Give at least one value a weight."
                )

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """`weights` as pairs, and `by`."""
        pairs = [[list(pair) for pair in mixture] for mixture in self.weights]
        return [pairs], {} if self.by == "target" else {"by": self.by}

    def __str__(self) -> str:
        named = "" if self.by == "target" else f", by={self.by!r}"
        return f"mixtures({[dict(mixture) for mixture in self.weights]!r}{named})"

    def members(self) -> int:
        """One per mixture."""
        return len(self.weights)

    def bind(self, ground: Ground) -> Bound:
        """A table of weights per class or group."""
        found = ground.classes if self.by == "target" else ground.groups
        code, kinds = found(f"mixtures(by={self.by!r})")
        place = {value: number for number, value in enumerate(kinds)}
        table = np.empty((len(self.weights), len(kinds)), dtype=np.float32)
        for number, mixture in enumerate(self.weights):
            given = dict(mixture)
            unknown = [value for value in given if value not in place]
            lacking = [value for value in kinds if value not in given]
            if unknown:
                raise PlanError(
                    f"mixtures: mixture {number} names {unknown[0]!r}, which no training example has as its {self.by}.",
                    nearest(str(unknown[0]), map(str, kinds)),
                )
            if lacking:
                shown = ", ".join(map(repr, lacking[:5]))
                raise PlanError(
                    f"mixtures: mixture {number} gives no weight to {shown}.",
                    "Give each one a weight; 0 leaves it out.",
                )
            table[number] = [given[value] for value in kinds]
        return Bound(Coded(smallest(code, len(kinds)), table), {"mixture": numbers("mixture", len(self.weights))})


@dataclass(frozen=True)
class Grid(Factor):
    """The cartesian product of settings of the learner."""

    settings: tuple[tuple[str, tuple[Literal, ...]], ...]
    name: ClassVar[str] = "grid"

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The settings by name."""
        return [], {name: list(values) for name, values in self.settings}

    def members(self) -> int:
        """One per combination."""
        return math.prod(len(values) for _, values in self.settings)

    def bind(self, ground: Ground) -> Bound:
        """All combinations; the last setting changes fastest."""
        names = [name for name, _ in self.settings]
        every = [
            dict(zip(names, one, strict=True)) for one in itertools.product(*(values for _, values in self.settings))
        ]
        columns = {name: pl.Series(name, [one[name] for one in every], strict=False) for name in names}
        return Bound(Ones((len(every), len(ground))), columns, settings=every)


@dataclass(frozen=True)
class Seeds(Factor):
    """The same training from several seeds."""

    given: int | tuple[int, ...]
    all: tuple[int, ...] = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "seeds"

    def __post_init__(self) -> None:
        if isinstance(self.given, int):
            whole("seeds", "k", self.given)
        elif not self.given:
            raise PlanError("seeds: the list is empty.", "Give at least one seed.")
        else:
            for seed in self.given:
                whole("seeds", "seed", seed, least=-(2**63), most=2**63 - 1)
            if len(set(self.given)) < len(self.given):
                raise PlanError(f"seeds: {list(self.given)} names a seed twice.", "Give each seed once.")
        object.__setattr__(self, "all", tuple(range(self.given)) if isinstance(self.given, int) else self.given)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """How many, or which."""
        return [self.given if isinstance(self.given, int) else list(self.given)], {}

    def members(self) -> int:
        """One per seed."""
        return len(self.all)

    def bind(self, ground: Ground) -> Bound:
        """All examples, from each seed."""
        return Bound(Ones((len(self.all), len(ground))), {}, seeds=self.all)


# ------------------------------------------------------------------------------------------------------------------------ drawing


def draw(
    random: np.random.Generator,
    sizes: Int[np.ndarray, " member"],
    n: int,
    strata: Int[np.ndarray, " example"] | None = None,
) -> Packed:
    """For each member a random subset of exactly its size; with strata, of the same share of each (to one example).

    >>> draw(np.random.default_rng(0), np.array([1, 3]), 5).counts()
    array([1, 3])
    """
    code = np.zeros(n, dtype=np.int64) if strata is None else strata
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code))
    begins = np.concatenate([[0], ends[:-1]])
    inverse = None if strata is None else np.argsort(order)
    bits = np.empty((len(sizes), -(-n // 8)), dtype=np.uint8)
    step = max(1, BLOCK // n)
    for first in range(0, len(sizes), step):
        wanted = sizes[first : first + step]
        keys = random.random((len(wanted), n), dtype=np.float32)
        chosen = np.zeros(keys.shape, dtype=bool)
        for size in np.unique(wanted):
            members = np.flatnonzero(wanted == size)
            for begin, end, quota in zip(begins, ends, quotas(ends - begins, int(size)), strict=True):
                if quota == end - begin:
                    chosen[members, begin:end] = True
                elif quota:
                    part = keys[members, begin:end]
                    least = np.argpartition(part, quota - 1, axis=1)[:, :quota]
                    chosen[members[:, None], begin + least] = True
        bits[first : first + step] = np.packbits(
            chosen if inverse is None else chosen[:, inverse], axis=1, bitorder="little"
        )
    return Packed(bits, n)


def quotas(sizes: Int[np.ndarray, " stratum"], total: int) -> Int[np.ndarray, " stratum"]:
    """How many of each stratum a subset of `total` has: its share, rounded so that the sum is exact (largest remainders).

    >>> quotas(np.array([60, 30, 10]), 25)
    array([15,  8,  2])
    """
    exact = sizes * total / sizes.sum()
    found = np.floor(exact).astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[: total - found.sum()]] += 1
    return found


def flip(random: np.random.Generator, shares: np.ndarray, n: int) -> Packed:
    """For each member and example a coin of its own that lands on "in" with the member's share."""
    bits = np.empty((len(shares), -(-n // 8)), dtype=np.uint8)
    step = max(1, BLOCK // n)
    for first in range(0, len(shares), step):
        share = shares[first : first + step, None]
        chosen = random.random((len(share), n), dtype=np.float32) < share
        bits[first : first + step] = np.packbits(chosen, axis=1, bitorder="little")
    return Packed(bits, n)


# ----------------------------------------------------------------------------------------------------------------------- arguments


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(plan: str, name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    """Raise `PlanError` if it is not a whole number between two."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PlanError(
            f"{plan}: {name}={value!r} is not a whole number from {least}.", f"Give {name} as {least} or more."
        )


def schedule(plan: str, sizes: Sequence[Any]) -> None:
    """Raise `PlanError` if sizes are none at all, or one is neither examples nor a share."""
    if not sizes:
        raise PlanError(f"{plan}: sizes is empty.", "Give at least one size.")
    for size in sizes:
        share = isinstance(size, float) and 0 < size <= 1
        if isinstance(size, bool) or not (share or (isinstance(size, int) and size >= 1)):
            raise PlanError(
                f"{plan}: the size {size!r} is neither a number of examples nor a share of them.",
                "Give whole numbers from 1 (examples) or fractions up to 1.0 (shares).",
            )


def examples(plan: str, size: float | None, n: int) -> int:
    """A size as a number of examples out of `n`."""
    assert size is not None
    count = size if isinstance(size, int) else round(size * n)
    if not 1 <= count <= n:
        raise PlanError(
            f"{plan}: the size {size!r} is {count} examples, and there are {n} training examples.",
            "Give sizes from 1 example to all of them.",
        )
    return int(count)


def numbers(name: str, count: int) -> pl.Series:
    """0, 1, ... as a column."""
    return pl.Series(name, np.arange(count, dtype=np.int64))


def coded(values: pl.Series) -> tuple[Int[np.ndarray, " example"], list[Any]]:
    """A code for each value, and the values, sorted; missing values are a group of their own."""
    kinds = values.unique().sort()
    table = pl.DataFrame({"value": kinds, "code": np.arange(len(kinds))})
    code = (
        values.rename("value").to_frame().join(table, on="value", how="left", maintain_order="left", nulls_equal=True)
    )
    return code["code"].to_numpy().astype(np.int64), kinds.to_list()


def smallest(code: np.ndarray, count: int) -> np.ndarray:
    """Codes in the smallest type that holds them."""
    return code.astype(np.uint8 if count <= 2**8 else np.uint16 if count <= 2**16 else np.int32)
