"""Folds are fair, and out-of-fold means out of the fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

import imprint
from imprint.errors import EvidenceError
from imprint.fleets import assign
from imprint.recording.needs import OutOfFold, Outputs


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=10, max_size=200), st.integers(2, 10), st.integers(0, 3))
def test_folds_and_classes_are_spread_evenly(target: list[int], folds: int, seed: int) -> None:
    codes = torch.tensor(target)
    fold = assign(codes, folds, seed)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for code in set(target):
        counts = np.bincount(fold[codes.numpy() == code], minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert (assign(codes, folds, seed) == fold).all()


def test_a_quantity_is_spread_by_its_quantiles() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    fold = assign(values, 5)
    means = [float(values[fold == number].mean()) for number in range(5)]
    # Chance alone would give a standard deviation of 1 / sqrt(200) = 0.07.
    assert max(means) - min(means) < 0.02


def test_another_seed_gives_other_folds() -> None:
    target = torch.zeros(100)
    assert (assign(target, 5, 0) != assign(target, 5, 1)).any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=60, max_size=120), st.integers(0, 3))
def test_a_group_stays_together(groups: list[int], seed: int) -> None:
    names = np.array([f"person {group}" for group in groups])
    count = len(set(groups))
    target = torch.arange(len(groups)) % 2
    if count < 3:
        with pytest.raises(EvidenceError, match="groups"):
            assign(target, 3, seed, names)
        return
    fold = assign(target, 3, seed, names)
    for name in set(names):
        assert len(set(fold[names == name])) == 1
    assert set(fold) == {0, 1, 2}


@pytest.mark.parametrize("folds", [1, 5])
def test_too_few_examples_or_folds(folds: int) -> None:
    with pytest.raises(EvidenceError, match="divided"):
        assign(torch.zeros(4), folds)


def random_labels(store: Path, pairs: bool = False) -> imprint.Corpus:
    """Inputs that say nothing of the label. With `pairs`, each person has two equal rows with the same label."""
    random = np.random.default_rng(0)
    values, label = random.normal(size=(200, 3)), random.integers(0, 2, 200)
    if pairs:
        values[1::2], label[1::2] = values[::2], label[::2]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": label})
    frame = frame.with_columns(person=pl.Series([f"p{row // 2}" for row in range(200)]), part=pl.lit("train"))
    return imprint.open(
        frame, target="y", split="part", group="person" if pairs else None, inputs=["a", "b", "c"], store=store
    )


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs in groups"])
def test_no_example_is_judged_by_a_model_that_saw_it(tmp_path: Path, pairs: bool) -> None:
    corpus = random_labels(tmp_path / "store", pairs)
    learner = imprint.Learner(KNeighborsClassifier(1))  # knows what it saw by heart
    run = imprint.fit(learner, corpus, tmp_path / "run", progress=False)
    seen = run.gather([Outputs("correct")])["correct"].float().mean()
    unseen = run.gather([OutOfFold("correct")])["correct"].float().mean()
    assert seen == 1
    assert abs(float(unseen) - 0.5) < 0.15  # four standard deviations of 200 coin tosses (100 pairs: three)


def test_folds_are_stored_and_collected_again_for_another_number(tmp_path: Path) -> None:
    corpus = random_labels(tmp_path / "store")
    run = imprint.fit(imprint.Learner("linear", epochs=1), corpus, tmp_path / "run", progress=False)
    first = run.gather([OutOfFold("logits", folds=3)])["logits"]
    table = run.evidence("out_of_fold").table
    assert table.schema.names == ["row", "logits", "fold"]
    assert run.has(OutOfFold("logits", folds=3))
    assert not run.has(OutOfFold("logits", folds=4))
    assert torch.equal(imprint.load(run.path).gather([OutOfFold("logits", folds=3)])["logits"], first)
    second = run.gather([OutOfFold("logits", folds=4)])["logits"]
    assert not torch.equal(first, second)
    blocks = torch.cat([run.gather([OutOfFold("logits", folds=4)], slice(k, k + 70))["logits"] for k in (0, 70, 140)])
    assert torch.equal(blocks, second)
