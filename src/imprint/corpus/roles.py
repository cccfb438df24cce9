"""Which column plays which part, and how that is guessed from names and types when the user does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from imprint.errors import ColumnError, nearest

TARGET_NAMES = ("label", "labels", "target", "targets", "class", "y", "outcome")
ID_NAMES = ("id", "_id", "uid", "uuid", "guid", "key", "row_id", "example_id", "sample_id")
SPLIT_NAMES = ("split", "subset", "fold", "partition")
# "weight" alone may be a person's weight, a feature; these two are never one.
WEIGHT_NAMES = ("sample_weight", "example_weight")
# What people call the splits -> what they are called here.
SPLIT_VALUES = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Roles:
    """The column of each role. `target` of a corpus made from several 0/1 columns is their names joined by '+'."""

    inputs: tuple[str, ...]
    target: str | None = None
    id: str | None = None
    split: str | None = None
    group: str | None = None
    weight: str | None = None

    def spec(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """The roles as the user (or the source itself) gave them; None = not said.

    `resplit` says that fractions were given: a column that looks like splits is then neither the split nor an input.
    """

    inputs: tuple[str, ...] | None = None
    target: tuple[str, ...] | None = None
    id: str | None = None
    split: str | None = None
    group: str | None = None
    weight: str | None = None
    resplit: bool = False

    @staticmethod
    def of(**given: Any) -> Asked:
        """From what `imprint.open` was called with: a name or a list of names.

        >>> Asked.of(target="label", inputs=["a", "b"])
        Asked(inputs=('a', 'b'), target=('label',), id=None, split=None, group=None, weight=None, resplit=False)
        """
        for role in ("inputs", "target"):
            if given.get(role) is not None:
                names = given[role]
                given[role] = (names,) if isinstance(names, str) else tuple(names)
                if not given[role] or not all(isinstance(name, str) for name in given[role]):
                    raise ColumnError(
                        f"{role}={names!r} names no column.", f"Give {role} as a column name or a list of them."
                    )
        for role in ("id", "split", "group", "weight"):
            if given.get(role) is not None and not isinstance(given[role], str):
                raise ColumnError(f"{role}={given[role]!r} is not a column name.", f"Give {role} as one column name.")
        return Asked(**given)


def infer(sample: pl.DataFrame, asked: Asked, where: str) -> tuple[Roles, list[str]]:
    """Complete the roles from the sample's column names; say in words what was inferred.

    Args:
        sample: The first rows of the source.
        asked: What the user or the source said.
        where: Name of the source, for messages.

    Returns:
        The roles (inputs still unfiltered by type) and the notes.

    Raises:
        ColumnError: A named column is missing or named twice, or no column is unambiguously the target.
    """
    columns = sample.columns
    notes: list[str] = []
    _check_named(columns, asked, where)
    folded = {name.strip().lower(): name for name in columns}
    spoken_for = {*(asked.inputs or ()), *(asked.target or ())} | {
        name for name in (asked.id, asked.split, asked.group, asked.weight) if name
    }

    def named(names: Sequence[str]) -> list[str]:
        return [folded[name] for name in names if name in folded and folded[name] not in spoken_for]

    target = asked.target
    if target is None:
        target = (_guess_target(columns, named(TARGET_NAMES), where),)
        notes.append(f"target: '{target[0]}' (named so)")
    spoken_for |= set(target)

    split, unused = asked.split, None
    if split is None:
        for name in named(SPLIT_NAMES):
            if not _looks_like_splits(sample[name]):
                continue
            if asked.resplit:
                unused = name
                notes.append(f"not used: '{name}' (the splits are drawn anew)")
            else:
                split = name
                notes.append(
                    f"split: '{name}' (holds {', '.join(sorted(map(str, sample[name].drop_nulls().unique().to_list())))})"
                )
            break
    id_column = asked.id
    if id_column is None:
        for name in named(ID_NAMES):
            values = sample[name]
            if (
                (values.dtype.is_integer() or values.dtype == pl.String)
                and not values.null_count()
                and values.is_unique().all()
            ):
                id_column = name
                notes.append(f"id: '{name}' (named so, no repeats)")
                break
    weight = asked.weight
    if weight is None:
        for name in named(WEIGHT_NAMES):
            weight = name
            notes.append(f"weight: '{name}' (named so)")
            break
    taken = {*target, split, unused, id_column, weight, asked.group}
    inputs = asked.inputs
    if inputs is None:
        inputs = tuple(name for name in columns if name not in taken)
        if not inputs:
            raise ColumnError(
                f"{where} has no column left for the inputs (columns: {', '.join(columns)}).",
                "Name the inputs with inputs=[...], or check the separator of the file.",
            )
    both = [name for name in inputs if name in taken]
    if both:
        raise ColumnError(
            f"Column '{both[0]}' is an input and another role at once.",
            "Take it out of inputs=, or give the role another column.",
        )
    return Roles(inputs, "+".join(target), id_column, split, asked.group, weight), notes


def canonical_splits(values: pl.Series) -> pl.Series:
    """Split names in this system's words ("validation" -> "valid"); unknown names stay as they are.

    >>> canonical_splits(pl.Series(["Training", "dev", "fold-3"])).to_list()
    ['train', 'valid', 'fold-3']
    """
    text = values.cast(pl.String)
    folded = text.str.strip_chars().str.to_lowercase()
    return folded.replace_strict(SPLIT_VALUES, default=text, return_dtype=pl.String).alias("split")


def _guess_target(columns: list[str], candidates: list[str], where: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    shown = ", ".join(columns[:40]) + (f", ... ({len(columns)} in all)" if len(columns) > 40 else "")
    why = (
        f"{len(candidates)} columns could be the target ({', '.join(candidates)})"
        if candidates
        else "no column is named like a target"
    )
    raise ColumnError(
        f"{where}: {why}. Columns: {shown}.",
        "Say which column is to be predicted: --target COLUMN (target= in Python).",
    )


def _looks_like_splits(values: pl.Series) -> bool:
    if values.dtype != pl.String or not len(values):
        return False
    known = values.drop_nulls().str.strip_chars().str.to_lowercase().unique()
    return 0 < len(known) <= len(SPLIT_VALUES) and bool(known.is_in(list(SPLIT_VALUES)).all())


def _check_named(columns: list[str], asked: Asked, where: str) -> None:
    seen: dict[str, str] = {}
    wanted = [("inputs", name) for name in asked.inputs or ()] + [("target", name) for name in asked.target or ()]
    wanted += [(role, getattr(asked, role)) for role in ("id", "split", "group", "weight") if getattr(asked, role)]
    for role, name in wanted:
        if name not in columns:
            raise ColumnError(f"{where} has no column '{name}' (asked for as {role}).", nearest(name, columns))
        if name in seen and not (role == "group" or seen[name] == "group"):
            raise ColumnError(
                f"Column '{name}' is asked for as {seen[name]} and as {role}.", "Give each role its own column."
            )
        seen[name] = role
