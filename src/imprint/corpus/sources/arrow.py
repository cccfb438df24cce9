"""Parquet, Arrow/Feather and Lance: files that know their own types, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from imprint.corpus.kinds import storable
from imprint.corpus.sources.base import SAMPLE_ROWS, Batch, Source, numbered
from imprint.errors import SourceError

# Rows per batch; fewer where a row is large, so that a batch stays near this many bytes.
BATCH_ROWS, BATCH_BYTES = 1 << 15, 16 << 20
READ_BUFFER = 1 << 20


class ArrowFiles(Source):
    """One file, or the shards of a folder in the order of their names, all with the same columns."""

    def __init__(self, paths: Sequence[Path], name: str, format: str) -> None:
        super().__init__()
        self.paths, self.name, self.format = list(paths), name, format
        stats = [path.stat() for path in self.paths]
        self.size = sum(stat.st_size for stat in stats)
        self.identity = [
            format,
            [[str(p.resolve()), s.st_size, s.st_mtime_ns] for p, s in zip(self.paths, stats, strict=True)],
        ]
        for path, stat in zip(self.paths, stats, strict=True):
            if not stat.st_size:
                raise SourceError(f"{path} is empty (0 bytes).", "Write the file again.")
        counts = [self._about(path) for path in self.paths]
        self.total = sum(count for count, _ in counts)
        self.schema = counts[0][1]
        for path, (_, schema) in zip(self.paths, counts, strict=True):
            if schema.names != self.schema.names:
                raise SourceError(
                    f"{path} has other columns than {self.paths[0]}.", "Give files with the same columns, or one file."
                )
        if not self.total:
            raise SourceError(f"{name} holds no rows.", "Give a file with at least one row.")
        repeated = [one for one in set(self.schema.names) if self.schema.names.count(one) > 1]
        if repeated:
            raise SourceError(
                f"{name}: column '{repeated[0]}' stands more than once.", "Give each column its own name."
            )

    def sample(self) -> pl.DataFrame:
        frames, rows = [], 0
        for frame in self._frames(4096):
            frames.append(frame)
            rows += len(frame)
            if rows >= SAMPLE_ROWS or sum(one.estimated_size() for one in frames) > BATCH_BYTES:
                break
        return pl.concat(frames).head(SAMPLE_ROWS)

    def batches(self) -> Iterator[Batch]:
        per_row = max(1, self.size // max(self.total or 1, 1))
        return numbered(self._frames(max(64, min(BATCH_ROWS, BATCH_BYTES // per_row))))

    def _frames(self, rows: int) -> Iterator[pl.DataFrame]:
        schema: dict[str, pl.DataType] | None = None
        for path in self.paths:
            with self._reading(path):
                for batch in self._batches(path, rows):
                    frame = to_frame(batch)
                    if schema is None:
                        schema = dict(frame.schema)
                    elif dict(frame.schema) != schema:
                        frame = frame.cast(schema)  # type: ignore[arg-type]
                    yield frame

    def _batches(self, path: Path, rows: int) -> Iterator[pa.RecordBatch]:
        if self.format == "parquet":
            # Without read-ahead and with a buffer a row group is decoded page by page instead of being held whole.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BUFFER) as file:
                yield from file.iter_batches(batch_size=rows)
        else:
            with pa.OSFile(str(path)) as stream, _ipc(stream) as reader:
                for batch in _ipc_batches(reader):
                    for start in range(0, batch.num_rows, rows):
                        yield batch.slice(start, rows)

    def _about(self, path: Path) -> tuple[int, pa.Schema]:
        with self._reading(path):
            if self.format == "parquet":
                with pq.ParquetFile(path) as file:
                    return file.metadata.num_rows, file.schema_arrow
            with pa.OSFile(str(path)) as stream, _ipc(stream) as reader:
                return sum(batch.num_rows for batch in _ipc_batches(reader)), reader.schema

    def _reading(self, path: Path) -> _Reading:
        return _Reading(path, self.format)


class LanceTable(Source):
    """A Lance data set, by path or already opened."""

    def __init__(self, dataset: Any, name: str) -> None:
        super().__init__()
        self.dataset, self.name = dataset, name
        self.total = dataset.count_rows()
        self.identity = ["lance", str(dataset.uri), dataset.version, self.total]
        if not self.total:
            raise SourceError(f"{name} holds no rows.", "Give a data set with at least one row.")

    def sample(self) -> pl.DataFrame:
        return to_frame(self.dataset.head(SAMPLE_ROWS))

    def batches(self) -> Iterator[Batch]:
        return numbered(to_frame(batch) for batch in self.dataset.to_batches(batch_size=BATCH_ROWS))


class Frames(Source):
    """Rows from a function that gives Arrow or Polars pieces anew on each call: frames and data sets in memory."""

    def __init__(self, name: str, total: int, pieces: Callable[[], Iterator[pl.DataFrame]]) -> None:
        super().__init__()
        self.name, self.total, self.pieces = name, total, pieces
        if not total:
            raise SourceError(f"{name} holds no rows.", "Give at least one row.")

    def sample(self) -> pl.DataFrame:
        frames, rows = [], 0
        for frame in self.pieces():
            frames.append(storable(frame.head(SAMPLE_ROWS - rows)))
            rows += len(frames[-1])
            if rows >= SAMPLE_ROWS or sum(one.estimated_size() for one in frames) > BATCH_BYTES:
                break
        return pl.concat(frames)

    def batches(self) -> Iterator[Batch]:
        return numbered(storable(frame) for frame in self.pieces())


def to_frame(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """Arrow -> storable Polars columns."""
    table = pa.table(table) if isinstance(table, pa.RecordBatch) else table
    try:
        frame = pl.from_arrow(table)
    except Exception as error:  # Polars raises panics and its own errors for types that it does not know
        raise SourceError(
            f"A column's type cannot be read: {error}.", f"Cast it first; the types are: {table.schema.types}"
        ) from error
    assert isinstance(frame, pl.DataFrame)
    return storable(frame)


class _Reading:
    """Turn what Arrow raises about a file into errors that name it."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = path, format

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError)) and not isinstance(error, PermissionError):
            first = str(error).splitlines()[0].rstrip(".")
            raise SourceError(
                f"{self.path} cannot be read as {self.format}: {first}.",
                "Check that the file is complete; fetch or write it again.",
            ) from error


def _ipc(stream: Any) -> Any:
    try:
        return pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return pa.ipc.open_stream(stream)


def _ipc_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for k in range(reader.num_record_batches):
            yield reader.get_batch(k)
    else:
        yield from reader
