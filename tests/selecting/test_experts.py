"""Adapt-infinity: entropy, redundancy and spread beside closed forms, and planted skills with a scorer each."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import imprint
import imprint.selecting.experts as module
from imprint.recording import Run
from imprint.selecting import adapt_experts
from imprint.selecting.experts import EXPERTS, entropy, expert, first_of, pruned, redundancy, spread


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_has_closed_forms() -> None:
    assert entropy(torch.full((9,), 3.0)) == 0.0
    assert entropy(torch.tensor([])) == 0.0
    assert entropy(torch.tensor([5.0, 5.0, -1.0, -1.0])) == pytest.approx(1.0)
    # A standard normal in bins of width 8/50: its differential entropy less the logarithm of the width.
    expected = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(module.BOUND * 2 / module.BINS)
    assert entropy(drawn(200_000)) == pytest.approx(expected, abs=0.01)


def test_entropy_knows_no_unit_and_no_missing_values() -> None:
    score = drawn(500)
    assert entropy(1000 * score + 7) == pytest.approx(entropy(score), abs=1e-3)
    assert entropy(torch.cat([score, torch.tensor([torch.nan, torch.inf])])) == entropy(score)


def test_the_score_that_says_most_is_chosen() -> None:
    flat = torch.zeros(100)
    flat[0] = 1.0
    assert expert({"flat": flat, "spread": drawn(100), "same": torch.ones(100)}) == "spread"


def test_redundancy_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features, clusters = drawn(60, 4), torch.arange(60) % 3
    unit = F.normalize(features, dim=1)
    expected = [
        max((float(unit[i] @ unit[j]) for j in range(i) if clusters[i] == clusters[j]), default=-1.0) for i in range(60)
    ]
    assert redundancy(features, clusters).tolist() == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("imprint.clusters.NUMBERS", 70)
    assert redundancy(features, clusters).tolist() == pytest.approx(expected, abs=1e-6)


def test_copies_are_pruned_and_their_first_stays() -> None:
    features = drawn(40, 6)
    both = torch.cat([features, features[:10] + 1e-3 * drawn(10, 6, seed=1)])
    kept = pruned(both, torch.zeros(50, dtype=torch.int64), 40)
    assert kept.tolist() == list(range(40))


def test_larger_clusters_are_pruned_first() -> None:
    clusters = torch.tensor([0] * 80 + [1] * 10)
    kept = pruned(drawn(90, 4), clusters, 60)
    assert torch.bincount(clusters[kept]).tolist() == [50, 10]


def test_first_of_takes_the_lowest_of_each_group() -> None:
    groups, value = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0.3, 0.2, 0.1, 0.9, 0.2])
    assert first_of(groups, value, torch.tensor([1, 2])).tolist() == [1, 2, 4]


def test_a_spread_sample_is_even_over_the_range_and_leaves_the_ends() -> None:
    score = torch.cat([torch.zeros(900), torch.linspace(0, 1, 100)])
    places = spread(score, 40, torch.Generator().manual_seed(0))
    assert len(places.unique()) == 40
    # The highest 5 % begin at 0.5; of 50 strata each but the first holds few.
    assert float(score[places].max()) <= float(score.quantile(0.95)) + 1e-6
    assert (score[places] > 0).float().mean() > 0.8
    assert sorted(spread(score, 1000, torch.Generator()).tolist()) == list(range(1000))


def test_unknown_scores_are_drawn_last() -> None:
    score = torch.tensor([0.0, 1.0, 2.0, torch.nan, torch.nan])
    assert set(spread(score, 4, torch.Generator()).tolist()) > {1}
    assert sorted(spread(torch.full((3,), torch.nan), 3, torch.Generator()).tolist()) == [0, 1, 2]


def test_skills_share_the_budget_and_choose_their_scorers() -> None:
    """Two skills, 300 and 60 examples. The first score varies in the first, the second in the second."""
    skill = torch.tensor([0] * 300 + [1] * 60)
    gradients = 10 * torch.eye(2)[skill] + 0.01 * drawn(360, 2)
    first = torch.where(skill == 0, drawn(360), 0.0)
    second = torch.where(skill == 1, drawn(360, seed=1), 0.0)
    at = torch.Generator().manual_seed(0)
    picks = adapt_experts(gradients, drawn(360, 8, seed=2), 80, at, first=first, second=second)
    assert len(picks.order.unique()) == 80
    # Clusters part the skills (they lie at right angles), so that the rarer one gets far more than its sixth.
    assert int((skill[picks.order] == 1).sum()) >= 20
    assert "36 examples that are redundant in their cluster were pruned" in picks.note
    assert "first in" in picks.note
    assert "second in" in picks.note


def test_through_select(run: Run) -> None:
    chosen = imprint.select(run, 40, "adapt-experts", progress=False)
    again = imprint.select(run, 40, "adapt-experts", progress=False)
    other = imprint.select(run, 40, "adapt-experts", seed=1, progress=False)
    assert chosen.ids == again.ids != other.ids
    assert len(chosen.ids) == 40
    assert any(name in chosen.notes[0] for name in EXPERTS)
    assert len(imprint.select(run, 1.0, "adapt-experts", progress=False).ids) == len(run.rows("train"))
