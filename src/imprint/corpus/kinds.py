"""What a column holds: numeric, categorical, text, datetime, image or array; and which types can be stored at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from imprint.errors import ColumnError

# First bytes of the image formats that Pillow reads everywhere.
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"P5",
    b"P6",
    b"\x00\x00\x01\x00",
)
# A string column is text when its values differ from row to row and have at least this many words (or characters, for
# scripts without spaces) on average; a column that is the only input needs fewer words to be text.
TEXT_WORDS, TEXT_CHARACTERS, LONE_TEXT_WORDS = 4.0, 60.0, 1.5
TEXT_DISTINCT = 0.3


def storable(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in the types that a corpus stores. The result's types depend on the frame's types alone, never on its values.

    Categories become strings, decimals and durations (in seconds) floats, times seconds since midnight; structs are spread
    into `name.field` columns, except the {bytes, path} structs in which Hugging Face keeps images, which become their bytes.

    >>> storable(pl.DataFrame({"a": [{"b": 1, "c": None}]})).schema
    Schema([('a.b', Int64), ('a.c', String)])
    """
    while True:
        flat: list[pl.Expr] = []
        again = False
        for name, dtype in frame.schema.items():
            column = pl.col(name)
            if isinstance(dtype, pl.Struct):
                fields = [field.name for field in dtype.fields]
                if is_image_struct(dtype):
                    flat.append(column.struct.field("bytes").alias(name))
                else:
                    again = True
                    flat += [column.struct.field(field).alias(f"{name}.{field}") for field in fields]
            else:
                flat.append(_storable(column, dtype))
        names = [one.meta.output_name() for one in flat]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ColumnError(
                f"Two columns are called '{repeated}' once nested fields are spread.", "Rename one of them."
            )
        frame = frame.select(flat)
        if not again:
            return frame


def _storable(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Null or isinstance(dtype, (pl.Categorical, pl.Enum)):
        return column.cast(pl.String)
    if dtype.is_decimal() or dtype in (pl.Int128, pl.UInt128):
        return column.cast(pl.Float64)
    if dtype == pl.Float16:
        return column.cast(pl.Float32)
    if isinstance(dtype, pl.Duration):
        return column.dt.total_microseconds() / 1e6
    if dtype == pl.Time:
        return column.cast(pl.Int64) / 1e9
    if dtype == pl.Object:
        raise ColumnError(
            f"Column '{column.meta.output_name()}' holds Python objects.",
            "Turn it into numbers, strings or bytes first.",
        )
    return column


def is_image_struct(dtype: pl.DataType) -> bool:
    """Is this Hugging Face's image (or audio) struct?"""
    return isinstance(dtype, pl.Struct) and {field.name for field in dtype.fields} == {"bytes", "path"}


def is_encoded_image(data: bytes) -> bool:
    """Do these bytes begin like an encoded image?

    >>> is_encoded_image(b"\\xff\\xd8\\xff\\xe0"), is_encoded_image(b"hello")
    (True, False)
    """
    return data.startswith(MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def kinds_of(sample: pl.DataFrame, inputs: Sequence[str], asked: bool, where: str) -> tuple[dict[str, str], list[str]]:
    """Kind of each input column, from the first rows of the source.

    Args:
        sample: First rows, in storable types.
        inputs: Candidate input columns.
        asked: Did the user name them? Then a column that cannot be used raises; else it is left out with a note.
        where: Name of the source, for messages.

    Returns:
        column -> kind for the columns that can be used, and the notes.
    """
    kinds: dict[str, str] = {}
    notes: list[str] = []
    for name in inputs:
        kind, problem = _kind(sample[name], alone=len(inputs) == 1)
        if kind:
            kinds[name] = kind
        elif asked:
            raise ColumnError(
                f"{where}: column '{name}' cannot be an input: {problem}.",
                "Take it out of inputs=, or convert it first.",
            )
        else:
            notes.append(f"'{name}' is left out of the inputs: {problem}")
    if not kinds:
        raise ColumnError(
            f"{where}: no column can be an input: {'; '.join(notes) or 'there is none'}.",
            "Give columns with numbers, strings, dates, images or arrays of one shape.",
        )
    return kinds, notes


def modality_of(kinds: dict[str, str]) -> str:
    """What the inputs are as a whole.

    >>> modality_of({"review": "text"}), modality_of({"review": "text", "stars": "numeric"})
    ('text', 'table')
    """
    values = list(kinds.values())
    if "image" in values:
        return "image"
    if values == ["array"]:
        return "array"
    return "text" if set(values) == {"text"} else "table"


def array_shape(dtype: pl.DataType) -> tuple[int, ...]:
    """Shape of one value of an array column; () of anything else."""
    return tuple(dtype.shape) if isinstance(dtype, pl.Array) else ()


def _kind(values: pl.Series, alone: bool) -> tuple[str | None, str]:
    """(kind, "") or (None, why not)."""
    dtype = values.dtype
    if dtype.is_numeric():
        return "numeric", ""
    if dtype == pl.Boolean:
        return "categorical", ""
    if dtype.is_temporal():
        return "datetime", ""
    if dtype == pl.String:
        return ("text" if _is_text(values, alone) else "categorical"), ""
    if dtype == pl.Binary:
        some = values.drop_nulls().head(20).to_list()
        if some and any(is_encoded_image(data) for data in some):
            return "image", ""
        return None, "it holds bytes that are not encoded images"
    if isinstance(dtype, (pl.Array, pl.List)):
        inner: Any = dtype
        while isinstance(inner, (pl.Array, pl.List)):
            inner = inner.inner
        if not inner.is_numeric():
            return None, f"it holds lists of {inner}"
        if isinstance(dtype, pl.Array):
            return "array", ""
        if isinstance(dtype.inner, (pl.Array, pl.List)):
            return None, "it holds lists of lists"
        lengths = values.list.len().drop_nulls().unique()
        if len(lengths) == 1 and lengths[0]:
            return "array", ""
        return None, "its lists differ in length"
    return None, f"its type {dtype} is not known here"


def _is_text(values: pl.Series, alone: bool) -> bool:
    given = values.drop_nulls()
    if not len(given) or given.n_unique() < TEXT_DISTINCT * len(given):
        return False
    words = float(given.str.count_matches(r"\S+").mean() or 0)  # type: ignore[arg-type]
    characters = float(given.str.len_chars().mean() or 0)  # type: ignore[arg-type]
    return words >= (LONE_TEXT_WORDS if alone else TEXT_WORDS) or characters >= TEXT_CHARACTERS
