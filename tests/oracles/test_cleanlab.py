"""Confident learning against cleanlab, the reference implementation."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from imprint.cleaning.confident import class_thresholds as thresholds_of
from imprint.cleaning.confident import (
    confidence_weighted_entropy,
    confident_guess,
    confident_joint,
    find_label_issues,
    normalized_margin,
    prune_counts,
    self_confidence,
)

count = pytest.importorskip("cleanlab.count")
filters = pytest.importorskip("cleanlab.filter")
rank = pytest.importorskip("cleanlab.rank")

RULES = ["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities on digits with 15 % of the labels moved to the next class."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    flipped = rng.random(len(y)) < 0.15
    y = np.where(flipped, (y + 1) % 10, y)
    model = LogisticRegression(max_iter=200, C=0.01)
    return cross_val_predict(model, x / 16, y, cv=4, method="predict_proba").astype(np.float32), y


def drawn(examples: int, classes: int, noise: float, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax probabilities around uneven classes, and labels of which a fraction is drawn anew."""
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, examples, p=rng.dirichlet(np.full(classes, 2.0)))
    logits = rng.normal(size=(examples, classes))
    logits[np.arange(examples), y] += signal
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y[rng.random(examples) < noise] = rng.integers(0, classes)
    return probabilities.astype(np.float32), y


# Small and large margins, few and many classes; 0.5 leaves most classes without any confident example, so that more are to be
# flagged than have a positive margin, and 40 classes on 500 examples leave some with one example or none.
CASES = [(2000, 3, 0.2, 2.0), (4000, 10, 0.1, 4.0), (3000, 40, 0.3, 2.0), (400, 2, 0.1, 2.0), (500, 40, 0.5, 0.5)]


def peer(labels: np.ndarray, probabilities: np.ndarray, rule: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return filters.find_label_issues(labels, probabilities, filter_by=rule, n_jobs=1)


@pytest.mark.parametrize("rule", RULES)
def test_same_flags_on_digits(digits: tuple[np.ndarray, np.ndarray], rule: str) -> None:
    probabilities, labels = digits
    expected = peer(labels, probabilities, rule)
    assert expected.sum() > 100  # the oracle has something to say
    assert np.array_equal(find_label_issues(probabilities, labels, rule), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_same_flags_on_drawn_probabilities(case: tuple[int, int, float, float], rule: str) -> None:
    probabilities, labels = drawn(*case, seed=1)
    assert np.array_equal(find_label_issues(probabilities, labels, rule), peer(labels, probabilities, rule))


def test_same_flags_whatever_the_block(digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows and one whole block give the same flags: streaming changes nothing."""
    probabilities, labels = drawn(500, 40, 0.5, 0.5, seed=1)
    monkeypatch.setattr("imprint.cleaning.confident.BLOCK_NUMBERS", 40 * 7)
    for rule in RULES:
        assert np.array_equal(find_label_issues(probabilities, labels, rule), peer(labels, probabilities, rule))


def test_same_flags_from_a_memory_map(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    probabilities, labels = digits
    np.save(tmp_path / "p.npy", probabilities)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert np.array_equal(find_label_issues(mapped, labels), peer(labels, probabilities, "prune_by_noise_rate"))


def test_same_joint(digits: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = digits
    thresholds = thresholds_of(self_confidence(probabilities, labels), labels, 10)
    np.testing.assert_allclose(thresholds, count.get_confident_thresholds(labels, probabilities), rtol=1e-5)
    guess, _ = confident_guess(probabilities, labels, thresholds)
    joint = confident_joint(guess, labels, 10)
    expected = count.compute_confident_joint(labels, probabilities)
    assert np.array_equal(joint, expected)
    assert np.array_equal(prune_counts(joint), filters._keep_at_least_n_per_class(expected.T, 1))


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (self_confidence, "self_confidence"),
        (normalized_margin, "normalized_margin"),
        (confidence_weighted_entropy, "confidence_weighted_entropy"),
    ],
)
def test_same_rankings(digits: tuple[np.ndarray, np.ndarray], ours: object, name: str) -> None:
    probabilities, labels = digits
    expected = rank.get_label_quality_scores(labels, probabilities, method=name)
    np.testing.assert_allclose(ours(probabilities, labels), expected, rtol=2e-4, atol=1e-6)  # type: ignore[operator]
