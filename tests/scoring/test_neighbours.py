"""Values to a nearest-neighbour classifier against the definitions, computed over every subset, and by properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint import neighbours
from imprint.errors import EvidenceError, MethodError
from imprint.recording.held_out import held_out
from imprint.scoring import knn_loo, knn_shapley

METRICS = ["cosine", "euclidean"]
drawn = st.integers(0, 2**31)


def draw(
    seed: int, examples: int, queries: int = 4, width: int = 3, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and labels of examples and of queries."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(examples + queries, width, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (examples + queries,), generator=generator)
    return features[:examples], target[:examples], features[examples:], target[examples:]


def distances(queries: torch.Tensor, examples: torch.Tensor, metric: str) -> torch.Tensor:
    if metric == "cosine":
        return 1 - torch.cosine_similarity(queries[:, None], examples[None], dim=2)
    return torch.cdist(queries, examples)


def utility(chosen: tuple[int, ...], distance: torch.Tensor, match: torch.Tensor, k: int) -> float:
    """The share of the query's label among the k nearest of some examples: the sum over fewer than k is divided by k too."""
    near = sorted(chosen, key=lambda example: float(distance[example]))[:k]
    return sum(bool(match[example]) for example in near) / k


def minus_error(
    chosen: tuple[int, ...], distance: torch.Tensor, target: torch.Tensor, query: torch.Tensor, k: int
) -> float:
    """Minus the squared error of the mean of the k nearest; the sum over fewer than k is divided by k too."""
    near = sorted(chosen, key=lambda example: float(distance[example]))[:k]
    return -float((sum((target[example] for example in near), torch.zeros(())) / k - query) ** 2)


def by_definition(utility: Callable[[tuple[int, ...]], float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapley values and leave-one-out values of some examples for one query."""
    shapley, left = np.zeros(count), np.zeros(count)
    everyone = tuple(range(count))
    for example in everyone:
        others = everyone[:example] + everyone[example + 1 :]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for chosen in itertools.combinations(others, size):
                shapley[example] += weight * (utility((*chosen, example)) - utility(chosen))
        left[example] = utility(everyone) - utility(others)
    return shapley, left


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("examples", "k"), [(8, 1), (7, 3), (5, 5), (3, 5), (1, 2)])
def test_values_are_those_of_the_definition(examples: int, k: int, metric: neighbours.Metric) -> None:
    features, target, queries, labels = draw(examples * k, examples)
    distance = distances(queries, features, metric)
    one_by_one = [
        by_definition(partial(utility, distance=distance[q], match=target == labels[q], k=k), examples)
        for q in range(len(queries))
    ]
    shapley, left = (np.mean(side, axis=0) for side in zip(*one_by_one, strict=True))
    found = knn_shapley(features, target, queries, labels, k, metric=metric)
    np.testing.assert_allclose(found, shapley, atol=1e-12)
    np.testing.assert_allclose(knn_loo(features, target, queries, labels, k, metric=metric), left, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_without_held_out_examples_each_is_judged_by_the_others(metric: neighbours.Metric) -> None:
    features, target, _, _ = draw(5, 7)
    distance = distances(features, features, metric)
    shapley, left = np.zeros(7), np.zeros(7)
    for query in range(7):
        others = [example for example in range(7) if example != query]
        match = target[others] == target[query]
        one, two = by_definition(partial(utility, distance=distance[query, others], match=match, k=2), 6)
        shapley[others] += one / 7
        left[others] += two / 7
    np.testing.assert_allclose(knn_shapley(features, target, k=2, metric=metric), shapley, atol=1e-12)
    np.testing.assert_allclose(knn_loo(features, target, k=2, metric=metric), left, atol=1e-12)


@pytest.mark.parametrize(("examples", "k"), [(8, 1), (7, 3), (6, 4), (5, 5), (3, 5), (2, 1), (1, 2)])
def test_values_of_quantities_are_those_of_the_definition(examples: int, k: int) -> None:
    features, _, queries, _ = draw(examples + k, examples)
    generator = torch.Generator().manual_seed(k)
    target = torch.randn(examples, generator=generator, dtype=torch.float64)
    asked = torch.randn(len(queries), generator=generator, dtype=torch.float64)
    distance = distances(queries, features, "cosine")
    one_by_one = [
        by_definition(partial(minus_error, distance=distance[q], target=target, query=asked[q], k=k), examples)
        for q in range(len(queries))
    ]
    shapley, left = (np.mean(side, axis=0) for side in zip(*one_by_one, strict=True))
    np.testing.assert_allclose(knn_shapley(features, target, queries, asked, k), shapley, atol=1e-12)
    np.testing.assert_allclose(knn_loo(features, target, queries, asked, k), left, atol=1e-12)


def test_values_of_quantities_sum_to_what_the_mean_of_the_nearest_is_worth() -> None:
    features, _, queries, _ = draw(0, 300)
    target, asked = features[:, 0] + features[:, 1] ** 2, queries[:, 0]
    near = distances(queries, features, "cosine").topk(10, dim=1, largest=False).indices
    worth = (asked.square() - (target[near].mean(1) - asked).square()).mean()
    torch.testing.assert_close(knn_shapley(features, target, queries, asked).sum(), worth)
    with pytest.raises(MethodError, match="quantity"):
        knn_shapley(features, target, queries, asked, depth=20)


@given(drawn, st.integers(1, 60), st.integers(1, 12))
def test_values_sum_to_the_share_of_right_labels_among_the_nearest(seed: int, examples: int, k: int) -> None:
    features, target, queries, labels = draw(seed, examples)
    near = distances(queries, features, "cosine").topk(min(k, examples), dim=1, largest=False).indices
    share = (target[near] == labels[:, None]).double().sum(1).mean() / k
    assert float(knn_shapley(features, target, queries, labels, k).sum()) == pytest.approx(float(share), abs=1e-12)


@given(drawn, st.integers(12, 80), st.integers(1, 5), st.integers(1, 40))
def test_few_ranks_err_by_no_more_than_one_over_them(seed: int, examples: int, k: int, depth: int) -> None:
    features, target, queries, labels = draw(seed, examples)
    exact = knn_shapley(features, target, queries, labels, k)
    near = knn_shapley(features, target, queries, labels, k, depth=depth)
    ranks = max(k, depth)
    if ranks < examples:
        # For one query the paper's bound; the mean over several keeps it.
        assert float((exact - near).abs().max()) <= 1 / ranks + 1e-12
    else:
        torch.testing.assert_close(near, exact)


@given(drawn, st.permutations(range(20)), st.permutations(range(3)))
def test_order_of_examples_and_names_of_classes_do_not_matter(seed: int, order: list[int], names: list[int]) -> None:
    features, target, queries, labels = draw(seed, 20)
    renamed = torch.tensor(names)
    for score in (knn_shapley, knn_loo):
        before = score(features, target, queries, labels, 3)
        after = score(features[order], renamed[target[order]], queries, renamed[labels], 3)
        torch.testing.assert_close(after, before[order], rtol=0, atol=1e-12)


@given(drawn, st.integers(1, 50), st.integers(1, 60), st.sampled_from(METRICS), st.booleans())
def test_neighbours_are_the_nearest(seed: int, examples: int, k: int, metric: neighbours.Metric, own: bool) -> None:
    features, _, queries, _ = draw(seed, examples + 1)
    itself = torch.arange(len(features)) if own else None
    asked = features if own else queries
    distance = distances(asked, features, metric)
    if own:
        distance.fill_diagonal_(torch.inf)
    ordered = distance.sort(dim=1).indices[:, : len(features) - own]
    torch.testing.assert_close(neighbours.nearest(asked, features, k, metric, itself), ordered[:, :k])
    ranks = np.concatenate([order for _, order in neighbours.ranked(asked, features, metric, itself)])
    # Sorted in float32: where the order differs, the distances do not.
    got = distance.gather(1, torch.from_numpy(ranks))
    torch.testing.assert_close(got, distance.gather(1, ordered), rtol=0, atol=1e-3)
    assert (np.sort(ranks, axis=1) == np.sort(ordered.numpy(), axis=1)).all()


def test_of_equal_distances_the_earlier_example_comes_first() -> None:
    features = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    query = torch.tensor([[5.0, 0.0]])
    assert neighbours.nearest(query, features, 5)[0].tolist() == [1, 2, 4, 0, 3]
    assert next(neighbours.ranked(query, features))[1][0].tolist() == [1, 2, 4, 0, 3]


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target, queries, labels = draw(1, 40, queries=23)
    whole = [knn_shapley(features, target, queries, labels), knn_loo(features, target, queries, labels)]
    whole += [knn_shapley(features, target), knn_shapley(features, target, depth=12)]
    monkeypatch.setattr(neighbours, "PAIRS", 40 * 5)
    monkeypatch.setattr(neighbours, "NUMBERS", 40 * 3 * 5)
    parts = [knn_shapley(features, target, queries, labels), knn_loo(features, target, queries, labels)]
    parts += [knn_shapley(features, target), knn_shapley(features, target, depth=12)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_wrong_labels_are_worth_less() -> None:
    """Two well separated classes, one example in ten with the other's label: all of these have the lowest values."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(220) % 2
    features = torch.eye(2)[truth] * 8 + torch.randn(220, 2, generator=generator)
    target = truth.clone()
    wrong = torch.randperm(200, generator=generator)[:20]
    target[wrong] = 1 - target[wrong]
    found = knn_shapley(features[:200], target[:200], features[200:], target[200:], metric="euclidean")
    assert set(found.argsort()[:20].tolist()) == set(wrong.tolist())
    assert float(found[wrong].mean()) < 0


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    label = np.arange(120) % 3
    x = np.eye(3)[label] * 2 + generator.normal(size=(120, 3))
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": [f"l{one}" for one in label]})


def test_scores_of_a_run(frame: pl.DataFrame, tmp_path: Path) -> None:
    split = ["train"] * 80 + ["valid"] * 20 + ["test"] * 20
    corpus = imprint.open(
        frame.with_columns(split=pl.Series(split)), target="label", split="split", store=tmp_path / "s"
    )
    run = imprint.fit(imprint.Learner("linear", epochs=2), corpus, tmp_path / "run", progress=False)
    found = imprint.score(run, ["knn-shapley", "knn-loo"], progress=False).frame()
    name, rows = held_out(run)
    assert name == "valid"
    features = run.evidence("features").read()
    target = run.target(None)
    own = run.rows()
    expected = knn_shapley(features[own], target[own], features[rows], target[rows])
    np.testing.assert_allclose(found["knn-shapley"], expected, atol=1e-12)
    assert found["knn-loo"].abs().max() > 0


def test_a_run_without_held_out_examples_says_so(frame: pl.DataFrame, tmp_path: Path) -> None:
    corpus = imprint.open(
        frame.with_columns(split=pl.lit("train")), target="label", split="split", store=tmp_path / "s"
    )
    run = imprint.fit(imprint.Learner("linear", epochs=1), corpus, tmp_path / "run", progress=False)
    with pytest.raises(EvidenceError, match="no held-out examples"):
        imprint.score(run, "knn-shapley", progress=False)
    assert not run.has("features")  # it says so before any work
