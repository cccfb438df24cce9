"""CSV, TSV and their like, plain or compressed, read block by block with Polars.

A block holds whole records, so memory is bounded by the block and not by the file. Types come from the first rows; a later
value that does not fit makes one pass over the whole file for types that fit all of it. A block that Polars refuses (or whose
last column has gaps) is looked at record by record: ragged, undecodable and NUL-ridden rows are set aside with their line
number and the rest of the block is read.
"""

from __future__ import annotations

import codecs
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from imprint.corpus.kinds import storable
from imprint.corpus.sources.base import SAMPLE_ROWS, Batch, Source, Widened
from imprint.corpus.sources.compressed import BLOCK, LONGEST_RECORD, bare_suffix, records
from imprint.errors import SourceError

SEPARATORS = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t", ".txt": "\t,;|"}
# Words that stand for a missing number, and for a missing target.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A", "None", "?")
# Above this share of unreadable rows the file is taken for something else than what it was read as.
MOST_UNREADABLE = 0.5
# So many unreadable rows are enough to look at the share before the end of the file.
EARLY_UNREADABLE = 100_000
_COLLECTING = threading.Lock()


@dataclass(frozen=True)
class Column:
    """How one column is read.

    Attributes:
        name: The column.
        dtype: Its type in the corpus.
        reads: "plain" (Polars parses it), "number" (a string first, since blanks or missing-value words stand among its
            numbers), "date" or "datetime" (ISO 8601; other ways of writing dates are ambiguous and stay categories).
        empty: No row of the sample has a value, so that a type is only known once one turns up.
    """

    name: str
    dtype: pl.DataType
    reads: str = "plain"
    empty: bool = False


class Delimited(Source):
    """A text file with one record per row and its column names in the first."""

    missing_words = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A")

    def __init__(self, path: Path, block: int | None = None) -> None:
        super().__init__()
        self.path, self.name = path, str(path)
        self.block = block
        stat = path.stat()
        self.size = stat.st_size
        self.identity = ["delimited", str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        if not stat.st_size:
            raise SourceError(f"{path} is empty (0 bytes).", "Give a file with a header line and at least one row.")
        self.header, self.separator = self._header()
        self.columns: list[Column] | None = None

    def sample(self) -> pl.DataFrame:
        head = self._head()
        if self.columns is None:
            self.columns = _infer(self._text(head), self.separator, self.header)
        try:
            return self._parse(head).head(SAMPLE_ROWS)
        except _DoesNotFit:  # the head is a little more than what the types were inferred from
            self._widen()
            return self._parse(head).head(SAMPLE_ROWS)

    def batches(self) -> Iterator[Batch]:
        assert self.columns is not None
        record = 0
        for block, line in self._blocks():
            try:
                frame, positions, count = self._read(block, line, record)
            except _DoesNotFit as error:
                if self._widened:
                    raise SourceError(
                        f"{self.path}, after line {line}: {error}.", "Check the rows of this part of the file."
                    ) from error
                self._widen()
                raise Widened from error
            record += count
            if len(self.aside) > EARLY_UNREADABLE:
                self._refuse_mostly_unreadable(record)
            yield Batch(frame, positions)
        self._refuse_mostly_unreadable(record)

    _widened = False

    def _refuse_mostly_unreadable(self, record: int) -> None:
        if len(self.aside) <= MOST_UNREADABLE * record:
            return
        frame = self.aside.frame(pl.Int64)
        raise SourceError(
            f"{self.path}: {len(frame):,} of {record:,} rows cannot be read; the first: {frame['reason'][0]}.",
            "Check the separator, the quotes and the encoding of the file: "
            f"iconv -f LATIN1 -t UTF-8 {self.path.name} > utf8-{self.path.name} mends most old files.",
        )

    def _header(self) -> tuple[list[str], str]:
        """Column names and separator, from the first non-empty record."""
        first = b""
        for block, _ in records(self.path, self.block or 1 << 16, quoted=True):
            first = _first_record(block.lstrip(b"\r\n"))
            if first:
                break
        if not first:
            raise SourceError(
                f"{self.path} holds no text but line ends.", "Give a file with a header line and at least one row."
            )
        try:
            text = first.decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.path}, line 1: the column names are not UTF-8 (byte 0x{first[error.start]:02x}).",
                f"Convert the file: iconv -f LATIN1 -t UTF-8 {self.path.name} > utf8-{self.path.name}",
            ) from error
        if "\0" in text:
            raise SourceError(
                f"{self.path}, line 1: the column names hold a NUL byte.",
                "Give a text file; this looks like a binary one.",
            )
        candidates = SEPARATORS.get(bare_suffix(self.path), ",;\t|")
        bare = _outside_quotes(text)
        separator = max(candidates, key=lambda one: (bare.count(one), -candidates.index(one)))
        names = _split(text, separator)
        blank = [k for k, name in enumerate(names) if not name]
        for k in blank:
            names[k] = f"column_{k + 1}"
        if blank:
            self.notes.append(f"columns without a name are called {', '.join(names[k] for k in blank[:5])}")
        repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if repeated:
            places = [k + 1 for k, name in enumerate(names) if name == repeated[0]]
            raise SourceError(
                f"{self.path}, line 1: column '{repeated[0]}' stands {len(places)} times (columns {', '.join(map(str, places[:5]))}).",
                "Give each column its own name.",
            )
        if separator != ",":
            self.notes.append(f"separator: {separator!r}")
        return names, separator

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """Blocks of data records: the header is cut off."""
        started = False
        for block, line in records(self.path, self.block or BLOCK, quoted=True):
            if started:
                yield block, line
                continue
            body = block.lstrip(b"\r\n")
            if body:
                line += block.count(b"\n", 0, len(block) - len(body))
                header = _first_record(body)
                cut = body.index(b"\n", len(header)) + 1
                started = True
                if body[cut:]:
                    yield body[cut:], line + body.count(b"\n", 0, cut)

    def _head(self) -> bytes:
        """The first records: at least `SAMPLE_ROWS` of them if there are as many, whatever the block size."""
        head, lines = b"", 0
        for block, _ in self._blocks():
            head += block
            lines += block.count(b"\n")
            if lines >= SAMPLE_ROWS + 1 or len(head) > LONGEST_RECORD:
                break
        if not head.strip(b"\r\n"):
            raise SourceError(f"{self.path} holds a header and no rows.", "Give a file with at least one row.")
        return _first_lines(head, SAMPLE_ROWS)

    def _text(self, block: bytes) -> bytes:
        """The block's readable records."""
        return _Records(block, 1, self.separator, len(self.header)).kept()[0]

    def _parse(self, block: bytes) -> pl.DataFrame:
        text, *_ = _Records(block, 1, self.separator, len(self.header)).kept()
        return self._typed(text)

    def _read(self, block: bytes, line: int, record: int) -> tuple[pl.DataFrame, pl.Series, int]:
        """(rows, positions, records seen) of a block; what cannot be read is set aside."""
        frame = None
        if b"\0" not in block:
            # A short record and a blank line both leave the last column empty.
            try:
                frame = self._typed(block)
            except (_DoesNotFit, PolarsError):
                frame = None
            if frame is not None and frame[:, -1].null_count() and not self._surely_full(block, len(frame)):
                frame = None
        if frame is not None:
            return frame, pl.Series("position", np.arange(record, record + len(frame), dtype=np.int64)), len(frame)
        look = _Records(block, line, self.separator, len(self.header))
        text, kept = look.kept()
        bad = np.flatnonzero(~look.good)
        frame = self._typed(text)
        if len(frame) != len(kept):
            raise SourceError(
                f"{self.path}, after line {line}: {len(kept)} records read as {len(frame)} rows.",
                "Look for stray double quotes in this part of the file.",
            )
        self.aside.add(record + bad, [look.reasons[k] for k in bad.tolist()])
        return frame, pl.Series("position", record + kept), len(look.good)

    def _surely_full(self, block: bytes, rows: int) -> bool:
        """True when the number of separators says that no record is short (only decidable without quotes)."""
        view = np.frombuffer(block, np.uint8)
        if (view == ord('"')).any():
            return False
        return int(np.count_nonzero(view == ord(self.separator))) == rows * (len(self.header) - 1)

    def _typed(self, text: bytes) -> pl.DataFrame:
        """Records -> columns of the inferred types; raises `_DoesNotFit`."""
        assert self.columns is not None
        return _typed(text, self.separator, self.columns)

    def _widen(self) -> None:
        """One pass over the whole file for types that fit every value."""
        self._widened = True
        merged: list[Column | None] = [None] * len(self.header)
        for block, _ in self._blocks():
            text = self._text(block)
            if not text:
                continue
            for k, column in enumerate(_infer(text, self.separator, self.header)):
                merged[k] = _wider(merged[k], column)
        self.columns = [one or Column(name, pl.String()) for name, one in zip(self.header, merged, strict=True)]


class _DoesNotFit(Exception):
    """A value does not fit its column's type."""


class _Records:
    """Where the records of a block begin and end, and which of them cannot be read. One pass in numpy over the bytes."""

    def __init__(self, block: bytes, line: int, separator: str, columns: int) -> None:
        data = np.frombuffer(block, np.uint8)
        newline = data == 10
        quote = data == ord('"')
        outside = slice(None)
        separators = data == ord(separator)
        if quote.any():
            inside = (np.cumsum(quote, dtype=np.uint8) & 1).astype(bool)
            line_ends = np.flatnonzero(newline)
            newline &= ~inside
            separators &= ~inside
        else:
            line_ends = None
        ends = np.flatnonzero(newline)[outside] + 1
        starts = np.concatenate([[0], ends[:-1]])
        lengths = ends - starts
        blank = (lengths == 1) | ((lengths == 2) & (data[starts] == 13))
        starts, ends = starts[~blank], ends[~blank]
        fields = np.diff(np.searchsorted(np.flatnonzero(separators), np.stack([starts, ends], 1)), axis=1)[:, 0] + 1
        self.block, self.starts, self.ends = block, starts, ends
        self.good = fields == columns
        self.reasons: dict[int, str] = {}
        before = np.flatnonzero(~blank) if line_ends is None else np.searchsorted(line_ends, starts)
        line_of = line + before
        for k in np.flatnonzero(~self.good).tolist():
            self.reasons[k] = f"line {line_of[k]}: {fields[k]} field{'s' if fields[k] > 1 else ''}, not {columns}"
        if b"\0" in block:
            for k in np.unique(np.searchsorted(ends, np.flatnonzero(data == 0), "right")).tolist():
                self.good[k] = False
                self.reasons[k] = f"line {line_of[k]}: holds a NUL byte"
        for at in _undecodable(block):
            k = int(np.searchsorted(ends, at, "right"))
            if k < len(ends) and at >= starts[k]:
                self.good[k] = False
                self.reasons[k] = f"line {line_of[k]}: not UTF-8 (byte 0x{block[at]:02x})"

    def kept(self) -> tuple[bytes, np.ndarray]:
        """The good records' bytes and their numbers among all records of the block."""
        good = np.flatnonzero(self.good)
        keep = np.zeros(len(self.block) + 1, np.int8)
        keep[self.starts[good]] += 1
        keep[self.ends[good]] -= 1
        mask = np.cumsum(keep[:-1], dtype=np.int8).astype(bool)
        return np.frombuffer(self.block, np.uint8)[mask].tobytes(), good


def _undecodable(block: bytes) -> list[int]:
    """Places of the bytes that are not UTF-8, in one pass."""
    places: list[int] = []
    if block.isascii():
        return places
    with _COLLECTING:
        codecs.register_error("imprint-collect", lambda error: (places.append(error.start) or "", error.end))  # type: ignore[attr-defined, func-returns-value]
        block.decode("utf-8", "imprint-collect")
    return places


def _typed(text: bytes, separator: str, columns: list[Column]) -> pl.DataFrame:
    schema = {f"c{k}": one.dtype if one.reads == "plain" else pl.String() for k, one in enumerate(columns)}
    if not text:
        return pl.DataFrame(schema={one.name: one.dtype for one in columns})
    # A header of our own: without one Polars takes the number of columns from the first row.
    head = separator.join(schema).encode() + b"\n"
    try:
        frame = pl.read_csv(head + text, separator=separator, schema=schema)
        frame.columns = [one.name for one in columns]
        parsed = [_PARSERS[one.reads](pl.col(one.name)).alias(one.name) for one in columns if one.reads != "plain"]
        if parsed:
            frame = frame.with_columns(parsed)
    except PolarsError as error:
        raise _DoesNotFit(str(error).split("\n")[0]) from error
    for one in columns:
        if one.empty and frame[one.name].null_count() < len(frame):
            raise _DoesNotFit(f"column '{one.name}' has its first value")
    return frame


def _present(column: pl.Expr) -> pl.Expr:
    """The string without blanks around it; missing-value words become null."""
    bare = column.str.strip_chars()
    return pl.when(bare.is_in(MISSING)).then(None).otherwise(bare)


def _datetime(column: pl.Expr) -> pl.Expr:
    plain = _present(column).str.replace("T", " ", literal=True).str.strip_suffix("Z")
    return plain.str.strptime(pl.Datetime("us"), "%Y-%m-%d %H:%M:%S%.f", strict=True)


_PARSERS = {
    "number": lambda column: _present(column).cast(pl.Float64, strict=True),
    "date": lambda column: _present(column).str.strptime(pl.Date, "%Y-%m-%d", strict=True),
    "datetime": _datetime,
}
_PARSED = {"number": pl.Float64(), "date": pl.Date(), "datetime": pl.Datetime("us")}


def _infer(text: bytes, separator: str, header: list[str]) -> list[Column]:
    """How each column is to be read, from these records."""
    names = [f"c{k}" for k in range(len(header))]
    head = separator.join(names).encode() + b"\n"
    try:
        guessed = pl.read_csv(head + text, separator=separator, infer_schema_length=None)
    except PolarsError:  # an integer of more than 128 bits
        guessed = pl.read_csv(head + text, separator=separator, infer_schema=False)
    columns = []
    for name, values in zip(header, guessed.iter_columns(), strict=True):
        if values.dtype != pl.String:
            columns.append(Column(name, storable(values.to_frame().clear()).dtypes[0]))
        elif values.null_count() == len(values):
            columns.append(Column(name, pl.String(), empty=True))
        else:
            reads = next((reads for reads in _PARSERS if _all_parse(values, reads)), "plain")
            columns.append(Column(name, _PARSED.get(reads, pl.String()), reads))
    return columns


def _all_parse(values: pl.Series, reads: str) -> bool:
    """Can every value be read so? A few first, since most columns fail on them."""
    for some in (values.drop_nulls().head(20), values):
        try:
            parsed = some.to_frame().select(_PARSERS[reads](pl.col(some.name)))
        except PolarsError:
            return False
    return parsed.to_series().null_count() < len(parsed)


def _wider(one: Column | None, two: Column) -> Column:
    """The column type that holds both."""
    if one is None or one.empty:
        return two
    if two.empty or one == two:
        return one
    if one.dtype.is_numeric() and two.dtype.is_numeric():
        return Column(one.name, pl.Float64(), "number" if "number" in (one.reads, two.reads) else "plain")
    return Column(one.name, pl.String())


def _first_record(data: bytes) -> bytes:
    """Bytes of the first record without its line end; a line end between quotes does not count."""
    end, inside = 0, 0
    while True:
        found = data.find(b"\n", end)
        if found < 0:
            return data.rstrip(b"\r\n")
        inside += data.count(b'"', end, found)
        if inside % 2 == 0:
            return data[:found].rstrip(b"\r")
        end = found + 1


def _first_lines(data: bytes, count: int) -> bytes:
    """The first `count` records (or all)."""
    view = np.frombuffer(data, np.uint8)
    ends = view == 10
    quotes = view == ord('"')
    if quotes.any():
        ends &= (np.cumsum(quotes, dtype=np.uint8) & 1) == 0
    places = np.flatnonzero(ends)
    return data if len(places) <= count else data[: int(places[count - 1]) + 1]


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])


def _split(text: str, separator: str) -> list[str]:
    """Names of the header line, quotes taken off."""
    import csv

    return [name.strip() for name in next(csv.reader(io.StringIO(text), delimiter=separator))]
