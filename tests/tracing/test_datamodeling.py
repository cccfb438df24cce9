"""The linear datamodeling score: equals SciPy's rank correlation, is 1 for the truth, 0 for noise, and its interval covers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imprint.tracing import Factors, datamodel, datamodeling
from imprint.tracing.datamodeling import centred_ranks, correlation, percentiles, resampled, spearman


@settings(deadline=None, max_examples=50)
@given(members=st.integers(3, 20), seed=st.integers(0, 2**31))
def test_it_is_the_rank_correlation_of_scipy_also_of_resamples(members: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left, right = random.integers(0, 6, (4, members)).astype(float), random.integers(0, 6, (4, members)).astype(float)
    drawn = random.integers(members, size=members)
    weight = torch.from_numpy(np.bincount(drawn, minlength=members)).float()[:, None]
    ranks = [centred_ranks(torch.from_numpy(side), weight) for side in (left, right)]
    found = correlation(*ranks, weight)[:, 0]
    for query in range(4):
        ours = [float(spearman(torch.from_numpy(left), torch.from_numpy(right))[query]), float(found[query])]
        for value, (a, b) in zip(
            ours, [(left[query], right[query]), (left[query, drawn], right[query, drawn])], strict=True
        ):
            constant = len(set(a)) == 1 or len(set(b)) == 1
            assert value == pytest.approx(0 if constant else stats.spearmanr(a, b).statistic, abs=1e-6)


def test_the_true_linear_model_scores_one_and_random_scores_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randn(50, 200, generator=generator), torch.randn(50, 200, generator=generator)
    seen = torch.rand(40, 200, generator=generator) < 0.5
    identity = torch.eye(200)
    margin = Factors(truth, identity).predict(seen) * 2 + 5
    assert spearman(Factors(truth, identity).predict(seen), margin).tolist() == pytest.approx([1.0] * 50)
    assert spearman(Factors(-truth, identity).predict(seen), margin).tolist() == pytest.approx([-1.0] * 50)
    # One rank correlation of 40 independent pairs has the standard error 1/sqrt(39); 50 independent queries divide it by sqrt(50).
    assert abs(float(spearman(Factors(noise, identity).predict(seen), margin).mean())) < 4 / (39 * 50) ** 0.5


def test_resamples_are_those_that_scipy_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    predicted = {"a": truth + torch.randn(7, 12, generator=generator), "b": -truth, "c": truth}
    whole = resampled(predicted, truth, resamples=20, seed=3)
    assert whole["c"].tolist() == pytest.approx([1.0] * 20)
    assert whole["b"].tolist() == pytest.approx([-1.0] * 20)
    random = torch.Generator().manual_seed(3)
    queries, members = (torch.randint(size, (20, size), generator=random).numpy() for size in (7, 12))
    expected = [
        np.mean([stats.spearmanr(predicted["a"][q, members[i]], truth[q, members[i]]).statistic for q in queries[i]])
        for i in range(20)
    ]
    assert whole["a"].tolist() == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(datamodeling, "BLOCK_RANKS", 500)
    for name, values in resampled(predicted, truth, resamples=20, seed=3).items():
        torch.testing.assert_close(values, whole[name])


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Queries of different difficulty, members that all of them share; the truth is the mean over many such worlds."""
    random = np.random.default_rng(0)

    def world(queries: int, members: int) -> tuple[torch.Tensor, torch.Tensor]:
        signal = random.normal(size=(queries, members)) + 0.7 * random.normal(size=members)
        noise = random.normal(size=(queries, members)) * random.uniform(0.3, 3, size=(queries, 1))
        return torch.from_numpy(signal), torch.from_numpy(signal + noise)

    truth = float(torch.stack([spearman(*world(30, 24)).mean() for _ in range(500)]).mean())
    covered = 0
    for number in range(100):
        predicted, margin = world(30, 24)
        low, high = percentiles(resampled({"it": predicted}, margin, resamples=200, seed=number)["it"], 0.9)
        covered += low <= truth <= high
    # 90 of 100 with a standard error of 3; a bootstrap of both axes counts their interaction twice, and so may cover more often.
    assert covered >= 84


def test_more_members_predict_better_those_that_were_held_out() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 150, generator=generator)

    def fleet(members: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.rand(members, 150, generator=generator) < 0.5
        exact = seen.float() @ truth.T
        return exact + torch.randn(exact.shape, generator=generator), seen

    margin, seen = fleet(64)
    found = [
        float(spearman(datamodel(*fleet(members)).predict(seen), margin.T.double()).mean()) for members in (16, 64, 256)
    ]
    assert found == sorted(found)
    assert found[-1] > 0.8
