"""Evidence tables in Lance: appended epoch by epoch, cut back on resume, read by blocks.

An epoch is one append and so one fragment, rows in index order. Reading a block of examples over all epochs is one contiguous read per
fragment, which is what keeps memory bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from imprint.errors import RunError
from imprint.recording.files import remove, room

# No limit on the rows of a file: one fragment per append.
ROWS_PER_FILE = 2**40
# Examples encoded and written at a time.
CHUNK = 16384


def exists(path: Path) -> bool:
    """Whether a table is there. What a writer left that was killed before its first commit is none, and is removed."""
    if any((path / "_versions").glob("*.manifest")):
        return True
    remove(path)
    return False


def append(path: Path, table: pa.Table) -> None:
    """Add rows, creating the table if it is not there."""
    with room(path):
        mode = "append" if exists(path) else "create"
        lance.write_dataset(table, str(path), mode=mode, max_rows_per_file=ROWS_PER_FILE)


def open_table(path: Path) -> lance.LanceDataset:
    """Open a table; a missing or damaged one raises `RunError` that names it."""
    if not path.exists():
        raise RunError(f"{path} is missing.", "The run was not recorded, or is incomplete; fit again.")
    with _readable(path):
        return lance.dataset(str(path))


def cut(path: Path, last: int) -> None:
    """Remove every epoch after `last`."""
    if not exists(path):
        return
    if last < 1:
        remove(path)
        return
    with _readable(path):
        open_table(path).delete(f"epoch > {last}")


def tidy(path: Path) -> None:
    """Remove versions and files that nothing refers to any more."""
    if exists(path):
        with _readable(path):
            open_table(path).cleanup_old_versions(older_than=timedelta(0))


def read(
    table: lance.LanceDataset | Path,
    columns: Sequence[str],
    begin: int = 0,
    end: int | None = None,
    fragment: int | None = None,
) -> pa.Table:
    """Rows `begin..end` of a table, or of one of its fragments."""
    if isinstance(table, Path):
        table = open_table(table)
    source = table if fragment is None else table.get_fragments()[fragment]
    with _readable(table.uri):
        return source.to_table(columns=list(columns), offset=begin, limit=None if end is None else end - begin)


def everything(path: Path) -> pa.Table:
    """A whole table."""
    table = open_table(path)
    return read(table, table.schema.names)


def select(table: lance.LanceDataset, columns: Sequence[str], where: str) -> pa.Table:
    """Rows of a table that satisfy an SQL condition."""
    with _readable(table.uri):
        return table.to_table(columns=list(columns), filter=where)


def fixed(values: Tensor | np.ndarray) -> pa.Array:
    """`[row]` -> a primitive array; `[row, ...]` -> a fixed-size list per row."""
    array = values.numpy() if isinstance(values, Tensor) else values
    if array.ndim == 1:
        return pa.array(array)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))


def tensor(column: pa.ChunkedArray) -> Tensor:
    """The inverse of `fixed`, with a list's values flat."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows at all
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return torch.from_numpy(array.flatten().to_numpy(zero_copy_only=False).copy()).view(len(array), width)
    return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Turn what Lance says of a missing or changed file into a `RunError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise RunError(
            f"{path} is damaged: {said}.", "Restore it from a backup, or fit again with resume=False."
        ) from error
