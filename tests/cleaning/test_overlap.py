"""Overlap: planted copies and strangers are seen, and the new splits keep what they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.cleaning import overlap
from imprint.cleaning.overlap import _counted, among, bucketed, closest, directions
from imprint.corpus import Corpus
from imprint.errors import ColumnError, IdError, MethodError


def test_directions_and_nearest_in_closed_form() -> None:
    reference = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    rows = directions(torch.tensor([[3.0, 0.0], [1.0, 1.0]]), reference)
    similarity, nearest = closest(rows, directions(reference, reference))
    assert similarity == pytest.approx([1.0, 0.5**0.5], abs=1e-6)
    assert nearest[0] == 0
    assert nearest[1] in (0, 2)
    assert among(directions(reference, reference)) == pytest.approx(np.zeros(4), abs=1e-6)


def test_buckets_are_numbered_from_the_smallest(rng: np.random.Generator) -> None:
    """Three directions apart with 10, 30 and 60 rows."""
    centre = np.repeat(np.eye(3), [60, 10, 30], axis=0)
    rows = centre + rng.normal(0, 0.01, (100, 3))
    found = bucketed((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), 3)
    assert found.tolist() == [2] * 60 + [0] * 10 + [1] * 30


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """400 training and 200 held-out rows in three directions of ten; 20 held-out rows are copies of training rows, 40 lie in a fourth."""
    rng = np.random.default_rng(0)
    centre = 6 * np.eye(10)[rng.integers(0, 3, 600)]
    x = centre + rng.normal(size=(600, 10))
    x[580:] = x[:20]
    x[540:580] = 6 * np.eye(10)[5] + rng.normal(size=(40, 10))
    label = np.where(x[:, :3].argmax(1) == 0, "first", "other")
    folder = tmp_path_factory.mktemp("overlap")
    frame = pl.DataFrame({f"x{place}": x[:, place] for place in range(10)}).with_columns(
        pl.Series("label", label), pl.Series("split", ["train"] * 400 + ["test"] * 200), pl.Series("key", [f"k{row}" for row in range(600)])
    )  # fmt: skip
    corpus = imprint.open(frame, target="label", id="key", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("linear", epochs=3), corpus, folder / "run", progress=False)


def test_copies_and_strangers_are_seen(planted: Any) -> None:
    found = overlap(planted)
    frame = found.frame()
    copies = frame.filter("copy")
    assert found.copies == len(copies) == 20
    assert set(copies["id"]) == {f"k{row}" for row in range(580, 600)}
    assert copies["similarity"].to_list() == pytest.approx([1.0] * 20, abs=1e-5)
    assert copies["nearest"].to_list() == [f"k{row}" for row in range(20)]
    strangers = frame.filter(pl.col("id").is_in([f"k{row}" for row in range(540, 580)]))
    rest = frame.filter(~pl.col("id").is_in(strangers["id"].implode()))
    assert strangers["similarity"].quantile(0.9) < rest["similarity"].median()
    # A fifth lie in a direction without training examples, and a tenth of the others would by chance.
    assert 0.2 <= found.apart <= 0.4
    assert "extrapolation too" in found.summary()
    assert found.interval[0] <= found.near - found.far <= found.interval[1]
    assert found.plot().data


def test_a_random_split_lies_as_training_examples_do(grouped_run: Any) -> None:
    """A tenth lie apart by construction: within four standard errors of 750 draws, and of the 750 that the quantile is taken of."""
    found = overlap(grouped_run)
    assert found.apart == pytest.approx(0.1, abs=4 * (2 * 0.1 * 0.9 / 750) ** 0.5)
    assert "little but interpolation" in found.summary()


def test_a_split_parts_interpolation_from_extrapolation(planted: Any) -> None:
    found = overlap(planted)
    corpus = planted.corpus
    held = set()
    for bucket in range(5):
        split = found.split(bucket)
        assert set(split) == set(corpus.ids)
        child = corpus.resplit(split)
        assert set(child.splits) <= {"train", "test", "extrapolation"}
        new = {one for one, name in split.items() if name == "extrapolation"}
        held |= new
        row = found.buckets.row(bucket, named=True)
        assert (row["training"], row["held_out"]) == (sum(name is None for name in split.values()), len(new))
        # Nobody changes sides: what was trained on is trained on or left out.
        before = dict(zip(corpus.ids, corpus.split_names, strict=True))
        assert all(before[one] == ("train" if name in ("train", None) else "test") for one, name in split.items())
        assert child.splits["train"] == sum(name == "train" for name in split.values())
        assert len(child) == sum(name is not None for name in split.values())
    assert held == set(corpus.ids.gather(corpus.rows("test")))
    with pytest.raises(MethodError, match="Buckets go from 0 to 4"):
        found.split(5)


def test_classes_that_a_bucket_takes_along_are_counted() -> None:
    """Class 0 lies in bucket 1 for nine in ten, class 1 for eight in ten."""
    training = np.array([1] * 9 + [0] + [1] * 8 + [2] * 2)
    found = _counted(training, np.array([4, 4]), torch.tensor([0] * 10 + [1] * 10))
    assert found["lost"].to_list() == [0, 1, 0, 0, 0]
    assert found["training"].to_list() == [1, 17, 2, 0, 0]
    assert found["held_out"].to_list() == [0, 0, 0, 0, 2]
    assert _counted(training, np.array([4]), torch.zeros(20))["lost"].sum() == 0


def test_the_bucket_left_out_is_farther_from_training(planted: Any) -> None:
    """The point of it: held-out rows of the bucket are less like the training rows of the others than the other held-out rows are."""
    found = overlap(planted)
    features = planted.evidence("features").read(np.arange(600))
    rows = directions(features, features[:400])
    place = {one: row for row, one in enumerate(planted.corpus.ids)}
    for bucket in range(5):
        split = found.split(bucket)
        train, test, far = (
            [place[one] for one, name in split.items() if name == side] for side in ("train", "test", "extrapolation")
        )
        if len(far) >= 10:
            assert closest(rows[far], rows[train])[0].mean() < closest(rows[test], rows[train])[0].mean()


def test_training_sets_most_and_least_like_the_test(planted: Any) -> None:
    found = overlap(planted)
    near, far = (found.training(100, regime) for regime in ("interpolation", "extrapolation"))
    similarity = dict(found.training_table.select("id", "similarity").iter_rows())
    for split, better in ((near, max), (far, min)):
        kept = [similarity[one] for one, name in split.items() if name == "train"]
        gone = [similarity[one] for one, name in split.items() if name is None]
        assert len(kept) == 100
        assert better(min(kept), max(gone)) == min(kept) if better is max else max(kept) <= min(gone)
    child = planted.corpus.resplit(near)
    assert child.splits == {"train": 100, "test": 200}
    with pytest.raises(MethodError, match="1 to 400"):
        found.training(401, "extrapolation")


def test_resplitting_is_an_edit(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"x": range(6), "label": list("ababab"), "split": ["train"] * 4 + ["test"] * 2, "key": list("abcdef")}
    )
    corpus = imprint.open(frame, target="label", id="key", split="split", store=tmp_path / "store")
    child = corpus.resplit({"a": "test", "b": None, "c": "new"})
    assert child.splits == {"train": 1, "new": 1, "test": 3}
    assert child.ids.to_list() == list("acdef")
    changes = child.diff(corpus).select("id", "change", "before", "after").rows()
    assert changes == [("b", "dropped", "b", None), ("a", "resplit", "train", "test"), ("c", "resplit", "train", "new")]
    assert child.resplit({"a": "train", "c": "train"}).fingerprint == corpus.drop(["b"]).fingerprint
    assert corpus.resplit({"a": "train"}) is corpus
    assert Corpus.load(child.save(tmp_path / "child")).fingerprint == child.fingerprint
    with pytest.raises(IdError, match="not in this corpus"):
        corpus.resplit({"z": "test"})
    with pytest.raises(ColumnError, match="No training example"):
        corpus.resplit(dict.fromkeys("abcd", "test"))


def test_few_examples_are_refused(planted: Any) -> None:
    few = SmallRun(planted)
    with pytest.raises(MethodError, match="too few to compare"):
        overlap(few)


class SmallRun:
    """A run with only 10 held-out examples."""

    def __init__(self, run: Any) -> None:
        self.run, self.corpus = run, run.corpus

    def gather(self, needs: list[Any]) -> dict[str, Any]:
        found = self.run.gather([replace(need) for need in needs])
        return {name: value[:10] for name, value in found.items()}
