"""One table, however it is given: same inputs, same ids, same target; and the same whatever the size of the blocks."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imprint
from imprint.corpus.sources import source_of
from imprint.corpus.sources.base import Widened
from imprint.errors import ColumnError, SourceError

N = 60


def table() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "number": pl.Series(rng.normal(size=N)).set(pl.Series(np.arange(N) % 7 == 3), None),
            "count": rng.integers(-5, 5, N),
            "word": [f'w{k % 9}, "quoted"\nline' if k % 4 else f"w{k}" for k in range(N)],
            "label": ["yes" if k % 3 else "no" for k in range(N)],
        }
    )


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def csv(frame: pl.DataFrame, **options: Any) -> bytes:
    return frame.write_csv(**options).encode()


WAYS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "csv": lambda f, d: written(d / "t.csv", csv(f)),
    "csv with \\r\\n": lambda f, d: written(d / "t.csv", csv(f.with_columns(pl.col("word")), line_terminator="\r\n")),
    "csv of semicolons": lambda f, d: written(d / "t.csv", csv(f, separator=";")),
    "tsv": lambda f, d: written(d / "t.tsv", csv(f, separator="\t")),
    "csv in utf-16": lambda f, d: written(d / "t.csv", csv(f).decode().encode("utf-16")),
    "csv.gz": lambda f, d: written(d / "t.csv.gz", gzip.compress(csv(f))),
    "csv.xz": lambda f, d: written(d / "t.csv.xz", lzma.compress(csv(f))),
    "csv.bz2": lambda f, d: written(d / "t.csv.bz2", bz2.compress(csv(f))),
    "csv.zst": lambda f, d: written(d / "t.csv.zst", zstandard.compress(csv(f))),
    "csv.gz in two members": lambda f, d: written(
        d / "t.csv.gz", gzip.compress(csv(f)[:500]) + gzip.compress(csv(f)[500:])
    ),
    "jsonl": lambda f, d: written(d / "t.jsonl", f.write_ndjson().encode()),
    "jsonl.zst": lambda f, d: written(d / "t.jsonl.zst", zstandard.compress(f.write_ndjson().encode())),
    "json list": lambda f, d: written(d / "t.json", json.dumps(f.to_dicts()).encode()),
    "parquet": lambda f, d: (f.write_parquet(d / "t.parquet", row_group_size=17), d / "t.parquet")[1],
    "parquet shards": lambda f, d: (f[:25].write_parquet(d / "0.parquet"), f[25:].write_parquet(d / "1.parquet"), d)[2],
    "arrow": lambda f, d: (f.write_ipc(d / "t.arrow"), d / "t.arrow")[1],
    "arrow stream": lambda f, d: (f.write_ipc_stream(d / "t.arrow"), d / "t.arrow")[1],
    "lance": lambda f, d: (lance.write_dataset(f.to_arrow(), str(d / "t.lance")), d / "t.lance")[1],
    "lance data set": lambda f, d: lance.write_dataset(f.to_arrow(), str(d / "t.lance")),
    "polars": lambda f, d: f,
    "lazy polars": lambda f, d: f.lazy(),
    "categories": lambda f, d: f.with_columns(pl.col("word", "label").cast(pl.Categorical)),
    "arrow table": lambda f, d: f.to_arrow(),
    "pandas": lambda f, d: pd.DataFrame(f.to_dict(as_series=False)),
    "dictionary": lambda f, d: f.to_dict(as_series=False),
    "frame and target": lambda f, d: (f.drop("label"), f["label"]),
    "hugging face": lambda f, d: Dataset(f.to_arrow()),
    "torch": lambda f, d: Items(f.to_dicts()),
}


class Dataset:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, arrow: pa.Table, names: dict[str, list[str]] | None = None) -> None:
        self.arrow = arrow
        self.features = {name: ClassLabel((names or {}).get(name)) for name in arrow.column_names}

    def __len__(self) -> int:
        return len(self.arrow)

    def with_format(self, kind: str) -> Dataset:
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int):
        for start in range(0, len(self.arrow), batch_size):
            yield self.arrow.slice(start, batch_size)


class ClassLabel:
    def __init__(self, names: list[str] | None) -> None:
        self.names = names


class Items:
    """A PyTorch map-style data set."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.items[k]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_corpus(way: str, tmp_path: Path, store: Path) -> None:
    frame = table()
    plain = imprint.open(frame)
    corpus = imprint.open(WAYS[way](frame, tmp_path), target="label")
    if way == "csv with \\r\\n":  # line ends within quotes belong to the value; Polars wrote them as they are
        assert corpus.read(corpus.rows()).equals(frame.drop("label"))
    assert corpus.read(corpus.rows()).equals(frame.drop("label"))
    assert corpus.target.to_list() == frame["label"].to_list()
    assert corpus.positions.to_list() == list(range(N))
    assert corpus.ids.to_list() == plain.ids.to_list()
    assert corpus.fingerprint == plain.fingerprint
    assert corpus.splits == {"train": 48, "test": 12}
    assert not len(corpus.set_aside)
    assert corpus.kinds == {"number": "numeric", "count": "numeric", "word": "categorical"}


ugly = st.text(alphabet='ab",;\n\r\t ü☃', max_size=8)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(ugly, st.integers(-3, 3)), min_size=1, max_size=30), st.integers(1, 64), st.integers(0, 5))
def test_blocks_of_any_size_read_the_same_rows(
    tmp_path: Path, rows: list[tuple[str, int]], block: int, damage: int
) -> None:
    """Quotes, line ends and separators within values; some ragged rows; blocks down to one byte."""
    frame = pl.DataFrame({"text": [f"{text}." for text, _ in rows], "count": [count for _, count in rows]})
    lines = frame.write_csv(quote_style="always").encode()
    if damage:
        lines += b"a,b,c\n" * damage + b'"last",1\n'
    path = written(tmp_path / "t.csv", lines)

    def everything(size: int | None) -> tuple[pl.DataFrame, list[int], list[tuple[int, str]]]:
        source = source_of(path, size)
        source.sample()
        for attempt in range(2):
            try:
                batches = list(source.batches())
                break
            except Widened:
                assert not attempt
                source.restart()
                source.sample()
        frame = pl.concat([one.frame for one in batches])
        return frame, [p for one in batches for p in one.positions.to_list()], source.aside.frame(pl.Int64).rows()

    try:
        whole = everything(None)
    except SourceError:  # more ragged rows than sound ones
        with pytest.raises(SourceError):
            everything(block)
        return
    assert whole[0]["text"].to_list() == [*frame["text"].to_list(), *(["last"] if damage else [])]
    assert whole[1] == [*range(len(rows)), *([len(rows) + damage] if damage else [])]
    pieces = everything(block)
    assert pieces[0].equals(whole[0])
    assert pieces[1:] == whole[1:]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.none() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("abü", max_size=4) | st.just("broken"),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 50),
)
def test_json_lines_in_blocks_of_any_size(tmp_path: Path, values: list[Any], block: int) -> None:
    """Values of changing types: what a column becomes depends on the whole file, not on where its blocks end."""
    lines = ["{broken" if value == "broken" else json.dumps({"x": value, "n": k}) for k, value in enumerate(values)]
    path = written(tmp_path / "t.jsonl", ("\n".join(lines) + "\n").encode())

    def everything(size: int | None) -> tuple[pl.DataFrame, list[int], list[tuple[int, str]]]:
        source = source_of(path, size)
        source.sample()
        try:
            batches = list(source.batches())
        except Widened:
            source.restart()
            source.sample()
            batches = list(source.batches())
        return (
            pl.concat([one.frame for one in batches]),
            [p for one in batches for p in one.positions.to_list()],
            source.aside.frame(pl.Int64).rows(),
        )

    if all(value == "broken" for value in values):
        with pytest.raises(SourceError):
            everything(block)
        return
    whole, pieces = everything(None), everything(block)
    assert whole[1] == [k for k, value in enumerate(values) if value != "broken"]
    assert pieces[0].equals(whole[0])
    assert pieces[1:] == whole[1:]


def test_types_of_a_csv(tmp_path: Path) -> None:
    text = (
        "whole,fraction,gaps,blanks,day,moment,flag,late,odd,label\n"
        "1,1.5,NA, 3,2020-01-31,2020-01-31T10:00:00Z,true,,1e400,a\n"
        "-2,2,4.5,4 ,1999-12-31,2020-01-31 10:00:00.5,false,,1,b\n"
        "3,inf,NaN,5,,,true,,2,a\n"
    )
    corpus = imprint.open(written(tmp_path / "t.csv", text.encode()))
    frame = corpus.read(corpus.rows())
    assert frame.drop("odd").to_dict(as_series=False) == {
        "whole": [1, -2, 3],
        "fraction": [1.5, 2.0, float("inf")],
        "gaps": [None, 4.5, None],
        "blanks": [3.0, 4.0, 5.0],
        "day": pl.Series(["2020-01-31", "1999-12-31", None]).str.to_date().to_list(),
        "moment": pl.Series(["2020-01-31 10:00:00.0", "2020-01-31 10:00:00.5", None])
        .str.to_datetime("%Y-%m-%d %H:%M:%S%.f")
        .to_list(),
        "flag": [True, False, True],
        "late": [None, None, None],
    }
    assert corpus.kinds["day"] == corpus.kinds["moment"] == "datetime"
    assert corpus.kinds["gaps"] == corpus.kinds["blanks"] == "numeric"


@pytest.mark.parametrize(
    ("last", "dtype"), [("0.5", pl.Float64), ("NA", pl.Float64), ("many", pl.String), ("007", pl.Int64), ("", pl.Int64)]
)
def test_a_late_value_widens_its_column(tmp_path: Path, last: str, dtype: Any) -> None:
    rows = [f"{k},{'yes' if k % 2 else 'no'}" for k in range(11_000)]
    text = "number,label\n" + "\n".join(rows) + f"\n{last},yes\n"
    corpus = imprint.open(written(tmp_path / "t.csv", text.encode()))
    values = corpus.read(corpus.rows())["number"]
    assert values.dtype == dtype
    assert values[:3].cast(pl.Float64).to_list() == [0, 1, 2]
    assert values[-1] == {"0.5": 0.5, "NA": None, "many": "many", "007": 7, "": None}[last]


def test_ragged_rows_name_their_lines(tmp_path: Path) -> None:
    text = 'a,b,label\n1,"two\nlines",x\n2,b\n\n3,b,y\n4,b,y,z\n5,b,x\n'
    corpus = imprint.open(written(tmp_path / "t.csv", text.encode()))
    assert corpus.set_aside.rows() == [(1, "line 4: 2 fields, not 3"), (3, "line 7: 4 fields, not 3")]
    assert corpus.positions.to_list() == [0, 2, 4]
    assert corpus.read(corpus.rows())["a"].to_list() == [1, 3, 5]


def test_json_with_nested_fields_and_late_ones(tmp_path: Path) -> None:
    lines = [{"a": {"b": k, "c": ["x"]}, "v": [k, k + 1.5], "label": "yes" if k % 2 else "no"} for k in range(9)]
    lines.append({"a": {"b": 0.5, "c": []}, "v": [1, 2], "new": "n", "label": "no"})
    corpus = imprint.open(written(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines)).encode()))
    assert corpus.kinds == {"a.b": "numeric", "v": "array", "new": "categorical"}
    assert corpus.read(np.array([9]))["a.b"].to_list() == [0.5]
    assert corpus.read(np.array([3]))["v"].to_list() == [[3, 4.5]]
    assert any("'a.c' is left out" in note for note in corpus.notes)


@pytest.mark.parametrize("make", [lambda x: x, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2)])
def test_arrays_come_back_as_they_were(make: Callable[[np.ndarray], Any], dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 200, (20, *shape)).astype(dtype), rng.integers(0, 3, 20)
    corpus = imprint.open((make(x), make(y)))
    assert (corpus.modality, corpus.shape, corpus.kinds) == ("array", shape, {"x": "array"})
    rows = rng.permutation(20)[:7]
    back = corpus.read(rows)["x"].to_numpy()
    assert back.dtype == dtype
    assert np.array_equal(back, x[rows])
    assert corpus.target.to_list() == y.tolist()
    child = corpus.append((x[:2] + 1, y[:2]))
    assert np.array_equal(child.read(child.rows())["x"].to_numpy(), np.concatenate([x, x[:2] + 1]))


def test_other_pairs() -> None:
    y = ["a", "b"] * 5
    assert imprint.open((np.arange(10.0), y)).kinds == {"x": "numeric"}
    assert imprint.open(([f"some text number {k}" for k in range(10)], y)).modality == "text"
    assert imprint.open((pd.DataFrame({"u": range(10), "v": y}), pd.Series(y, name="answer"))).roles.target == "answer"
    several = imprint.open((np.eye(10), np.eye(3, dtype=int)[np.arange(10) % 3]))
    assert several.target.to_list()[:4] == [[0], [1], [2], [0]]
    with pytest.raises(SourceError, match="9 targets"):
        imprint.open((np.eye(10), y[:9]))
    with pytest.raises(SourceError, match="no target"):
        imprint.open(np.eye(3))


def test_hugging_face_classes_get_their_names() -> None:
    arrow = pa.table({"text": [f"a few words {k}" for k in range(6)], "label": [0, 1, 0, 1, -1, 1]})
    corpus = imprint.open(Dataset(arrow, {"label": ["neg", "pos"]}))
    assert corpus.target.to_list() == ["neg", "pos", "neg", "pos", "pos"]
    assert corpus.set_aside.rows() == [(4, "target missing")]
    both = imprint.open({"train": Dataset(arrow[:4]), "validation": Dataset(arrow[4:])})
    assert both.splits == {"train": 4, "valid": 2}


def test_torch_pairs_of_tensors() -> None:
    items = [(torch.full((2, 3), float(k)), k % 2) for k in range(1030)]
    corpus = imprint.open(Items(items))
    assert (corpus.shape, corpus.roles.target) == ((2, 3), "y")
    assert corpus.read(np.array([1029]))["x"].to_numpy().tolist() == [[[1029.0] * 3] * 2]
    with pytest.raises(SourceError, match="shapes"):
        imprint.open(Items([(torch.zeros(2), 0), (torch.zeros(3), 1)]))
    with pytest.raises(SourceError, match="not \\(x, y\\)"):
        imprint.open(Items([(1, 2, 3)]))


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", images=np.zeros((4, 2, 2), np.uint8), labels=np.array(["a", "b", "a", "b"]))
    corpus = imprint.open(tmp_path / "t.npz")
    assert (corpus.shape, corpus.target.to_list()) == ((2, 2), ["a", "b", "a", "b"])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "t.csv", b"a,label\n1,x\n")

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match=r"t\.csv may not be read"):
        imprint.open(path)


def test_indicator_columns_make_a_multilabel_target() -> None:
    frame = pl.DataFrame({"x": range(4), "rain": [1, 0, 1, None], "night": [True, False, False, True]})
    corpus = imprint.open(frame, target=["rain", "night"])
    assert corpus.target.to_list() == [["rain", "night"], [], ["rain"]]
    assert corpus.roles.target == "rain+night"
    assert len(corpus.append(frame[:2].with_columns(pl.lit(9).alias("x")))) == 5


def test_group_weight_id_and_split_columns() -> None:
    frame = table().with_columns(
        pl.Series("person", [f"p{k // 4}" for k in range(N)]), pl.Series("w", [1.0 + k % 2 for k in range(N)]),
        pl.Series("key", [f"k-{k}" for k in range(N)]), pl.Series("part", ["training", "dev", "held-out"] * 20),
    )  # fmt: skip
    corpus = imprint.open(frame, group="person", weight="w", split="part")
    assert corpus.roles.id == "key"
    assert corpus.ids[3] == "k-3"
    assert corpus.splits == {"train": 20, "held-out": 20, "valid": 20}
    assert corpus.weights is not None
    assert corpus.weights.tolist() == [1.0, 2.0] * 30
    grouped = imprint.open(frame, group="person")
    assert (
        grouped.frame().with_columns(grouped.groups).group_by("person").agg(pl.col("split").n_unique())["split"].max()
        == 1
    )
    with pytest.raises(ColumnError, match="'train'"):
        imprint.open(frame.with_columns(pl.lit("x").alias("part")), split="part")
