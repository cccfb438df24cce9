"""Tasks: encodings invert, losses and margins equal their definitions, metrics equal scikit-learn's."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from imprint import tasks
from imprint.errors import LearnerError, TargetError
from imprint.tasks import Batch, Classification, Multilabel, Regression

LABELS = st.lists(st.sampled_from(["cat", "dog", "ümläut", ""]), min_size=2, max_size=40).filter(
    lambda ls: len(set(ls)) > 1
)


@given(LABELS)
def test_classification_decodes_what_it_encodes(labels: list[str]) -> None:
    target = pl.Series("y", labels)
    task = Classification.fit(target)
    assert task.decode(task.encode(target)).to_list() == labels
    assert tasks.from_spec(task.spec()) == task


@given(st.lists(st.lists(st.sampled_from("abc"), unique=True), min_size=1, max_size=20).filter(any))
def test_multilabel_decodes_what_it_encodes(sets: list[list[str]]) -> None:
    target = pl.Series("y", sets, dtype=pl.List(pl.String))
    task = Multilabel.fit(target)
    assert [sorted(got) for got in task.decode(task.encode(target)).to_list()] == [sorted(s) for s in sets]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50).filter(lambda v: np.std(v) > 1e-3))
def test_regression_decodes_what_it_encodes(values: list[float]) -> None:
    target = pl.Series("y", values)
    task = Regression.fit(target)
    # float32 holds about seven digits of the standardised value
    np.testing.assert_allclose(task.decode(task.encode(target)).to_numpy(), values, atol=task.scale * 1e-4)


def test_classification_metrics_equal_scikit_learn(rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(200, 5))).float(), torch.from_numpy(rng.integers(0, 4, 200))
    task = Classification(tuple("abcde"))
    got = task.metrics(logits, target)
    predicted = logits.argmax(1)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(target, predicted))
    assert got["nll"] == pytest.approx(
        reference.log_loss(target, logits.softmax(1).double(), labels=range(5)), abs=1e-6
    )
    recalls = reference.recall_score(target, predicted, labels=range(4), average=None, zero_division=0)
    assert got["balanced_accuracy"] == pytest.approx(recalls.mean())


def test_regression_metrics_equal_scikit_learn(rng: np.random.Generator) -> None:
    values = pl.Series("y", rng.normal(3, 7, 300))
    task = Regression.fit(values)
    target = task.encode(values)
    outputs = (target + 0.3 * torch.from_numpy(rng.normal(size=300)).float())[:, None]
    got, predicted = task.metrics(outputs, target), task.decode(outputs.squeeze(1)).to_numpy()
    assert got["r2"] == pytest.approx(reference.r2_score(values, predicted), abs=1e-5)
    assert got["rmse"] == pytest.approx(reference.root_mean_squared_error(values, predicted), rel=1e-4)
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(values, predicted), rel=1e-4)


def test_multilabel_f1_equals_scikit_learn(rng: np.random.Generator) -> None:
    outputs = torch.from_numpy(rng.normal(size=(100, 6))).float()
    target = torch.from_numpy(rng.integers(0, 2, (100, 6))).float()
    got = Multilabel(tuple("abcdef")).metrics(outputs, target)
    assert got["f1_micro"] == pytest.approx(reference.f1_score(target, outputs > 0, average="micro"))
    assert got["f1"] == pytest.approx(reference.f1_score(target, outputs > 0, average="samples", zero_division=1))


def test_credit_averages_to_the_headline(rng: np.random.Generator) -> None:
    outputs = torch.from_numpy(rng.normal(size=(100, 4)))
    for task, out, target in (
        (Classification(tuple("abcd")), outputs, torch.from_numpy(rng.integers(0, 4, 100))),
        (Regression(0.0, 1.0), outputs[:, :1], outputs[:, 1]),
        (Multilabel(tuple("abcd")), outputs, (outputs.flip(0) > 0).double()),
    ):
        got = task.metrics(out, target)
        assert next(iter(got)) == task.headline
        assert task.credit(out, target).mean().item() == pytest.approx(got[task.headline])


def test_margin_is_positive_just_where_the_prediction_is_right(rng: np.random.Generator) -> None:
    logits, target = torch.from_numpy(rng.normal(size=(500, 7))), torch.from_numpy(rng.integers(0, 7, 500))
    task = Classification(tuple(range(7)))
    assert torch.equal(task.margin(logits, target) > 0, task.correct(logits, target))
    labels = torch.from_numpy(rng.integers(0, 2, (500, 7))).double()
    many = Multilabel(tuple(range(7)))
    assert torch.equal(many.margin(logits, labels) > 0, many.correct(logits, labels))


def test_multilabel_loss_is_the_mean_over_labels() -> None:
    loss = Multilabel(("a", "b")).loss(torch.tensor([[0.0, 100.0]]), Batch(torch.empty(1), torch.tensor([[1.0, 1.0]])))
    assert loss.item() == pytest.approx(np.log(2) / 2)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (["a", "b"], "classification"),
        ([True, False], "classification"),
        ([0, 1, 2], "classification"),
        ([0.0, 1.0], "classification"),
        ([0.5, 1.0], "regression"),
        (list(range(101)), "regression"),
        ([["a"], []], "multilabel"),
    ],
)
def test_the_target_says_the_task(values: list, name: str) -> None:
    assert tasks.infer(pl.Series("y", values)) == name
    assert tasks.fit("auto", pl.Series("y", values)).name == name


@pytest.mark.parametrize("values", [["a", "a"], [None, None], []])
def test_fewer_than_two_classes_are_refused(values: list) -> None:
    with pytest.raises(TargetError, match="'y'"):
        Classification.fit(pl.Series("y", values, dtype=pl.String))


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, float("inf")], [float("nan")], []])
def test_a_target_without_spread_is_refused(values: list[float]) -> None:
    with pytest.raises(TargetError, match="'y'"):
        Regression.fit(pl.Series("y", values, dtype=pl.Float64))


def test_an_unknown_class_and_an_unknown_task_name_what_is_known() -> None:
    task = Classification(("cat", "dog"))
    with pytest.raises(TargetError, match="'cow'"):
        task.encode(pl.Series("y", ["cat", "cow"]))
    with pytest.raises(LearnerError, match="classification"):
        tasks.fit("clasification", pl.Series("y", [1, 2]))
