"""Budgets, quotas and ranks: closed forms and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.clusters import equal
from imprint.errors import MethodError
from imprint.selecting.picks import Picks, drawn, picked, proportional, ranked

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Budgets


@pytest.mark.parametrize(
    ("budget", "examples", "number"),
    [
        (0.3, 1000, 300),
        (1.0, 7, 7),
        (7, 7, 7),
        (1, 7, 1),
        (0.001, 7, 1),
        (np.float32(0.5), 10, 5),
        (np.int64(4), 10, 4),
    ],
)
def test_a_budget_is_a_share_or_a_number(budget: float, examples: int, number: int) -> None:
    assert picked(budget, examples) == number


@pytest.mark.parametrize("budget", [0, 0.0, -0.1, -3, 1.5, float("nan"), float("inf"), True, False, "0.3", None])
def test_what_is_neither_is_an_error(budget: object) -> None:
    with pytest.raises(MethodError, match="neither a share nor a number"):
        picked(budget, 100)  # type: ignore[arg-type]


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(MethodError, match="101 examples is more than the 100"):
        picked(101, 100)


# Quotas


@given(SIZES, st.floats(0, 1))
def test_proportional_quotas_are_within_one_of_exact(sizes: list[int], share: float) -> None:
    budget = max(1, round(share * sum(sizes)))
    quotas = proportional(torch.tensor(sizes), budget)
    exact = torch.tensor(sizes).double() * budget / sum(sizes)
    assert int(quotas.sum()) == budget
    assert bool(((quotas - exact).abs() < 1).all())
    assert bool((quotas <= torch.tensor(sizes)).all())


def test_the_largest_remainder_wins() -> None:
    # Exact shares are 2.6, 1.3 and 1.1: the units go 2, 1, 1 and the last one to 0.6.
    assert proportional(torch.tensor([26, 13, 11]), 5).tolist() == [3, 1, 1]


@given(SIZES, st.floats(0, 1))
def test_equal_quotas_are_as_equal_as_sizes_allow(sizes: list[int], share: float) -> None:
    budget = max(1, round(share * sum(sizes)))
    quotas = equal(torch.tensor(sizes), budget).tolist()
    assert sum(quotas) == budget
    assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
    larger = [quota for quota, size in zip(quotas, sizes, strict=True) if quota < size]  # those that could give more
    if larger:
        assert max(larger) - min(larger) <= 1
        assert max(quotas) <= min(larger) + 1  # no group gets more than one that could give more, but for the remainder


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**31))
def test_as_many_of_each_group_as_its_quota(groups: list[int], seed: int) -> None:
    codes = torch.tensor(groups)
    sizes = torch.bincount(codes, minlength=5)
    quotas = (sizes + 1) // 2
    found = drawn(codes, quotas, generator(seed))
    assert torch.equal(torch.bincount(codes[found], minlength=5), quotas)
    assert len(found.unique()) == len(found)
    assert torch.equal(found, drawn(codes, quotas, generator(seed)))


def test_every_member_of_a_group_is_drawn_as_often() -> None:
    codes, quotas = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([2, 0])
    counts = sum(torch.bincount(drawn(codes, quotas, generator(seed)), minlength=5) for seed in range(400))
    # Each is drawn by a coin of its own in 400 choices: 200 with a standard deviation of 10. Seeds are fixed.
    assert counts[4] == 0  # type: ignore[index]
    assert bool(((counts[:4] - 200).abs() < 40).all())  # type: ignore[index, operator, union-attr]


# Ranks


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(0, 2**31), st.data())
def test_ranks_are_by_value(values: list[int], seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(values)))
    value = torch.tensor(values).float()
    found = ranked(value, budget, generator(seed))
    assert value[found].tolist() == sorted(values, reverse=True)[:budget]
    assert len(found.unique()) == budget


def test_ties_are_broken_at_random_and_what_is_unknown_comes_last() -> None:
    value = torch.tensor([1.0, torch.nan, 1.0, 1.0, 0.0])
    firsts = {int(ranked(value, 1, generator(seed))[0]) for seed in range(40)}
    assert firsts == {0, 2, 3}
    assert ranked(value, 5, generator())[3:].tolist() == [4, 1]


# What a method promises


def test_sound_picks_are_let_through() -> None:
    picks = Picks(torch.tensor([2, 0]), torch.tensor([0.5, 1.5]), torch.arange(3.0))
    assert picks.checked(2, 3) is picks


@pytest.mark.parametrize(
    ("picks", "says"),
    [
        (Picks(torch.tensor([0, 0])), "1 different examples in 2 places"),
        (Picks(torch.tensor([0])), "must choose 2 different"),
        (Picks(torch.tensor([0, 3])), "places 0 to 2"),
        (Picks(torch.tensor([-1, 0])), "places 0 to 2"),
        (Picks(torch.tensor([0, 1]), torch.tensor([1.0, 2.0])), "mean 1.5"),
        (Picks(torch.tensor([0, 1]), torch.tensor([3.0, -1.0])), "0 or more"),
        (Picks(torch.tensor([0, 1]), torch.tensor([1.0])), "2 of them"),
        (Picks(torch.tensor([0, 1]), value=torch.zeros(2)), "2 values for 3 training examples"),
    ],
)
def test_unsound_picks_are_an_error(picks: Picks, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        picks.checked(2, 3)
