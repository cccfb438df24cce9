"""Corpus: an immutable, versioned training set whose examples keep their ids.

One-dimensional columns (ids, positions, target, split, weight, group, content hash) are held in memory; inputs stay in a
store on disk and are read by batches. An edit gives a child version that shares the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from imprint.corpus.edits import Edit, difference, keep_selected
from imprint.corpus.hashing import fingerprint, hash_series
from imprint.corpus.roles import Roles
from imprint.corpus.store import Store
from imprint.errors import ColumnError, IdError, TargetError, nearest


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """A version of a training set. Made by `imprint.open`, `Corpus.load` and by editing; never changed in place.

    Attributes:
        roles: Which column plays which part.
        kinds: Input column -> "numeric", "categorical", "text", "datetime", "image" or "array".
        modality: "table", "text", "image" or "array".
        shape: Shape of one example's array; None for other modalities.
        parent: Fingerprint of the version that this was made from, or None.
        edits: What was done since the original.
        set_aside: Rows that could not be used: position, reason.
        notes: What was inferred when the source was opened, in words.
        ids: [row] stable names.
        positions: [row] where each example stands in its source: row number from 0, or path.
        target: [row] raw values in the user's terms, edits applied.
        split_codes: [row] the split of each example, as a Polars Enum (a byte per row); `split_names` gives text.
        weights: [row] float32, or None where all are one.
        groups: [row] groups that no split cuts, or None.
        content: [row] uint64 hash of the inputs: equal = exact duplicate.
        stores: Where the inputs lie; appended examples lie in stores of their own.
        index: [row] number of each row over all stores one after the other.
    """

    roles: Roles
    kinds: dict[str, str]
    modality: str
    shape: tuple[int, ...] | None
    parent: str | None
    edits: tuple[Edit, ...]
    set_aside: pl.DataFrame
    notes: tuple[str, ...]
    ids: pl.Series
    positions: pl.Series
    target: pl.Series
    split_codes: pl.Series
    weights: np.ndarray | None
    groups: pl.Series | None
    content: np.ndarray
    stores: tuple[Store, ...]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        return f"Corpus({self.modality}, {len(self):,} examples: {splits}; target '{self.roles.target}', {self.fingerprint})"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of ids, contents, targets, weights and splits, in row order."""
        weights = (
            pl.Series(self.weights)
            if self.weights is not None
            else pl.repeat(1.0, len(self), dtype=pl.Float32, eager=True)
        )
        columns: list[pl.Series | np.ndarray] = [self._id_hashes, self.content, self.target, weights, self.split_codes]
        if self.groups is not None:
            columns.append(self.groups)
        return fingerprint([self.roles.target or "", *self.roles.inputs], columns)

    @cached_property
    def _id_hashes(self) -> np.ndarray:
        return hash_series(self.ids)

    @property
    def split_names(self) -> pl.Series:
        """[row] the split of each example."""
        return self.split_codes.cast(pl.String)

    @cached_property
    def splits(self) -> dict[str, int]:
        """Split name -> number of examples, train first."""
        counts = dict(self.split_codes.value_counts().cast({"split": pl.String}).iter_rows())
        return dict(sorted(counts.items(), key=lambda one: (one[0] != "train", one[0])))

    def rows(self, split: str | Sequence[str] | None = None) -> np.ndarray:
        """Rows of one split, of several, or of all (None), ascending: [row] int64."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        names = [split] if isinstance(split, str) else list(split)
        for name in names:
            if name not in self.splits:
                raise ColumnError(f"The corpus has no split '{name}'.", nearest(str(name), self.splits))
        return np.flatnonzero(self.split_codes.cast(pl.String).is_in(names).to_numpy()).astype(np.int64)

    def rows_of(self, ids: pl.Series | Sequence[str]) -> np.ndarray:
        """The row of each id, in the order of `ids`; an unknown id raises `IdError`."""
        asked = pl.Series("id", ids, dtype=pl.String)
        rows = asked.to_frame().join(self._row_of, on="id", how="left", maintain_order="left")["row"]
        if rows.null_count():
            unknown = asked.filter(rows.is_null())
            shown = ", ".join(repr(one) for one in unknown.head(5).to_list())
            raise IdError(
                f"{len(unknown):,} of {len(asked):,} ids {'is' if len(unknown) == 1 else 'are'} not in this corpus: {shown}.",
                "Take ids from this version's `ids`; a dropped example is in its parent.",
            )
        return rows.to_numpy().astype(np.int64)

    @cached_property
    def _row_of(self) -> pl.DataFrame:
        return pl.DataFrame({"id": self.ids, "row": np.arange(len(self), dtype=np.int64)})

    def split(self, name: str) -> Corpus:
        """A view with only that split."""
        return self._take(self.rows(name))

    def read(self, rows: np.ndarray | Sequence[int], columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Input columns of these rows, in their order; images as encoded bytes.

        Args:
            rows: Rows of this version, repeats allowed.
            columns: Inputs (all by default); of an image column also "NAME.width" and "NAME.height".
        """
        names = list(self.roles.inputs) if columns is None else [columns] if isinstance(columns, str) else list(columns)
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IdError(
                f"Row {int(rows.max() if rows.min() >= 0 else rows.min())} is not one of the {len(self):,} rows of this corpus.",
                "Take rows from corpus.rows().",
            )
        index = self.index[rows]
        if len(self.stores) == 1:
            return self.stores[0].read(index, names)
        owner = np.searchsorted(self._ends, index, side="right")
        begin = np.concatenate([[0], self._ends[:-1]])
        used = np.unique(owner) if len(owner) else np.zeros(1, np.int64)
        parts = [self.stores[k].read(index[owner == k] - begin[k], names) for k in used]
        places = np.concatenate([np.flatnonzero(owner == k) for k in used]) if len(owner) else np.zeros(0, np.int64)
        whole = pl.concat(parts)
        return whole[np.argsort(places)] if len(used) > 1 else whole

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(store) for store in self.stores])

    def batches(
        self, rows: np.ndarray | None = None, columns: Sequence[str] | None = None, size: int = 16384
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
        """(rows, frame) in pieces of at most `size` rows, in the order of `rows` (all by default); one piece is held at a time."""
        wanted = self.rows() if rows is None else np.asarray(rows, dtype=np.int64)
        for start in range(0, len(wanted), size):
            piece = wanted[start : start + size]
            yield piece, self.read(piece, columns)

    def frame(self, rows: np.ndarray | None = None) -> pl.DataFrame:
        """id, position, split, the inputs, the target, and the weight if there is one."""
        wanted = self.rows() if rows is None else np.asarray(rows, dtype=np.int64)
        columns = [
            self.ids.gather(wanted).alias("id"),
            self.positions.gather(wanted).alias("position"),
            self.split_codes.gather(wanted).cast(pl.String).alias("split"),
        ]
        taken = {"id", "position", "split"}
        inputs = self.read(wanted)
        inputs = inputs.rename({name: f"input.{name}" for name in inputs.columns if name in taken})
        target = self.target.gather(wanted)
        frame = (
            pl.DataFrame(columns)
            .hstack(inputs)
            .with_columns(target.alias(f"target.{target.name}" if target.name in taken else target.name))
        )
        if self.weights is not None:
            frame = frame.with_columns(pl.Series("weight", self.weights[wanted]))
        return frame

    # Edits

    def drop(self, ids: pl.Series | Sequence[str]) -> Corpus:
        """The version without these examples."""
        rows = np.unique(self.rows_of(ids))
        if not len(rows):
            return self
        if len(rows) == len(self):
            raise IdError("Dropping these ids would leave no example.", "Drop fewer.")
        keep = np.ones(len(self), bool)
        keep[rows] = False
        dropped = tuple(self.ids.gather(rows).to_list())
        return self._take(np.flatnonzero(keep), Edit("drop", len(rows), dropped))

    def relabel(self, targets: Mapping[str, Any]) -> Corpus:
        """The version in which these ids have new targets, in the user's terms: `{id: value}`."""
        rows = self.rows_of(list(targets))
        values = self._as_target(list(targets.values()))
        before = self.target.gather(rows)
        changed = (
            np.flatnonzero(before.ne_missing(values).to_numpy())
            if values.dtype != pl.List
            else np.array([k for k in range(len(rows)) if before[k].to_list() != values[k].to_list()], np.int64)
        )
        if not len(changed):
            return self
        rows, values, before = rows[changed], values.gather(changed), before.gather(changed)
        source = np.arange(len(self))
        source[rows] = len(self) + np.arange(len(rows))
        target = pl.concat([self.target, values.alias(self.target.name)]).gather(source)
        edit = Edit(
            "relabel",
            len(rows),
            tuple(self.ids.gather(rows).to_list()),
            tuple(before.to_list()),
            tuple(values.to_list()),
        )
        return self._child(edit, target=target)

    def reweight(self, weights: Mapping[str, float] | np.ndarray | Sequence[float]) -> Corpus:
        """The version with new weights: `{id: weight}` for some examples, or one per row."""
        old = self.weights if self.weights is not None else np.ones(len(self), np.float32)
        new = old.copy()
        if isinstance(weights, Mapping):
            new[self.rows_of(list(weights))] = np.asarray(list(weights.values()), np.float32)
        else:
            given = np.asarray(weights, np.float32)
            if given.shape != old.shape:
                raise IdError(
                    f"{given.shape} weights for {len(self):,} examples.", "Give one weight per row, or {id: weight}."
                )
            new = given.copy()
        wrong = np.flatnonzero(~(np.isfinite(new) & (new >= 0)))
        if len(wrong):
            raise ColumnError(
                f"The weight of '{self.ids[int(wrong[0])]}' is {new[wrong[0]]}.",
                "Weights are finite and not below zero.",
            )
        changed = np.flatnonzero(new != old)
        if not len(changed):
            return self
        if len(changed) == len(self) and not isinstance(weights, Mapping):
            edit = Edit("reweight", len(changed))
        else:
            edit = Edit(
                "reweight",
                len(changed),
                tuple(self.ids.gather(changed).to_list()),
                tuple(old[changed].tolist()),
                tuple(new[changed].tolist()),
            )
        return self._child(edit, weights=None if (new == 1).all() else new)

    def resplit(self, splits: Mapping[str, str | None]) -> Corpus:
        """The version in which these ids are in other splits: `{id: split}`; None leaves the example out. The others stay.

        Raises:
            IdError: An id is unknown, or nothing would be left.
            ColumnError: No training example would be left.
        """
        rows = self.rows_of(list(splits))
        gone = [one for one, split in splits.items() if split is None]
        names = self.split_names.to_numpy().astype(object)
        before = names[rows]
        names[rows] = [split if split is not None else old for split, old in zip(splits.values(), before, strict=True)]
        changed = rows[names[rows] != before]
        child = self
        if len(changed):
            edit = Edit(
                "resplit",
                len(changed),
                tuple(self.ids.gather(changed).to_list()),
                tuple(before[names[rows] != before].tolist()),
                tuple(names[changed].tolist()),
            )
            child = self._child(edit, split_codes=as_splits(pl.Series(names.tolist(), dtype=pl.String)))
        child = child.drop(gone) if gone else child
        if "train" in self.splits and "train" not in child.splits:
            raise ColumnError("No training example would be left.", "Leave some ids in the split 'train'.")
        return child

    def append(self, source: Any) -> Corpus:
        """The version with more examples at its end, from anything `imprint.open` takes or from another corpus.

        The source has this corpus' input and target columns. Its examples go to the splits that its split column says, else
        to "train". Examples without a key are named by their content, so one that was dropped and is appended again gets its
        id back, and an exact copy of one that is there gets the next ordinal.

        Raises:
            IdError: An id of the source is already in this corpus.
        """
        if isinstance(source, Corpus):
            added = source
            if added.roles.inputs != self.roles.inputs or added.kinds != self.kinds or added.shape != self.shape:
                raise ColumnError(
                    f"The corpus to append has the inputs {', '.join(added.roles.inputs)}, this one {', '.join(self.roles.inputs)}.",
                    "Append a corpus with the same input columns.",
                )
        else:
            from imprint.corpus.opening import ingest_more

            added = ingest_more(source, self)
        clash = added.ids.filter(added.ids.is_in(self.ids.implode()))
        if len(clash):
            raise IdError(
                f"{len(clash):,} ids of the source are already in this corpus, first '{clash[0]}'.",
                "Give new examples new ids, or drop the old ones first.",
            )
        weights = None
        if self.weights is not None or added.weights is not None:
            weights = np.concatenate(
                [one.weights if one.weights is not None else np.ones(len(one), np.float32) for one in (self, added)]
            )
        groups = None
        if self.groups is not None:
            if added.groups is None:
                raise ColumnError(
                    f"The source has no group column '{self.roles.group}'.", "Give each new example its group."
                )
            groups = pl.concat([self.groups, added.groups.alias(self.groups.name)])
        position = self.positions.dtype if self.positions.dtype == added.positions.dtype else pl.String
        mine = self._used_stores()
        offset = sum(len(store) for store in mine.stores)
        return self._child(
            Edit("append", len(added), tuple(added.ids.to_list())),
            ids=pl.concat([self.ids, added.ids]),
            positions=pl.concat([self.positions.cast(position), added.positions.cast(position)]),
            target=pl.concat([self.target, added._as_type(self.target.dtype).alias(self.target.name)]),
            split_codes=as_splits(pl.concat([self.split_names, added.split_names])),
            weights=weights,
            groups=groups,
            content=np.concatenate([self.content, added.content]),
            stores=(*mine.stores, *added.stores),
            index=np.concatenate([mine.index, added.index + offset]),
            set_aside=pl.concat(
                [
                    self.set_aside.with_columns(pl.col("position").cast(position)),
                    added.set_aside.with_columns(pl.col("position").cast(position)),
                ]
            ),
        )

    def apply(self, answer: Any, kinds: Sequence[str] | str | None = None) -> Corpus:
        """Do what an answer suggests: drop and relabel; what it marks for review is left alone. Of a selection, keep what was chosen.

        Args:
            answer: Anything whose `frame()` has the columns id, suggestion and suggested_value (`imprint.clean` gives one), or
                such a frame. Where findings disagree about an example, drop goes before relabel, and the more severe first.
                Or a selection (`imprint.select` gives one), or its frame: the other training examples are dropped, weights are
                multiplied by its weights, and the other splits stay as they are.
            kinds: Only findings of these kinds.

        Raises:
            MethodError: The selection is a policy that chooses anew in each epoch.
        """
        frame = answer if isinstance(answer, pl.DataFrame) else answer.frame()
        if {"id", "rank", "weight"} <= set(frame.columns):
            return keep_selected(self, answer, frame)
        for name in ("id", "suggestion"):
            if name not in frame.columns:
                raise ColumnError(
                    f"The answer's frame has no column '{name}' (columns: {', '.join(frame.columns)}).",
                    "Apply what imprint.clean or imprint.select returns.",
                )
        if kinds is not None:
            frame = frame.filter(pl.col("kind").is_in([kinds] if isinstance(kinds, str) else list(kinds)))
        if "severity" in frame.columns:
            frame = frame.sort("severity", descending=True, maintain_order=True, nulls_last=True)
        frame = frame.filter(pl.col("id").is_not_null())
        dropped = frame.filter(pl.col("suggestion") == "drop")["id"].unique(maintain_order=True)
        corpus = self
        relabelled = frame.filter((pl.col("suggestion") == "relabel") & ~pl.col("id").is_in(dropped.implode()))
        if len(relabelled):
            relabelled = relabelled.filter(pl.col("suggested_value").is_not_null()).unique(
                "id", keep="first", maintain_order=True
            )
            corpus = corpus.relabel(
                dict(zip(relabelled["id"].to_list(), relabelled["suggested_value"].to_list(), strict=True))
            )
        return corpus.drop(dropped) if len(dropped) else corpus

    def diff(self, other: Corpus) -> pl.DataFrame:
        """What leads from `other` to this version: id, position, change, before, after (see `imprint.corpus.edits.difference`)."""
        return difference(self, other)

    # On disk

    def save(self, path: str | Path) -> Path:
        """Write this version as a folder of its own (images included), which `imprint.open` and `Corpus.load` read back.

        Raises:
            SourceError: The path exists and is not a saved corpus.
            ResourceError: The disk is full.
        """
        from imprint.corpus.saved import save

        return save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Corpus:
        """Read a saved corpus; only its one-dimensional columns are read now.

        Raises:
            SourceError: No corpus is saved there, or it is damaged.
        """
        from imprint.corpus.saved import load

        return load(Path(path))

    # Inside

    def _take(self, rows: np.ndarray, edit: Edit | None = None) -> Corpus:
        """The version with only these rows."""
        changes: dict[str, Any] = {
            "ids": self.ids.gather(rows),
            "positions": self.positions.gather(rows),
            "target": self.target.gather(rows),
            "split_codes": self.split_codes.gather(rows),
            "weights": self.weights[rows] if self.weights is not None else None,
            "groups": self.groups.gather(rows) if self.groups is not None else None,
            "content": self.content[rows],
            "index": self.index[rows],
        }
        return self._child(edit, **changes)

    def _child(self, edit: Edit | None, **changes: Any) -> Corpus:
        edits = self.edits if edit is None else (*self.edits, edit)
        return replace(self, parent=self.fingerprint, edits=edits, **changes)

    def _used_stores(self) -> Corpus:
        return self

    def _as_type(self, dtype: pl.DataType) -> pl.Series:
        """The target in another version's type."""
        try:
            return self.target.cast(dtype, strict=True)
        except pl.exceptions.PolarsError as error:
            raise TargetError(
                f"The target '{self.roles.target}' of the source is {self.target.dtype}, not {dtype}.",
                "Give targets of the same type.",
            ) from error

    def _as_target(self, values: list[Any]) -> pl.Series:
        """New targets in the target's type; `TargetError` names one that does not fit."""
        dtype = self.target.dtype
        for value in values:
            if value is None or (isinstance(value, float) and not np.isfinite(value)):
                raise TargetError(f"{value!r} is no target.", "Give a value, or drop the example.")
        try:
            if dtype == pl.List:
                return pl.Series(self.target.name, [list(value) for value in values], dtype=dtype, strict=True)
            if dtype == pl.String:
                return pl.Series(self.target.name, [str(value) for value in values], dtype=dtype)
            given = pl.Series(self.target.name, values)
            return given.cast(dtype, strict=True)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise TargetError(
                f"{values[0]!r} is no value for the target '{self.target.name}' of type {dtype}.",
                "Give values in the target's own terms.",
            ) from error


def as_splits(names: pl.Series) -> pl.Series:
    """Split names as an Enum of those that occur, called "split"."""
    return names.cast(pl.Enum(names.unique().cast(pl.String).sort())).alias("split")
