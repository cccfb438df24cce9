"""Stores: opened once, found again, whole or absent; and how roles are inferred and shown."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import imprint
from imprint.corpus import opening
from imprint.corpus.kinds import kinds_of, modality_of
from imprint.corpus.plan import settle
from imprint.corpus.reading import Reading
from imprint.corpus.roles import Asked, infer
from imprint.corpus.sources import source_of
from imprint.corpus.sources.delimited import Delimited
from imprint.corpus.store import given_name, stored_name
from imprint.errors import ColumnError, ImprintError, ResourceError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    pl.DataFrame({"number": range(50), "label": ["a", "b"] * 25}).write_csv(path)
    return path


def test_a_second_opening_reads_no_rows(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = imprint.open(source)

    def refuse(self: Delimited) -> Any:
        raise AssertionError("the source was read again")

    monkeypatch.setattr(Delimited, "batches", refuse)
    monkeypatch.setattr(Delimited, "sample", refuse)
    second = imprint.open(source)
    assert second.fingerprint == first.fingerprint
    assert second.frame().equals(first.frame())
    assert second.notes == first.notes
    with pytest.raises(AssertionError):
        imprint.open(source, seed=1)
    os.utime(source, ns=(1, 1))
    with pytest.raises(AssertionError):
        imprint.open(source)


@pytest.mark.parametrize("damage", ["roles.lance", "inputs.lance", "corpus.json", ""])
def test_a_damaged_store_is_made_anew(source: Path, store: Path, damage: str) -> None:
    first = imprint.open(source)
    (folder,) = (store / "corpora").iterdir()
    if damage == "corpus.json":
        (folder / damage).write_text("{")
    else:
        shutil.rmtree(folder / damage)
    again = imprint.open(source)
    assert again.frame().equals(first.frame())
    (memo,) = (store / "sources").iterdir()
    memo.write_text("{")
    assert imprint.open(source).fingerprint == first.fingerprint


def test_the_same_data_is_stored_once(source: Path, tmp_path: Path, store: Path) -> None:
    imprint.open(source)
    shutil.copy(source, tmp_path / "copy.csv")
    imprint.open(tmp_path / "copy.csv")
    assert len(list((store / "corpora").iterdir())) == 1
    assert len(list((store / "sources").iterdir())) == 2


@pytest.mark.parametrize("moment", [0, 1, 2], ids=["inputs", "roles", "set aside"])
def test_a_full_disk_says_so_and_leaves_nothing(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    import lance

    real, calls = lance.write_dataset, []

    def full(reader: Any, path: str, **options: Any) -> Any:
        calls.append(path)
        if len(calls) > moment:
            raise OSError("LanceError(IO): No space left on device (os error 28)")
        return real(reader, path, **options)

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.raises(ResourceError, match="MiB") as raised:
        imprint.open(source)
    assert str(store) in raised.value.problem
    assert "IMPRINT_HOME" in raised.value.remedy
    assert list((store / "corpora").iterdir()) == []
    monkeypatch.setattr(lance, "write_dataset", real)
    assert len(imprint.open(source)) == 50


def test_a_really_full_disk(source: Path, tmp_path: Path) -> None:
    """On a file system of its own, where the machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    try:
        pl.DataFrame({"number": np.random.default_rng(0).normal(size=50_000), "label": ["a", "b"] * 25_000}).write_csv(
            source
        )
        with pytest.raises(ResourceError, match="full"):
            imprint.open(source, store=disk)
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_store_that_may_not_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        imprint.open(source, store=tmp_path / "file" / "below")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ResourceError, match="Permission denied"):
        imprint.open(source)


def test_an_interrupted_opening_leaves_nothing(source: Path, store: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imprint.open(source, progress=interrupt)
    assert list((store / "corpora").iterdir()) == []


def test_progress_is_told(source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    imprint.open(source, progress=lambda *facts: told.append(facts))
    assert told[-1] == ("open", 50, 50)


def test_reading_from_disk_equals_reading_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"a.b": rng.normal(size=3000), "x": rng.integers(0, 9, (3000, 2, 3)), "label": ["p", "q"] * 1500}
    )
    held = imprint.open(frame)
    held.read(np.array([0]))
    monkeypatch.setattr("imprint.corpus.store.IN_MEMORY", -1)
    read = imprint.open(frame)
    for rows in (
        np.array([], np.int64),
        np.array([7]),
        np.array([5, 5, 0]),
        rng.permutation(3000),
        np.arange(100, 2000),
    ):
        assert read.read(rows).equals(frame.drop("label")[rows])
        assert held.read(rows).equals(frame.drop("label")[rows])
    assert read.stores[0]._memory is None
    assert held.stores[0]._memory is not None
    pieces = [(len(rows), len(batch)) for rows, batch in read.batches(size=1000)]
    assert pieces == [(1000, 1000)] * 3


def test_opening_needs_neither_torch_nor_pillow(source: Path) -> None:
    code = f"import sys, imprint; imprint.open({str(source)!r}); "
    code += "print([m for m in ('torch', 'PIL', 'datasets', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fingerprint_is_of_the_data(source: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(source)
    first = imprint.open(frame)
    assert imprint.open(frame.to_pandas()).fingerprint == first.fingerprint
    changes = {
        "order": frame.reverse(),
        "a cell": frame.with_columns(number=pl.col("number") + (pl.col("number") == 3)),
        "a row": frame[:-1],
        "a target": frame.with_columns(label=pl.when(pl.col("number") == 3).then(pl.lit("c")).otherwise("label")),
        "a name": frame.rename({"number": "count"}),
    }
    prints = {first.fingerprint, imprint.open(frame, seed=5).fingerprint} | {
        imprint.open(one).fingerprint for one in changes.values()
    }
    assert len(prints) == 2 + len(changes)


def sample(**columns: list) -> pl.DataFrame:
    return pl.DataFrame(columns)


def test_roles_by_their_names() -> None:
    frame = sample(
        Id=[1, 2], Label=["x", "y"], Split=["train", "test"], a=[1, 2], sample_weight=[1.0, 2.0], weight=[60, 70]
    )
    roles, notes = infer(frame, Asked(), "t.csv")
    assert roles.spec() == {
        "inputs": ("a", "weight"),
        "target": "Label",
        "id": "Id",
        "split": "Split",
        "group": None,
        "weight": "sample_weight",
    }
    assert len(notes) == 4
    repeated = frame.with_columns(Id=pl.lit(1), Split=pl.lit("spring"))
    roles, _ = infer(repeated, Asked(), "t.csv")
    assert roles.inputs == ("Id", "Split", "a", "weight")
    assert roles.id is None


@pytest.mark.parametrize("columns", [{"a": [1], "b": [2]}, {"a": [1], "class": [2], "label": [3]}])
def test_no_unambiguous_target(columns: dict) -> None:
    with pytest.raises(ColumnError, match="--target") as raised:
        infer(sample(**columns), Asked(), "t.csv")
    assert all(name in str(raised.value) for name in columns)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "numeric"),
        ([1.5, None], "numeric"),
        ([True, False], "categorical"),
        (["a", "b"], "categorical"),
        (["New York", "Los Angeles"] * 5, "categorical"),
        (["the film was good", "the film was bad and long", None], "text"),
        ([f"x{k}" * 40 for k in range(5)], "text"),
        ([b"\x89PNG\r\n\x1a\n...", None], "image"),
        ([[1, 2], [3, 4]], "array"),
    ],
)
def test_kinds_of_columns(values: list, kind: str) -> None:
    frame = sample(x=values, other=[1] * len(values))
    assert kinds_of(frame, ["x", "other"], asked=True, where="t")[0]["x"] == kind


@pytest.mark.parametrize(
    ("kinds", "modality"),
    [
        (["text"], "text"),
        (["text", "text"], "text"),
        (["text", "numeric"], "table"),
        (["image", "numeric"], "image"),
        (["array"], "array"),
        (["array", "numeric"], "table"),
        (["numeric"], "table"),
    ],
)
def test_modality(kinds: list[str], modality: str) -> None:
    assert modality_of({f"c{k}": kind for k, kind in enumerate(kinds)}) == modality


@pytest.mark.parametrize("name", ["a", "a.b", "_rowid", "a%2Eb", "a`b", "%", "_", "."])
def test_names_of_stored_columns_can_be_read_back(name: str) -> None:
    assert given_name(stored_name(name)) == name
    assert not set(".`") & set(stored_name(name))


def test_the_last_net_names_the_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: Any, **options: Any) -> Any:
        raise pl.exceptions.ComputeError("something new\nwith details")

    monkeypatch.setattr(opening, "ingest", raises)
    with pytest.raises(ImprintError, match=r"t\.csv cannot be read: something new"):
        imprint.open(source)


def test_reading_holds_on_to_nothing_but_its_one_dimensional_columns(tmp_path: Path) -> None:
    """A slice of an Arrow batch keeps the whole batch alive; 5 million rows must not add up in memory."""
    rows, width = 60_000, 20
    columns = {f"c{k}": np.arange(rows, dtype=np.float64) + k for k in range(width)}
    frame = pl.DataFrame(columns).with_columns(
        label=pl.col("c0").cast(pl.Int64) % 3, group=pl.format("group {}", pl.col("c0") % 500)
    )
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=10_000)
    source = source_of(tmp_path / "t.parquet")
    reading = Reading(source, settle(source, Asked(group="group"), None), None)
    before = pa.total_allocated_bytes()
    assert sum(len(batch) for batch in reading.batches()) == rows
    held = pa.total_allocated_bytes() - before
    # Inputs are rows * width * 8 = 9.6 MB; a target of 8 bytes and a group of about 20 are kept per row.
    assert held < 60 * rows


def test_shards_and_sharded_stores_are_whole_after_many_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Columns longer than `LONG` stay in pieces; nothing of that shows."""
    monkeypatch.setattr("imprint.corpus.assembly.LONG", 10)
    frame = pl.DataFrame({"x": range(500), "label": [f"class {k % 7}" for k in range(500)]})
    for k in range(5):
        frame[100 * k : 100 * k + 100].write_parquet(tmp_path / f"{k}.parquet")
    corpus = imprint.open(tmp_path)
    assert corpus.target.n_chunks() == 5
    assert corpus.target.to_list() == frame["label"].to_list()
    child = corpus.drop(corpus.ids[100:150]).relabel({corpus.ids[499]: "class 0"})
    assert child.frame()["x"].to_list() == [*range(100), *range(150, 500)]
    assert child.target.to_list()[-1] == "class 0"
    child.save(tmp_path / "saved")
    assert imprint.open(tmp_path / "saved").fingerprint == child.fingerprint
