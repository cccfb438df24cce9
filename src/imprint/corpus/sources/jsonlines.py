"""JSON lines (.jsonl, .ndjson, .json), plain or compressed. A broken line is set aside; the rest goes on."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from imprint.corpus.kinds import storable
from imprint.corpus.sources.base import SAMPLE_ROWS, Batch, Source, Widened
from imprint.corpus.sources.compressed import BLOCK, records
from imprint.errors import SourceError

# A .json file that holds one list is read whole; a longer one has to be JSON lines.
LARGEST_LIST = 512 << 20
# One half of an escaped surrogate pair without the other: valid JSON, but no text.
_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class JsonLines(Source):
    """One JSON object per line. Nested objects become `outer.inner` columns; fields that a line lacks are null."""

    def __init__(self, path: Path, block: int | None = None) -> None:
        super().__init__()
        self.path, self.name = path, str(path)
        self.block = block or BLOCK
        stat = path.stat()
        self.size = stat.st_size
        self.identity = ["jsonlines", str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        if not stat.st_size:
            raise SourceError(f"{path} is empty (0 bytes).", "Give a file with one JSON object per line.")
        # Raw types as Polars infers them, before nested fields are spread.
        self.schema: dict[str, pl.DataType] = {}
        self._widened = False

    def sample(self) -> pl.DataFrame:
        head, lines = b"", 0
        for block, _ in self._records():
            head += block
            lines += block.count(b"\n")
            if lines > SAMPLE_ROWS:
                break
        view = np.flatnonzero(np.frombuffer(head, np.uint8) == 10)
        if len(view) > SAMPLE_ROWS:
            head = head[: int(view[SAMPLE_ROWS - 1]) + 1]
        frame, _, bad = self._parse(head, 1)
        if not len(frame):
            if bad:
                raise SourceError(
                    f"{self.path}: no line is a JSON object; the first problem is {bad[0][1]}.",
                    "Give one JSON object per line.",
                )
            raise SourceError(f"{self.path} holds no text but line ends.", "Give a file with one JSON object per line.")
        if not frame.width:
            raise SourceError(
                f"{self.path}: its JSON objects have no fields.", "Give one JSON object with named fields per line."
            )
        if not self.schema:
            self.schema = dict(frame.schema)
        return storable(_cast(frame, self.schema))

    def batches(self) -> Iterator[Batch]:
        record = 0
        for block, line in self._records():
            frame, good, bad = self._parse(block, line)
            if not self._fits(frame):
                if self._widened:
                    raise SourceError(
                        f"{self.path}, after line {line}: values of more than one type in a field.",
                        "Give each field one type.",
                    )
                self._widen()
                raise Widened
            self.aside.add([record + k for k, _ in bad], [reason for _, reason in bad])
            yield Batch(storable(_cast(frame, self.schema)), pl.Series("position", record + good))
            record += len(good) + len(bad)

    def _records(self) -> Iterator[tuple[bytes, int]]:
        stream = records(self.path, self.block)
        first, line = next(stream, (b"", 1))
        if first.lstrip()[:1] == b"[" and self.path.suffixes and ".json" in [one.lower() for one in self.path.suffixes]:
            yield self._list(first, stream), 1
            return
        yield first, line
        yield from stream

    def _list(self, first: bytes, stream: Iterator[tuple[bytes, int]]) -> bytes:
        """A file that holds one list of objects, as lines."""
        text = bytearray(first)
        for block, _ in stream:
            text += block
            if len(text) > LARGEST_LIST:
                raise SourceError(
                    f"{self.path}: one JSON list of more than {LARGEST_LIST >> 20} MiB.",
                    "Save it as JSON lines: one object per line.",
                )
        try:
            rows = json.loads(bytes(text))
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{self.path} is not JSON: {error}.", "Save it as JSON lines: one object per line."
            ) from error
        return b"".join(json.dumps(_finite(row)).encode() + b"\n" for row in rows)

    def _parse(self, block: bytes, line: int) -> tuple[pl.DataFrame, np.ndarray, list[tuple[int, str]]]:
        """(rows, their numbers among the non-blank lines, [(number, reason)] of the broken ones)."""
        if b"\n\n" not in block and b"\n\r\n" not in block and not block.startswith((b"\n", b"\r\n", b" ")):
            try:
                if _HALF_PAIR.search(block):
                    return self._salvage(block, line)
                if not block.isascii():
                    block.decode()  # Polars would take some bytes that are not UTF-8
                frame = self._read(block)
                if len(frame) == block.count(b"\n"):
                    return frame, np.arange(len(frame), dtype=np.int64), []
            except (PolarsError, UnicodeDecodeError):
                pass
        return self._salvage(block, line)

    def _salvage(self, block: bytes, line: int) -> tuple[pl.DataFrame, np.ndarray, list[tuple[int, str]]]:
        """Line by line, for the one block in which something is broken."""
        lines, good, bad, number = [], [], [], 0
        for ahead, text in enumerate(block.split(b"\n")):
            if not text.strip():
                continue
            try:
                value = json.loads(text.decode())
                json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON, and no text
                if not isinstance(value, dict):
                    raise ValueError(f"a JSON {type(value).__name__}, not an object")
                lines.append(json.dumps(_finite(value)).encode())
                good.append(number)
            except (ValueError, RecursionError) as error:
                message = "not UTF-8" if isinstance(error, UnicodeError) else str(error) or "nested too deeply"
                bad.append((number, f"line {line + ahead}: {message}"))
            number += 1
        if not lines:
            return pl.DataFrame(schema=self.schema), np.zeros(0, np.int64), bad
        try:
            frame = self._read(b"\n".join(lines) + b"\n")
        except PolarsError as error:
            raise SourceError(
                f"{self.path}, after line {line}: {str(error).splitlines()[0]}.",
                "Check the lines of this part of the file.",
            ) from error
        return frame, np.array(good, np.int64), bad

    def _read(self, text: bytes) -> pl.DataFrame:
        if self._widened:
            return pl.read_ndjson(io.BytesIO(text), schema=self.schema)
        return pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)

    def _fits(self, frame: pl.DataFrame) -> bool:
        return all(name in self.schema and _holds(self.schema[name], dtype) for name, dtype in frame.schema.items())

    def _widen(self) -> None:
        """One pass over the whole file for types that fit every line."""
        merged = dict(self.schema)
        for block, line in self._records():
            for name, dtype in self._parse(block, line)[0].schema.items():
                merged[name] = _wider(merged[name], dtype) if name in merged else dtype
        self.schema = merged
        self._widened = True


def _finite(value: Any) -> Any:
    """Python's JSON takes NaN and Infinity, which are not JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def _cast(frame: pl.DataFrame, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    return frame.select(
        (pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name))
        for name, dtype in schema.items()
    )


def _holds(wide: pl.DataType, narrow: pl.DataType) -> bool:
    """Can `wide` hold every value of `narrow` as it is?"""
    return wide == narrow or narrow == pl.Null or (_wider(wide, narrow) == wide and wide != pl.String)


def _wider(one: pl.DataType, two: pl.DataType) -> pl.DataType:
    """The type that holds both; strings hold everything."""
    if one == two or two == pl.Null:
        return one
    if one == pl.Null:
        return two
    if one.is_numeric() and two.is_numeric():
        return pl.Float64() if one.is_float() or two.is_float() else pl.Int64()
    if isinstance(one, pl.List) and isinstance(two, pl.List):
        return pl.List(_wider(one.inner, two.inner))  # type: ignore[arg-type]
    if isinstance(one, pl.Struct) and isinstance(two, pl.Struct):
        fields: dict[str, Any] = {field.name: field.dtype for field in one.fields}
        for field in two.fields:
            fields[field.name] = _wider(fields[field.name], field.dtype) if field.name in fields else field.dtype  # type: ignore[arg-type]
        return pl.Struct(fields)
    return pl.String()
