"""From what one pass has read to a corpus: ids, checks of the target, splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from imprint.corpus import splitting
from imprint.corpus.corpus import Corpus, as_splits
from imprint.corpus.hashing import U64, content_ids, hash_series, mix
from imprint.corpus.kinds import modality_of
from imprint.corpus.reading import Reading
from imprint.corpus.roles import Roles
from imprint.corpus.store import Store
from imprint.errors import ColumnError, IdError, SourceError, TargetError

# Rows from which on columns are not copied into one piece of memory.
LONG = 200_000


def assemble(
    reading: Reading,
    folder: Path,
    *,
    fractions: Mapping[str, float] | None,
    task: str,
    seed: int,
    parent: Corpus | None,
) -> Corpus:
    """The corpus of the rows that were read.

    Args:
        reading: A finished pass.
        folder: Where the inputs were stored.
        fractions: Split name -> share; None for the default.
        task: As the user gave it; decides what is stratified.
        seed: Seed of the split.
        parent: The corpus that these rows are to be appended to: its target type, and ids that are free there.
    """
    source, plan = reading.source, reading.plan
    unread, unusable = (one.frame(source.position_dtype) for one in (source.aside, reading.aside))
    aside = pl.concat([unread, unusable]).sort("position", maintain_order=True)
    if not reading.rows:
        _refuse_nothing_left(reading, aside)
    positions = _joined(reading.positions).alias("position")
    target = _joined(reading.columns["target"]).alias(plan.roles.target or "target")
    content = np.concatenate(reading.content)
    reading.content.clear()
    if parent is None:
        _check_target(target, task, source.name)
    else:
        target = _as_parent(target, parent, source.name)
    roles, ids = _ids(reading, positions, content, target, parent)
    keys = hash_series(ids)
    groups = _joined(reading.columns["group"]).alias(roles.group or "group") if roles.group else None
    weights = _joined(reading.columns["weight"]).to_numpy().astype(np.float32) if roles.weight else None
    if weights is not None and (weights == 1).all():
        weights = None
    if roles.split is not None:
        splits = _given_splits(reading, parent)
    elif parent is not None:
        splits = pl.repeat("train", len(ids), dtype=pl.String, eager=True).alias("split")
    else:
        strata = splitting.strata_of(target, task)
        shares = fractions or splitting.DEFAULT
        splits = splitting.assign(ids, shares, seed, strata, groups, keys)
        said = f"split: {', '.join(f'{name} {share:g}' for name, share in shares.items())}, seed {seed}"
        said += ", class by class" if strata is not None else ""
        plan.notes.append(said + (f", whole groups of '{roles.group}'" if groups is not None else ""))
    if len(aside):
        are = "rows are" if len(aside) > 1 else "row is"
        plan.notes.append(f"{len(aside):,} {are} set aside, first: {aside['reason'][0]}")
    modality = modality_of(plan.kinds)
    corpus = Corpus(
        roles=roles,
        kinds=plan.kinds,
        modality=modality,
        shape=next(iter(plan.shapes.values())) if modality == "array" else None,
        parent=None,
        edits=(),
        set_aside=aside,
        notes=tuple(plan.notes),
        ids=ids,
        positions=positions,
        target=target,
        split_codes=splits if splits.dtype == pl.Enum else as_splits(splits),
        weights=weights,
        groups=groups,
        content=content,
        stores=(Store(folder, plan.shapes, plan.files),),
        index=np.arange(len(ids), dtype=np.int64),
    )
    corpus.__dict__["_id_hashes"] = keys
    return corpus


def _joined(pieces: list[pl.Series]) -> pl.Series:
    """The pieces as one series; long ones stay in pieces rather than being held twice."""
    return pl.concat(pieces, rechunk=sum(map(len, pieces)) < LONG)


def _ids(
    reading: Reading, positions: pl.Series, content: np.ndarray, target: pl.Series, parent: Corpus | None
) -> tuple[Roles, pl.Series]:
    """A key column, else the paths, else content hashes."""
    plan, roles, name = reading.plan, reading.plan.roles, reading.source.name
    if roles.id is not None:
        ids = _joined(reading.columns["id"]).alias("id")
        problem = _id_problem(ids, positions, roles.id)
        if problem is None:
            return roles, ids
        if not plan.id_inferred:
            raise IdError(
                f"{name}: {problem}",
                "Choose a column of unique keys, or leave id= away: then ids are made from the content.",
            )
        plan.notes = [note for note in plan.notes if not note.startswith("id:")]
        plan.notes.append(f"id: content hashes, since {problem.rstrip('.')}; that column is left out of the inputs")
        roles = replace(roles, id=None)
    elif positions.dtype == pl.String:
        plan.notes.append("id: the path of each file")
        return roles, positions.alias("id")
    else:
        plan.notes.append("id: a hash of each row's content (no key column)")
    whole = hash_series(target)
    whole += U64(1)
    mix(whole)
    whole += content
    mix(whole)
    return roles, content_ids(whole, parent.ids if parent is not None else None)


def _given_splits(reading: Reading, parent: Corpus | None) -> pl.Series:
    splits = _joined(reading.columns["split"]).alias("split")
    names = splits.unique().sort().to_list()
    if parent is None and "train" not in names:
        raise ColumnError(
            f"{reading.source.name}: column '{reading.plan.roles.split}' has the splits {', '.join(names[:10])} and none is 'train'.",
            "Call the split to train on 'train', or give fractions: split={'train': 0.8, 'test': 0.2}.",
        )
    return splits


def _as_parent(target: pl.Series, parent: Corpus, name: str) -> pl.Series:
    try:
        return target.cast(parent.target.dtype, strict=True)
    except pl.exceptions.PolarsError as error:
        raise TargetError(
            f"{name}: the target '{target.name}' is {target.dtype}, and the corpus' is {parent.target.dtype}.",
            "Append targets of the same type.",
        ) from error


def _refuse_nothing_left(reading: Reading, aside: pl.DataFrame) -> None:
    name, target = reading.source.name, "+".join(reading.plan.targets)
    if not len(aside):
        raise SourceError(f"{name} holds no rows.", "Give at least one row.")
    if reading.without_target == len(aside):
        raise TargetError(
            f"{name}: column '{target}' has no value in any of the {len(aside):,} rows.",
            "Choose another target with --target, or check how the file was read.",
        )
    first = aside.row(0, named=True)
    raise SourceError(
        f"{name}: none of the {len(aside):,} rows can be used; the first ({first['position']}): {first['reason']}.",
        "Mend the rows, or check that the source is what it should be.",
    )


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


def _id_problem(ids: pl.Series, positions: pl.Series, column: str) -> str | None:
    if ids.null_count():
        return f"column '{column}' has no id at position {positions.filter(ids.is_null())[0]}."
    repeated = ids.is_duplicated()
    if repeated.any():
        value = ids.filter(repeated)[0]
        where = positions.filter(ids == value).head(2).to_list()
        return f"column '{column}' repeats the id '{value}' (positions {where[0]} and {where[1]})."
    return None
