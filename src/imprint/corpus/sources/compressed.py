"""Byte streams of plain and compressed files, bounded against decompression bombs, as UTF-8, in whole records."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from imprint.errors import SourceError

# Decompression stops where a file has given more than this many bytes and more than RATIO times its own size: data sets
# compress 3 to 50 times, bombs a thousand times and more.
FREE_BYTES, RATIO = 64 << 20, 200
# The longest record (a CSV row, a JSON line). A longer one is taken for an unclosed quote or a file of another format.
LONGEST_RECORD = 32 << 20
# Bytes read at a time. Larger blocks parse little faster and cost several times their size in memory.
BLOCK = 4 << 20
SUFFIXES = {".gz": "gzip", ".xz": "xz", ".zst": "zstandard", ".bz2": "bzip2"}
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def bare_suffix(path: Path) -> str:
    """Suffix without the compression's: 'a.CSV.gz' -> '.csv'.

    >>> bare_suffix(Path("a.CSV.gz")), bare_suffix(Path("b.jsonl"))
    ('.csv', '.jsonl')
    """
    suffixes = [one.lower() for one in path.suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def blocks(path: Path, size: int = BLOCK) -> Iterator[bytes]:
    """The file's bytes, decompressed, as UTF-8 without byte order mark and with \\n or \\r\\n line ends.

    Raises:
        SourceError: The compressed data is damaged or a bomb, or the text is UTF-16 without a byte order mark.
    """
    stream = _raw_blocks(path, size)
    first = next(stream, b"")
    encoding = next((name for bom, name in BOMS if first.startswith(bom)), None)
    if encoding is None:
        first = first.removeprefix(codecs.BOM_UTF8)
        _refuse_wide_text(first[:4096], path)
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    old_mac = decoder is None and b"\r" in first and b"\n" not in first
    while first:
        following = next(stream, b"")
        if decoder is not None:
            try:
                first = decoder.decode(first, final=not following).encode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}: damaged {encoding} text ({error.reason}).", "Save the file again, best as UTF-8."
                ) from error
        yield first.replace(b"\r", b"\n") if old_mac else first
        first = following


def records(path: Path, size: int = BLOCK, quoted: bool = False) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole records and the number of the line on which each block begins (from 1).

    Args:
        path: The file.
        size: Bytes read at a time; the records that come out do not depend on it.
        quoted: A line end between double quotes does not end a record (CSV).

    Raises:
        SourceError: A record is longer than `LONGEST_RECORD`, or a quote is never closed.
    """
    rest, line = b"", 1
    for block in blocks(path, size):
        rest += block
        cut = _last_record_end(rest, quoted)
        if cut:
            yield rest[:cut], line
            line += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
        if len(rest) > LONGEST_RECORD:
            hint = (
                "Look for a double quote that is never closed, or store such large values as Parquet."
                if quoted
                else "Store such large values as Parquet."
            )
            raise SourceError(f"{path}, line {line}: a record is longer than {LONGEST_RECORD >> 20} MiB.", hint)
    if rest:
        if quoted and rest.count(b'"') % 2:
            raise SourceError(
                f"{path}, line {_unclosed(rest, line)}: a double quote is opened and never closed.",
                "Close it, or double it where it is meant.",
            )
        yield rest if rest.endswith(b"\n") else rest + b"\n", line


def _last_record_end(data: bytes, quoted: bool) -> int:
    """One past the last line end outside of quotes; 0 if there is none."""
    end = data.rfind(b"\n") + 1
    if not quoted or not end or b'"' not in data:
        return end
    inside = np.count_nonzero(np.frombuffer(data, np.uint8)[:end] == ord('"'))
    while end and inside % 2:
        # The line ends after the last quote are all inside it; the next candidate is the one before it.
        quote = data.rfind(b'"', 0, end)
        previous = data.rfind(b"\n", 0, quote) + 1
        inside -= data.count(b'"', previous, end)
        end = previous
    return end


def _unclosed(data: bytes, line: int) -> int:
    """Line of the first record that holds an odd number of quotes on one line."""
    for ahead, text in enumerate(data.split(b"\n")):
        if text.count(b'"') % 2:
            return line + ahead
    return line


def _refuse_wide_text(head: bytes, path: Path) -> None:
    """UTF-16 and UTF-32 without a byte order mark: every second byte of Western text is zero."""
    if len(head) >= 4 and head.count(0) > 0.2 * len(head):
        raise SourceError(
            f"{path}, line 1: the text is full of NUL bytes; it looks like UTF-16 without a byte order mark, or a binary file.",
            f"Convert it: iconv -f UTF-16LE -t UTF-8 {path.name} > utf8-{path.name}",
        )


def _raw_blocks(path: Path, size: int) -> Iterator[bytes]:
    kind = SUFFIXES.get(path.suffix.lower())
    given = 0
    with path.open("rb") as file, _opened(file, kind) as stream:
        while True:
            try:
                block = stream.read(size)
            except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
                raise _damaged(path, kind, error) from error
            if not block:
                return
            given += len(block)
            if kind and given > FREE_BYTES and given > RATIO * max(file.tell(), 1):
                raise SourceError(
                    f"{path}: decompresses to more than {RATIO} times its size; stopped after {given >> 20} MiB.",
                    "It may be a decompression bomb. If you trust it, decompress it yourself and open the plain file.",
                )
            yield block


def _damaged(path: Path, kind: str | None, error: Exception) -> SourceError:
    if kind is None:
        return SourceError(f"{path} cannot be read: {error}.", "Check the disk and the file's permissions.")
    return SourceError(
        f"{path}: damaged {kind} data ({error or type(error).__name__}).", "Fetch or compress the file again."
    )


def _opened(file: IO[bytes], kind: str | None) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=cast(Any, file))
    if kind == "xz":
        return lzma.LZMAFile(file)
    if kind == "bzip2":
        return bz2.BZ2File(file)
    if kind == "zstandard":
        # Arrow's reader, unlike zstandard's, notices that a stream ends too early.
        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return file
