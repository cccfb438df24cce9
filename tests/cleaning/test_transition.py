"""Noise transition: planted transitions come back, with intervals that hold them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.cleaning import estimate_transition, noise_transition
from imprint.cleaning.confident import find_label_issues
from imprint.cleaning.transition import joint_distribution, transition_matrix
from imprint.errors import MethodError

PLANTED = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.05, 0.0, 0.95]])


def drawn(seed: int = 0, examples: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels, given labels by the planted matrix, and probabilities of a model that knows the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.choice(3, examples, p=[0.5, 0.3, 0.2])
    given_labels = (rng.random((examples, 1)) > PLANTED[true].cumsum(1)).sum(1)
    logits = 8.0 * np.eye(3)[true] + rng.normal(size=(examples, 3))
    odds = np.exp(logits)
    return true, given_labels, odds / odds.sum(1, keepdims=True)


def test_the_planted_matrix_comes_back() -> None:
    """Within 3 points: the standard error of a rate among 800 examples is 1.5, and the model errs in a few of a thousand."""
    _, labels, probabilities = drawn()
    found = estimate_transition(probabilities, labels, ("a", "b", "c"), resamples=50)
    np.testing.assert_allclose(found.matrix, PLANTED, atol=0.03)
    np.testing.assert_allclose(found.matrix.sum(1), 1)
    assert found.joint.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.joint.sum(1), np.bincount(labels) / len(labels))


def test_intervals_hold_the_planted_rates() -> None:
    """95 % intervals of two planted rates of different true classes over 20 data sets: 33 or fewer of 40 would be 1 in 500."""
    held = 0
    for seed in range(20):
        _, labels, probabilities = drawn(seed, 1500)
        found = estimate_transition(probabilities, labels, ("a", "b", "c"), resamples=200)
        for cell in ((0, 1), (1, 2)):
            held += found.low[cell] <= PLANTED[cell] <= found.high[cell]
    assert held > 33


def test_the_same_seed_gives_the_same_intervals() -> None:
    _, labels, probabilities = drawn(examples=300)
    one, two = (estimate_transition(probabilities, labels, ("a", "b", "c"), resamples=20, seed=4) for _ in range(2))
    assert np.array_equal(one.low, two.low)
    assert one.noise == two.noise


def test_the_frame_lists_confusions_first() -> None:
    _, labels, probabilities = drawn()
    found = estimate_transition(probabilities, labels, ("a", "b", "c"), resamples=20)
    frame = found.frame()
    assert frame.select("true", "given").row(0) in {("b", "c"), ("a", "b")}
    assert frame["examples"].sum() == pytest.approx(4000)
    assert (frame["low"] <= frame["high"]).all()
    assert frame.tail(3).select(pl.col("true") == pl.col("given")).to_series().all()
    share, low, high = found.noise
    assert low < share < high
    assert share == pytest.approx((labels != drawn()[0]).mean(), abs=0.02)
    assert "a labelled b" in found.summary()
    assert "b labelled c" in found.summary()
    assert np.asarray(found.plot().data[0].z).shape == (3, 3)


def test_right_labels_make_the_identity() -> None:
    labels = np.repeat([0, 1], 30)
    found = estimate_transition(np.eye(2)[labels] * 0.9 + 0.05, labels, ("a", "b"), resamples=10)
    assert np.array_equal(found.matrix, np.eye(2))
    assert found.noise == (0.0, 0.0, 0.0)
    assert "Most frequent" not in found.summary()


def test_a_class_without_examples_keeps_its_label() -> None:
    labels = np.repeat([0, 2], 30)
    found = estimate_transition(np.eye(3)[labels] * 0.8 + 0.2 / 3, labels, ("a", "b", "c"), resamples=10)
    assert np.array_equal(found.matrix[1], [0, 1, 0])


@given(st.integers(2, 6), st.integers(0, 5000))
def test_rows_are_distributions(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), 40)
    labels = rng.integers(0, classes, 40)
    joint = joint_distribution(probabilities, labels)
    np.testing.assert_allclose(joint.sum(1), np.bincount(labels, minlength=classes) / 40)
    matrix = transition_matrix(joint)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert (matrix >= 0).all()


def test_weights_count_as_copies() -> None:
    _, labels, probabilities = drawn(examples=200)
    copies = np.random.default_rng(0).integers(0, 4, 200)
    repeated = np.repeat(np.arange(200), copies)
    np.testing.assert_allclose(
        joint_distribution(probabilities, labels, copies.astype(float)),
        joint_distribution(probabilities[repeated], labels[repeated]),
    )


def test_the_run_is_asked_without_training(corpus_of: Any, run_of: Any) -> None:
    """Of three equal epochs the average is the epoch; and the estimate flags as many as confident learning does, within rounding."""
    _, labels, probabilities = drawn(examples=600)
    corpus = corpus_of(
        pl.DataFrame({"x": np.arange(600.0)}), [f"c{label}" for label in labels], {"x": "numeric"}, "table"
    )
    run = run_of(corpus, torch.from_numpy(probabilities).log().float()[None].repeat(3, 1, 1))
    run.has = lambda need: False
    found = noise_transition(run)
    assert found.how == "averaged over training"
    np.testing.assert_allclose(found.joint, joint_distribution(probabilities, labels), atol=2e-3)
    wrong = find_label_issues(probabilities, labels).sum()
    assert (1 - np.trace(found.joint)) * 600 == pytest.approx(wrong, abs=9)


def test_quantities_have_no_transition() -> None:
    with pytest.raises(MethodError, match="Only classes"):
        noise_transition(SimpleNamespace(task=SimpleNamespace(name="regression")))
