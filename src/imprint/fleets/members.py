"""The members of a plan that has met its training set: a lazy sequence, and the table of what each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import polars as pl
from jaxtyping import Int

from imprint.errors import PlanError
from imprint.fitting import derive
from imprint.fleets.factors import Bound, Factor, Ground
from imprint.fleets.member import Member
from imprint.fleets.weights import Weights, empty, product

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.fleets.shared import Shared


class Members(Sequence[Member]):
    """Every member of a plan; an item is made when it is asked for.

    Attributes:
        table: `member`, `seed`, then one column per factor.
        weights: Who is trained on what.
        rows: Training rows, ascending: the examples of `weights`.
    """

    def __init__(self, factors: Sequence[Factor], shared: Shared, corpus: Corpus | None = None) -> None:
        rows = shared.data.rows
        ground = Ground(rows.numpy(), shared.data.target[rows], shared.task, shared.learner.seed, corpus)
        bound = [
            one.bind(replace(ground, occurrence=sum(other.name == one.name for other in factors[:place])))
            for place, one in enumerate(factors)
        ]
        self.rows: Int[np.ndarray, " example"] = ground.rows
        self.weights: Weights = product([one.weights for one in bound])
        self._own = None if shared.data.weight is None else shared.data.weight[rows].float()
        self._bound = bound
        self._shape = tuple(len(one) for one in bound)
        chosen = np.unravel_index(np.arange(len(self)), self._shape)
        self.seeds: Int[np.ndarray, " member"] = _seeds(bound, chosen, shared.learner.seed)
        self.table: pl.DataFrame = _table(bound, chosen, self.seeds)
        nothing = empty(self.weights)
        if len(nothing):
            about = ", ".join(
                f"{name}={value!r}" for name, value in self.table.row(int(nothing[0]), named=True).items()
            )
            raise PlanError(
                f"{len(nothing)} of {len(self)} members have no training example left, the first one is {about}.",
                "Leave out less, or give larger sizes.",
            )

    def __len__(self) -> int:
        return self.weights.shape[0]

    @overload
    def __getitem__(self, number: int) -> Member: ...
    @overload
    def __getitem__(self, number: slice) -> list[Member]: ...
    def __getitem__(self, number: int | slice) -> Member | list[Member]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"member {number} of {len(self)}")
        number = range(len(self))[number]
        weight = self.weights.dense([number])[0]
        places = weight.nonzero().squeeze(1)
        weight = weight[places]
        own = None if self._own is None else self._own[places]
        # Where all are equal, the training keeps the weights that the corpus gives.
        equal = bool((weight == weight[0]).all())
        kept = None if equal else weight if own is None else weight * own
        return Member(int(self.seeds[number]), self.rows[places.numpy()], None, kept, self.settings(number))

    def settings(self, number: int) -> dict[str, Any]:
        """Fields of the learner that differ for one member."""
        found: dict[str, Any] = {}
        for one, place in zip(self._bound, np.unravel_index(number, self._shape), strict=True):
            found |= {} if one.settings is None else one.settings[int(place)]
        return found


def _seeds(bound: Sequence[Bound], chosen: tuple[np.ndarray, ...], seed: int) -> Int[np.ndarray, " member"]:
    """Given seeds, else one for each subset (members that differ in settings alone share it), else the learner's."""
    for one, place in zip(bound, chosen, strict=True):
        if one.seeds is not None:
            return np.array(one.seeds, dtype=np.int64)[place]
    own = [place for place, one in enumerate(bound) if one.own_seed]
    if not own:
        return np.full(len(chosen[0]), seed, dtype=np.int64)
    shape = tuple(len(bound[place]) for place in own)
    number = np.ravel_multi_index(tuple(chosen[place] for place in own), shape)
    derived = np.array([derive(seed, "member", one) for one in range(int(np.prod(shape)))], dtype=np.int64)
    return derived[number]


def _table(bound: Sequence[Bound], chosen: tuple[np.ndarray, ...], seeds: np.ndarray) -> pl.DataFrame:
    columns: dict[str, Any] = {"member": np.arange(len(seeds)), "seed": seeds}
    for one, place in zip(bound, chosen, strict=True):
        for name, values in one.columns.items():
            free, number = name, 2
            while free in columns:
                free, number = f"{name}_{number}", number + 1
            columns[free] = values.gather(place)
    return pl.DataFrame(columns)
