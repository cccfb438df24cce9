"""k-center: every pick is the farthest example, the radius is at most twice the best, and a class keeps its share."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imprint.selecting.kcenter as module
from imprint.selecting import k_center, k_center_class
from imprint.selecting.kcenter import covering_radius, farthest_first

# Distances are computed in float32: what is farthest by less than this is as far.
ROUNDING = 1e-4


def drawn(examples: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    examples=st.integers(1, 60), width=st.integers(1, 5), budget=st.integers(1, 60), pool=st.integers(1, 20),
    block=st.integers(1, 30), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_every_pick_is_the_farthest_whatever_the_pool(
    examples: int, width: int, budget: int, pool: int, block: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POOL", pool)
    monkeypatch.setattr(module, "BLOCK", block)
    budget = min(budget, examples)
    x = drawn(examples, width, seed).double()
    order = farthest_first(x.float(), budget)
    assert len(order.unique()) == budget
    distance = torch.cdist(x, x)
    to_mean = (x - x.mean(0)).norm(dim=1)
    assert float(to_mean[order[0]]) <= float(to_mean.min()) + ROUNDING
    for step in range(1, budget):
        near = distance[order[:step]].amin(0)
        assert float(near[order[step]]) >= float(near.max()) - ROUNDING


@given(seed=st.integers(0, 2**31), budget=st.integers(1, 4))
@settings(max_examples=30)
def test_the_radius_is_at_most_twice_the_best(seed: int, budget: int) -> None:
    x = drawn(9, 2, seed)
    best = min(covering_radius(x, torch.tensor(some)) for some in combinations(range(9), budget))
    assert covering_radius(x, k_center(x, budget).order) <= 2 * best + ROUNDING


def test_the_radius_never_grows_and_ends_at_zero() -> None:
    x = drawn(50, 3, 0)
    order = k_center(x, 50).order
    radii = [covering_radius(x, order[:count]) for count in range(1, 51)]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] == 0


def test_copies_come_last() -> None:
    x = drawn(4, 2, 0).repeat(5, 1)
    order = k_center(x, 7).order
    assert len(order.unique()) == 7
    assert (order[:4] % 4).sort().values.tolist() == [0, 1, 2, 3]


def test_a_class_keeps_its_share_and_is_traversed_alone() -> None:
    x, target = drawn(30, 2, 1), torch.tensor([0] * 20 + [1] * 10)
    order = k_center_class(x, target, 9).order
    assert target[order].bincount().tolist() == [6, 3]
    assert order[target[order] == 0].tolist() == farthest_first(x[:20], 6).tolist()
    assert (order[target[order] == 1] - 20).tolist() == farthest_first(x[20:], 3).tolist()
    # A third of the order is balanced as the whole is.
    assert target[order[:3]].bincount().tolist() == [2, 1]
