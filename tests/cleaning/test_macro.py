"""MacroStd: closed forms, what chance gives, and a run whose model fails in one group."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from imprint.cleaning import macro, macro_std
from imprint.cleaning.grouping import background, groups_of
from imprint.cleaning.macro import by_chance
from imprint.errors import ColumnError, MethodError


def test_two_classes_by_hand() -> None:
    """Class 0: three of four right in group 0, none of one in group 1; class 1: all right, and adds 0 to the mean."""
    right = np.array([1, 1, 1, 0, 0, 1, 1], bool)
    target = np.array([0, 0, 0, 0, 0, 1, 1])
    group = np.array([0, 0, 0, 0, 1, 0, 1])
    mean = 3 / 5
    variance = 4 / 5 * (3 / 4 - mean) ** 2 + 1 / 5 * (0 - mean) ** 2
    assert macro_std(right, target, group) == pytest.approx((variance**0.5 + 0) / 2)


outcomes = arrays.arrays(np.int64, st.shared(st.integers(1, 60), key="n"), elements=st.integers(0, 2))


@given(outcomes, outcomes, outcomes)
def test_it_is_the_spread_of_the_group_accuracy_of_each_example(
    right: np.ndarray, target: np.ndarray, group: np.ndarray
) -> None:
    """The weighted deviation over groups is the plain one over examples, each with its group's accuracy; names do not matter."""
    hit = right > 0
    spread = []
    for code in np.unique(target):
        own = target == code
        each = [hit[own & (group == one)].mean() for one in group[own]]
        spread.append(np.std(each))
    assert macro_std(hit, target, group) == pytest.approx(np.mean(spread), abs=1e-12)
    assert macro_std(hit, 2 - target + target.min(), 2 - group) == pytest.approx(np.mean(spread), abs=1e-12)
    assert macro_std(hit, target, np.zeros_like(group)) == 0


def test_chance_is_the_mean_over_all_ways_to_deal() -> None:
    """One class, groups of 3 and 2, two right: all 10 ways are counted; 20,000 deals come to their mean within four standard errors."""
    group = np.array([0, 0, 0, 1, 1])
    every = [
        macro_std(np.isin(np.arange(5), chosen), np.zeros(5, np.int64), group) for chosen in combinations(range(5), 2)
    ]
    dealt = by_chance(np.array([[3, 2]]), np.array([2]), 20_000)
    assert dealt.mean() == pytest.approx(np.mean(every), abs=4 * np.std(every) / 20_000**0.5)
    assert set(dealt.round(9)) == set(np.round(every, 9))


def test_a_group_in_which_the_model_fails_is_named(grouped_run: Any) -> None:
    """The labels of the group "odd" are turned around: near 0 there and near 1 elsewhere, in both classes."""
    found = macro(grouped_run)
    assert found.by == "group"
    assert found.p == pytest.approx(1 / 1001)
    assert found.value > 0.3 > 10 * found.chance
    assert "in odd" in found.summary()
    frame = found.frame()
    assert frame.columns == ["class", "group", "examples", "accuracy", "gap"]
    assert frame["examples"].sum() == found.classes["examples"].sum() == 750
    for row in found.classes.iter_rows(named=True):
        own = frame.filter(frame["class"] == row["class"])
        assert (own["accuracy"] * own["examples"]).sum() / own["examples"].sum() == pytest.approx(row["accuracy"])
        assert (own["gap"] ** 2 * own["examples"]).sum() / own["examples"].sum() == pytest.approx(row["std"] ** 2)
    assert found.value == pytest.approx(found.classes["std"].mean())
    assert found.plot().data


def test_groups_that_make_no_difference_are_said_to(grouped_run: Any) -> None:
    """Noise that the labels do not depend on."""
    found = macro(grouped_run, by="noise")
    assert found.p > 0.05
    assert found.value < 3 * found.chance
    assert "chance" in found.summary()


def test_groups_come_from_roles_columns_and_clusters(grouped_run: Any) -> None:
    groups = groups_of(grouped_run)
    assert (groups.by, set(groups.names)) == ("group", {"even", "odd", "plain"})
    assert groups_of(grouped_run, "x").names[0].startswith("x <= ")
    assert set(np.bincount(groups_of(grouped_run, "x").code)) == {300}
    clusters = groups_of(grouped_run, "clusters")
    assert clusters.names[0] == "cluster 0"
    assert len(np.unique(clusters.code)) == len(clusters.names)
    with pytest.raises(ColumnError, match="Did you mean 'noise'"):
        groups_of(grouped_run, "noises")


def test_one_group_is_refused(grouped_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.cleaning.grouping.LEAST", 700)
    with pytest.raises(MethodError, match="makes no groups of at least 700"):
        groups_of(grouped_run, "group")


def test_background_in_words() -> None:
    brightness, redness, blueness = np.array([[100.0, 0, 40], [100, 30, 10], [100, 5, -5], [20, 0, 0]]).T
    assert background(brightness, redness, blueness).to_list() == ["blue", "red", "grey", "dark"]
