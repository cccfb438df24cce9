"""Neighbours as attribution: against the definitions, written out, and the scores of the same name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint import neighbours, scoring
from imprint.recording import Run
from imprint.tracing import knn, knn_shapley
from imprint.tracing import neighbours as module
from imprint.tracing.products import Blockwise

METHODS = {"knn": knn, "knn-shapley": knn_shapley}
both = pytest.mark.parametrize("method", list(METHODS))


def draw(
    seed: int, queries: int = 5, examples: int = 30
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and labels of queries and of examples."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(queries + examples, 4, generator=generator)
    target = torch.randint(3, (queries + examples,), generator=generator)
    return features[:queries], target[:queries], features[queries:], target[queries:]


def share(logits: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """The share of the query's label in the vote of neighbours with these logarithms of their weights."""
    return (logits.softmax(1) * match).sum(1)


def test_knn_is_the_derivative_of_the_vote() -> None:
    asked, labels, features, target = draw(0)
    logits = torch.cosine_similarity(asked[:, None], features[None], dim=2).double() / 0.07
    logits.requires_grad_()
    match = (labels[:, None] == target).double()
    (expected,) = torch.autograd.grad(share(logits, match).sum(), logits)
    torch.testing.assert_close(knn(asked, labels, features, target).scores().double(), expected, rtol=1e-4, atol=1e-6)


def test_knn_foretells_what_the_vote_is_without_an_example() -> None:
    """Taking out a fraction of an example's weight changes the share by that fraction of its score."""
    asked, labels, features, target = draw(1, queries=1)
    scores = knn(asked, labels, features, target).scores()[0].double()
    logits = torch.cosine_similarity(asked[:, None], features[None], dim=2).double() / 0.07
    match = (labels[:, None] == target).double()
    for example in scores.abs().argsort(descending=True)[:5]:
        less = logits.clone()
        less[0, example] += math.log(1 - 1e-4)
        change = share(logits, match) - share(less, match)
        assert float(change) == pytest.approx(1e-4 * float(scores[example]), rel=1e-2, abs=1e-9)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 40))
def test_knn_is_signed_by_the_label_and_sums_to_nothing(seed: int, queries: int, examples: int) -> None:
    asked, labels, features, target = draw(seed, queries, examples)
    scores = knn(asked, labels, features, target).scores()
    same = labels[:, None] == target
    assert bool((scores[same] >= 0).all())
    assert bool((scores[~same] <= 0).all())
    torch.testing.assert_close(scores.sum(1), torch.zeros(queries), rtol=0, atol=1e-5)
    cosine = torch.cosine_similarity(asked[:, None], features[None], dim=2)
    for query in range(queries):
        for side in (same[query], ~same[query]):
            ranked = scores[query, side].abs()[cosine[query, side].argsort()]
            assert bool((ranked.diff() >= -1e-6).all())  # the nearer, the more


def test_the_mean_over_queries_is_the_score() -> None:
    asked, labels, features, target = draw(2, queries=20)
    expected = scoring.knn_shapley(features, target, asked, labels)
    torch.testing.assert_close(
        knn_shapley(asked, labels, features, target).scores().mean(0).double(), expected, rtol=0, atol=1e-7
    )


@both
def test_blocks_give_what_the_whole_gives(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, labels, features, target = draw(3, queries=13, examples=50)
    whole = METHODS[method](asked, labels, features, target).scores()
    seen = torch.rand(7, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr(module, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(module, "BLOCK_SCORES", 4 * 9)
    monkeypatch.setattr(module, "PAIRS", 50 * 3)
    monkeypatch.setattr(neighbours, "PAIRS", 50 * 2)
    found: Blockwise = METHODS[method](asked, labels, features, target)
    assert found.shape == (13, 50)
    torch.testing.assert_close(found.matrix(), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scores(slice(2, 9), slice(10, 33)), whole[2:9, 10:33], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.predict(seen), whole.double() @ seen.double().T, rtol=1e-4, atol=1e-5)
    helpful, harmful = found.top(3)
    torch.testing.assert_close(helpful.scores, whole.sort(dim=1, descending=True).values[:, :3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(harmful.scores, whole.sort(dim=1).values[:, :3], rtol=1e-5, atol=1e-6)


def test_a_label_that_no_example_has() -> None:
    asked, _, features, target = draw(4)
    scores = knn(asked, torch.full((5,), 7), features, target).scores()
    assert bool((scores == 0).all())
    assert bool((knn_shapley(asked, torch.full((5,), 7), features, target).scores() == 0).all())


@both
def test_tracing_a_run(run: Run, method: str) -> None:
    frame = imprint.trace(run, "test", method, k=3, progress=False).frame()
    label = dict(zip(run.examples["id"], run.examples["target"], strict=True))
    same = np.array([label[query] == label[one] for query, one in zip(frame["query"], frame["id"], strict=True)])
    rank = frame["rank"].to_numpy()
    # Digits of three classes: the most helpful example has the query's label, and the most harmful another.
    assert same[rank == 1].all()
    assert not same[rank == -1].any()
    assert frame["score"].to_numpy()[rank == 1].min() > 0
