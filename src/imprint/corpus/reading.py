"""One pass over a source: its inputs stream to the store, everything one-dimensional is kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus.hashing import U64, hash_rows
from imprint.corpus.images import look_at_all, read_file
from imprint.corpus.kinds import array_shape
from imprint.corpus.plan import Plan, stored_inputs
from imprint.corpus.roles import canonical_splits
from imprint.corpus.sources import Aside, Batch, Source
from imprint.corpus.store import ahead, stored_name, to_stored
from imprint.errors import ColumnError, SourceError, TargetError

# As `imprint.fitting.progress.Progress`, which stands above this package: (label, done, total).
Progress = Callable[[str, int, int], None]


class Reading:
    """The usable rows of a source.

    Attributes:
        aside: Rows that cannot be used, and why (what the source itself could not read is in `source.aside`).
        rows: How many rows were usable.
        without_target: How many were set aside for want of a target.
        positions: Positions of the usable rows, batch by batch.
        columns: Role ("target", "id", "split", "group", "weight") -> its values, batch by batch.
        content: Content hashes, batch by batch.
    """

    def __init__(self, source: Source, plan: Plan, progress: Progress | None) -> None:
        self.source, self.plan, self.progress = source, plan, progress
        self.aside = Aside()
        self.rows = self.seen = self.without_target = 0
        self.positions: list[pl.Series] = []
        self.columns: dict[str, list[pl.Series]] = {}
        self.content: list[np.ndarray] = []

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Arrow batches of usable rows as the store takes them; the rest is kept or set aside."""
        plan = self.plan
        images = [name for name, kind in plan.kinds.items() if kind == "image"]
        for batch in ahead(self.source.batches()):
            self.seen += len(batch.frame)
            frame, positions = self._usable(batch)
            inputs = stored_inputs(frame, plan, self.source.name)
            hashes: dict[str, np.ndarray] = {}
            for name in images:
                frame, positions, inputs, hashes = self._looked_at(name, frame, positions, inputs, hashes)
            if self.progress is not None:
                self.progress("open", self.seen, self.source.total or self.seen)
            if not len(frame):
                continue
            (stored,) = to_stored(inputs.rechunk()).to_batches()
            cells = [
                (name, pa.array(hashes[name].view(np.int64)) if name in hashes else stored.column(stored_name(name)))
                for name in plan.kinds
            ]
            self.content.append(hash_rows(cells))
            self._keep("target", frame["__target"])
            for role in ("id", "split", "group", "weight"):
                column = getattr(plan.roles, role)
                if column is not None:
                    self._keep(role, frame[f"__{role}"])
            self.positions.append(positions)
            self.rows += len(frame)
            yield stored

    def _keep(self, role: str, values: pl.Series) -> None:
        self.columns.setdefault(role, []).append(_own(values))

    def _usable(self, batch: Batch) -> tuple[pl.DataFrame, pl.Series]:
        """Rows that have a target, a split, a weight and a group where these are asked for."""
        plan, roles = self.plan, self.plan.roles
        target = self._target(batch.frame).alias("__target")
        frame = batch.frame.hstack([target])
        asked = (roles.id, roles.split, roles.group, roles.weight, *plan.shapes)
        if not (target.null_count() or target.dtype.is_float() or any(asked)):
            return frame, batch.positions
        reason: Any = pl.when(pl.col("__target").is_null()).then(pl.lit("target missing"))
        if frame.schema["__target"].is_float():
            reason = reason.when(pl.col("__target").is_infinite()).then(pl.lit("target infinite"))
        if roles.id is not None:
            frame = frame.with_columns(pl.col(roles.id).cast(pl.String).alias("__id"))
        if roles.split is not None:
            frame = frame.with_columns(canonical_splits(frame[roles.split]).alias("__split"))
            reason = reason.when(pl.col("__split").is_null()).then(pl.lit(f"split missing (column '{roles.split}')"))
        if roles.group is not None:
            frame = frame.with_columns(pl.col(roles.group).cast(pl.String).alias("__group"))
            reason = reason.when(pl.col("__group").is_null()).then(pl.lit(f"group missing (column '{roles.group}')"))
        if roles.weight is not None:
            if not frame.schema[roles.weight].is_numeric():
                raise ColumnError(
                    f"{self.source.name}: column '{roles.weight}' holds {frame.schema[roles.weight]}, and weights are numbers.",
                    "Choose another weight column.",
                )
            frame = frame.with_columns(pl.col(roles.weight).cast(pl.Float32).alias("__weight"))
            weight = pl.col("__weight")
            usable = weight.is_not_null() & weight.is_finite() & (weight >= 0)
            reason = reason.when(~usable.fill_null(False)).then(
                pl.lit(f"weight missing, infinite or below zero (column '{roles.weight}')")
            )
        for name, shape in plan.shapes.items():
            reason = reason.when(pl.col(name).is_null()).then(pl.lit(f"array missing (column '{name}')"))
            if frame.schema[name] == pl.List:
                reason = reason.when(pl.col(name).list.len() != shape[0]).then(
                    pl.lit(f"array of another length than {shape[0]} (column '{name}')")
                )
            elif array_shape(frame.schema[name]) != shape:
                raise SourceError(
                    f"{self.source.name}: '{name}' has arrays of shape {array_shape(frame.schema[name])} and of {shape}.",
                    "Bring them to one shape.",
                )
        reasons = frame.select(reason.otherwise(None).alias("reason"))["reason"]
        if reasons.null_count() == len(reasons):
            return frame, batch.positions
        bad = reasons.is_not_null()
        self.without_target += int((reasons == "target missing").sum())
        self.aside.add(batch.positions.filter(bad), reasons.filter(bad).to_list())
        return frame.filter(~bad), batch.positions.filter(~bad)

    def _target(self, frame: pl.DataFrame) -> pl.Series:
        """The raw target; missing and NaN are null."""
        names = self.plan.targets
        if len(names) > 1:
            return _indicator_target(frame.select(names), self.source.name)
        target = frame[names[0]]
        dtype = target.dtype
        if isinstance(dtype, pl.Array):
            target = target.arr.to_list()
        elif dtype.is_float():
            target = target.fill_nan(None)
        elif dtype == pl.String and self.source.missing_words:
            words = target.str.strip_chars().is_in(self.source.missing_words)
            if words.any():
                target = target.set(words.fill_null(False), None)
        elif dtype == pl.Binary or dtype.is_temporal():
            raise TargetError(
                f"{self.source.name}: column '{names[0]}' holds {dtype}, which cannot be a target.",
                "Choose a column of numbers, strings or lists with --target.",
            )
        return target

    def _looked_at(
        self, name: str, frame: pl.DataFrame, positions: pl.Series, inputs: pl.DataFrame, hashes: dict[str, np.ndarray]
    ) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, dict[str, np.ndarray]]:
        """Set aside images that do not decode; add width and height; hash the encoded bytes."""
        root = self.plan.files.get(name)
        looks = list(look_at_all(inputs[name].to_list(), read_file(root) if root is not None else lambda data: data))
        reasons = pl.Series([one.reason for one in looks], dtype=pl.String)
        inputs = inputs.with_columns(
            pl.Series(f"{name}.width", [one.width for one in looks], dtype=pl.Int32),
            pl.Series(f"{name}.height", [one.height for one in looks], dtype=pl.Int32),
        )
        hashes = {**hashes, name: np.array([one.hash for one in looks], dtype=U64)}
        bad = reasons.is_not_null()
        if bad.any():
            self.aside.add(positions.filter(bad), reasons.filter(bad).to_list())
            good = (~bad).to_numpy()
            frame, positions, inputs = frame.filter(~bad), positions.filter(~bad), inputs.filter(~bad)
            hashes = {key: value[good] for key, value in hashes.items()}
        return frame, positions, inputs, hashes


def _indicator_target(frame: pl.DataFrame, name: str) -> pl.Series:
    """Several 0/1 columns -> a list of the names of those that are 1; null where one of them is missing."""
    for series in frame.iter_columns():
        if (
            not (series.dtype == pl.Boolean or series.dtype.is_numeric())
            or not series.drop_nulls().cast(pl.Float64).is_in([0.0, 1.0]).all()
        ):
            raise TargetError(
                f"{name}: column '{series.name}' is one of several targets and holds more than 0 and 1.",
                "Give one target, or one 0/1 column per label.",
            )
    chosen = pl.concat_list(
        [pl.when(pl.col(one).cast(pl.Boolean)).then(pl.lit(one)) for one in frame.columns]
    ).list.drop_nulls()
    missing = pl.any_horizontal(pl.all().is_null())
    return frame.select(pl.when(~missing).then(chosen).alias("target"))["target"]


def _own(values: pl.Series) -> pl.Series:
    """A copy. A column that came from Arrow holds on to the whole batch that it came with."""
    arrow = values.to_arrow()
    whole = pl.from_arrow(pa.concat_arrays([arrow, arrow.slice(0, 0)]))
    assert isinstance(whole, pl.Series)
    return whole.alias(values.name)
