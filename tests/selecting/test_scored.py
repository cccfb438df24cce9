"""Selecting by a score: against sorting, against the authors' allocation of a budget, and against `imprint.score`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint.methods import Scored, lookup, registered
from imprint.recording import Run
from imprint.selecting import coverage, easiest, hardest
from imprint.selecting.scored import HARDER, POLICIES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_ends_of_the_scale() -> None:
    hardness = torch.randn(50, generator=generator())
    up = hardness.argsort()
    assert torch.equal(easiest(hardness, 10, generator()).order, up[:10])
    assert torch.equal(hardest(hardness, 10, generator()).order, up.flip(0)[:10])


def allocated(scores: np.ndarray, budget: int, strata: int = 50) -> dict[float, int]:
    """How many are taken from each stratum (named by its least score), after the authors' description: least full strata first."""
    edges = np.linspace(scores.min(), scores.max(), strata + 1)
    own = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, strata - 1)
    sizes = np.bincount(own, minlength=strata)
    taken, left = {}, budget
    for number, stratum in enumerate(np.argsort(sizes, kind="stable")):
        take = min(sizes[stratum], left // (strata - number))
        left -= take
        if sizes[stratum]:
            taken[float(scores[own == stratum].min())] = int(take)
    return taken


@pytest.mark.parametrize("budget", [30, 100, 250])
def test_coverage_takes_equal_shares_of_the_strata_that_are_left(budget: int) -> None:
    hardness = torch.rand(500, generator=generator()).square()
    found = coverage(hardness, budget, generator(1))
    cut = max(0, round(0.4 * 500) - budget)
    left = np.sort(hardness.numpy())[: 500 - cut]
    chosen = np.sort(hardness[found.order].numpy())
    assert len(chosen) == budget
    assert chosen[-1] <= left[-1]
    expected = allocated(left.astype(np.float64), budget)
    starts = np.array(sorted(expected))
    counts = np.bincount(np.searchsorted(starts, chosen, side="right") - 1, minlength=len(starts))
    assert counts.tolist() == [expected[start] for start in starts]


def test_coverage_leaves_out_as_many_as_the_authors() -> None:
    """30 % of all where 10 % are kept, 20 % where 20 % are, none where 40 % and more are."""
    hardness = torch.arange(1000.0)
    for budget, kept in ((100, 700), (200, 800), (400, 1000), (900, 1000)):
        found = coverage(hardness, budget, generator())
        assert int(found.order.max()) < kept
        assert bool(found.note) == (kept < 1000)
        # The hardest stratum that is left has its share.
        assert int(found.order.max()) >= kept * 49 // 50


@given(
    st.lists(st.one_of(st.integers(-2, 2), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=50),
    st.integers(0, 2**31), st.data(),
)  # fmt: skip
def test_every_policy_chooses_exactly_the_budget(values: list[float], seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(values)))
    hardness = torch.tensor(values, dtype=torch.float32)
    for policy in (hardest, easiest, coverage):
        found = policy(hardness, budget, generator(seed)).checked(budget, len(values))
        assert torch.equal(found.order, policy(hardness, budget, generator(seed)).order)


@pytest.mark.parametrize("policy", [hardest, easiest, coverage])
def test_an_example_that_was_never_seen_is_taken_last(policy: object) -> None:
    hardness = torch.tensor([0.2, torch.nan, 0.1, 0.3])
    assert 1 not in policy(hardness, 3, generator()).order.tolist()  # type: ignore[operator]
    assert len(policy(hardness, 4, generator()).order) == 4  # type: ignore[operator]


@pytest.mark.parametrize("score", sorted(HARDER))
def test_top_is_the_hard_end_of_the_score(run: Run, score: str) -> None:
    values = imprint.score(run, score, progress=False).frame().select("id", score)
    sign = HARDER[score][0]
    chosen = imprint.select(run, 30, f"{score}-top", progress=False)
    expected = (sign * values[score]).sort(descending=True)[:30]
    found = chosen.frame().join(values, on="id", maintain_order="left")
    np.testing.assert_allclose(sign * found[score].to_numpy(), expected.to_numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["value"].to_numpy(), expected.to_numpy(), rtol=1e-6)


def test_the_sign_is_that_of_the_score() -> None:
    for score, (sign, tasks, _) in HARDER.items():
        one = lookup("score", score)
        assert set(tasks) <= set(one.tasks)
        assert one.higher.startswith("easier") == (sign < 0)


def test_every_score_comes_with_every_policy_and_says_what_it_is() -> None:
    named = {one.name: one for one in registered("select")}
    for score in HARDER:
        for policy in POLICIES:
            one = named[f"{score}-{policy}"]
            assert Scored(method=score) in one.needs
            assert f"`{score}`" in one.summary
            assert one.trainings == 0
