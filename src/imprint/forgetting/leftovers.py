"""Searching a folder for what only forgotten rows had: ids, texts, files, pixels, numbers, and what a run recorded of them.

`pieces` says what there is of some rows, as bytes; `search` looks for these bytes in every file of a folder: as they stand there, and in
what the file holds once it is decoded, since a table, a compressed file or an archive hides them. Both stream: rows by blocks, values by
passes of bounded size, files by windows. So the search takes any number of rows, a pass over the files for each 64 MB of their values.

A value that a retained row has as well tells of nobody. That is looked at last and only for what was found, by the same means: a value is
dropped where it is found among the pieces of the retained rows; one that is a part of a retained value (`u-1` of `u-12`) counts only
where it stands as a word of its own. Images are compared by their pixels too, however they are encoded; not seen is one that was resized.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from imprint.forgetting.patterns import LEAST, Patterns

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.recording import Run

# Rows that are read, bytes of a stream that are read, and bytes of values that are looked for at a time.
ROWS, PIECE, PASS = 1024, 2**22, 2**26
# Of longer values so many bytes are looked for: those that change most.
MOST = 4096
# A row of numbers is unmistakable from so many bytes and different numbers on; a number from so many digits, or bytes that are not 0.
ROW_BYTES, DIFFERENT, DIGITS, BYTES = 16, 4, 8, 4
FLOATS = (np.dtype("<f2"), np.dtype("<f4"), np.dtype("<f8"))
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")
# What decoding a damaged file raises.
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, pa.ArrowException)
# How a compressed file begins.
PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(file, "zstd"),
}


@dataclass(frozen=True)
class Piece:
    """Something of a row.

    Attributes:
        value: Its bytes; of a picture the digest of its pixels.
        what: What it is, in words.
        text: Whether it is a text, which may be a part of another.
        whole: Whether it counts only as a word of its own.
        picture: Whether it is a digest of pixels.
    """

    value: bytes
    what: str
    text: bool = False
    whole: bool = False
    picture: bool = False


@dataclass
class Search:
    """What a search looked at and found.

    Attributes:
        found: `FILE: what`, each once.
        rows: Rows whose values were looked for.
        values: Different values.
        files: Files that were read.
        bytes: Their size.
        seconds: What it took.
        unread: Files that could not be decoded; their bytes were searched.
    """

    found: list[str] = field(default_factory=list)
    rows: int = 0
    values: int = 0
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    unread: list[str] = field(default_factory=list)


def search(folder: Path, sources: Iterable[tuple[Run, Corpus, np.ndarray]]) -> Search:
    """Look in all files of a folder for what only some rows had.

    Args:
        folder: Where to look.
        sources: Runs that were trained on the rows, with their corpora and the rows, which stay as they are.
    """
    began = time.perf_counter()
    sources = list(sources)
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    done = Search(
        rows=max((len(rows) for _, _, rows in sources), default=0),
        files=len(files),
        bytes=sum(one.stat().st_size for one in files),
    )
    found: dict[str, None] = {}
    unread: dict[str, None] = {}
    for several in _passes(one for source in sources for one in pieces(*source)):
        done.values += len(several)
        found |= dict.fromkeys(_one_pass(folder, several, sources, unread))
    done.found, done.unread = list(found), list(unread)
    done.seconds = round(time.perf_counter() - began, 3)
    return done


def _passes(every: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Different pieces, as many at a time as may be looked for together."""
    several: dict[tuple[bytes, bool], Piece] = {}
    size = 0
    for one in every:
        if (one.value, one.picture) not in several:
            several[one.value, one.picture] = one
            size += len(one.value) + 64
        if size >= PASS:
            yield list(several.values())
            several, size = {}, 0
    if several:
        yield list(several.values())


def _one_pass(
    folder: Path, several: list[Piece], sources: list[tuple[Run, Corpus, np.ndarray]], unread: dict[str, None]
) -> Iterator[str]:
    """What of these pieces is in the folder and not among those of retained rows."""
    sought = _Sought(several)
    there = list(sought.in_folder(folder, unread))
    if not there:
        return
    hits = [several[number] for number in dict.fromkeys(number for _, number in there)]
    shared, parts = _shared(hits, sources)
    strict = [one for one in hits if one in parts and one not in shared]
    told = {several[number]: None for _, number in there}
    left = {one for one in told if one not in shared and one not in parts}
    yield from dict.fromkeys(f"{where}: {several[number].what}" for where, number in there if several[number] in left)
    if strict:
        again = [replace(one, whole=True) for one in strict]
        for where, number in _Sought(again).in_folder(folder, {}):
            yield f"{where}: {again[number].what}"


def _shared(hits: list[Piece], sources: list[tuple[Run, Corpus, np.ndarray]]) -> tuple[set[Piece], set[Piece]]:
    """Which of these pieces retained rows have as well: as values of their own, and as parts of longer ones."""
    loose, strict = (_Sought([replace(one, whole=whole) for one in hits]) for whole in (False, True))
    kinds = {one.what for one in hits}
    own: set[int] = set()
    within: set[int] = set()
    for run, corpus, rows in sources:
        rest = np.setdiff1d(corpus.rows(), rows)
        block: list[Piece] = []
        for one in pieces(run, corpus, rest, kinds):
            block.append(one)
            if len(block) >= 4 * ROWS:
                own |= strict.among(block, own)
                within |= loose.among(block, within)
                block = []
        own |= strict.among(block, own)
        within |= loose.among(block, within)
    binary = {number for number in within if not hits[number].text}
    return {hits[number] for number in own | binary}, {hits[number] for number in within}


class _Sought:
    """Pieces to look for: their bytes, and digests of pixels."""

    def __init__(self, several: list[Piece]) -> None:
        self.plain = [number for number, one in enumerate(several) if not one.picture]
        self.patterns = Patterns(
            [several[number].value for number in self.plain], [several[number].whole for number in self.plain]
        )
        self.pictures = {one.value: number for number, one in enumerate(several) if one.picture}

    def in_folder(self, folder: Path, unread: dict[str, None]) -> Iterator[tuple[str, int]]:
        """Where each piece is, with its number: files, and columns of tables."""
        for file, part, chunks in streams(folder, unread):
            pictures: set[int] = set()
            try:
                found = self.patterns.found(self._looked_at(chunks, pictures))
            except UNREADABLE:
                unread[file] = None
                continue
            for number in sorted({self.plain[one] for one in found} | pictures):
                yield f"{file}, {part}" if part else file, number

    def among(self, block: list[Piece], known: set[int]) -> set[int]:
        """Which pieces are among those of other rows, each of which stands alone."""
        texts = b"\0".join(one.value for one in block if not one.picture)
        numbers = {number: place for place, number in enumerate(self.plain)}
        skip = {numbers[one] for one in known if one in numbers}
        found = {self.plain[one] for one in self.patterns.found([texts], skip)}
        return found | {self.pictures[one.value] for one in block if one.picture and one.value in self.pictures}

    def _looked_at(self, chunks: Iterator[Any], found: set[int]) -> Iterator[bytes]:
        """The bytes of a stream; pictures that are values of their own are compared by their pixels on the way."""
        for chunk in chunks:
            if isinstance(chunk, list):
                if self.pictures:
                    digests = (pixels(one) for one in chunk if one.startswith(PICTURES))
                    found |= {self.pictures[one] for one in digests if one in self.pictures}
                yield b"\0" + b"\0".join(chunk) + b"\0"
            else:
                yield chunk


# ------------------------------------------------------------------------------------------------------------------ what to seek


def pieces(run: Run, corpus: Corpus, rows: np.ndarray, kinds: set[str] | None = None) -> Iterator[Piece]:
    """What there is of some rows, as bytes: in the corpus, as inputs of the model, and in the evidence of a run.

    Args:
        run: The run that was trained on them.
        corpus: Its corpus.
        rows: Which.
        kinds: Only these, by `what`; None for all.
    """

    def asked(what: str) -> bool:
        return kinds is None or what in kinds

    names = [name for name in corpus.roles.inputs if asked(f"value of {name}") or asked(f"pixels of {name}")]
    everything = list(corpus.roles.inputs) if asked("row of numbers") or asked("encoded inputs") else names
    for begin in range(0, len(rows), ROWS):
        block = rows[begin : begin + ROWS]
        if asked("id"):
            yield from _texts(corpus.ids.gather(block), "id")
        if asked("content hash"):
            for value in corpus.content[block].astype("<u8"):
                yield from _piece(value.tobytes(), "content hash")
        if not everything:
            continue
        frame = corpus.read(block, everything)
        for name in names:
            yield from _of_column(frame[name], f"value of {name}", f"pixels of {name}", asked)
        if asked("row of numbers"):
            numeric = [one for one in frame.columns if frame[one].dtype.is_numeric()]
            if len(numeric) > 1:
                yield from _rows_of_numbers(frame.select(pl.col(numeric).cast(pl.Float64)).to_numpy(), "row of numbers")
        if run.encoder is not None and asked("encoded inputs"):
            encoded = run.encoder.encode(frame)
            if isinstance(encoded, torch.Tensor):
                yield from _rows_of_numbers(encoded.flatten(1).numpy(), "encoded inputs")
    if asked("evidence"):
        yield from _evidence(run, rows)


def _of_column(column: pl.Series, what: str, pixel: str, asked: Callable[[str], bool]) -> Iterator[Piece]:
    """Pieces of one input column."""
    column = column.drop_nulls()
    kind = column.dtype
    if kind in (pl.String, pl.Categorical, pl.Enum):
        if asked(what):
            yield from _texts(column.cast(pl.String), what)
    elif kind == pl.Binary:
        for value in column:
            yield from _piece(value, what)
            if asked(pixel) and value.startswith(PICTURES):
                yield Piece(pixels(value), pixel, picture=True)
                for raw in decoded(value):
                    yield from _piece(raw, pixel)
    elif isinstance(kind, pl.Array):
        yield from _rows_of_numbers(column.to_numpy().reshape(len(column), -1), what)
    elif kind.is_float():
        values = column.to_numpy().astype("<f8")
        for value in np.unique(values[np.isfinite(values)]):
            if np.count_nonzero(np.frombuffer(value.tobytes(), np.uint8)) >= BYTES:
                yield Piece(value.tobytes(), what)
            for text in {repr(float(value)), str(np.float32(value))}:
                if len(text) >= DIGITS:
                    yield Piece(text.encode(), what, text=True, whole=True)
            narrow = np.float64(np.float32(value))
            if narrow != value and np.count_nonzero(np.frombuffer(narrow.tobytes(), np.uint8)) >= BYTES:
                yield Piece(narrow.tobytes(), what)
    elif kind.is_integer() or kind.is_temporal():
        for number in np.unique(column.to_physical().cast(pl.Int64).to_numpy()):
            if len(str(abs(int(number)))) > DIGITS:
                yield Piece(str(int(number)).encode(), what, text=True, whole=True)
                yield Piece(number.astype("<i8").tobytes(), what)


def _texts(column: pl.Series, what: str) -> Iterator[Piece]:
    """Texts as they are, and as JSON writes them."""
    for value in column.drop_nulls().unique(maintain_order=True):
        for written in dict.fromkeys((value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])):
            yield from _piece(written.encode(errors="replace"), what, text=True)


def _piece(value: bytes, what: str, text: bool = False) -> Iterator[Piece]:
    """A value, if it is long enough to be somebody's; of a long one the part that changes most."""
    if len(value) > MOST:
        starts = range(0, len(value) - MOST + 1, max(1, (len(value) - MOST) // 8))
        value = max((value[one : one + MOST] for one in starts), key=lambda part: len(set(part)))
    if len(value) >= LEAST and len(set(value)) > 1:
        yield Piece(value, what, text)


def _rows_of_numbers(values: np.ndarray, what: str) -> Iterator[Piece]:
    """Rows of numbers, as any float type or their own type writes them."""
    floating = values.dtype.kind == "f"
    different = (np.diff(np.sort(values, 1), axis=1) != 0).sum(1) + 1
    for row in values[different >= DIFFERENT]:
        with np.errstate(over="ignore"):
            written = [row.astype(one) for one in FLOATS] if floating else [row]
        for one in written:
            if one.nbytes >= ROW_BYTES:
                yield from _piece(np.ascontiguousarray(one).tobytes(), what)


def _evidence(run: Run, rows: np.ndarray) -> Iterator[Piece]:
    """What a run recorded of these rows: outputs, features, logits over time, whatever stands in a table by row or by index."""
    import lance

    places = np.flatnonzero(np.isin(run.rows(), rows))
    for path in tables(run.path / "evidence"):
        table = lance.dataset(str(path))
        key = next((name for name in ("row", "index") if name in table.schema.names), None)
        if key is None:
            continue
        wanted = rows if key == "row" else places
        columns = [
            one.name for one in table.schema if pa.types.is_fixed_size_list(one.type) and pa.types.is_floating(one.type.value_type)
        ]  # fmt: skip
        for batch in table.to_batches(columns=[key, *columns], batch_size=ROWS) if columns else ():
            chosen = np.flatnonzero(np.isin(batch.column(key).to_numpy(), wanted))
            if not len(chosen):
                continue
            for name in columns:
                values = batch.column(name).take(pa.array(chosen)).flatten().to_numpy(zero_copy_only=False)
                yield from _rows_of_numbers(values.reshape(len(chosen), -1), "evidence")


def pixels(picture: bytes) -> bytes:
    """A digest of the pixels of an encoded picture; of one that cannot be decoded, of its bytes."""
    raw = decoded(picture)
    return hashlib.blake2b(raw[0] if raw else picture, digest_size=16).digest()


def decoded(picture: bytes) -> list[bytes]:
    """The pixels of an encoded picture, row by row, as red, green and blue, and as grey where it is grey; none if it is damaged."""
    from imprint.corpus.images import pillow

    with suppress(Exception), pillow().open(io.BytesIO(picture)) as image:
        colours = [image.convert("RGB").tobytes()]
        return [*colours, image.tobytes()] if image.mode == "L" else colours
    return []


# ----------------------------------------------------------------------------------------------------------------- where to look


def streams(folder: Path, unread: dict[str, None] | None = None) -> Iterator[tuple[str, str, Iterator[Any]]]:
    """Everything that a folder holds, as streams of bytes, each with its file and the part of it: files as they are, what compressed
    ones and archives hold, and columns of tables. Values of a column that are texts or files come as lists.

    Args:
        folder: Where to look.
        unread: Gets the names of files that cannot be decoded.
    """
    unread = {} if unread is None else unread
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = str(path.relative_to(folder))
        yield name, "", _raw(path)
        try:
            for part, chunks in _decoded(path):
                yield name, part, chunks
        except UNREADABLE:
            unread[name] = None
    for path in tables(folder):
        import lance

        name = str(path.relative_to(folder))
        try:
            table = lance.dataset(str(path))
            for column in table.schema.names:
                yield name, f"column {column}", _column(table.to_batches(columns=[column], batch_size=ROWS))
        except UNREADABLE:
            unread[name] = None


def tables(folder: Path) -> list[Path]:
    """Lance data sets below a folder."""
    return sorted(one.parent for one in folder.rglob("_versions") if one.is_dir())


def _raw(path: Path) -> Iterator[Any]:
    """A file's bytes; of a picture as one value, so that its pixels are looked at."""
    with path.open("rb") as file:
        start = file.read(PIECE)
        if start.startswith(PICTURES):
            yield [start + file.read()]
            return
        while start:
            yield start
            start = file.read(PIECE)


def _read(file: Any) -> Iterator[bytes]:
    """The rest of an open file."""
    while chunk := file.read(PIECE):
        yield chunk


def _decoded(path: Path) -> Iterator[tuple[str, Iterator[Any]]]:
    """What a compressed file, an archive or a table in one file holds."""
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        unpack = next((open_ for magic, open_ in PACKED.items() if start.startswith(magic)), None)
        if unpack is not None:
            with unpack(file) as inside:
                yield "decompressed", _read(inside)
        elif start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                for member in archive.namelist():
                    with archive.open(member) as inside:
                        yield member, _read(inside)
        elif start.startswith(b"PAR1"):
            import pyarrow.parquet as pq

            table = pq.ParquetFile(file)
            for column in table.schema_arrow.names:
                yield f"column {column}", _column(table.iter_batches(ROWS, columns=[column]))
        elif start.startswith(b"ARROW1"):
            opened = pa.ipc.open_file(file)
            for number, column in enumerate(opened.schema.names):
                several = (opened.get_batch(one).select([number]) for one in range(opened.num_record_batches))
                yield f"column {column}", _column(several)


def _column(batches: Iterable[pa.RecordBatch]) -> Iterator[Any]:
    """A column's values, batch by batch."""
    for batch in batches:
        yield from _values(batch.column(0))


def _values(values: pa.Array) -> Iterator[Any]:
    """Values as bytes: texts and files as a list, numbers in a row; single numbers as float64 or int64."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _values(values.storage)
    elif pa.types.is_dictionary(kind):
        yield from _values(values.dictionary_decode())
    elif pa.types.is_struct(kind):
        for one in values.flatten():
            yield from _values(one)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield [one.encode() for one in values.drop_null().to_pylist()]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        yield values.drop_null().to_pylist()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = values.flatten()
        if pa.types.is_primitive(inner.type) and not pa.types.is_boolean(inner.type):
            yield inner.drop_null().to_numpy(zero_copy_only=False).tobytes()
        else:
            yield from _values(inner)
    elif pa.types.is_floating(kind):
        yield values.drop_null().to_numpy(zero_copy_only=False).astype("<f8").tobytes()
    elif pa.types.is_temporal(kind):
        with suppress(pa.ArrowException):
            yield values.drop_null().cast(pa.int64()).to_numpy().tobytes()
    elif pa.types.is_uint64(kind):
        yield values.drop_null().to_numpy().astype("<u8").tobytes()
    elif pa.types.is_integer(kind):
        yield values.drop_null().to_numpy().astype("<i8").tobytes()


__all__ = ["Piece", "Search", "pieces", "search", "streams", "tables"]
