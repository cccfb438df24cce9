"""Trace methods on plain tensors, against independent implementations and what was planted."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge, RidgeCV

from imprint.tracing import bm25, columns, datamodel, embedding, embedding_class, pixels, random, subset_influence
from imprint.tracing import datamodels as module
from imprint.tracing.datamodels import PENALTIES


def halves(members: int, examples: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(members, examples, generator=torch.Generator().manual_seed(seed)) < 0.5


def outcomes(seen: torch.Tensor, truth: torch.Tensor, noise: float, seed: int = 1) -> torch.Tensor:
    exact = seen.float() @ truth.T
    return exact + 3 + noise * torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))


def penalties(seen: np.ndarray) -> list[float]:
    """The grid of `datamodel`, from the definition: multiples of the mean eigenvalue of the centred Gram matrix."""
    centred = seen - seen.mean(0)
    return [one * np.trace(centred @ centred.T) / len(seen) for one in PENALTIES]


@pytest.mark.parametrize(("members", "examples"), [(20, 60), (40, 15)])
def test_datamodel_is_the_ridge_regression_of_scikit_learn(members: int, examples: int) -> None:
    seen = halves(members, examples)
    truth = torch.randn(6, examples, generator=torch.Generator().manual_seed(2))
    margin = outcomes(seen, truth, noise=2.0)
    margin[:, 5] = torch.randn(members, generator=torch.Generator().manual_seed(3))  # a query that no example explains
    inputs = seen.numpy().astype(np.float64)
    # scikit-learn's grid holds absolute penalties; its leave-one-out error is that of the ridge with an intercept.
    reference = RidgeCV(penalties(inputs), alpha_per_target=True).fit(inputs, margin.double().numpy())
    assert len(set(reference.alpha_)) > 1  # the choice is put to the test
    found = datamodel(margin, seen)
    np.testing.assert_allclose(found.scores().numpy(), reference.coef_, atol=2e-5)
    for query, penalty in enumerate(reference.alpha_):
        single = Ridge(alpha=penalty).fit(inputs, margin[:, query].double().numpy())
        np.testing.assert_allclose(found.scores()[query].numpy(), single.coef_, atol=2e-5)


def test_datamodel_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = halves(16, 50)
    margin = outcomes(seen, torch.randn(5, 50, generator=torch.Generator().manual_seed(2)), noise=1.0)
    whole = datamodel(margin, seen).scores()
    monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 2)
    torch.testing.assert_close(datamodel(margin, seen).scores(), whole, rtol=1e-6, atol=1e-7)


def test_more_members_recover_more_of_a_planted_datamodel() -> None:
    examples = 100
    truth = torch.randn(20, examples, generator=torch.Generator().manual_seed(4))

    def agreement(method, members: int) -> float:
        seen = halves(members, examples, seed=members)
        scores = method(outcomes(seen, truth, noise=1.0), seen).scores()
        return float(torch.corrcoef(torch.stack([scores.flatten(), truth.flatten()]))[0, 1])

    for method in (datamodel, subset_influence):
        found = [agreement(method, members) for members in (16, 64, 512)]
        assert found == sorted(found)
        # A difference of means of M halves has the variance 4 (examples/4 + noise^2) / M about a score of variance 1, so the expected
        # correlation is 1 / sqrt(1 + 4 x 26 / 512) = 0.912 at 512.
        assert found[-1] > 0.9
    # With five times more members than examples the regression leaves only the noise, about 4 / 412.
    assert agreement(datamodel, 512) > 0.98


def test_members_that_all_saw_the_same_teach_nothing() -> None:
    margin, seen = torch.randn(4, 2), torch.ones(4, 5, dtype=torch.bool)
    assert not datamodel(margin, seen).scores().any()
    assert not subset_influence(margin, seen).scores().any()


def test_subset_influence_is_the_difference_of_means() -> None:
    seen = halves(30, 12)
    margin = outcomes(seen, torch.randn(3, 12, generator=torch.Generator().manual_seed(2)), noise=0.5)
    expected = [
        [float(margin[seen[:, i], q].mean() - margin[~seen[:, i], q].mean()) for i in range(12)] for q in range(3)
    ]
    np.testing.assert_allclose(subset_influence(margin, seen).scores().numpy(), expected, atol=1e-5)


def okapi(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """BM25 word by word, as the formula is written."""
    documents = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts = Counter(document)
        score = 0.0
        for word in re.findall(r"\w+", query.lower()):
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            score += idf * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def test_bm25_is_the_formula() -> None:
    texts = [
        "The cat sat on the mat.",
        "A dog, a cat and a fish!",
        "",
        "Ünicode wörter, words_2 words_2",
        "mat mat mat",
    ]
    queries = ["the CAT", "mat cat cat", "unknown words_2", "", "Wörter"]
    found = bm25(pl.Series(queries), pl.Series(texts))
    np.testing.assert_allclose(found.matrix().numpy(), [okapi(query, texts) for query in queries], atol=1e-5)


def test_bm25_of_missing_and_empty_texts_is_zero() -> None:
    assert bm25(pl.Series([None, "a"], dtype=pl.String), pl.Series(["a", None])).scores()[0].tolist() == [0, 0]
    assert bm25(pl.Series(["a"]), pl.Series(["", ""])).scores().tolist() == [[0, 0]]


def test_pixels_and_columns_are_squared_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, examples = 100 + torch.randn(4, 6, generator=generator), 100 + torch.randn(9, 6, generator=generator)
    expected = -torch.cdist(queries.double(), examples.double()).square()
    for method in (pixels, columns):
        torch.testing.assert_close(method(queries, examples).scores().double(), expected, rtol=1e-4, atol=1e-4)


def test_embedding_is_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, examples = torch.randn(4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    expected = torch.cosine_similarity(queries[:, None], examples[None], dim=2)
    torch.testing.assert_close(embedding(queries, examples).scores(), expected)


def test_embedding_class_is_the_cosine_within_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, examples = torch.randn(4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    asked, given = torch.tensor([0, 2, 1, 0]), torch.randint(0, 4, (9,), generator=generator)
    expected = torch.cosine_similarity(queries[:, None], examples[None], dim=2) * (asked[:, None] == given)
    torch.testing.assert_close(embedding_class(queries, asked, examples, given).scores(), expected)


def test_random_scores_are_normal_and_the_same_each_time() -> None:
    one, two = (random(torch.arange(30), torch.arange(400)).scores() for _ in range(2))
    assert torch.equal(one, two)
    values = (one / 256**0.5).flatten()  # a sum of 256 products of standard normals
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.05
    # Scores of different queries are uncorrelated: 400 pairs have a standard error of 0.05.
    assert float(stats.pearsonr(one[0].numpy(), one[1].numpy()).statistic) < 0.2
