"""What `imprint.open` can read, and how it tells one from another."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus.images import SUFFIXES as IMAGE_SUFFIXES
from imprint.corpus.sources import memory
from imprint.corpus.sources.arrow import ArrowFiles, LanceTable
from imprint.corpus.sources.base import Aside, Batch, Source, Widened
from imprint.corpus.sources.compressed import SUFFIXES as COMPRESSED
from imprint.corpus.sources.compressed import bare_suffix
from imprint.corpus.sources.delimited import SEPARATORS, Delimited
from imprint.corpus.sources.folder import ImageFolder, list_files
from imprint.corpus.sources.jsonlines import JsonLines
from imprint.errors import SourceError, nearest

__all__ = ["Aside", "Batch", "Source", "Widened", "source_of"]

JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
IPC = (".arrow", ".feather", ".ipc")
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill")
KNOWN = (*SEPARATORS, *JSON, *PARQUET, *IPC, ".lance", ".npz")


def source_of(source: Any, block: int | None = None) -> Source:
    """The source that an object or a path is.

    Args:
        source: What `imprint.open` was given.
        block: Bytes that text files are read by at a time; what is read does not depend on it.

    Raises:
        SourceError: It is nothing that can be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        return _path(Path(source), block)
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        return memory.polars_frame(source)
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        return memory.arrow_table(source)
    if isinstance(source, (tuple, list)) and len(source) == 2 and not all(isinstance(one, str) for one in source):
        return memory.arrays(*source)
    if (
        isinstance(source, dict)
        and source
        and all(hasattr(one, "features") and hasattr(one, "with_format") for one in source.values())
    ):
        return memory.hugging_face_splits(source)
    if isinstance(source, dict):
        return memory.polars_frame(_frame_of(source))
    if hasattr(source, "features") and hasattr(source, "with_format"):
        return memory.hugging_face(source)
    if hasattr(source, "set_axis") and hasattr(source, "columns"):
        return memory.pandas_frame(source)
    if hasattr(source, "count_rows") and hasattr(source, "to_batches") and hasattr(source, "uri"):
        return LanceTable(source, f"the Lance data set {source.uri}")
    if isinstance(source, np.ndarray) or hasattr(source, "detach"):
        raise SourceError("An array alone has no target.", "Give a pair: imprint.open((X, y)).")
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, (list, tuple)):
        return memory.torch_dataset(source)
    raise SourceError(
        f"A {type(source).__name__} cannot be opened.",
        "Give a path, a data frame, an Arrow table, a pair (X, y), or a data set with __len__ and __getitem__.",
    )


def _path(path: Path, block: int | None) -> Source:
    path = path.expanduser()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(path)
        if not stat.S_ISREG(mode):
            raise SourceError(
                f"{path} is not a regular file (a socket, a pipe or a device).", "Save the data to a file first."
            )
        with path.open("rb"):
            pass
        return _file(path, block)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist.", _neighbours(path)) from error
    except PermissionError as error:
        raise SourceError(
            f"{error.filename or path} may not be read (permission denied).",
            "Change its permissions, or run as its owner.",
        ) from error
    except (OSError, ValueError) as error:  # a name too long, a NUL in the name, a loop of links
        raise SourceError(f"{path!s:.200} cannot be opened: {error}.", "Check the path.") from error


def _file(path: Path, block: int | None) -> Source:
    suffix = bare_suffix(path)
    packed = path.suffix.lower() in COMPRESSED
    if suffix in SEPARATORS:
        return Delimited(path, block)
    if suffix in JSON:
        return JsonLines(path, block)
    if packed:
        raise SourceError(
            f"{path}: only CSV and JSON lines are read compressed.",
            "Decompress it first, or name it .csv.gz or .jsonl.gz if that is what it is.",
        )
    if suffix in PARQUET:
        return ArrowFiles([path], str(path), "parquet")
    if suffix in IPC:
        return ArrowFiles([path], str(path), "arrow")
    if suffix == ".npz":
        return _npz(path)
    if suffix in PICKLED:
        raise SourceError(
            f"{path} looks like a pickle, and opening a pickle runs code from it; Imprint never does.",
            "Save the data as Parquet or CSV.",
        )
    if suffix in IMAGE_SUFFIXES:
        raise SourceError(f"{path} is a single image.", "Give the folder that holds one folder of images per class.")
    raise SourceError(f"{path}: files that end in '{suffix or path.name}' are not known.", nearest(suffix, KNOWN))


def _folder(path: Path) -> Source:
    if (path / "_versions").is_dir() or path.suffix == ".lance":
        import lance

        try:
            return LanceTable(lance.dataset(str(path)), str(path))
        except (ValueError, OSError) as error:
            raise SourceError(
                f"{path} cannot be read as a Lance data set: {str(error).splitlines()[0]}.",
                "Check that it is complete.",
            ) from error
    files = list_files(path)
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name, _, _ in files):
        return ImageFolder(path, files)
    for suffixes, kind in ((PARQUET, "parquet"), (IPC, "arrow")):
        shards = sorted(name for name, _, _ in files if name.lower().endswith(suffixes))
        if shards:
            return ArrowFiles([path / name for name in shards], str(path), kind)
    held = ", ".join(sorted({Path(name).suffix or name for name, _, _ in files})[:8])
    raise SourceError(
        f"{path} is a folder without images or Parquet files ({f'it holds {len(files):,} files: {held}' if files else 'it is empty'}).",
        "Give a file, or a folder with one folder of images per class.",
    )


def _npz(path: Path) -> Source:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {name.lower(): name for name in archive.files}
            x = next((names[one] for one in ("x", "images", "data", "inputs", "features") if one in names), None)
            y = next((names[one] for one in ("y", "labels", "label", "target", "targets") if one in names), None)
            if x is None or y is None:
                raise SourceError(
                    f"{path} holds the arrays {', '.join(archive.files) or 'none'}.",
                    "Call the inputs x and the targets y.",
                )
            unpacked = sum(one.file_size for one in archive.zip.infolist())
            size = path.stat().st_size
            if unpacked > 64 << 20 and unpacked > 200 * size:
                raise SourceError(
                    f"{path}: decompresses to {unpacked / size:,.0f} times its size.",
                    "It may be a decompression bomb. If you trust it, open its arrays as (x, y).",
                )
            source = memory.arrays(archive[x], archive[y])
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} cannot be read as arrays: {error}.",
            "Save it with numpy.savez(path, x=..., y=...), without object arrays (those are pickles).",
        ) from error
    stat = path.stat()
    source.name, source.size = str(path), stat.st_size
    source.identity = ["npz", str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    return source


def _frame_of(columns: dict[Any, Any]) -> pl.DataFrame:
    try:
        return pl.DataFrame({str(name): values for name, values in columns.items()})
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise SourceError(
            f"The dictionary is no table: {str(error).splitlines()[0]}.",
            "Give columns of one length: {'text': [...], 'label': [...]}.",
        ) from error


def _neighbours(path: Path) -> str:
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return f"The folder {path.parent} does not exist either: check the path."
    return nearest(path.name, names[:200]) if names else "Its folder is empty: check the path."
