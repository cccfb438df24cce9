"""Input columns on disk: a Lance data set that is written once, streamed, and then read by row or by batch.

A store's folder is complete or absent: it is written beside its place under a temporary name and renamed. Stores live under
`$IMPRINT_HOME` (else `~/.cache/imprint`): `corpora/` holds them by content, `sources/` says which store an unchanged source
was read into.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.errors import ColumnError, ResourceError, SourceError

Item = TypeVar("Item")

FORMAT = 1
# Lance's format 2.0 takes up to twice the space of 2.1, is written in a quarter of its time and scanned in half.
STORAGE: Literal["2.0"] = "2.0"
# Bytes that Lance buffers, over all columns, before it writes pages; its own default is 8 MiB per column.
WRITE_CACHE = 16 << 20
# Bytes of batches after which freed memory is given back to the system.
RELEASE_EVERY = 16 << 20
# A store whose inputs take no more than this in memory is held there from its first read by row on.
IN_MEMORY = 256 << 20


@dataclass(eq=False)
class Store:
    """The inputs of all rows that were read from one source.

    Attributes:
        folder: Where `inputs.lance` lies.
        shapes: Array column -> shape of one value (stored flat).
        files: Image column -> folder that its paths are relative to, where images stay in their files.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    _dataset: Any = field(default=None, repr=False)
    _memory: pl.DataFrame | None = field(default=None, repr=False)
    _fits: bool | None = field(default=None, repr=False)

    @property
    def dataset(self) -> Any:
        """The Lance data set."""
        if self._dataset is None:
            import lance

            path = self.folder / "inputs.lance"
            try:
                self._dataset = lance.dataset(str(path))
            except (ValueError, OSError) as error:
                raise SourceError(
                    f"The store {path} is missing or damaged: {_first_line(error)}.", "Open the source again."
                ) from error
        return self._dataset

    @cached_property
    def count(self) -> int:
        """How many rows it holds."""
        return int(self.dataset.count_rows())

    def __len__(self) -> int:
        return self.count

    @cached_property
    def columns(self) -> list[str]:
        """Names of what is stored: the inputs, and width and height of images."""
        return [given_name(name) for name in self.dataset.schema.names]

    def read(self, rows: np.ndarray, columns: Sequence[str]) -> pl.DataFrame:
        """The rows in the order asked for; images as encoded bytes.

        Args:
            rows: [row] numbers within this store, repeats allowed.
            columns: Stored columns.
        """
        for name in columns:
            if name not in self.columns:
                raise ColumnError(f"The corpus has no input column '{name}'.", f"It has: {', '.join(self.columns)}.")
        held = self._held()
        if held is not None:
            return held.select(columns)[rows]
        wanted, place = np.unique(rows, return_inverse=True)
        in_order = len(wanted) == len(rows) and bool((place[1:] > place[:-1]).all())
        try:
            table = self.dataset.take(wanted, columns=[stored_name(name) for name in columns])
        except (ValueError, OSError) as error:
            raise SourceError(
                f"The store {self.folder} is damaged: {_first_line(error)}.", "Delete it and open the source again."
            ) from error
        frame = self._shaped(table)
        return frame if in_order else frame[place]

    def _shaped(self, table: pa.Table) -> pl.DataFrame:
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        frame.columns = [given_name(name) for name in frame.columns]
        for name, shape in self.shapes.items():
            if name in frame.columns and len(shape) > 1:
                series = frame[name]
                shaped = (
                    series.reshape((len(series), *shape))
                    if len(series)
                    else pl.Series(name, [], dtype=pl.Array(_item(series.dtype), shape))
                )
                frame = frame.with_columns(shaped)
        for name, root in self.files.items():
            if name in frame.columns:
                frame = frame.with_columns(pl.Series(name, _file_bytes(root, frame[name].to_list()), dtype=pl.Binary))
        return frame

    def _held(self) -> pl.DataFrame | None:
        """All rows, if they are few enough to be held in memory."""
        if self._fits is None:
            self._fits = False
            head = self.dataset.head(256)
            # The first rows may be smaller than the rest: what was read is looked at again.
            if not self.files and head.nbytes / max(len(head), 1) * self.count <= IN_MEMORY:
                table = self.dataset.to_table()
                self._fits = table.nbytes <= 2 * IN_MEMORY
                self._memory = self._shaped(table) if self._fits else None
        return self._memory


def stored_name(name: str) -> str:
    """The column's name in Lance, which takes no dots and backticks, and keeps `_row...` for itself.

    >>> stored_name("emp.var.rate"), given_name("emp%2Evar%2Erate")
    ('emp%2Evar%2Erate', 'emp.var.rate')
    """
    escaped = name.replace("%", "%25").replace(".", "%2E").replace("`", "%60")
    return "%5F" + escaped[1:] if escaped.startswith("_") else escaped


def given_name(stored: str) -> str:
    """The inverse of `stored_name`."""
    return unquote(stored)


def to_stored(frame: pl.DataFrame) -> pa.Table:
    """Arrow columns as the store takes them: escaped names, and arrays of several axes laid flat."""
    flat = []
    for series in frame.iter_columns():
        if isinstance(series.dtype, pl.Array) and len(series.dtype.shape) > 1:
            width = int(np.prod(series.dtype.shape))
            flat_type = pl.Array(_item(series.dtype), width)
            series = (
                series.reshape((len(series), width)).cast(flat_type)
                if len(series)
                else pl.Series(series.name, [], dtype=flat_type)
            )
        flat.append(series)
    table = pl.DataFrame(flat).to_arrow()
    return table.rename_columns([stored_name(name) for name in table.column_names])


def home(store: str | os.PathLike[str] | None) -> Path:
    """Folder of all stores: `store`, else `$IMPRINT_HOME`, else `~/.cache/imprint`."""
    chosen = store or os.environ.get("IMPRINT_HOME")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "imprint").resolve()


@contextlib.contextmanager
def writing(final: Path, needed: int, what: str) -> Iterator[Path]:
    """A temporary folder beside `final`; it is removed unless `commit` renamed it.

    Raises:
        ResourceError: The disk is full or may not be written; says how much is needed where.
    """
    temporary: Path | None = None
    try:
        with _disk(final.parent, needed, what):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name[:40]}-", suffix=".tmp", dir=final.parent))
            yield temporary
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def commit(temporary: Path, final: Path, replace: bool = False) -> None:
    """Rename a complete folder to its place. One that is there already is kept, or replaced if `replace`."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not replace:
            return
        old = Path(tempfile.mkdtemp(prefix=f".{final.name[:40]}-", suffix=".old", dir=final.parent))
        os.replace(final, old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def write_lance(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path, cache: int = WRITE_CACHE) -> None:
    """Stream record batches into a new Lance data set. What the iterator raises comes out as it is."""
    import lance

    raised: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            held = 0
            for batch in ahead(batches):
                held += batch.nbytes
                if held > RELEASE_EVERY:
                    release_memory()
                    held = 0
                # Lance trusts the schema and crashes on a batch of another one.
                yield batch if batch.schema.equals(schema) else batch.cast(schema)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, guarded()),
            str(path),
            mode="create",
            data_cache_bytes=cache,
            data_storage_version=STORAGE,
        )
    except Exception:
        if raised:
            raise raised[0] from None
        raise


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next one is made while this one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        pending = thread.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def release_memory() -> None:
    """Give memory that a streamed write has freed back to the system: glibc keeps it otherwise, in one arena per thread."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def write_json(value: Any, path: Path) -> None:
    """Atomically."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


@contextlib.contextmanager
def _disk(folder: Path, needed: int, what: str) -> Iterator[None]:
    """Turn what a full or forbidden disk raises into `ResourceError`."""
    try:
        yield
    except OSError as error:
        text = str(error)
        amount = f"about {max(needed, 1 << 20) / 2**20:,.0f} MiB"
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text or "os error 28" in text:
            free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
            raise ResourceError(
                f"The disk of {folder} is full: storing {what} takes {amount}, {free / 2**20:,.0f} MiB are free.",
                "Free some space there, or give another folder with store= or the variable IMPRINT_HOME.",
            ) from error
        if (
            error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
            or "Permission denied" in text
        ):
            raise ResourceError(
                f"{folder} cannot be written ({error.strerror or _first_line(error)}); storing {what} takes {amount} there.",
                "Give a folder that you may write to with store= or the variable IMPRINT_HOME.",
            ) from error
        raise


def _item(dtype: Any) -> Any:
    """Type of the single numbers in an array type."""
    while isinstance(dtype, (pl.Array, pl.List)):
        dtype = dtype.inner
    return dtype


def _file_bytes(root: Path, paths: list[str]) -> list[bytes]:
    def read(some: list[str]) -> list[bytes]:
        found = []
        for relative in some:
            try:
                with open(os.path.join(root, relative), "rb") as file:
                    found.append(file.read())
            except OSError as error:
                raise SourceError(
                    f"{root / relative} was there when the corpus was opened and cannot be read now: {error.strerror}.",
                    "Put it back, or open the folder again.",
                ) from error
        return found

    # A few files at a time: handing over one costs more than reading it from the page cache.
    piece = max(1, min(64, len(paths) // 16))
    with ThreadPoolExecutor(4) as threads:
        parts = threads.map(read, [paths[at : at + piece] for at in range(0, len(paths), piece)])
        return [data for part in parts for data in part]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
