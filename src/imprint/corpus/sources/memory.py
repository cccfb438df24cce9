"""Data in memory: Polars and pandas frames, Arrow tables, (X, y) arrays, Hugging Face and PyTorch data sets.

None of those libraries is imported: an object is known by what it can do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus.kinds import storable
from imprint.corpus.roles import Asked
from imprint.corpus.sources.arrow import BATCH_BYTES, Frames, to_frame
from imprint.corpus.sources.base import Source
from imprint.errors import ColumnError, SourceError

# Items taken from a PyTorch data set at a time.
ITEMS = 1024


def polars_frame(frame: pl.DataFrame | pl.LazyFrame, name: str = "the data frame") -> Source:
    """A Polars frame; a lazy one is collected."""
    whole = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    _refuse_no_columns(whole.width, name)
    rows = _rows_per_piece(int(whole.estimated_size()), len(whole))
    return Frames(name, len(whole), lambda: (piece for piece in whole.iter_slices(rows)))


def arrow_table(table: Any, name: str = "the Arrow table") -> Source:
    """An Arrow table or record batch."""
    table = pa.table(table)
    _refuse_no_columns(table.num_columns, name)
    repeated = [one for one in table.column_names if table.column_names.count(one) > 1]
    if repeated:
        raise SourceError(f"{name}: column '{repeated[0]}' stands more than once.", "Give each column its own name.")
    rows = _rows_per_piece(table.nbytes, len(table))
    return Frames(name, len(table), lambda: (to_frame(batch) for batch in table.to_batches(max_chunksize=rows)))


def pandas_frame(frame: Any) -> Source:
    """A pandas frame; its index is not a column of it."""
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(
            f"the pandas frame: column '{repeated[0]}' stands more than once.", "Give each column its own name."
        )
    try:
        table = pa.Table.from_pandas(frame.set_axis(names, axis=1), preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise SourceError(
            f"the pandas frame has a column of mixed or unknown types: {str(error).splitlines()[0]}.",
            "Give each column one type: frame['column'] = frame['column'].astype(str).",
        ) from error
    return arrow_table(table, "the pandas frame")


def arrays(inputs: Any, target: Any) -> Source:
    """(X, y): frames and their target column, a list of strings, or a numeric array whose first axis is the example."""
    y = _target(target)
    frame = _as_frame(inputs)
    if frame is None:
        frame = _array_frame(inputs)
    if len(frame) != len(y):
        raise SourceError(f"X holds {len(frame):,} examples and y {len(y):,} targets.", "Give one target per example.")
    if y.name in frame.columns:
        raise ColumnError(
            f"X has a column '{y.name}' and so is the target called.", "Rename it, or give one frame and target=."
        )
    source = polars_frame(frame.with_columns(y), "the arrays")
    source.asked = Asked(target=(y.name,))
    return source


def hugging_face(dataset: Any, name: str = "the Hugging Face data set") -> Source:
    """A `datasets.Dataset`: read as Arrow in the order of its indices, class labels by their names."""
    features = dict(dataset.features)
    names = {
        column: list(feature.names)
        for column, feature in features.items()
        if isinstance(getattr(feature, "names", None), list)
    }
    arrow = dataset.with_format("arrow")

    def pieces() -> Iterator[pl.DataFrame]:
        for table in arrow.iter(batch_size=1024):
            frame = to_frame(table)
            yield frame.with_columns(
                _class_names(pl.col(column), classes) for column, classes in names.items() if column in frame.columns
            )

    return Frames(name, len(dataset), pieces)


def hugging_face_splits(splits: Any) -> Source:
    """A `datasets.DatasetDict`: its keys become the split."""
    parts = {str(key): hugging_face(dataset) for key, dataset in splits.items()}
    if any("split" in part.sample().columns for part in parts.values()):
        raise ColumnError("The data sets already have a column 'split'.", "Rename it, or open one of them.")

    def pieces() -> Iterator[pl.DataFrame]:
        for key, part in parts.items():
            for batch in part.batches():
                yield batch.frame.with_columns(pl.lit(key).alias("split"))

    source = Frames("the Hugging Face data sets", sum(part.total or 0 for part in parts.values()), pieces)
    source.asked = Asked(split="split")
    return source


def torch_dataset(dataset: Any) -> Source:
    """A PyTorch map-style data set whose items are (x, y) or dictionaries; x an image, a tensor, a string or a number.

    The items are fetched one by one, since that is all such a data set can do; a number after x and y is refused.
    """
    name = f"the data set {type(dataset).__name__}"

    def pieces() -> Iterator[pl.DataFrame]:
        for start in range(0, len(dataset), ITEMS):
            yield _items([dataset[k] for k in range(start, min(start + ITEMS, len(dataset)))], start, name)

    source = Frames(name, len(dataset), pieces)
    if not isinstance(dataset[0], dict):
        source.asked = Asked(target=("y",))
    return source


def _items(items: Sequence[Any], start: int, name: str) -> pl.DataFrame:
    first = items[0]
    if isinstance(first, dict):
        columns = {key: [item.get(key) for item in items] for key in first}
    elif isinstance(first, (tuple, list)) and len(first) == 2:
        columns = {"x": [item[0] for item in items], "y": [item[1] for item in items]}
    else:
        raise SourceError(
            f"{name}: item {start} is a {type(first).__name__}, not (x, y) or a dictionary.",
            "Let __getitem__ return (input, target).",
        )
    return pl.DataFrame([_column(str(key), values, start, name) for key, values in columns.items()])


def _column(key: str, values: list[Any], start: int, name: str) -> pl.Series:
    first = values[0]
    if hasattr(first, "save") and hasattr(first, "mode"):  # a Pillow image
        return pl.Series(key, [_png(one) for one in values], dtype=pl.Binary)
    if hasattr(first, "detach") or isinstance(first, (np.ndarray, np.generic)):
        parts = [_numpy(one) for one in values]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            raise SourceError(
                f"{name}: '{key}' has the shapes {', '.join(map(str, sorted(shapes)[:3]))} in items {start} to {start + len(values) - 1}.",
                "Bring all examples to one shape.",
            )
        return _array_series(key, np.stack(parts))
    try:
        return pl.Series(key, values, strict=True)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise SourceError(
            f"{name}: '{key}' cannot be a column: {error}.", "Return images, tensors, strings or numbers of one type."
        ) from error


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _as_frame(inputs: Any) -> pl.DataFrame | None:
    if isinstance(inputs, pl.DataFrame):
        return inputs
    if isinstance(inputs, pl.LazyFrame):
        return inputs.collect()
    if isinstance(inputs, pl.Series):
        return inputs.alias("x").to_frame()
    if isinstance(inputs, (pa.Table, pa.RecordBatch)):
        return to_frame(inputs)
    if hasattr(inputs, "set_axis") and hasattr(inputs, "columns"):
        return pl.concat(list(pandas_frame(inputs).pieces()))  # type: ignore[attr-defined]
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(one, str) for one in inputs):
        return pl.DataFrame({"x": list(inputs)})
    return None


def _array_frame(inputs: Any) -> pl.DataFrame:
    if hasattr(inputs, "tocsr"):
        raise SourceError(
            "X is a sparse matrix.", "Give a dense array: X.toarray(), or the texts or columns that it was made from."
        )
    try:
        values = _numpy(inputs)
    except ValueError as error:
        raise SourceError(f"X is no array: {error}.", "Give examples of one shape.") from error
    if values.dtype.kind in "US" or (
        values.dtype == object and values.ndim == 1 and all(isinstance(one, str) for one in values)
    ):
        return pl.DataFrame({"x": [str(one) for one in values]})
    if values.dtype.kind not in "fiub":
        raise SourceError(
            f"X is an array of {values.dtype}, not of numbers.",
            "Give numbers, or a data frame with one column per input.",
        )
    if values.ndim == 0:
        raise SourceError("X is a single number.", "Give an array whose first axis is the example.")
    return _array_series("x", values).to_frame()


def _array_series(name: str, values: np.ndarray) -> pl.Series:
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) if values.ndim > 1 else values
    if values.dtype == np.float16 or (values.dtype.kind == "f" and values.dtype.itemsize > 8):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if values.ndim > 1 and not all(values.shape):
        raise SourceError(
            f"'{name}' has the shape {values.shape}: an axis is empty.",
            "Give arrays with at least one value per example.",
        )
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    if values.ndim <= 1:
        return pl.Series(name, values)
    return pl.Series(name, values.reshape(-1)).reshape(values.shape)


def _target(target: Any) -> pl.Series:
    if isinstance(target, pl.Series):
        return target.alias(target.name or "y")
    if hasattr(target, "to_frame") and hasattr(target, "name"):
        table = pa.Table.from_pandas(target.to_frame("y"), preserve_index=False)
        return to_frame(table)["y"].alias(str(target.name or "y"))
    if isinstance(target, list) and target and isinstance(target[0], list):
        return pl.Series("y", target)
    try:
        values = _numpy(target)
    except ValueError as error:
        raise SourceError(f"y is no array: {error}.", "Give one target per example.") from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "iub" and np.isin(values, (0, 1)).all():
        # Indicator matrix: the labels are the numbers of its columns.
        return pl.Series("y", [np.flatnonzero(row).tolist() for row in values], dtype=pl.List(pl.Int64))
    if values.ndim != 1:
        raise SourceError(
            f"y has the shape {values.shape}.",
            "Give one target per example, or a 0/1 matrix with one column per label.",
        )
    if values.dtype.kind in "OUS":
        try:
            return pl.Series(
                "y", [one.decode() if isinstance(one, bytes) else one for one in values.tolist()], strict=True
            )
        except (TypeError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
            raise SourceError(f"y mixes types: {error}.", "Give targets of one type: numbers, or strings.") from error
    return _array_series("y", values)


def _class_names(column: pl.Expr, classes: list[str]) -> pl.Expr:
    """Class codes -> names; a code without a name (-1 marks unlabelled rows) becomes null."""
    return column.replace_strict(range(len(classes)), classes, default=None, return_dtype=pl.String)


def _rows_per_piece(size: int, rows: int) -> int:
    return max(64, min(1 << 16, BATCH_BYTES // max(1, size // max(rows, 1))))


def _refuse_no_columns(width: int, name: str) -> None:
    if not width:
        raise SourceError(f"{name} has no columns.", "Give at least one input and a target.")


__all__ = [
    "arrays",
    "arrow_table",
    "hugging_face",
    "hugging_face_splits",
    "pandas_frame",
    "polars_frame",
    "storable",
    "torch_dataset",
]
