"""Label issues of a regression: what noise explains is left alone, what it does not is flagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from imprint.cleaning import clean, label_quality, residual_issues, residual_quality
from imprint.cleaning.residuals import FREEDOM, local_spread, neighbourhood


def uneven(rng: np.random.Generator, examples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, the standard deviation of the noise there (five-fold from one end to the other), and noise."""
    places = rng.random((examples, 1))
    spread = 0.2 + 0.8 * places[:, 0]
    return places, spread, spread * rng.normal(size=examples)


def test_the_spread_is_that_of_the_noise_at_the_place(rng: np.random.Generator) -> None:
    """Its standard error with 100 neighbours is 12 %; the mean over 2000 examples is far nearer."""
    places, spread, noise = uneven(rng, 2000)
    found = local_spread(noise, places)
    assert np.abs(np.log(found / spread)).mean() < 0.2
    for part in (places[:, 0] < 0.3, places[:, 0] > 0.7):
        assert found[part].mean() == pytest.approx(spread[part].mean(), rel=0.1)


def test_an_example_is_no_witness_of_itself(rng: np.random.Generator) -> None:
    """A huge residual does not change its own spread, and is flagged."""
    places, small = rng.random((60, 1)), rng.normal(size=60)
    small[7] = np.median(small) + 1
    large = small.copy()
    large[7] = 1e6
    spread = local_spread(large, places)
    assert spread[7] == pytest.approx(local_spread(small, places)[7])
    assert np.flatnonzero(residual_issues(large, spread, neighbourhood(60) * FREEDOM)).tolist() == [7]


@pytest.mark.parametrize("level", [True, False])
def test_noise_alone_is_rarely_flagged(level: bool) -> None:
    """The bound is 5 % of all data sets; 150 of them, of which 5 % are 7.5, have 16 or more with a chance below 0.004."""
    rng = np.random.default_rng(3)
    flagged = 0
    for _ in range(150):
        places, _, noise = uneven(rng, 400)
        noise = rng.normal(size=400) if level else noise
        flagged += residual_issues(noise, local_spread(noise, places), neighbourhood(400) * FREEDOM).any()
    assert flagged < 16


def test_planted_errors_are_flagged_and_little_else() -> None:
    rng = np.random.default_rng(0)
    places, spread, residual = uneven(rng, 3000)
    wrong = rng.random(3000) < 0.05
    residual = residual + wrong * spread * rng.choice([-8.0, 8.0], 3000)
    flagged = residual_issues(residual, local_spread(residual, places), neighbourhood(3000) * FREEDOM)
    assert flagged[wrong].mean() > 0.9
    assert wrong[flagged].mean() > 0.9


def test_benjamini_hochberg_by_hand() -> None:
    """Tail probabilities 0.001, 0.02, 0.03, 0.9 against 0.0125, 0.025, 0.0375, 0.05: the first three."""
    tails = np.array([0.02, 0.9, 0.001, 0.03])
    residual = stats.t.isf(tails / 2, 7.0) * np.array([1, 1, -1, 1])
    # A symmetric companion keeps the median at 0 without being flagged.
    assert residual_issues(np.r_[residual, 0.0], np.ones(5), 7.0, noise=0.0625).tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_quality_is_of_the_residual_for_its_spread() -> None:
    even = residual_quality(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(even, np.exp(-1))
    assert residual_quality(np.zeros(4), np.ones(4)).tolist() == [1.0] * 4
    assert residual_quality(np.zeros(4), np.zeros(4)).tolist() == [1.0] * 4


def test_errors_in_quiet_places_are_found_that_the_plain_residual_hides(corpus_of: Any, run_of: Any) -> None:
    """Errors are 5 spreads large, and so smaller in quiet places than plain noise in loud ones."""
    rng = np.random.default_rng(1)
    places, spread, noise = uneven(rng, 1500)
    wrong = rng.random(1500) < 0.05
    target = np.sin(4 * places[:, 0]) + noise + wrong * 5 * spread * rng.choice([-1, 1], 1500)
    corpus = corpus_of(pl.DataFrame({"x": places[:, 0]}), target, {"x": "numeric"}, "table")
    run = run_of(corpus, torch.zeros(1, 1500, 1), features=torch.from_numpy(places).float())
    said = run.task.encode(pl.Series(np.sin(4 * places[:, 0])))
    run.out_of_fold = said[:, None]
    frame = clean(run, "out-of-fold-residual").frame()
    hit = wrong[frame["id"].str.slice(1).cast(pl.Int64).to_numpy()]
    assert len(frame) > 20
    assert hit.mean() > 0.8
    assert frame["severity"].min() == pytest.approx(0.5)
    quality = label_quality(run, "out-of-fold-residual").frame()["out-of-fold-residual"].to_numpy()
    plain = (run.target() - said).abs().numpy()
    # Of pairs (wrong, right) a third as many are in the wrong order.
    assert 1 - roc_auc_score(wrong, -quality) < (1 - roc_auc_score(wrong, plain)) / 3


def test_few_examples_give_no_flags(corpus_of: Any, run_of: Any) -> None:
    corpus = corpus_of(pl.DataFrame({"x": [0.0, 1.0]}), [0.5, 2.5], {"x": "numeric"}, "table")
    run = run_of(corpus, torch.zeros(1, 2, 1), features=torch.eye(2), out_of_fold=torch.zeros(2, 1))
    assert len(clean(run, "out-of-fold-residual").frame()) == 0
