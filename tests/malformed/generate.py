"""More than two hundred malformed inputs, each with what must come of it.

`cases(folder)` writes them and lists them. "error" means: an `ImprintError` whose message names the place (file, column, row or
line) and says what to do. "opens" means: a corpus, with so many rows set aside. They are grouped by what went wrong, and each
group varies what matters in it (where the damage is, which format, which byte, how much).
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS = 40


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        name: What is wrong with it.
        path: What is opened.
        kwargs: Further arguments of `imprint.open`.
        expectation: "error" or "opens".
        place: Text that the error's message holds.
        aside: How many rows are set aside when it opens; None where the number does not matter.
    """

    name: str
    path: Path
    expectation: Literal["error", "opens"]
    place: str = ""
    aside: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


class _Folder:
    """Writes inputs under a folder and collects their cases."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases: list[Case] = []

    def path(self, name: str) -> Path:
        path = self.root / f"{len(self.cases):03d}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def error(self, what: str, name: str, data: bytes | str, place: str | None = None, **kwargs: Any) -> None:
        """The file `name` holds `data`; opening it fails and the message holds `place` (by default the file's name)."""
        path = self.write(name, data)
        self.cases.append(Case(what, path, "error", name if place is None else place, kwargs=kwargs))

    def opens(self, what: str, name: str, data: bytes | str, aside: int | None, **kwargs: Any) -> None:
        """The file `name` holds `data`; it opens with `aside` rows set aside."""
        path = self.write(name, data)
        self.cases.append(Case(what, path, "opens", aside=aside, kwargs=kwargs))

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.path(name)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def add(
        self,
        what: str,
        path: Path,
        expectation: Literal["error", "opens"],
        place: str = "",
        aside: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.cases.append(Case(what, path, expectation, place, aside, kwargs))


def cases(folder: Path) -> list[Case]:
    """Write all malformed inputs under `folder` and say what must come of each."""
    out = _Folder(folder)
    for family in FAMILIES:
        family(out)
    return out.cases


def table(rows: int = ROWS, ends: str = "\n", separator: str = ",") -> str:
    """A sound CSV: number, word, label."""
    lines = [separator.join(("number", "word", "label"))]
    lines += [separator.join((f"{k}.5", f"word{k % 7}", "yes" if k % 2 else "no")) for k in range(rows)]
    return ends.join(lines) + ends


def with_line(text: str, at: int, line: str) -> str:
    """The text with one more line before line `at` (from 1)."""
    lines = text.splitlines()
    return "\n".join([*lines[: at - 1], line, *lines[at - 1 :]]) + "\n"


def json_lines(rows: int = ROWS) -> str:
    """Sound JSON lines: text, label."""
    return "".join(
        json.dumps({"text": f"example number {k} of many", "label": "yes" if k % 2 else "no"}) + "\n"
        for k in range(rows)
    )


def png(color: int = 0, size: int = 8) -> bytes:
    """A small picture."""
    return _encoded(color, size, "PNG")


def _encoded(color: int, size: int, format: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(color).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def _frame(rows: int = ROWS) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "number": [k + 0.5 for k in range(rows)],
            "word": [f"word{k % 7}" for k in range(rows)],
            "label": ["yes" if k % 2 else "no" for k in range(rows)],
        }
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(frame.to_arrow(), buffer)
    return buffer.getvalue()


# Families


def emptiness(out: _Folder) -> None:
    for suffix in ("csv", "tsv", "txt", "jsonl", "ndjson", "json", "parquet", "arrow", "feather"):
        out.error(f"an empty .{suffix}", f"empty.{suffix}", b"")
    for name, pack in (("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)):
        out.error(f"nothing, as .csv.{name}", f"nothing.csv.{name}", pack(b""))
        out.error(f"nothing, as .jsonl.{name}", f"nothing.jsonl.{name}", pack(b""))
    for what, data in {"only line ends": "\n\n\n", "only Windows line ends": "\r\n" * 3}.items():
        out.error(f"CSV with {what}", "blank.csv", data)
        out.error(f"JSON lines with {what}", "blank.jsonl", data)
    out.error("header and no rows", "header.csv", "number,word,label\n")
    out.error("header without a line end", "header.csv", "number,word,label")
    out.error("header and blank lines", "header.csv", "number,word,label\n\n\n")
    out.error("byte order mark and nothing", "bom.csv", b"\xef\xbb\xbf")
    out.error("parquet without rows", "norows.parquet", _parquet(_frame(0)))
    out.error("one JSON object without fields", "fields.jsonl", "{}\n{}\n")
    out.error("empty JSON list", "list.json", "[]")
    out.error("CSV of one column", "one.csv", "label\nyes\nno\n", "label")
    folder = out.path("folder")
    folder.mkdir()
    out.add("an empty folder", folder, "error", "folder")
    folder = out.path("texts")
    folder.mkdir()
    (folder / "a.docx").write_text("no table")
    (folder / "b.docx").write_text("no table")
    out.add("a folder without images", folder, "error", ".docx")


def encodings(out: _Folder) -> None:
    accents = table().replace("word", "wört")
    for codec in ("latin-1", "cp1252", "mac-roman", "cp437"):
        out.error(
            f"CSV in {codec}, header and all",
            "accents.csv",
            accents.replace("number", "nümber").encode(codec),
            "line 1",
        )
        out.error(
            f"CSV in {codec}, every row",
            "accents.csv",
            ("number,word,label\n" + accents.split("\n", 1)[1]).encode(codec),
            "accents.csv",
        )
    out.opens("UTF-16 with a byte order mark", "wide.csv", accents.encode("utf-16"), 0)
    out.opens("UTF-32 with a byte order mark", "wide.csv", accents.encode("utf-32"), 0)
    for codec in ("utf-16-le", "utf-16-be", "utf-32-le"):
        out.error(f"CSV in {codec} without a byte order mark", "wide.csv", accents.encode(codec), "NUL")
        out.error(f"JSON lines in {codec} without a byte order mark", "wide.jsonl", json_lines().encode(codec), "NUL")
    out.error("UTF-16 cut within a character", "wide.csv", accents.encode("utf-16")[:-1], "wide.csv")
    out.opens("UTF-8 with a byte order mark", "bom.csv", b"\xef\xbb\xbf" + table().encode(), 0)
    for line in (2, 17, ROWS + 2):
        out.opens(
            f"one latin-1 row on line {line}",
            "one.csv",
            with_line(table(), line, "1.5,w\udcf6rt,yes").encode("utf-8", "surrogateescape"),
            1,
        )
    for bad in (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"):
        out.opens(f"a row with the bytes {bad!r}", "bytes.csv", table().encode().replace(b"word3", b"word" + bad, 1), 1)
        out.opens(
            f"a JSON line with the bytes {bad!r}",
            "bytes.jsonl",
            json_lines().encode().replace(b"number 3", b"number " + bad, 1),
            1,
        )
    for where in ("3.5", "word3,"):
        out.opens(f"a NUL byte in {where}", "nul.csv", table().replace(where, where[0] + "\0" + where[1:], 1), 1)
    out.error("NUL bytes instead of rows", "zeros.csv", "number,word,label\n" + "\0" * 5000)
    out.error("a file of zeros", "zeros.csv", bytes(4096))
    out.error("random bytes called .csv", "noise.csv", np.random.default_rng(0).bytes(5000), "noise.csv")
    out.error("random bytes called .jsonl", "noise.jsonl", np.random.default_rng(1).bytes(5000), "noise.jsonl")
    out.error("a PNG called .csv", "picture.csv", png(size=64))
    out.error("a Parquet called .csv", "table.csv", _parquet(_frame()))
    out.opens("old Mac line ends", "mac.csv", table(ends="\r"), 0)
    out.opens("Windows line ends", "windows.csv", table(ends="\r\n"), 0)


def raggedness(out: _Folder) -> None:
    for line in (2, 3, 20, ROWS + 2):
        out.opens(f"a short row on line {line}", "short.csv", with_line(table(), line, "1.5,word"), 1)
        out.opens(f"a long row on line {line}", "long.csv", with_line(table(), line, "1.5,word,yes,more"), 1)
    out.opens(
        "rows short and long that add up",
        "both.csv",
        with_line(with_line(table(), 5, "1.5,word"), 9, "1.5,word,yes,more"),
        2,
    )
    out.opens("a row of one field", "alone.csv", with_line(table(), 7, "word"), 1)
    out.opens("a row of 5000 fields", "wide.csv", with_line(table(), 7, ",".join("x" * 5000)), 1)
    out.opens("blank lines between the rows", "blank.csv", table().replace("\n", "\n\n"), 0)
    out.opens(
        "short row in a quoted file", "quoted.csv", with_line(table().replace("word1", '"word, one"'), 9, "1.5,word"), 1
    )
    out.opens(
        "long row in a quoted file",
        "quoted.csv",
        with_line(table().replace("word1", '"word\none"'), 30, "1.5,word,yes,no"),
        None,
    )
    out.opens("tabs, one row short", "tabs.tsv", with_line(table(separator="\t"), 4, "1.5\tword"), 1)
    out.opens("semicolons, one row long", "semi.csv", with_line(table(separator=";"), 4, "1.5;word;yes;no"), 1)
    out.opens("one short row, compressed", "short.csv.gz", gzip.compress(with_line(table(), 9, "1.5").encode()), 1)
    out.error("most rows short", "mostly.csv", "number,word,label\n" + "1.5,word\n" * 30 + "1.5,word,yes\n", "line 2")
    out.error(
        "most rows long", "mostly.csv", "number,word,label\n" + "1.5,word,yes,x\n" * 30 + "1.5,word,yes\n", "line 2"
    )
    out.error("header shorter than the rows", "header.csv", "number,label\n" + table().split("\n", 1)[1], "not 2")
    out.error(
        "header longer than the rows", "header.csv", "number,word,label,extra\n" + table().split("\n", 1)[1], "not 4"
    )
    for line in (2, 20):
        out.error(
            f"a quote opened on line {line} and never closed",
            "quote.csv",
            with_line(table(), line, '1.5,"word,yes'),
            f"line {line}",
        )
    out.error("a quote opened in the header", "quote.csv", table().replace("word", '"word', 1))
    out.error(
        "prose called .csv",
        "prose.csv",
        "It was a dark and stormy night, and\nno table was in sight.\n" * 3,
        "prose.csv",
        target="label",
    )
    out.error(
        "a web page called .csv", "page.csv", "<!DOCTYPE html>\n<html><body>404, not found</body></html>\n", "page.csv"
    )


def columns(out: _Folder) -> None:
    for header, repeated in (
        ("a,a,label", "a"),
        ("label,word,label", "label"),
        ("number,word,word", "word"),
        ('"a","a",label', "a"),
        ("a, a,label", "a"),
    ):
        out.error(f"the header {header}", "twice.csv", header + "\n" + table().split("\n", 1)[1], f"'{repeated}'")
    out.error("no column like a target", "plain.csv", table().replace("label", "colour"), "colour")
    out.error("two columns like a target", "two.csv", table().replace("word", "class", 1), "class")
    for role in ("target", "inputs", "id", "split", "group", "weight"):
        out.error(f"{role} names no column", "table.csv", table(), "'nowhere'", **{role: "nowhere"})
    out.error("a name misspelt", "table.csv", table(), "Did you mean 'number'", inputs="nummber")
    out.error("the target is also an input", "table.csv", table(), "'label'", target="label", inputs=["label", "word"])
    out.error("one column in two roles", "table.csv", table(), "'word'", target="label", id="word", weight="word")
    out.error("no inputs", "table.csv", table(), "inputs", inputs=[])
    out.error("a role that is no name", "table.csv", table(), "weight", weight=3)
    out.error("weights that are words", "table.csv", table(), "'word'", weight="word")
    out.opens("two names in different case", "case.csv", table().replace("number", "Word", 1), 0)
    out.opens("a column without a name", "noname.csv", table().replace("number", "", 1), 0)
    for name in ("a.b", "a`b", "_rowid", "%", "ü/ß", 'say ""hi""', "x" * 2000, "C:\\new"):
        quoted = f'"{name}"' if '"' in name else name
        out.opens(f"a column called {name[:20]}", "names.csv", table().replace("number", quoted, 1), 0)
    wide = (
        ",".join(f"c{k}" for k in range(3000))
        + ",label\n"
        + "".join(",".join(["1"] * 3000) + f",{'yes' if k % 2 else 'no'}\n" for k in range(6))
    )
    out.opens("3000 columns", "wide.csv", wide, 0)
    out.error(
        "only bytes that are no images",
        "bytes.parquet",
        _parquet(pl.DataFrame({"x": [b"\1\2", b"\3"], "label": ["a", "b"]})),
        "'x'",
    )
    out.error(
        "lists of different lengths",
        "lists.parquet",
        _parquet(pl.DataFrame({"x": [[1, 2], [3]], "label": ["a", "b"]})),
        "'x'",
    )
    out.error(
        "lists of words", "lists.parquet", _parquet(pl.DataFrame({"x": [["a"], ["b"]], "label": ["a", "b"]})), "'x'"
    )


def targets(out: _Folder) -> None:
    rows = table().splitlines()
    for count, word in ((1, ""), (5, "NA"), (ROWS - 2, "NaN"), (3, "null"), (2, "#N/A")):
        damaged = [rows[0]] + [
            row.rsplit(",", 1)[0] + f",{word}" if k < count else row for k, row in enumerate(rows[1:])
        ]
        out.opens(f"{count} targets are {word or 'empty'}", "gaps.csv", "\n".join(damaged) + "\n", count)
    for word in ("", "NaN", "NA", "null", "  "):
        out.error(f"every target is {word or 'empty'!r}", "none.csv", "number,label\n" + f"1.5,{word}\n" * 9, "label")
    numbers = _frame().with_columns(pl.col("number").alias("label"))
    for what, value, place in (
        ("NaN", float("nan"), 3),
        ("infinite", float("inf"), 5),
        ("minus infinite", float("-inf"), 0),
    ):
        values = numbers["label"].to_list()
        values[place] = value
        out.opens(
            f"one {what} target",
            "number.parquet",
            _parquet(numbers.drop("number").with_columns(pl.Series("label", values))),
            1,
        )
    out.error(
        "all targets NaN", "nan.parquet", _parquet(numbers.with_columns(pl.lit(float("nan")).alias("label"))), "'label'"
    )
    out.error(
        "all targets null",
        "null.parquet",
        _parquet(numbers.with_columns(pl.lit(None, dtype=pl.String).alias("label"))),
        "'label'",
    )
    out.error(
        "a target without a type",
        "null.parquet",
        _parquet(numbers.with_columns(pl.lit(None).alias("label"))),
        "'label'",
    )
    out.error(
        "all targets infinite",
        "inf.parquet",
        _parquet(numbers.with_columns(pl.lit(float("inf")).alias("label"))),
        "infinite",
    )
    for value in ("yes", "1", "2.5", "true"):
        out.error(
            f"one class, {value}", "one.csv", "number,label\n" + "".join(f"{k},{value}\n" for k in range(9)), "'label'"
        )
    out.error("one class once the gaps are gone", "one.csv", "number,label\n" + "1,yes\n2,\n" * 5, "'label'")
    out.error("one row", "row.csv", "number,label\n1,yes\n", "'label'")
    out.error("dates as the target", "dates.csv", "number,label\n1,2020-01-01\n2,2020-01-02\n", "'label'")
    out.error(
        "bytes as the target", "bytes.parquet", _parquet(pl.DataFrame({"x": [1, 2], "label": [b"a", b"b"]})), "'label'"
    )
    out.error("words, and regression asked for", "table.csv", table(), "'label'", task="regression")
    out.error("one label per row, and multilabel asked for", "table.csv", table(), "'label'", task="multilabel")
    out.error(
        "lists, and classification asked for",
        "lists.jsonl",
        '{"x": 1, "label": ["a"]}\n{"x": 2, "label": ["b"]}\n',
        "'label'",
        task="classification",
    )
    out.error("an unknown task", "table.csv", table(), "'classify'", task="classify")
    out.error(
        "several targets that are not 0 and 1",
        "table.csv",
        table(),
        "'number'",
        target=["number", "label"],
        inputs="word",
    )
    out.opens(
        "10000 classes", "classes.csv", "number,label\n" + "".join(f"{k},class {k % 10000}\n" for k in range(20000)), 0
    )
    out.opens(
        "as many classes as rows", "classes.csv", "number,label\n" + "".join(f"{k},class {k}\n" for k in range(50)), 0
    )
    out.opens("a class with one row", "rare.csv", with_line(table(), 2, "1.5,word,maybe"), 0)
    out.opens("classes that differ in blanks", "blanks.csv", with_line(table(), 2, "1.5,word, yes"), 0)


def ids_and_splits(out: _Folder) -> None:
    keyed = "id," + table().replace("\n", "\n#,")[:-2]
    for first, second in ((0, 1), (0, ROWS - 1), (7, 30)):
        lines = [line.replace("#", str(k - 1)) for k, line in enumerate(keyed.splitlines())]
        lines[second + 1] = lines[second + 1].replace(f"{second},", f"{first},", 1)
        text = "\n".join(lines) + "\n"
        out.error(f"rows {first} and {second} have one id", "ids.csv", text, f"positions {first} and {second}", id="id")
        out.opens(f"rows {first} and {second} have one id, not asked for", "ids.csv", text, 0)
    lines[5] = lines[5].split(",", 1)[0][:0] + "," + lines[5].split(",", 1)[1]
    lines[31] = "x" + lines[31]
    out.error("a row without its id", "ids.csv", "\n".join(lines) + "\n", "position 4", id="id")
    out.error("every id the same", "ids.csv", keyed.replace("#", "7"), "'7'", id="id")
    parted = "split," + table().replace("\n", "\n#,")[:-2]
    out.error("no split is 'train'", "splits.csv", parted.replace("#", "fold1"), "'train'", split="split")
    out.error("every split missing", "splits.csv", parted.replace("#", ""), "split", split="split")
    out.opens("one split missing", "splits.csv", parted.replace("#", "", 1).replace("#", "train"), 1, split="split")
    out.opens("splits in capitals", "splits.csv", parted.replace("#", "Test", 9).replace("#", "TRAINING"), 0)
    for fractions in (
        {"train": 0.5},
        {"train": 0.9, "test": 0.9},
        {"train": -1.0, "test": 2.0},
        {"test": 1.0},
        {"train": float("nan"), "test": 0.5},
        {},
    ):
        out.error(f"the fractions {fractions}", "table.csv", table(), "split", split=fractions)
    out.error(
        "one group",
        "groups.csv",
        table().replace("word1", "word0").replace("word", "g"),
        "group",
        group="word",
        **_only_group(),
    )
    out.opens(
        "weights that are missing, negative, infinite",
        "weights.csv",
        "number,w,label\n1,,a\n2,-1,b\n3,inf,a\n4,1,b\n5,2,a\n6,0,b\n",
        3,
        weight="w",
    )
    out.error("all weights negative", "weights.csv", "number,w,label\n1,-1,a\n2,-1,b\n", "weight", weight="w")


def _only_group() -> dict[str, Any]:
    return {"split": {"train": 0.1, "a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1, "e": 0.1, "f": 0.1, "g": 0.3}}


def values(out: _Folder) -> None:
    late = "number,word,label\n" + "".join(f"{k},w,{'yes' if k % 2 else 'no'}\n" for k in range(12000))
    for what, value in (
        ("a word", "many"),
        ("a fraction", "0.5"),
        ("infinity", "inf"),
        ("NaN", "NaN"),
        ("a huge integer", "9" * 40),
        ("a date", "2020-01-01"),
        ("an underscore", "1_000"),
        ("true", "true"),
    ):
        out.opens(f"12000 integers and then {what}", "late.csv", late + f"{value},w,yes\n", 0)
    out.opens(
        "an empty column with its first value at the end",
        "late.csv",
        "number,word,label\n" + "".join(f",w,{'yes' if k % 2 else 'no'}\n" for k in range(12000)) + "7,w,yes\n",
        0,
    )
    out.opens(
        "infinite and missing numbers",
        "inf.csv",
        table().replace("3.5", "inf").replace("4.5", "-inf").replace("5.5", "NaN"),
        0,
    )
    out.opens("types mixed in a column", "mixed.csv", 'mixed,label\n1,a\nx,b\n2020-01-01,a\ntrue,b\n"",a\n,b\n', 0)
    out.opens("dates that are none", "dates.csv", "day,label\n2020-02-30,a\n2020-01-01,b\n0000-00-00,a\n", 0)
    out.opens(
        "an input that is always missing",
        "void.csv",
        "void,word,label\n" + "".join(f",w{k},{'yes' if k % 2 else 'no'}\n" for k in range(9)),
        0,
    )
    out.opens("a cell of 4 MiB", "cell.csv", with_line(table(), 5, "1.5," + "x" * (4 << 20) + ",yes"), 0)
    out.error("a cell of 64 MiB", "cell.csv", with_line(table(), 5, "1.5," + "x" * (64 << 20) + ",yes"), "line 5")
    out.error(
        "a quoted cell of 40 MiB", "cell.csv", with_line(table(), 5, '1.5,"' + "x\n" * (20 << 20) + '",yes'), "line 5"
    )
    out.error(
        "a JSON line of 40 MiB",
        "cell.jsonl",
        json_lines() + json.dumps({"text": "x" * (40 << 20), "label": "yes"}) + "\n",
        f"line {ROWS + 1}",
    )
    out.opens(
        "emoji, right-to-left and zero-width text",
        "glyphs.jsonl",
        '{"text": "\\ud83d\\ude00 \\u202eabc\\u200b", "label": "a"}\n{"text": "", "label": "b"}\n',
        0,
    )
    out.opens("spreadsheet formulas", "formulas.csv", table().replace("word3", "=cmd|' /C calc'!A0"), 0)
    out.opens("exact duplicates", "copies.csv", "number,label\n" + "1,yes\n" * 20 + "2,no\n" * 20, 0)


def json_text(out: _Folder) -> None:
    for what, line in {
        "a broken line": '{"text": "a", "label"',
        "a list": "[1, 2]",
        "a number": "7",
        "a string": '"text"',
        "null": "null",
        "single quotes": "{'text': 'a', 'label': 'yes'}",
        "a trailing comma": '{"text": "a", "label": "yes",}',
        "two objects": '{"text": "a", "label": "yes"} {"text": "b", "label": "no"}',
        "a comment": "// hello",
        "nested 3000 deep": "[" * 3000 + "]" * 3000,
        "an unclosed string": '{"text": "a, "label": "yes"}',
        "a bare word": "text",
    }.items():
        out.opens(f"one JSON line is {what}", "line.jsonl", with_line(json_lines(), 12, line), 1)
    out.opens(
        "half a surrogate pair", "half.jsonl", with_line(json_lines(), 4, '{"text": "a \\ud83d c", "label": "yes"}'), 1
    )
    out.opens(
        "NaN in JSON, which has none", "nan.jsonl", with_line(json_lines(), 4, '{"text": "a b c", "label": NaN}'), 1
    )
    out.opens("a line without the target", "field.jsonl", with_line(json_lines(), 4, '{"text": "a b c"}'), 1)
    out.opens("a line with other fields", "field.jsonl", json_lines() + '{"other": 1}\n', 1)
    out.opens("a number where there were words", "types.jsonl", json_lines() + '{"text": 7, "label": "yes"}\n', 0)
    out.opens("a list where there were words", "types.jsonl", json_lines() + '{"text": ["a"], "label": "yes"}\n', 0)
    out.opens(
        "an object where there were words", "types.jsonl", json_lines() + '{"text": {"a": 1}, "label": "yes"}\n', 0
    )
    out.opens(
        "nested objects",
        "nested.jsonl",
        "".join(f'{{"a": {{"b": {{"c": {k}}}}}, "label": "{"yn"[k % 2]}"}}\n' for k in range(9)),
        0,
    )
    out.opens("cut within the last line", "cut.jsonl", json_lines()[:-9], 1)
    for what, data in {
        "prose": "It was\na dark night\n",
        "CSV": table(),
        "a broken object": '{"a": \n{"b": \n',
        "numbers": "1\n2\n3\n",
    }.items():
        out.error(f"every JSON line is {what}", "broken.jsonl", data)
    out.error("a JSON list cut short", "cut.json", '[{"text": "a", "label": "yes"}, {"te')
    out.error(
        "a JSON object of columns", "columns.json", '{"text": ["a", "b"], "label": ["yes", "no"]}', "columns.json"
    )
    out.opens("a JSON list", "list.json", json.dumps([json.loads(line) for line in json_lines().splitlines()]), 0)
    out.error(
        "nested fields that meet",
        "meet.jsonl",
        '{"a": {"b": 1}, "a.b": 2, "label": "x"}\n{"a": {"b": 1}, "a.b": 2, "label": "y"}\n',
        "'a.b'",
    )


def compression(out: _Folder) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "xz": lzma.compress,
        "bz2": bz2.compress,
        "zst": _zstd,
    }
    sound = table(4000).encode()
    for name, pack in packers.items():
        packed = pack(sound)
        out.error(f".csv.{name} cut in half", f"half.csv.{name}", packed[: len(packed) // 2])
        out.error(f".jsonl.{name} cut by one byte", f"cut.jsonl.{name}", pack(json_lines(2000).encode())[:-1])
        out.error(f"plain text called .csv.{name}", f"plain.csv.{name}", sound)
        flipped = bytearray(packed)
        flipped[len(flipped) // 2] ^= 0xFF
        out.error(f".csv.{name} with a flipped byte", f"flipped.csv.{name}", bytes(flipped))
        out.opens(f"sound .csv.{name}", f"sound.csv.{name}", packed, 0)
    for name, bomb in _bombs():
        out.error(f"a bomb, {name}", f"bomb.{name}", bomb, f"bomb.{name}")
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("table.csv", table())
    out.error("a zip of a CSV", "table.zip", buffer.getvalue())
    out.error("a zip called .csv", "table.csv", buffer.getvalue())
    out.error("a compressed Parquet file", "table.parquet.gz", gzip.compress(_parquet(_frame())))


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Files that decompress to more than two hundred times their size: one long row, many rows, many JSON lines."""
    rows = b"1.5,word,yes\n" * (1 << 16)
    head = b"number,word,label\n"
    yield "csv.gz", _repeat_gzip(head, rows, 100)
    yield "csv.xz", lzma.compress(head + rows * 100, preset=0)
    yield "csv.zst", _zstd(head + rows * 100)
    yield "jsonl.xz", lzma.compress((b'{"text": "a", "label": "yes"}\n' * (1 << 16)) * 50, preset=0)
    yield "jsonl.bz2", bz2.compress((b'{"text": "a", "label": "yes"}\n' * (1 << 16)) * 50)
    yield "txt.gz", _repeat_gzip(b"", bytes(1 << 20), 80)


def _repeat_gzip(head: bytes, block: bytes, times: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(head) + b"".join(packer.compress(block) for _ in range(times)) + packer.flush()


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def binary_tables(out: _Folder) -> None:
    sound = _parquet(_frame(2000))
    for keep in (4, 100, len(sound) // 2, len(sound) - 9, len(sound) - 1):
        out.error(f"Parquet cut to {keep} bytes", "cut.parquet", sound[:keep])
    damaged = bytearray(sound)
    damaged[4:200] = bytes(196)
    out.error("Parquet with zeros in its first page", "zeros.parquet", bytes(damaged))
    damaged = bytearray(sound)
    footer = struct.unpack("<I", sound[-8:-4])[0]
    damaged[-8 - footer : -8 - footer + 40] = bytes(40)
    out.error("Parquet with a damaged footer", "footer.parquet", bytes(damaged))
    out.error("CSV called .parquet", "table.parquet", table())
    out.error("Parquet called .arrow", "table.arrow", sound)
    out.error("Parquet called .jsonl", "table.jsonl", sound)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _frame().to_arrow().schema) as writer:
        writer.write_table(_frame(5000).to_arrow())
    arrow = sink.getvalue()
    out.error("Arrow cut in half", "cut.arrow", arrow[: len(arrow) // 2])
    out.error("Arrow cut by its footer", "cut.feather", arrow[:-10])
    twice = pa.table([pa.array([1, 2]), pa.array([3, 4]), pa.array(["a", "b"])], names=["a", "a", "label"])
    pq.write_table(twice, sink := io.BytesIO())
    out.error("a Parquet with one name twice", "twice.parquet", sink.getvalue(), "'a'")
    for depth in (pa.list_(pa.list_(pa.int64())), pa.map_(pa.string(), pa.int64())):
        value: Any = [[1]] if pa.types.is_list(depth) else [("a", 1)]
        pq.write_table(pa.table({"x": pa.array([value, value], depth), "label": ["a", "b"]}), sink := io.BytesIO())
        out.error(f"only {depth} as input", "deep.parquet", sink.getvalue(), "'x'")
    shards = out.path("shards")
    shards.mkdir()
    _frame().write_parquet(shards / "a.parquet")
    _frame().rename({"word": "other"}).write_parquet(shards / "b.parquet")
    out.add("shards with different columns", shards, "error", "b.parquet")
    broken = out.path("table.lance")
    broken.mkdir()
    (broken / "data").mkdir()
    out.add("a Lance folder without its manifest", broken, "error", "table.lance")
    saved = out.path("corpus")
    saved.mkdir()
    (saved / "corpus.json").write_text('{"format": 1}')
    out.add("a saved corpus without its tables", saved, "error", "corpus")
    for name, text in (("cut", '{"format": 1, "ro'), ("newer", '{"format": 99}')):
        saved = out.path(name)
        saved.mkdir()
        (saved / "corpus.json").write_text(text)
        out.add(f"a saved corpus whose description is {name}", saved, "error", name)


class _Trap:
    """A pickle of this writes a file where it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (f"/tmp/imprint-pickle-was-opened-{os.getpid()}",)


def refusals(out: _Folder) -> None:
    for suffix in ("pkl", "pickle", "pt", "pth", "joblib"):
        out.error(f"a pickle called .{suffix}", f"data.{suffix}", pickle.dumps(_Trap()), "pickle")
    np.savez(buffer := io.BytesIO(), x=np.array([_Trap(), 1], dtype=object), y=np.array([0, 1]))
    out.error("object arrays in .npz", "data.npz", buffer.getvalue(), "data.npz")
    np.savez(buffer := io.BytesIO(), a=np.zeros(3), b=np.zeros(3))
    out.error(".npz without x and y", "data.npz", buffer.getvalue(), "a, b")
    np.savez(buffer := io.BytesIO(), x=np.zeros((3, 2)), y=np.zeros(4))
    out.error(".npz with more targets than examples", "data.npz", buffer.getvalue(), "4")
    np.savez(buffer := io.BytesIO(), x=np.zeros((3, 0)), y=np.arange(3))
    out.error(".npz with an empty axis", "data.npz", buffer.getvalue(), "(3, 0)")
    np.savez(buffer := io.BytesIO(), x=np.zeros((3, 2), complex), y=np.arange(3))
    out.error(".npz with complex numbers", "data.npz", buffer.getvalue(), "complex")
    np.savez_compressed(buffer := io.BytesIO(), x=np.zeros((1 << 14, 1 << 13)), y=np.zeros(1 << 14))
    out.error("a bomb, .npz", "bomb.npz", buffer.getvalue(), "bomb.npz")
    out.error("text called .npz", "data.npz", "no zip", "data.npz")
    for name in (
        "table.xlsx",
        "table.sqlite",
        "table.h5",
        "notes.md",
        "archive.tar",
        "noending",
        "table.csv.7z",
        ".csv~",
    ):
        out.error(f"a file called {name}", name, table(), name.rsplit("/", 1)[-1])
    out.error("a single image", "photo.png", png(), "photo.png")
    out.add("a file that is not there", out.path("nowhere.csv"), "error", "nowhere.csv")
    out.write("train.csv", table())
    out.add("a file name misspelt", out.path("trian.csv"), "error", "Did you mean 'train.csv'")
    out.add("a folder that is not there", out.path("x").parent / "no" / "where.csv", "error", "where.csv")
    out.add("a name too long", out.path("x").parent / ("x" * 300 + ".csv"), "error", "xxx")
    out.add("a NUL in the name", Path("a\0b.csv"), "error", "b.csv")
    link = out.path("loop.csv")
    link.symlink_to(link)
    out.add("a link to itself", link, "error", "loop.csv")
    link = out.path("dangling.csv")
    link.symlink_to(out.path("gone.csv"))
    out.add("a link to nothing", link, "error", "dangling.csv")
    pipe = out.path("pipe.csv")
    os.mkfifo(pipe)
    out.add("a pipe", pipe, "error", "pipe.csv")
    out.add("a device", Path("/dev/null"), "error", "/dev/null")
    place = out.path("s.csv")
    listening = socket.socket(socket.AF_UNIX)
    home = os.getcwd()
    try:  # the name of a socket may only be short
        os.chdir(place.parent)
        listening.bind(place.name)
    finally:
        os.chdir(home)
        listening.close()
    out.add("a socket", place, "error", "s.csv")
    if os.geteuid() != 0:  # who may do everything is refused nothing
        secret = out.write("secret.csv", table())
        secret.chmod(0)
        out.add("a file that may not be read", secret, "error", "secret.csv")


def images(out: _Folder) -> None:
    for what, data in _bad_images():
        root = _image_folder(out)
        (root / "cat" / "bad.png").write_bytes(data)
        out.add(f"an image that is {what}", root, "opens", aside=1)
    root = _image_folder(out)
    for path in root.rglob("*.png"):
        path.write_bytes(b"not an image")
    out.add("only images that are text", root, "error", "not an image")
    root = _image_folder(out)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    out.add("only images without bytes", root, "error", "0 bytes")
    root = _image_folder(out)
    (root / "alone.png").write_bytes(png())
    out.add("an image beside the class folders", root, "error", "alone.png")
    root = out.path("flat")
    root.mkdir()
    for k in range(4):
        (root / f"{k}.png").write_bytes(png(k))
    out.add("images without labels", root, "error", "metadata.csv")
    out.add("one class folder", _image_folder(out, classes=("cat",)), "error", "'cat'")
    out.add("images, and a target that is not there", _image_folder(out), "error", "'breed'", target="breed")
    root = _image_folder(out)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".DS_Store").write_bytes(b"\0\0")
    out.add("other files among the images", root, "opens", aside=0)
    for what, text, place in (
        ("no file_name", "name,label\na.png,x\n", "file_name"),
        ("only files that are not there", "file_name,label\nnowhere.png,x\nno.png,y\n", "metadata.csv"),
        ("one file twice", "file_name,label\ncat/0.png,x\ncat/0.png,y\n", "cat/0.png"),
        ("no target", "file_name,mood\ncat/0.png,x\ncat/1.png,y\n", "mood"),
        ("nothing", "", "metadata.csv"),
        ("a header only", "file_name,label\n", "metadata.csv"),
    ):
        root = _image_folder(out)
        (root / "metadata.csv").write_text(text)
        out.add(f"metadata.csv with {what}", root, "error", place)
    root = _image_folder(out)
    (root / "metadata.csv").write_text("file_name,label\ncat/0.png,x\ndog/1.png,y\ngone.png,y\n")
    out.add("metadata.csv with a file that is not there", root, "opens", aside=1)
    root = _image_folder(out)
    (root / "metadata.jsonl").write_text(
        '{"file_name": "cat/0.png", "label": "x"}\n{broken\n{"file_name": "dog/1.png", "label": "y"}\n'
    )
    out.add("metadata.jsonl with a broken line", root, "opens", aside=None)
    root = _image_folder(out)
    (root / "metadata.csv").write_text("file_name,label\n../../secret.png,x\n/etc/passwd,y\ncat/0.png,x\n")
    out.add("metadata.csv that points outside", root, "error", "'label'")
    struct_rows = [{"bytes": png(k), "path": f"{k}.png"} for k in range(4)] + [
        {"bytes": None, "path": "gone.png"},
        {"bytes": b"text", "path": "t.png"},
    ]
    frame = pl.DataFrame({"image": struct_rows, "label": ["a", "b"] * 3})
    out.opens("a Parquet of images, one missing, one text", "images.parquet", _parquet(frame), 2)


def _image_folder(out: _Folder, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    root = out.path("images")
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(3):
            (root / name / f"{k}.png").write_bytes(png(10 * number + k))
    return root


def _bad_images() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"I am a picture."
    yield "HTML", b"<html>404</html>"
    yield "zeros", bytes(500)
    yield "a CSV", table().encode()
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = _encoded(3, 48, format)
        yield f"a {format} cut in half", whole[: len(whole) // 2]
    yield "a PNG cut to its signature", png()[:8]
    flipped = bytearray(_encoded(3, 48, "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    yield "a PNG with a flipped byte", bytes(flipped)
    yield "a PNG of 60000 x 60000 pixels", _png_claiming(60000, 60000)
    yield "a PNG of 12000 x 12000 pixels", _png_claiming(12000, 12000)
    yield "a PNG of no pixels", _png_claiming(0, 0)


def _png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says so; hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


FAMILIES: tuple[Callable[[_Folder], None], ...] = (
    emptiness,
    encodings,
    raggedness,
    columns,
    targets,
    ids_and_splits,
    values,
    json_text,
    compression,
    binary_tables,
    refusals,
    images,
)
