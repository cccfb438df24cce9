"""The crossed interval: equals Student's t in its limits, and covers as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from imprint.verifying.interval import crossed_interval


def test_without_example_spread_it_is_the_paired_t_interval() -> None:
    seeds = torch.tensor([0.01, 0.03, 0.02, 0.05, 0.00])
    effect, (low, high) = crossed_interval(seeds[:, None].expand(-1, 100))
    reference = stats.ttest_1samp(seeds.double().numpy(), 0).confidence_interval(0.95)
    assert effect == pytest.approx(0.022)
    assert (low, high) == (pytest.approx(reference.low), pytest.approx(reference.high))


def test_with_one_seed_it_is_the_interval_over_examples(rng: np.random.Generator) -> None:
    examples = rng.normal(size=300)
    _, (low, high) = crossed_interval(torch.from_numpy(examples)[None])
    reference = stats.ttest_1samp(examples, 0).confidence_interval(0.95)
    assert (low, high) == (pytest.approx(reference.low), pytest.approx(reference.high))


def test_no_difference_gives_a_point_at_zero() -> None:
    assert crossed_interval(torch.zeros(5, 10)) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("spread", [(0.02, 0.2, 0.1), (0.0, 0.3, 0.5), (0.05, 0.0, 0.3)])
def test_it_covers_the_truth_at_least_as_often_as_it_says(
    spread: tuple[float, float, float], rng: np.random.Generator
) -> None:
    """1000 repetitions: a 95 % interval may fall to 93 % by chance (three standard errors of 0.7 points)."""
    seed, example, both = spread
    covered = 0
    for _ in range(1000):
        difference = (
            0.1
            + seed * rng.normal(size=(5, 1))
            + example * rng.normal(size=(1, 200))
            + both * rng.normal(size=(5, 200))
        )
        _, (low, high) = crossed_interval(torch.from_numpy(difference))
        covered += low <= 0.1 <= high
    assert covered >= 930
