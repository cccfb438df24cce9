"""Tables, numbers and JSON as commands write them."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprint.cli import output

TEXT = st.text(max_size=120)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.lists(st.integers(), max_size=3))


@given(st.lists(st.tuples(TEXT, TEXT, st.integers(-(10**6), 10**6)), min_size=1, max_size=8))
def test_tables_fit_in_80_columns(rows: list[tuple[str, str, int]]) -> None:
    lines = output.table(["one", "two", "three"], [list(row) for row in rows])
    assert len(lines) == len(rows) + 1  # no value breaks a line
    assert max(output.columns_of(line) for line in lines) <= 80


@given(VALUES)
def test_plain_is_strict_json(value: object) -> None:
    json.loads(json.dumps(output.plain({"v": value}), allow_nan=False))


def test_plain_knows_arrays_frames_dates_and_paths() -> None:
    frame = pl.DataFrame({"a": [1, None], "b": [math.nan, 2.0]})
    assert output.plain(frame) == [{"a": 1, "b": None}, {"a": None, "b": 2.0}]
    assert output.plain(np.float32(math.inf)) is None
    assert output.plain(np.arange(2)) == [0, 1]
    assert output.plain(datetime(2026, 1, 2)) == "2026-01-02T00:00:00"
    assert output.plain(Path("a b")) == "a b"
    assert output.plain(b"abc") == "<3 bytes>"


@given(TEXT, st.integers(1, 40))
def test_clip_never_exceeds_its_limit(text: str, limit: int) -> None:
    clipped = output.clip(text, limit)
    assert output.columns_of(clipped) <= limit
    assert clipped.isprintable()


def test_escape_sequences_in_data_do_not_reach_the_terminal() -> None:
    assert "\033" not in output.clip("\033[31mred\033[0m", 40)
    assert "\033" not in "\n".join(output.pairs([("text", "a\033]0;title\007b")]))


@pytest.mark.parametrize(
    ("values", "line"),
    [([1, 1, 1], "▁▁▁"), ([0, None, 1], "▁·█"), ([math.nan], "·"), ([3, 2, 1], "█▅▁"), ([], "")],
)
def test_sparkline(values: list[float | None], line: str) -> None:
    assert output.sparkline(values) == line


def test_long_values_continue_under_their_beginning() -> None:
    lines = output.pairs([("inputs", ", ".join(f"column{i}" for i in range(40)))])
    assert len(lines) > 2
    assert all(line.startswith(" " * 8) for line in lines[1:])
    assert max(map(len, lines)) <= 80


def test_no_colour_off_a_terminal() -> None:
    assert output.bold("x") == "x"
