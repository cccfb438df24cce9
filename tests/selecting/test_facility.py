"""Facility location: the greedy choice exactly, with and without lists of pairs, of a submodular objective."""

from __future__ import annotations

from itertools import combinations
from math import e

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import imprint.selecting.facility as module
from imprint.selecting import facility_location
from imprint.selecting.facility import greedy, objective

# Similarities are computed in float32: a gain that is larger by less than this is as large.
ROUNDING = 1e-4


def drawn(examples: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(seed))


def plain_gains(similarity: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    """What each example would add to the sum of best similarities, from the whole matrix."""
    best = similarity[:, chosen].amax(1) if chosen else torch.zeros(len(similarity), dtype=torch.float64)
    return (similarity - best[:, None]).clamp(min=0).sum(0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    examples=st.integers(1, 60), width=st.integers(1, 5), budget=st.integers(1, 60), listed=st.integers(1, 70),
    tile=st.integers(1, 30), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_every_pick_has_the_largest_gain_wherever_the_lists_begin(
    examples: int, width: int, budget: int, listed: int, tile: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PICKS", listed)
    monkeypatch.setattr(module, "TILE", (tile, tile + 1))
    budget = min(budget, examples)
    x = drawn(examples, width, seed)
    unit = normalize(x.double(), dim=1)
    similarity = (1 + unit @ unit.T) / 2
    order = greedy(x, budget).tolist()
    assert len(set(order)) == budget
    for step, pick in enumerate(order):
        gains = plain_gains(similarity, order[:step])
        gains[order[:step]] = -1
        assert float(gains[pick]) >= float(gains.max()) - ROUNDING


def test_lists_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(400, 8, 0)
    with_lists = greedy(x, 200)
    monkeypatch.setattr(module, "PAIRS", 0)  # no number of pairs fits
    without = greedy(x, 200)
    # Of two examples that would serve only themselves and each other, the gains are equal: rounding chooses.
    for count in range(1, 201, 20):
        assert objective(x, with_lists[:count]) == pytest.approx(objective(x, without[:count]), abs=1e-6)
    assert torch.equal(with_lists[:50], without[:50])


def test_gains_of_a_sample_of_rows_hardly_change_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PICKS", 60)  # more picks by the sample than a large set has before its lists
    x = drawn(1000, 8, 0)
    exact = greedy(x, 100)
    monkeypatch.setattr(module, "ROWS", 200)
    monkeypatch.setattr(module, "CANDIDATES", 100)
    sampled = greedy(x, 100)
    assert len(sampled.unique()) == 100
    assert not torch.equal(sampled, exact)  # or the sample was not used
    for count in (1, 10, 100):
        assert objective(x, sampled[:count]) == pytest.approx(objective(x, exact[:count]), rel=2e-3)
    # Where the exact gains of all are looked at, a sample of rows changes nothing.
    monkeypatch.setattr(module, "CANDIDATES", 1000)
    assert torch.equal(greedy(x, 50), exact[:50])


def test_the_estimate_of_pairs_is_their_number() -> None:
    x = normalize(drawn(300, 4, 0), dim=1)
    best = x @ x[0]
    share = module._share_of_pairs(x, best)  # fewer examples than SAMPLE: all are counted
    pairs = module._listed(x, best)
    assert pairs.nnz == round(share * 300**2)
    similarity = x @ x.T
    assert pairs.nnz == int(((similarity > best) | (similarity > best[:, None])).sum())
    gains = torch.from_numpy(module._gains(pairs, best.numpy()))
    torch.testing.assert_close(gains, (similarity - best[:, None]).clamp(min=0).sum(0).double(), atol=ROUNDING, rtol=0)


@given(seed=st.integers(0, 2**31), small=st.integers(1, 5), more=st.integers(0, 5))
@settings(max_examples=40)
def test_the_objective_is_monotone_and_submodular(seed: int, small: int, more: int) -> None:
    x = drawn(20, 3, seed)
    places = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    inner, outer, one = places[:small], places[: small + more], places[-1:]
    gain = [objective(x, torch.cat([some, one])) - objective(x, some) for some in (inner, outer)]
    assert gain[0] >= gain[1] - ROUNDING
    assert gain[1] >= -ROUNDING


@given(seed=st.integers(0, 2**31), budget=st.integers(1, 4))
@settings(max_examples=20)
def test_the_greedy_choice_comes_near_the_best(seed: int, budget: int) -> None:
    x = drawn(9, 2, seed)
    best = max(objective(x, torch.tensor(some)) for some in combinations(range(9), budget))
    assert objective(x, greedy(x, budget)) >= (1 - 1 / e) * best - ROUNDING


def test_every_cluster_is_served_before_one_is_served_twice() -> None:
    directions = torch.eye(6)
    cluster = torch.tensor([0] * 30 + [1] * 20 + [2] * 10 + [3] * 5 + [4] * 3 + [5] * 2)
    x = directions[cluster] + 0.05 * drawn(len(cluster), 6, 0)
    assert cluster[facility_location(x, 6).order].sort().values.tolist() == [0, 1, 2, 3, 4, 5]
