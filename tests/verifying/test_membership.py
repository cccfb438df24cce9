"""Membership attacks: what they say of models that remember and of models that do not, and the counts behind their rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from imprint.errors import MethodError
from imprint.verifying.membership import auroc, lira, rmia, tpr_at

MODELS, CANDIDATES = 16, 400


def shadows(seed: int, lift: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins of shadow models, who is inside, the margins of one more model, and whom that was trained on.

    Candidates differ in how hard they are (5) far more than models do (1); to have seen one raises its margin by `lift`.
    """
    random = torch.Generator().manual_seed(seed)
    inside = torch.rand(MODELS + 1, CANDIDATES, generator=random).argsort(0) < (MODELS + 1) // 2
    hard = 5 * torch.randn(CANDIDATES, generator=random)
    margins = hard + lift * inside + torch.randn(MODELS + 1, CANDIDATES, generator=random)
    return margins[1:], inside[1:], margins[0], inside[0]


def logp(margins: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(margins.double())


@pytest.mark.parametrize("attack", ["lira", "rmia"])
def test_an_attack_finds_what_models_remember_and_nothing_where_they_do_not(attack: str) -> None:
    """A margin of its own, known to 1, is 2 higher inside: the best test of means has an area of Phi(2 / sqrt 2) = 0.92 and that of
    the raw margin, which candidates' hardness hides, Phi(2 / sqrt 52) = 0.61."""
    areas = {}
    for lift in (0.0, 2.0):
        margins, inside, observed, member = shadows(0, lift)
        if attack == "lira":
            scores = lira(margins, inside, observed)
        else:
            population, _, asked, _ = shadows(1, 0.0)
            scores = rmia(logp(margins), inside, logp(observed), logp(population), logp(asked), gamma=1.0)
        areas[lift] = auroc(scores[member], scores[~member])
        if lift:
            assert areas[lift] > auroc(observed[member], observed[~member]) + 0.1
    assert areas[2.0] > (0.85 if attack == "lira" else 0.7)
    # Three standard errors of an area of 0.5 over 188 and 212 examples are 0.087.
    assert abs(areas[0.0] - 0.5) < 0.087


def test_lira_with_many_models_gives_each_candidate_its_own_variance() -> None:
    """Candidate 1 is the same as candidate 0 ten times as wide: with variances of their own their scores are the same."""
    random = torch.Generator().manual_seed(0)
    inside = torch.arange(64)[:, None].expand(64, 2) % 2 == 0
    one = torch.randn(64, 1, generator=random) + 2.0 * inside[:, :1]
    margins = torch.cat([one, 10 * one], 1)
    for spread in (-1.0, 0.5, 3.0):
        scores = lira(margins, inside, torch.tensor([spread, 10 * spread]))
        assert float(scores[0]) == pytest.approx(float(scores[1]))
    shared = lira(margins[:40], inside[:40], torch.tensor([3.0, 30.0]))
    assert abs(float(shared[0] - shared[1])) > 1


def test_lira_is_the_log_ratio_of_normal_densities() -> None:
    """Two candidates, two models on each side: the means are 1 and -1, and 5 and 2; the shared variances (2+8)/2 = 5 and (2+18)/2 = 10."""
    margins = torch.tensor([[2.0, 7.0], [0.0, 3.0], [-2.0, 5.0], [0.0, -1.0]])
    inside = torch.tensor([[True, True], [True, True], [False, False], [False, False]])
    found = lira(margins, inside, torch.tensor([1.0, 2.0]))
    for number, (observed, mean_in, mean_out) in enumerate([(1.0, 1.0, -1.0), (2.0, 5.0, 2.0)]):
        own = -((observed - mean_in) ** 2) / 10 - 0.5 * math.log(5)
        other = -((observed - mean_out) ** 2) / 20 - 0.5 * math.log(10)
        assert float(found[number]) == pytest.approx(own - other)


def test_rmia_is_a_share_of_the_population_and_grows_with_the_probability() -> None:
    random = torch.Generator().manual_seed(0)
    shadow, z = torch.randn(8, 5, generator=random), torch.randn(9, 30, generator=random)
    inside = torch.arange(8)[:, None].expand(8, 5) % 2 == 0
    asked = torch.linspace(-4, 4, 21)[:, None].expand(21, 5)
    scores = rmia(logp(shadow), inside, logp(asked), logp(z[1:]), logp(z[:1]).expand(21, 30))
    assert scores.shape == (21, 5)
    assert bool((scores.diff(dim=0) >= 0).all())
    assert torch.equal((scores * 30).round() / 30, scores)
    stricter = rmia(logp(shadow), inside, logp(asked), logp(z[1:]), logp(z[:1]).expand(21, 30), gamma=4.0)
    assert bool((stricter <= scores).all())
    assert bool((stricter < scores).any())


def test_impossible_predictions_do_not_break_rmia() -> None:
    inside = torch.tensor([[True], [False]])
    never = torch.full((2, 1), -torch.inf)
    scores = rmia(never, inside, never[0], torch.zeros(2, 3), torch.zeros(3))
    assert bool(torch.isfinite(scores).all())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_the_area_is_scikit_learns(members: list[int], others: list[int]) -> None:
    truth = np.repeat([1, 0], [len(members), len(others)])
    found = auroc(torch.tensor(members), torch.tensor(others))
    assert found == pytest.approx(roc_auc_score(truth, members + others))


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0]),
)
def test_the_rate_is_the_largest_on_scikit_learns_curve_up_to_the_false_positives(
    members: list[int], others: list[int], fpr: float
) -> None:
    false, true, _ = roc_curve(
        np.repeat([1, 0], [len(members), len(others)]), members + others, drop_intermediate=False
    )
    assert tpr_at(torch.tensor(members), torch.tensor(others), fpr) == pytest.approx(true[false <= fpr + 1e-12].max())


def test_below_the_resolution_no_false_positive_is_allowed() -> None:
    others = torch.arange(100.0)
    members = torch.tensor([98.5, 99.0, 99.5, 200.0])
    assert tpr_at(members, others, 0.001) == 0.5  # 99.0 ties with the largest of the others, and is not found
    assert tpr_at(members, others, 0.0099) == tpr_at(members, others, 0.0)
    assert tpr_at(members, others, 0.01) == 1.0  # one of them may lie beyond
    assert tpr_at(others, others, 0.07) == 0.07  # 0.07 x 100 is 7.000000000000001
    assert tpr_at(others, others, 1.0) == 1.0


def test_chance_below_the_resolution_is_one_in_n_plus_one() -> None:
    """A member is above 9 others of the same kind once in 10: mean of 4,000 draws, three standard errors of 0.0047."""
    random = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 10, generator=random)
    found = np.mean([tpr_at(one[:1], one[1:], 0.001) for one in draws])
    assert abs(found - 0.1) < 0.0142


def test_what_cannot_be_attacked_is_refused() -> None:
    margins = torch.zeros(4, 2)
    always = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    for attack in (
        lambda inside: lira(margins, inside, margins[0]),
        lambda inside: rmia(margins, inside, margins[0], margins, margins[0]),
    ):
        with pytest.raises(MethodError, match="1 of 2 candidates are inside all of 4 shadow models"):
            attack(always)
    inside = torch.tensor([[True], [True], [False], [False]])
    with pytest.raises(MethodError, match="2 shadow models do not tell how far margins spread"):
        lira(margins[1:3, :1], inside[1:3], margins[0, :1])
    with pytest.raises(MethodError, match="it is empty"):
        rmia(margins[:, :1], inside, margins[0, :1], torch.zeros(4, 0), torch.zeros(0))
    with pytest.raises(MethodError, match=r"gamma=0\.0"):
        rmia(margins[:, :1], inside, margins[0, :1], margins, margins[0], gamma=0.0)
    for measure in (auroc, lambda *scores: tpr_at(*scores, 0.1)):
        with pytest.raises(MethodError, match="0 members cannot be told from 3 others"):
            measure(torch.zeros(0), torch.zeros(3))
    with pytest.raises(MethodError, match=r"fpr=1\.5"):
        tpr_at(torch.zeros(1), torch.zeros(1), 1.5)
