"""DFN: planted wrong labels and a planted domain are found by the filters, and a class that nobody vouched for is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import imprint
from imprint.errors import IdError, MethodError
from imprint.recording import Run
from imprint.selecting import dfn, dfn_domain
from imprint.selecting.filtering import PAIRS, QUANTITIES, domain_likeness, pair_quality


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """400 examples of three classes around points 4 apart, 100 trusted; a third of the others have another class's label."""
    at = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (400,), generator=at)
    features = 4 * torch.eye(3)[truth] + torch.randn(400, 3, generator=at)
    trusted = torch.arange(400) < 100
    wrong = (torch.rand(400, generator=at) < 1 / 3) & ~trusted
    target = torch.where(wrong, (truth + 1 + torch.randint(2, (400,), generator=at)) % 3, truth)
    return features, target, trusted, wrong


def test_pair_quality_is_the_log_likelihood_of_a_head_of_the_trusted(
    planted: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, target, trusted, _ = planted
    x = (features / features.square().mean().sqrt()).double().numpy()
    oracle = LogisticRegression(C=1 / (PAIRS * 100), tol=1e-10, max_iter=10_000)
    oracle.fit(x[trusted.numpy()], target[trusted].numpy())
    expected = oracle.predict_log_proba(x)[np.arange(400), target.numpy()]
    assert pair_quality(features, target, trusted).numpy() == pytest.approx(expected, abs=1e-4)


def test_wrong_pairs_rank_last(planted: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    features, target, trusted, wrong = planted
    pool = ~trusted
    value = pair_quality(features, target, trusted)
    # Points 4 sqrt(2) apart with unit noise: a perfect rule errs for about 1 % of the pairs.
    assert roc_auc_score(~wrong[pool], value[pool]) > 0.98
    picks = dfn(features, target, trusted, 250, torch.Generator().manual_seed(0))
    assert wrong[picks.order].float().mean() < 0.02 < 0.2 < wrong.float().mean()
    assert picks.note == ""
    # A domain filter reads no labels, so that it cannot tell.
    like = domain_likeness(features, trusted)
    assert 0.35 < roc_auc_score(~wrong[pool], like[pool]) < 0.65


def test_quantities_and_labels_are_pairs_too() -> None:
    at = torch.Generator().manual_seed(0)
    features = torch.randn(300, 4, generator=at)
    trusted, wrong = torch.arange(300) < 100, torch.arange(300) >= 250
    quantity = features.sum(1) + torch.where(wrong, 3.0, 0.0)
    value = pair_quality(features, quantity, trusted)
    assert roc_auc_score(~wrong[100:], value[100:]) > 0.99
    assert (value <= 0).all()
    # Nearly all of the trusted examples' variance is explained, which a penalty of 1 % leaves a little of.
    assert value[trusted].mean() > -10 * QUANTITIES**2
    labels = (features[:, :2] > 0).float()
    labels[wrong] = 1 - labels[wrong]
    assert roc_auc_score(~wrong[100:], pair_quality(features, labels, trusted)[100:]) > 0.99


def test_a_planted_domain_is_found() -> None:
    at = torch.Generator().manual_seed(0)
    inside = torch.arange(400) < 200
    features = torch.randn(400, 5, generator=at) + torch.where(inside, 1.5, -1.5)[:, None]
    trusted = torch.arange(400) < 40
    value = domain_likeness(features, trusted)
    # The pool holds 160 of the domain itself, labelled as not trusted: they tilt the head, and do not turn it.
    assert roc_auc_score(inside[40:], value[40:]) > 0.98
    picks = dfn_domain(features, trusted, 150, torch.Generator())
    assert inside[picks.order].float().mean() > 0.95


def test_the_scale_of_features_changes_nothing(
    planted: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, target, trusted, _ = planted
    value = pair_quality(features, target, trusted)
    assert pair_quality(100 * features, target, trusted).numpy() == pytest.approx(value.numpy(), abs=1e-3)


def test_classes_without_a_trusted_example_rank_last_and_are_said(
    planted: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, target, trusted, _ = planted
    known = trusted & (target != 2)
    picks = dfn(features, target, known, 200, torch.Generator())
    assert (target[picks.order] != 2).all()
    assert picks.note == f"{int((target == 2).sum())} examples are of classes without a trusted example and rank last."


def test_a_filter_of_one_class_or_of_all_examples_is_refused() -> None:
    features, target = torch.randn(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(MethodError, match="All 2 trusted examples are of one class"):
        pair_quality(features, target, torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool))
    with pytest.raises(MethodError, match="nothing to part them from"):
        domain_likeness(features, torch.ones(6, dtype=torch.bool))


def test_through_select(run: Run) -> None:
    train = run.ids.to_list()
    chosen = imprint.select(run, 40, "dfn", trusted=train[:30] + train[-10:], progress=False)
    again = imprint.select(run, 40, "dfn", trusted=train[:30] + train[-10:], progress=False)
    assert chosen.ids == again.ids
    assert len(chosen.ids) == 40
    assert len(imprint.select(run.corpus, 40, "dfn-domain", trusted=train[:30], progress=False).ids) == 40
    with pytest.raises(MethodError, match="none were named"):
        imprint.select(run, 40, "dfn", progress=False)
    with pytest.raises(IdError, match="not training examples"):
        imprint.select(run, 40, "dfn", trusted=["digit-0"], progress=False)
