"""Several annotators: consensus, their quality, and what votes are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.cleaning import annotators, crowdlab, dawid_skene
from imprint.cleaning.annotators import Votes, majority
from imprint.errors import ColumnError, IdError, MethodError

ACCURACY = np.array([0.95, 0.9, 0.85, 0.8, 0.6, 0.4])


def drawn(seed: int = 0, examples: int = 800) -> tuple[np.ndarray, Votes, np.ndarray]:
    """True labels of three classes, three votes each of six annotators of different accuracy, and a classifier as good as the best."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, examples)
    who = np.argsort(rng.random((examples, 6)), axis=1)[:, :3].ravel()
    example = np.repeat(np.arange(examples), 3)
    right = rng.random(len(who)) < ACCURACY[who]
    label = np.where(right, true[example], (true[example] + rng.integers(1, 3, len(who))) % 3)
    odds = np.exp(2 * np.eye(3)[true] + rng.normal(size=(examples, 3)))
    probabilities = odds / odds.sum(1, keepdims=True)
    return true, Votes(example, who, label, examples, 6, 3), probabilities


def test_consensus_beats_majority_and_classifier() -> None:
    true, votes, probabilities = drawn()
    found = crowdlab(votes, probabilities)
    most = (majority(votes, np.full((800, 3), 1 / 3)) == true).mean()
    assert (found.label == true).mean() > max(most, (probabilities.argmax(1) == true).mean()) + 0.02


def test_annotators_are_ranked_by_their_accuracy() -> None:
    """Accuracies lie at least 0.05 apart, three standard errors of 400 votes; quality follows their order."""
    _, votes, probabilities = drawn()
    found = crowdlab(votes, probabilities)
    assert found.annotator_quality.argsort()[::-1].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.annotator_weight[:2].min() > found.annotator_weight[4:].max()


def test_quality_tells_right_from_wrong_consensus() -> None:
    true, votes, probabilities = drawn()
    found = crowdlab(votes, probabilities)
    right = found.label == true
    assert found.quality[right].mean() > found.quality[~right].mean() + 0.15
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


def test_dawid_skene_finds_the_confusions() -> None:
    true, votes, _ = drawn(examples=3000)
    posterior, confusion = dawid_skene(votes)
    np.testing.assert_allclose(confusion.sum(2), 1)
    np.testing.assert_allclose(confusion.diagonal(axis1=1, axis2=2).mean(1), ACCURACY, atol=0.04)
    equal = majority(votes, np.full((3000, 3), 1 / 3))
    assert (posterior.argmax(1) == true).mean() > (equal == true).mean()


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_names_of_annotators_and_order_of_votes_do_not_matter(seed: int) -> None:
    _, votes, probabilities = drawn(seed, 40)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(votes.label)), rng.permutation(6)
    moved = Votes(votes.example[order], names[votes.annotator[order]], votes.label[order], 40, 6, 3)
    one, two = crowdlab(votes, probabilities), crowdlab(moved, probabilities)
    assert np.array_equal(one.label, two.label)
    np.testing.assert_allclose(one.quality, two.quality)
    np.testing.assert_allclose(one.annotator_quality, two.annotator_quality[names], equal_nan=True)


def test_who_is_always_alone_is_judged_by_the_classifier() -> None:
    votes = Votes(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1]), 3, 3, 2)
    found = crowdlab(votes, np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.8]]))
    assert np.isfinite(found.annotator_quality).all()
    assert found.annotator_weight[2] == pytest.approx(found.annotator_weight[:2].mean())


@pytest.fixture
def run(corpus_of: Any, run_of: Any) -> Any:
    """A run on the first vote of each example, with the classifier's predictions out of fold."""
    true, votes, probabilities = drawn()
    given_labels = [f"class {label}" for label in votes.label[::3]]
    corpus = corpus_of(pl.DataFrame({"x": np.arange(800.0)}), given_labels, {"x": "numeric"}, "table")
    made = run_of(corpus, torch.zeros(1, 800, 3), out_of_fold=torch.from_numpy(probabilities))
    made.ids = corpus.ids
    return made, true, table_of(votes)


def table_of(votes: Votes) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"r{example}" for example in votes.example],
            "annotator": [f"worker {who}" for who in votes.annotator],
            "label": [f"class {label}" for label in votes.label],
        }
    )


def test_the_audit_names_what_it_found(run: Any) -> None:
    made, true, table = run
    found = annotators(made, table, folds=5)
    frame = found.frame()
    assert frame["quality"].is_sorted()
    right = [f"class {true[int(id[1:])]}" for id in frame["id"]]
    assert (
        np.mean(frame["consensus"].to_numpy() == np.array(right))
        > np.mean(frame["given"].to_numpy() == np.array(right)) + 0.1
    )
    assert found.people["annotator"][0] == "worker 5"
    assert found.people["examples"].sum() == len(table)
    changed = frame.filter(pl.col("given") != pl.col("consensus"))
    assert found.labels == dict(zip(changed["id"], changed["consensus"], strict=True))
    assert "worker 5" in found.summary()
    assert len(found.plot().data) == 2


def test_votes_on_other_examples_are_left_out_and_told(run: Any) -> None:
    made, _, table = run
    more = pl.concat([table, pl.DataFrame({"id": ["elsewhere"], "annotator": ["worker 1"], "label": ["class 1"]})])
    one, two = annotators(made, table, folds=5), annotators(made, more, folds=5)
    assert one.frame().equals(two.frame())
    assert "1 votes are on examples" in two.summary()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda table: table.drop("annotator"), ColumnError, "no column 'annotator'"),
        (lambda table: pl.concat([table, table[:1]]), ColumnError, "votes more than once on 'r0'"),
        (lambda table: table.with_columns(id=pl.lit("x") + pl.col("id")), IdError, "None of the votes"),
        (lambda table: table.with_columns(label=pl.lit("else")), ColumnError, "'else', which is no class"),
        (lambda table: table.unique("id", maintain_order=True), MethodError, "No example has two votes"),
    ],
)
def test_votes_that_cannot_be_read_are_told(run: Any, change: Any, error: type[Exception], says: str) -> None:
    made, _, table = run
    with pytest.raises(error, match=says):
        annotators(made, change(table), folds=5)
