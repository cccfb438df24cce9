"""Options that become arguments: lists, splits, paths."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprint.cli import options
from imprint.cli.clean import read_findings
from imprint.errors import ColumnError, ImprintError, ResourceError, RunError, SourceError

FRAME = pl.DataFrame(
    {"id": ["001", "b"], "suggestion": ["drop", "relabel"], "tags": [["x", "y"], []], "severity": [0.5, None]}
)


@given(st.lists(st.integers(1, 98), min_size=2, max_size=3))
def test_shares_sum_to_one_or_are_refused(parts: list[int]) -> None:
    text = "/".join(map(str, parts))
    if sum(parts) == 100:
        assert sum(options.split_of(text).values()) == pytest.approx(1)
    elif sum(parts) != 1:
        with pytest.raises(ColumnError, match="sum to"):
            options.split_of(text)


@pytest.mark.parametrize("text", ["0.5/0.6", "1.2/-0.2", "0.25/0.25/0.25/0.25", "0/1"])
def test_impossible_shares(text: str) -> None:
    with pytest.raises(ColumnError):
        options.split_of(text)


def test_a_column_may_have_a_slash_in_its_name() -> None:
    assert options.split_of("in/out") == "in/out"
    assert options.split_of(None) is None


def test_names() -> None:
    assert options.names("a, b,,c ") == ["a", "b", "c"]
    assert options.target_names("y") == "y"
    assert options.target_names("y,z") == ["y", "z"]
    with pytest.raises(ColumnError):
        options.names(" , ")


def test_a_missing_source_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "flats 2020.csv").write_text("a\n1\n")
    with pytest.raises(SourceError, match=r"flats 2020\.csv"):
        options.source_of(str(tmp_path / "flats 2O20.csv"))
    with pytest.raises(SourceError, match="No folder"):
        options.source_of(str(tmp_path / "no" / "where.csv"))
    assert options.source_of(str(tmp_path / "flats 2020.csv")) == str(tmp_path / "flats 2020.csv")


def test_run_folder(tmp_path: Path) -> None:
    (tmp_path / "audit" / "run").mkdir(parents=True)
    (tmp_path / "audit" / "run" / "manifest.json").write_text("{}")
    assert options.run_folder(str(tmp_path / "audit")) == tmp_path / "audit" / "run"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError) as caught:
            options.run_folder(str(path))
        assert caught.value.remedy


def test_writable(tmp_path: Path) -> None:
    assert options.writable(tmp_path / "a b" / "c").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError):
            options.writable(path)


def fail_after_writing(out: Path, name: str) -> None:
    """A job that writes one file and fails."""
    with options.making(out, "recipe.yaml") as folder:
        (folder / name).write_text("")
        raise ColumnError("No column.")


def test_a_job_that_fails_at_once_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("by hand")
    for name in ("new/out", "empty", "mine"):
        with pytest.raises(ColumnError):
            fail_after_writing(tmp_path / name, "recipe.yaml")
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / "empty").is_dir()
    assert (tmp_path / "mine" / "recipe.yaml").exists()


def test_a_job_that_has_recorded_something_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(ColumnError):
        fail_after_writing(tmp_path / "out", "manifest.json")
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for path in (tmp_path / "locked", tmp_path / "locked" / "below"):
        with pytest.raises(ResourceError):
            options.writable(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_tables_are_written_as_they_are(tmp_path: Path, ending: str) -> None:
    path = options.write_table(FRAME, str(tmp_path / "new" / f"t.{ending}"))
    assert read_findings(str(path)).select(FRAME.columns).equals(FRAME)


def test_csv_keeps_ids_as_text_and_lists_as_json(tmp_path: Path) -> None:
    back = read_findings(str(options.write_table(FRAME, str(tmp_path / "t.csv"))))
    assert back["id"].to_list() == ["001", "b"]
    assert back["tags"].to_list() == ['["x", "y"]', "[]"]


def test_unknown_endings(tmp_path: Path) -> None:
    with pytest.raises(ImprintError, match="xlsx"):
        options.write_table(FRAME, str(tmp_path / "t.xlsx"))
    (tmp_path / "t.txt").write_text("id\n")
    with pytest.raises(SourceError, match=r"\.parquet"):
        read_findings(str(tmp_path / "t.txt"))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b""), ("a.parquet", b"PAR1"), ("a.jsonl", b"{"), ("b.csv", b"x,y\n1,2\n")]
)
def test_unreadable_findings(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_findings(str(tmp_path / name))
    assert caught.value.remedy
