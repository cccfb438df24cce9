"""Multilabel, regression, annotators and the joint against cleanlab, the reference implementation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from imprint.cleaning import crowdlab, find_multilabel_issues, label_set_quality, residual_quality
from imprint.cleaning.annotators import Votes, _people, majority
from imprint.cleaning.transition import joint_distribution, transition_matrix

count = pytest.importorskip("cleanlab.count")
multiannotator = pytest.importorskip("cleanlab.multiannotator")
multilabel_filter = pytest.importorskip("cleanlab.multilabel_classification.filter")
multilabel_rank = pytest.importorskip("cleanlab.multilabel_classification.rank")
learn = pytest.importorskip("cleanlab.regression.learn")


def answers(seed: int, examples: int = 400, labels: int = 5) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """Sets of labels of which a tenth of the answers are turned, and noisy probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.random((examples, labels)) < rng.uniform(0.1, 0.6, labels)
    logits = (2 * true - 1) * 2 + 1.5 * rng.normal(size=true.shape)
    given = true ^ (rng.random(true.shape) < 0.1)
    return given, [np.flatnonzero(row).tolist() for row in given], 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("rule", ["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_multilabel_flags(seed: int, rule: str) -> None:
    given, lists, probabilities = answers(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = multilabel_filter.find_multilabel_issues_per_class(lists, probabilities, filter_by=rule, n_jobs=1)
        whole = multilabel_filter.find_label_issues(lists, probabilities, filter_by=rule, n_jobs=1)
    ours = find_multilabel_issues(probabilities, given, rule)  # type: ignore[arg-type]
    assert whole.sum() > 50
    assert np.array_equal(ours, each)
    assert np.array_equal(ours.any(1), whole)


def test_same_multilabel_quality() -> None:
    given, lists, probabilities = answers(2)
    expected = multilabel_rank.get_label_quality_scores(lists, probabilities)
    ours = label_set_quality(torch.from_numpy(probabilities), torch.from_numpy(given.astype(float)))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6)


class Told(BaseEstimator):  # type: ignore[misc]
    """A regressor whose predictions are in its inputs, so that cleanlab's cross-validation gives them back."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Told:
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0]


def test_same_regression_quality() -> None:
    rng = np.random.default_rng(0)
    predicted, spread = rng.normal(size=200), rng.uniform(0.2, 2, 200)
    y = predicted + spread * rng.standard_t(3, 200)
    peer = learn.CleanLearning(Told(), n_boot=0, include_aleatoric_uncertainty=False, seed=0)
    expected = peer.find_label_issues(predicted[:, None], y, uncertainty=spread)["label_quality"].to_numpy()
    np.testing.assert_allclose(residual_quality(y - predicted, spread), expected, rtol=1e-9)


def voted(seed: int, examples: int, people: int, most: int) -> tuple[np.ndarray, Votes, np.ndarray]:
    """A table [example, annotator] with gaps, the same votes as a list, and the probabilities of a middling classifier."""
    rng = np.random.default_rng(seed)
    true = rng.choice(4, examples, p=[0.4, 0.3, 0.2, 0.1])
    table = np.full((examples, people), np.nan)
    accuracy = rng.uniform(0.4, 0.95, people)
    for example in range(examples):
        who = rng.choice(people, rng.integers(1, most + 1), replace=False)
        right = rng.random(len(who)) < accuracy[who]
        table[example, who] = np.where(right, true[example], rng.integers(0, 4, len(who)))
    logits = 2 * np.eye(4)[true] + rng.normal(size=(examples, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    example, who = np.nonzero(~np.isnan(table))
    return table, Votes(example, who, table[example, who].astype(int), examples, people, 4), probabilities


@pytest.mark.parametrize(("seed", "examples", "people", "most"), [(0, 300, 12, 5), (1, 300, 40, 3), (2, 100, 5, 5)])
def test_same_consensus_and_annotators(seed: int, examples: int, people: int, most: int) -> None:
    table, votes, probabilities = voted(seed, examples, people, most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = multiannotator.get_label_quality_multiannotator(
            pd.DataFrame(table), probabilities, return_weights=True, verbose=False
        )
        most_voted = multiannotator.get_majority_vote_label(table, probabilities, verbose=False)
    assert np.array_equal(majority(votes, probabilities), most_voted)
    found = crowdlab(votes, probabilities)
    labels = expected["label_quality"]
    assert np.array_equal(found.label, labels["consensus_label"])
    np.testing.assert_allclose(found.quality, labels["consensus_quality_score"], rtol=1e-9)
    np.testing.assert_allclose(found.agreement, labels["annotator_agreement"])
    np.testing.assert_allclose(found.annotator_weight, expected["annotator_weight"], rtol=1e-9)
    assert found.model_weight == pytest.approx(expected["model_weight"])
    people_frame = expected["annotator_stats"].sort_index()
    np.testing.assert_allclose(found.annotator_quality, people_frame["annotator_quality"], rtol=1e-9)
    ours = _people(votes, found, pl.Series(range(people)), pl.Series(range(4))).sort("annotator")
    np.testing.assert_allclose(ours["agreement"], people_frame["agreement_with_consensus"])
    assert ours["examples"].to_list() == people_frame["num_examples_labeled"].to_list()
    # Which of several labels with the same agreement and number of votes is named is arbitrary in both.
    assert np.mean(ours["worst_class"].to_numpy() == people_frame["worst_class"].to_numpy()) > 0.8


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < 0.15, (y + 1) % 10, y)
    model: Any = LogisticRegression(max_iter=200, C=0.01)
    return cross_val_predict(model, x / 16, y, cv=4, method="predict_proba"), y


def test_same_joint_and_transition(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """cleanlab rounds the joint to whole examples, ours are shares: an entry differs by one example of 1797 at most."""
    probabilities, labels = digits
    joint = joint_distribution(probabilities, labels)
    np.testing.assert_allclose(joint, count.estimate_joint(labels, probabilities), atol=1.01 / len(labels))
    _, given_by_true, _ = count.estimate_latent(count.compute_confident_joint(labels, probabilities), labels)
    least = joint.sum(0).min() * len(labels)
    np.testing.assert_allclose(transition_matrix(joint), given_by_true.T, atol=10 / least)
