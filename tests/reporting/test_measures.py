"""The figures of the page against independent counts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from imprint.reporting.measures import balance, confusion, histogram, reliability

predictions = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=200)


@given(predictions)
def test_calibration_error_is_the_mean_gap_over_examples(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    table, gap = reliability(confidence, correct, bins=10)
    bins: dict[int, list[tuple[float, float]]] = {}
    for c, right in zip(confidence, correct, strict=True):
        bins.setdefault(min(9, int(round(c * 10, 9))), []).append((c, right))
    expected = sum(abs(sum(c for c, _ in held) - sum(r for _, r in held)) for held in bins.values()) / len(pairs)
    assert gap == pytest.approx(expected, abs=1e-9)
    assert table["count"].sum() == len(pairs)
    assert 0 <= gap <= 1


def test_a_confidence_on_an_edge_belongs_to_the_bin_above() -> None:
    table, _ = reliability(np.array([0.7, 1.0]), np.array([1, 1]), bins=10)
    assert table["low"].to_list() == pytest.approx([0.7, 0.9])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=80))
def test_confusion_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    target, predicted = zip(*pairs, strict=True)
    ours = confusion(pl.Series(target), pl.Series(predicted), list("abcd"))
    assert (ours == confusion_matrix(target, predicted, labels=list("abcd"))).all()


def test_confusion_takes_numbers_as_they_are_written() -> None:
    assert confusion(pl.Series([1.0, 2.0]), pl.Series([2.0, 2.0]), ["1", "2"]).tolist() == [[0, 1], [0, 1]]


def test_balance_counts_each_label_of_a_list() -> None:
    table = balance(pl.Series(["train", "train", "test"]), pl.Series([["a", "b"], ["a"], []], dtype=pl.List(pl.String)))
    assert table.rows() == [("a", 2), ("b", 1)]


def test_histogram_leaves_out_what_is_not_finite() -> None:
    assert sum(histogram(np.array([1.0, 2.0, np.nan, np.inf]), bins=2)["count"]) == 2
