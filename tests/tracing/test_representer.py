"""Representer points against the theorem: the terms sum to the logits of the head that they take apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import imprint
from imprint.recording import Run
from imprint.tracing import representer

DECAY = 0.01


def draw(seed: int = 0, examples: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and labels of queries and of examples; features have a mean square of one, as the method makes them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(examples + 8, 5, generator=generator)
    target = (features[:, 0] + torch.randn(len(features), generator=generator) > 0).long() + (features[:, 1] > 1).long()
    features = features / features[8:].square().mean().sqrt()
    return features[:8], target[:8], features[8:], target[8:]


def head(features: torch.Tensor, target: torch.Tensor) -> LogisticRegression:
    """scikit-learn's minimum of the same objective: mean of losses + DECAY / 2 |W|^2, the intercept free."""
    return LogisticRegression(C=1 / (DECAY * len(features)), tol=1e-10, max_iter=5000).fit(features.double(), target)


def test_terms_sum_to_the_logit_of_the_label() -> None:
    asked, labels, features, target = draw()
    scores = representer(asked, labels, features, target, DECAY).scores().double()
    model = head(features, target)
    logits = asked.double().numpy() @ model.coef_.T + model.intercept_
    own = logits[np.arange(len(labels)), labels]
    np.testing.assert_allclose(scores.sum(1).numpy() + model.intercept_[labels], own, atol=1e-3)


def test_terms_are_those_of_the_theorem() -> None:
    """alpha = - d loss / d logit / (2 lambda n) with lambda = DECAY / 2, times the inner product of the features."""
    asked, labels, features, target = draw(1)
    model = head(features, target)
    logits = torch.from_numpy(features.double().numpy() @ model.coef_.T + model.intercept_).requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    (slope,) = torch.autograd.grad(loss, logits)
    alpha = -slope / (2 * (DECAY / 2) * len(features))
    expected = alpha.T[labels] * (asked.double() @ features.double().T)
    np.testing.assert_allclose(representer(asked, labels, features, target, DECAY).scores(), expected, atol=1e-4)


def test_the_scale_of_features_does_not_matter() -> None:
    asked, labels, features, target = draw(2)
    before = representer(asked, labels, features, target).scores()
    after = representer(asked * 1000, labels, features * 1000, target).scores()
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, labels, features, target = draw(4)
    whole = representer(asked, labels, features, target).scores()
    monkeypatch.setattr(sys.modules["imprint.tracing.representer"], "BLOCK", 7)
    torch.testing.assert_close(representer(asked, labels, features, target).scores(), whole)


def test_a_query_may_have_a_label_that_no_example_has() -> None:
    asked, labels, features, target = draw(3)
    scores = representer(asked, torch.full_like(labels, 3), features, target).scores()
    assert float(scores.abs().max()) < 1e-6


def test_tracing_a_run(run: Run) -> None:
    attribution = imprint.trace(run, "test", "representer", k=3, progress=False)
    frame = attribution.frame()
    assert attribution.higher == {"representer": "raises the logit of the query's label"}
    label = dict(zip(run.examples["id"], run.examples["target"], strict=True))
    first = frame.filter(frame["rank"] == 1)
    # Whatever raises the logit of a label, on features that are not negative for most, has that label.
    assert np.mean([label[query] == label[one] for query, one in zip(first["query"], first["id"], strict=True)]) > 0.9
