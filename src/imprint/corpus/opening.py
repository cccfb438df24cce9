"""The entrance: a source goes in, a stored and fingerprinted corpus comes out, in one pass and bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus import splitting
from imprint.corpus.corpus import Corpus
from imprint.corpus.hashing import U64, content_ids, digest, hash_cells, hash_rows, hash_series, mix
from imprint.corpus.images import look_at_all, read_file
from imprint.corpus.kinds import array_shape, kinds_of, modality_of
from imprint.corpus.roles import Asked, Roles, canonical_splits, infer
from imprint.corpus.sources import Source, Widened, source_of
from imprint.corpus.sources.base import Aside, Batch
from imprint.corpus.store import (
    FORMAT,
    Store,
    commit,
    home,
    release_memory,
    stored_name,
    to_stored,
    write_json,
    write_lance,
    writing,
)
from imprint.errors import ColumnError, IdError, SourceError, TargetError, nearest

TASKS = ("auto", "classification", "multilabel", "regression")
# As `imprint.fitting.progress.Progress`, which stands above this package: (label, done, total).
Progress = Callable[[str, int, int], None]


def open(
    source: Any,
    *,
    target: str | Sequence[str] | None = None,
    inputs: str | Sequence[str] | None = None,
    id: str | None = None,
    split: str | Mapping[str, float] | None = None,
    group: str | None = None,
    weight: str | None = None,
    task: str = "auto",
    store: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Corpus:
    """Open a training set: give its examples ids, store their inputs, split them, and say what was inferred.

    Args:
        source: A path (CSV, Parquet, Arrow, JSON lines, .npz, a folder of images, a Lance data set, a saved corpus), a Polars or
            pandas frame, an Arrow table, a pair (X, y), a dictionary of columns, a Hugging Face or PyTorch map-style data set.
        target: The column to predict; inferred from names like "label". Several 0/1 columns make a multilabel target.
        inputs: The columns to predict from; all others by default.
        id: A column of unique keys. Without one, ids are paths (image folders) or content hashes.
        split: A column of split names, or fractions such as `{"train": 0.8, "test": 0.2}` (the default).
        group: A column of groups that are not to be cut by a split.
        weight: A column of weights.
        task: "auto", "classification", "multilabel" or "regression"; classification is split class by class.
        store: Folder for stores; by default `$IMPRINT_HOME`, else `~/.cache/imprint`.
        seed: Seed of the split.
        progress: Called with ("open", rows read, rows in all or so far).

    Returns:
        The corpus; its `notes` say what was inferred and `set_aside` which rows could not be used.

    Raises:
        SourceError: The source cannot be read.
        ColumnError: A column is missing or cannot play its role.
        TargetError: The target has no values, or only one.
        IdError: The id column repeats.
        ResourceError: The disk is full.

    >>> import tempfile
    >>> corpus = open({"text": [f"film {k} was good" for k in range(10)], "label": ["pos", "neg"] * 5}, store=tempfile.mkdtemp())
    >>> len(corpus), corpus.modality, corpus.splits
    (10, 'text', {'train': 8, 'test': 2})
    """
    fractions = splitting.check(split) if isinstance(split, Mapping) else None
    asked = Asked.of(
        target=target, inputs=inputs, id=id, split=None if fractions else split, group=group, weight=weight
    )
    if task not in TASKS:
        raise TargetError(f"Unknown task '{task}'.", nearest(str(task), TASKS))
    if isinstance(source, (str, PathLike)) and _is_saved(Path(source)):
        if asked != Asked() or fractions:
            raise ColumnError(
                f"{source} is a saved corpus: its roles and splits are settled.",
                "Open it without options, or open the original source.",
            )
        return Corpus.load(Path(source))
    root = home(store)
    given = source_of(source)
    memo = None
    if given.identity is not None:
        key = digest(json.dumps([FORMAT, given.identity, asked.__dict__, fractions, task, seed], default=str))
        memo = root / "sources" / f"{key:016x}.json"
        hit = _remembered(memo, root)
        if hit is not None:
            return hit
    corpus = _ingest_or_say(given, asked, root, fractions=fractions, task=task, seed=seed, progress=progress)
    if memo is not None:
        with writing(memo, 1 << 20, given.name):
            write_json({"store": corpus.stores[0].folder.name, "source": given.name}, memo)
    return corpus


def ingest_more(source: Any, parent: Corpus) -> Corpus:
    """Read a source whose examples are to be appended to `parent`: same columns and types, ids that are free there."""
    given = source_of(source)
    columns = given.sample().columns
    roles = parent.roles
    target = (roles.target or "",) if roles.target in columns else tuple((roles.target or "").split("+"))
    asked = Asked(
        inputs=roles.inputs,
        target=target,
        id=roles.id,
        group=roles.group,
        split=roles.split if roles.split in columns else None,
        weight=roles.weight if roles.weight in columns else None,
    )
    beside = parent.stores[0].folder.parent
    root = beside.parent if beside.name == "corpora" else home(None)  # a saved corpus lies where the user put it
    return _ingest_or_say(given, asked, root, parent=parent)


def _ingest_or_say(source: Source, *arguments: Any, **options: Any) -> Corpus:
    """`ingest`; what Polars and Arrow still raise about the data comes out as an error that names the source."""
    try:
        return ingest(source, *arguments, **options)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise SourceError(
            f"{source.name} cannot be read: {str(error).splitlines()[0].rstrip('.')}.",
            "Check the rows, quotes and types of the source, or save it as Parquet.",
        ) from error


def ingest(
    source: Source,
    asked: Asked,
    root: Path,
    *,
    fractions: Mapping[str, float] | None = None,
    task: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    parent: Corpus | None = None,
) -> Corpus:
    """Read a source into a store under `root`. With a `parent`, in its types, for appending."""
    asked = _merged(asked, source.asked)
    for attempt in range(2):
        plan = _plan(source, asked, parent)
        corpora = root / "corpora"
        with writing(corpora / "corpus", source.size, source.name) as temporary:
            reading = _Reading(source, plan, progress)
            try:
                write_lance(reading.batches(), plan.schema, temporary / "inputs.lance")
            except Widened:
                if attempt:
                    raise
                source.restart()
                continue
            release_memory()
            corpus = reading.corpus(temporary, fractions=fractions, task=task, seed=seed, parent=parent)
            corpus._write_roles(temporary, files=plan.files)
            name = (
                f"{corpus.fingerprint}-{digest((temporary / 'corpus.json').read_bytes() + _aside_bytes(corpus)):016x}"
            )
            commit(temporary, corpora / name)
            final = Store(corpora / name, plan.shapes, plan.files)
            kept = replace(corpus, stores=(final,))
            kept.__dict__["fingerprint"] = corpus.fingerprint
            return kept
    raise AssertionError("a source widens once")


@dataclass
class _Plan:
    """What is to be read, settled from the sample before the first batch."""

    roles: Roles
    targets: tuple[str, ...]
    kinds: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    notes: list[str]
    id_inferred: bool
    sample: pl.DataFrame
    types: dict[str, pl.DataType]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))


def _plan(source: Source, asked: Asked, parent: Corpus | None) -> _Plan:
    sample = source.sample()
    roles, notes = infer(sample, asked, source.name)
    targets = asked.target or (roles.target or "",)
    files = {}
    if source.root is not None:
        files = {"image": source.root}
    plain = [name for name in roles.inputs if name not in files]
    kinds: dict[str, str] = dict.fromkeys((name for name in roles.inputs if name in files), "image")
    if plain:
        found, more = kinds_of(sample, plain, asked=asked.inputs is not None, where=source.name)
        kinds |= found
        notes += more
    kinds = {name: kinds[name] for name in roles.inputs if name in kinds}
    types: dict[str, pl.DataType] = {}
    if parent is not None:
        kinds, types = dict(parent.kinds), _input_types(parent)
        for name in files:
            if parent.kinds.get(name) != "image":
                raise ColumnError(
                    f"{source.name} is a folder of images, and the corpus has none.",
                    "Append a source with the same columns.",
                )
    shapes = {}
    for name, kind in kinds.items():
        if kind == "array":
            shapes[name] = array_shape(sample.schema[name]) or (int(sample[name].list.len().drop_nulls()[0]),)
            if parent is not None and len(kinds) == 1 and shapes[name] != parent.shape:
                raise ColumnError(
                    f"{source.name}: '{name}' has the shape {shapes[name]}, not {parent.shape}.",
                    "Append arrays of the same shape.",
                )
    roles = replace(roles, inputs=tuple(kinds))
    plan = _Plan(
        roles,
        targets,
        kinds,
        shapes,
        files,
        [*source.notes, *notes],
        asked.id is None and roles.id is not None,
        sample,
        types,
    )
    inputs = _inputs(sample.head(0), plan, source.name)
    plan.schema = to_stored(inputs).schema
    for name, kind in kinds.items():
        if kind == "image":
            for side in ("width", "height"):
                plan.schema = plan.schema.append(pa.field(stored_name(f"{name}.{side}"), pa.int32()))
    plan.notes.append(
        "inputs: "
        + ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:20])
        + (f", ... {len(kinds)} in all" if len(kinds) > 20 else "")
    )
    return plan


def _input_types(parent: Corpus) -> dict[str, pl.DataType]:
    """Types of the parent's columns that a later source is brought to; arrays and images keep their own."""
    head = parent.read(np.zeros(0, np.int64))
    return {name: dtype for name, dtype in head.schema.items() if parent.kinds[name] not in ("image", "array")}


class _Reading:
    """One pass over a source: inputs go to the store, everything one-dimensional is kept."""

    def __init__(self, source: Source, plan: _Plan, progress: Progress | None) -> None:
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
        for batch in self.source.batches():
            self.seen += len(batch.frame)
            frame, positions = self._usable(batch)
            inputs = _inputs(frame, plan, self.source.name)
            hashes: dict[str, np.ndarray] = {}
            for name in images:
                frame, positions, inputs, hashes = self._looked_at(name, frame, positions, inputs, hashes)
            if self.progress is not None:
                self.progress("open", self.seen, self.source.total or self.seen)
            if not len(frame):
                continue
            stored = to_stored(inputs)
            cells = [
                (
                    name,
                    pa.array(hashes[name].view(np.int64))
                    if name in hashes
                    else stored.column(stored_name(name)).combine_chunks(),
                )
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
            yield from stored.combine_chunks().to_batches()

    def _keep(self, role: str, values: pl.Series) -> None:
        self.columns.setdefault(role, []).append(values)

    def _usable(self, batch: Batch) -> tuple[pl.DataFrame, pl.Series]:
        """Rows that have a target, a split, a weight and a group where these are asked for."""
        plan, roles = self.plan, self.plan.roles
        frame = batch.frame.with_columns(self._target(batch.frame).alias("__target"))
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
                    f"{self.source.name}: column '{roles.weight}' cannot be the weight: it holds {frame.schema[roles.weight]}, not numbers.",
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

    def corpus(
        self, folder: Path, *, fractions: Mapping[str, float] | None, task: str, seed: int, parent: Corpus | None
    ) -> Corpus:
        """Everything that is known once the last row is read."""
        source, plan, roles = self.source, self.plan, self.plan.roles
        position_dtype = source.position_dtype
        aside = pl.concat([source.aside.frame(position_dtype), self.aside.frame(position_dtype)]).sort(
            "position", maintain_order=True
        )
        if not self.rows:
            self._refuse_nothing_left(aside)
        positions = pl.concat(self.positions).alias("position")
        target = pl.concat(self.columns["target"]).alias(roles.target or "target")
        content = np.concatenate(self.content)
        if parent is not None:
            target = target.cast(parent.target.dtype)
        else:
            _check_target(target, task, source.name)
        roles, ids = self._ids(positions, content, target, parent)
        keys = hash_series(ids)
        groups = pl.concat(self.columns["group"]).alias(roles.group or "group") if roles.group else None
        weights = pl.concat(self.columns["weight"]).to_numpy().astype(np.float32) if roles.weight else None
        if weights is not None and (weights == 1).all():
            weights = None
        if roles.split is not None:
            splits = pl.concat(self.columns["split"]).alias("split")
            if parent is None and "train" not in (names := splits.unique().sort().to_list()):
                raise ColumnError(
                    f"{source.name}: column '{roles.split}' has the splits {', '.join(names[:10])} and none is 'train'.",
                    "Call the split to train on 'train', or give fractions: split={'train': 0.8, 'test': 0.2}.",
                )
        elif parent is not None:
            splits = pl.repeat("train", len(ids), dtype=pl.String, eager=True).alias("split")
        else:
            strata = splitting.strata_of(target, task)
            splits = splitting.assign(ids, fractions or splitting.DEFAULT, seed, strata, groups, keys)
            shares = ", ".join(f"{name} {share:g}" for name, share in (fractions or splitting.DEFAULT).items())
            plan.notes.append(
                f"split: {shares}, seed {seed}"
                + (", class by class" if strata is not None else "")
                + (f", whole groups of '{roles.group}'" if groups is not None else "")
            )
        if len(aside):
            plan.notes.append(
                f"{len(aside):,} row{'s are' if len(aside) > 1 else ' is'} set aside, first: {aside['reason'][0]}"
            )
        modality = modality_of(plan.kinds)
        shape = next(iter(plan.shapes.values())) if modality == "array" else None
        corpus = Corpus(
            roles=roles,
            kinds=plan.kinds,
            modality=modality,
            shape=shape,
            parent=None,
            edits=(),
            set_aside=aside,
            notes=tuple(plan.notes),
            ids=ids,
            positions=positions,
            target=target,
            split_names=splits,
            weights=weights,
            groups=groups,
            content=content,
            stores=(Store(folder, plan.shapes, plan.files),),
            index=np.arange(len(ids), dtype=np.int64),
        )
        corpus.__dict__["_id_hashes"] = keys
        return corpus

    def _ids(
        self, positions: pl.Series, content: np.ndarray, target: pl.Series, parent: Corpus | None
    ) -> tuple[Roles, pl.Series]:
        """A key column, else the paths, else content hashes."""
        roles, name = self.plan.roles, self.source.name
        if roles.id is not None:
            ids = pl.concat(self.columns["id"]).alias("id")
            problem = _id_problem(ids, positions, roles.id)
            if problem is None:
                return roles, ids
            if not self.plan.id_inferred:
                raise IdError(
                    f"{name}: {problem}",
                    "Choose a column of unique keys, or leave id= away: then ids are made from the content.",
                )
            self.plan.notes = [note for note in self.plan.notes if not note.startswith("id:")]
            self.plan.notes.append(
                f"id: content hashes, since {problem.rstrip('.')}; that column is left out of the inputs"
            )
            roles = replace(roles, id=None)
        elif positions.dtype == pl.String:
            self.plan.notes.append("id: the path of each file")
            return roles, positions.alias("id")
        else:
            self.plan.notes.append("id: a hash of each row's content (no key column)")
        whole = mix(content + mix(hash_series(target) + U64(1)))
        return roles, content_ids(whole, parent.ids if parent is not None else None)

    def _refuse_nothing_left(self, aside: pl.DataFrame) -> None:
        name, target = self.source.name, "+".join(self.plan.targets)
        if not len(aside):
            raise SourceError(f"{name} holds no rows.", "Give at least one row.")
        if self.without_target == len(aside):
            raise TargetError(
                f"{name}: column '{target}' has no value in any of the {len(aside):,} rows.",
                "Choose another target with --target, or check how the file was read.",
            )
        first = aside.row(0, named=True)
        raise SourceError(
            f"{name}: none of the {len(aside):,} rows can be used; the first ({first['position']}): {first['reason']}.",
            "Mend the rows, or check that the source is what it should be.",
        )


def _inputs(frame: pl.DataFrame, plan: _Plan, name: str) -> pl.DataFrame:
    """The input columns in the types of the store."""
    columns = []
    for column, kind in plan.kinds.items():
        expression = pl.col(column)
        if kind == "array" and frame.schema[column] == pl.List:
            expression = expression.list.to_array(plan.shapes[column][0])
        elif column in plan.types:
            expression = expression.cast(plan.types[column], strict=True)
        columns.append(expression)
    try:
        return frame.select(columns)
    except pl.exceptions.PolarsError as error:
        raise ColumnError(f"{name}: {str(error).splitlines()[0]}.", "Append columns of the same types.") from error


def _check_target(target: pl.Series, task: str, name: str) -> None:
    if target.dtype == pl.List:
        if task not in ("auto", "multilabel"):
            raise TargetError(
                f"{name}: column '{target.name}' holds lists, and task='{task}' needs one value per row.",
                "Choose task='multilabel', or another target.",
            )
        return
    if task == "regression" and not target.dtype.is_numeric():
        raise TargetError(
            f"{name}: column '{target.name}' holds {target.dtype}, and regression needs numbers.",
            "Choose a numeric target with --target, or another task.",
        )
    if task == "multilabel":
        raise TargetError(
            f"{name}: column '{target.name}' holds {target.dtype}, and multilabel needs a list per row or several 0/1 columns.",
            "Give target=[...] with the label columns.",
        )
    if target.n_unique() < 2:
        raise TargetError(
            f"{name}: column '{target.name}' holds only the value {target[0]!r} in its {len(target):,} usable rows.",
            "Choose another target with --target, or check how the file was read.",
        )


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


def _id_problem(ids: pl.Series, positions: pl.Series, column: str) -> str | None:
    if ids.null_count():
        return f"column '{column}' has no id at position {positions.filter(ids.is_null())[0]}."
    repeated = ids.is_duplicated()
    if repeated.any():
        value = ids.filter(repeated)[0]
        where = positions.filter(ids == value).head(2).to_list()
        return f"column '{column}' repeats the id '{value}' (positions {where[0]} and {where[1]})."
    return None


def _merged(asked: Asked, given: Asked) -> Asked:
    """The user's word before the source's."""
    return Asked(
        **{
            role: getattr(asked, role) if getattr(asked, role) is not None else getattr(given, role)
            for role in Asked.__dataclass_fields__
        }
    )


def _remembered(memo: Path, root: Path) -> Corpus | None:
    """The corpus that an unchanged source was read into, if its store is still whole; a damaged store is cleared away."""
    try:
        folder = root / "corpora" / json.loads(memo.read_text(encoding="utf-8"))["store"]
    except (ValueError, KeyError, OSError):
        return None
    try:
        corpus = Corpus.load(folder)
        len(corpus.stores[0])
    except SourceError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return corpus


def _is_saved(path: Path) -> bool:
    try:
        return (path.expanduser() / "corpus.json").is_file()
    except (OSError, ValueError, RuntimeError):  # no possible path; `source_of` says what is wrong with it
        return False


def _aside_bytes(corpus: Corpus) -> bytes:
    return corpus.set_aside.write_csv().encode()


__all__ = ["hash_cells", "ingest", "ingest_more", "open"]
