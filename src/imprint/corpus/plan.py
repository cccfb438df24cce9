"""What is to be read from a source, settled from its first rows before the first batch is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus.corpus import Corpus
from imprint.corpus.kinds import array_shape, kinds_of
from imprint.corpus.roles import Asked, Roles, infer
from imprint.corpus.sources import Source
from imprint.corpus.store import stored_name, to_stored
from imprint.errors import ColumnError


@dataclass
class Plan:
    """What is to be read.

    Attributes:
        roles: The column of each role; `inputs` are those of `kinds`.
        targets: The target's columns (several make a multilabel target).
        kinds: Input column -> kind.
        shapes: Array column -> shape of one value.
        files: Image column -> folder that its paths are relative to.
        notes: What was inferred, in words.
        id_inferred: The id column was inferred, so that it may turn out not to be one.
        types: Types that inputs are brought to when they are appended to a corpus.
        schema: Arrow schema of what is stored.
    """

    roles: Roles
    targets: tuple[str, ...]
    kinds: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    notes: list[str]
    id_inferred: bool
    types: dict[str, pl.DataType]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))


def settle(source: Source, asked: Asked, parent: Corpus | None) -> Plan:
    """Infer roles and kinds from the sample; for an appended source they are the parent's."""
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
    plan = Plan(
        roles,
        targets,
        kinds,
        shapes,
        files,
        [*source.notes, *notes],
        asked.id is None and roles.id is not None,
        types,
    )
    inputs = stored_inputs(sample.head(0), plan, source.name)
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


def stored_inputs(frame: pl.DataFrame, plan: Plan, name: str) -> pl.DataFrame:
    """The input columns in the types of the store."""
    if not plan.types and all(kind != "array" for kind in plan.kinds.values()):
        return frame[list(plan.kinds)]  # no expression, no engine: this is called for every block
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


def _input_types(parent: Corpus) -> dict[str, pl.DataType]:
    """Types of the parent's columns that a later source is brought to; arrays and images keep their own."""
    head = parent.read(np.zeros(0, np.int64))
    return {name: dtype for name, dtype in head.schema.items() if parent.kinds[name] not in ("image", "array")}
