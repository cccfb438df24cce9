"""What commands write: JSON or text on standard output, notes and progress on standard error; tables that fit in 80 columns."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
NARROWEST = 40
COLUMNS = 80
NARROWEST_COLUMN = 8


def width() -> int:
    """Columns to write in: the terminal's, or 80 where there is none. Never less than 40."""
    if not sys.stdout.isatty():
        return int(os.environ.get("COLUMNS") or COLUMNS)
    import shutil

    return max(NARROWEST, shutil.get_terminal_size((COLUMNS, 24)).columns)


def emit(document: Any) -> None:
    """Write one JSON document on standard output. Not-a-number and infinity become null, dates ISO, paths text."""
    sys.stdout.write(json.dumps(plain(document), ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    >>> plain({"a": float("nan"), "b": (1, Path("x"))})
    {'a': None, 'b': [1, 'x']}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if hasattr(value, "tolist"):  # numpy, torch
        return plain(value.tolist())
    if hasattr(value, "to_dicts"):  # a Polars frame: one object per row
        return plain(value.to_dicts())
    if hasattr(value, "to_list"):
        return plain(value.to_list())
    return str(value)


def say(*lines: str) -> None:
    """Write lines on standard output."""
    for line in lines:
        sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Write a line on standard error."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def bold(text: str) -> str:
    """Bold on a terminal, plain elsewhere or with NO_COLOR."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[1m{text}\033[0m"


def columns_of(text: str) -> int:
    """How many terminal columns a text takes (wide characters take two)."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def clip(text: str, limit: int) -> str:
    """Shorten a text to `limit` columns with an ellipsis; line breaks and control characters become spaces.

    >>> clip("a long sentence", 8)
    'a long …'
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    if columns_of(text) <= limit:
        return text
    if text.isascii():
        return text[: max(0, limit - 1)] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, max(0, limit - 1)) + "…"


def pad(text: str, size: int, right: bool = False) -> str:
    gap = " " * max(0, size - columns_of(text))
    return gap + text if right else text + gap


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], indent: int = 0, whole: Collection[str] = ()
) -> list[str]:
    """Aligned lines: numbers to the right, the widest text columns clipped until the whole fits the width.

    Args:
        head: Names of the columns.
        rows: Values by row.
        indent: Spaces before each line.
        whole: Columns that are never clipped, such as ids and paths, which are copied from here.

    >>> table(["kind", "count"], [["label", 12], ["leak", 3]])
    ['kind   count', 'label     12', 'leak       3']
    """
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[j], int | float | None) for row in rows) for j in range(len(head))]
    sizes = [max([columns_of(name), *(columns_of(row[j]) for row in cells)]) for j, name in enumerate(head)]
    elastic = [j for j, name in enumerate(head) if not numeric[j] and name not in whole]
    over = sum(sizes) - (width() - indent - 2 * (len(head) - 1))
    while over > 0 and elastic:
        widest = max(elastic, key=lambda j: sizes[j])
        if sizes[widest] <= NARROWEST_COLUMN:
            break
        sizes[widest] -= 1
        over -= 1
    lines = []
    for row in [list(head), *cells]:
        parts = [pad(clip(text, sizes[j]), sizes[j], numeric[j]) for j, text in enumerate(row)]
        lines.append((" " * indent + "  ".join(parts)).rstrip())
    return lines


def frame_lines(frame: Any) -> list[str]:
    """The first columns of a Polars frame that fit the width, ids whole; the names of those that do not fit."""
    room = width() - 2
    shown: list[str] = []
    for name in frame.columns:
        longest = max([len(name), *(columns_of(cell(value)) for value in frame[name].to_list())])
        room -= 2 + (longest if name == "id" else min(24, longest))
        if room < 0 and shown:
            break
        shown.append(name)
    rest = frame.columns[len(shown) :]
    more = [f"  and {len(rest)} more columns: {clip(', '.join(rest), width() - 24)}"] if rest else []
    return [*table(shown, frame.select(shown).rows(), indent=2, whole=["id"]), *more]


def pairs(items: Iterable[tuple[str, Any]], indent: int = 0) -> list[str]:
    """Aligned "name  value" lines; a long value continues below its beginning.

    >>> pairs([("rows", 12), ("target", "label")])
    ['rows    12', 'target  label']
    """
    import textwrap

    items = [(name, value) for name, value in items if value not in (None, "", [], ())]
    size = max((len(name) for name, _ in items), default=0)
    lines = []
    for name, value in items:
        room = max(20, width() - indent - size - 2)
        parts = textwrap.wrap(cell(value), room, break_on_hyphens=False) or [""]
        lines.append(" " * indent + f"{name:<{size}}  {parts[0]}")
        lines.extend(" " * (indent + size + 2) + part for part in parts[1:])
    return lines


def paragraph(text: str) -> list[str]:
    """A text as lines of the width."""
    import textwrap

    return textwrap.wrap(text, width(), break_on_hyphens=False)


def cell(value: Any) -> str:
    """A value for a table: floats with at most four significant digits.

    >>> [cell(v) for v in (0.123456, 12, 1234.5, None, True, ["a", "b"])]
    ['0.1235', '12', '1234', '', 'yes', 'a, b']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return printable(str(value))


def printable(text: str) -> str:
    """A text without control characters: data must not steer the terminal. Line breaks stay.

    >>> printable("a\\033[31mb")
    'a [31mb'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def sparkline(values: Iterable[float | None], low: float | None = None, high: float | None = None) -> str:
    """A curve in one line of block characters, lowest to highest; a missing value is a dot.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    numbers = [None if v is None or not math.isfinite(v) else float(v) for v in values]
    known = [v for v in numbers if v is not None]
    if not known:
        return "·" * len(numbers)
    low, high = min(known) if low is None else low, max(known) if high is None else high
    span = (high - low) or 1.0
    top = len(BLOCKS) - 1
    return "".join("·" if v is None else BLOCKS[min(top, max(0, round((v - low) / span * top)))] for v in numbers)


def seconds(value: float | None) -> str:
    """A duration in words.

    >>> [seconds(v) for v in (0.4, 12.34, 75, 4000, 200000)]
    ['0.4 s', '12 s', '1 min 15 s', '1 h 6 min', '2 d 7 h']
    """
    if value is None or not math.isfinite(value):
        return "unknown"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float | None) -> str:
    """A number of bytes in words.

    >>> [size(v) for v in (512, 2048, 3.5 * 2**20, 7 * 2**30)]
    ['512 B', '2.0 KiB', '3.5 MiB', '7.0 GiB']
    """
    if count is None:
        return "unknown"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            return f"{count:.1f} {unit}"
    return ""


def folder_size(path: Path) -> int:
    """Bytes of the files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def shell(path: str | Path) -> str:
    """A path as it can be pasted into a shell."""
    import shlex

    return shlex.quote(str(path))


def plural(count: int | list[Any], one: str, many: str) -> str:
    """The word that fits a count.

    >>> plural(1, "differs", "differ")
    'differs'
    """
    return one if (count if isinstance(count, int) else len(count)) == 1 else many
