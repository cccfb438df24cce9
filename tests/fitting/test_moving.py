"""Samplers that read feedback: unbiased weights, the split of learned examples, diversity; and what the loop tells them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from imprint.clusters import equal, kmeans, redundancy
from imprint.fitting import Data, DynamicDiversity, NaiveSplit, Proportional, Sampler, SamplerState, generator, train
from imprint.fitting import loop as loop_module
from imprint.fitting.diversity import diverse
from imprint.fitting.moving import otsu, systematic

from .conftest import TASK, network, resolved
from .test_loop import Log, same

VALUES = st.lists(st.one_of(st.floats(0, 100), st.just(math.nan)), min_size=1, max_size=12)


def state(epoch: int, size: int, epochs: int = 10, **told: Any) -> SamplerState:
    return SamplerState(epoch, epochs, size, generator(0, "shuffle", epoch), **told)


# ------------------------------------------------------------------------------------------------------------------ importance


@settings(deadline=None, max_examples=150)
@given(VALUES, st.integers(1, 20), st.one_of(st.none(), st.floats(0, 0.95)), st.integers(1, 10), st.integers(0, 99))
def test_weighted_visits_are_unbiased(
    values: list[float], count: int, trust: float | None, epoch: int, seed: int
) -> None:
    """Over all draws with their probabilities, the mean of weight times gradient is the mean gradient, exactly."""
    size = len(values)
    sampler = Proportional("loss", trust=trust)
    p = sampler.probabilities(state(epoch, size, loss=torch.tensor(values)))
    assert float(p.sum()) == pytest.approx(1)
    assert float(p.min()) > 0
    gradients = torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # The draw is constant in its start between these points.
    edges = (p.cumsum(0) / p.sum() * count) % 1
    points = torch.cat([torch.zeros(1, dtype=torch.float64), edges.sort().values, torch.ones(1, dtype=torch.float64)])
    expected = torch.zeros(3, dtype=torch.float64)
    for begin, end in itertools.pairwise(points.tolist()):
        if end - begin < 1e-12:
            continue
        drawn = systematic(p, count, (begin + end) / 2)
        expected += (end - begin) * (gradients[drawn] / (size * p[drawn])[:, None]).mean(0)
    torch.testing.assert_close(expected, gradients.mean(0), rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(VALUES, st.floats(0.05, 1), st.integers(1, 10))
def test_an_epoch_is_drawn_by_the_probabilities_and_weighed_by_their_inverse(
    values: list[float], fraction: float, epoch: int
) -> None:
    size, sampler = len(values), Proportional("bound", fraction)
    told = state(epoch, size, bound=torch.tensor(values))
    p = sampler.probabilities(told)
    indices, weights = sampler.epoch(told)
    count = sampler.visits(size)
    torch.testing.assert_close(weights, (1 / (size * p[indices])).float())
    # Systematic: nobody is visited once more or less often than due (rounding aside).
    due, visits = p * count, indices.bincount(minlength=size)
    assert bool((visits - due).abs().max() < 1 + 1e-9)
    assert float(weights.max()) <= 1 / (1 - (epoch - 1) / 10) * (1 + 1e-6)


def test_with_equal_values_an_epoch_is_a_plain_pass() -> None:
    for told in (None, torch.full((30,), math.nan), torch.zeros(30), torch.full((30,), 0.7)):
        indices, weights = Proportional("loss").epoch(state(5, 30, loss=told))
        assert sorted(indices.tolist()) == list(range(30))
        torch.testing.assert_close(weights, torch.ones(30))


def test_an_example_not_seen_yet_counts_as_the_mean_of_the_others() -> None:
    p = Proportional("loss", trust=0.5).probabilities(state(2, 3, loss=torch.tensor([1.0, 3.0, math.nan])))
    torch.testing.assert_close(p, torch.tensor([1 / 12 + 1 / 6, 3 / 12 + 1 / 6, 2 / 12 + 1 / 6], dtype=torch.float64))


def test_importance_lowers_the_variance_of_the_mean_gradient() -> None:
    """With probabilities in proportion to the norms, all weighted gradients have the same norm (PA&DA, Katharopoulos and Fleuret)."""
    random = torch.Generator().manual_seed(0)
    norms = torch.rand(200, generator=random).pow(4) + 1e-3  # a few large ones
    gradients = norms * torch.randn(200, generator=random).sign()
    errors = {}
    for trust in (0.0, 0.9):
        sampler, means = Proportional("bound", 0.1, trust=trust), []
        for epoch in range(1, 401):
            indices, weights = sampler.epoch(state(epoch, 200, epochs=400, bound=norms))
            means.append(float((weights * gradients[indices]).mean()))
        errors[trust] = float(torch.tensor(means).sub(gradients.mean()).square().mean())
    assert errors[0.9] < 0.7 * errors[0.0]  # .55 here; 400 draws know it to a tenth


# ----------------------------------------------------------------------------------------------------------------------- split


@settings(deadline=None, max_examples=100)
@given(arrays.arrays("float32", st.integers(2, 30), elements=st.floats(0, 10, width=32)))
def test_otsus_threshold_is_the_best_of_all(values: Any) -> None:
    values = torch.from_numpy(values).double()

    def between(threshold: float) -> float:
        low = values[values < threshold]
        high = values[values >= threshold]
        if not len(low) or not len(high):
            return 0.0
        return len(low) * len(high) * float(low.mean() - high.mean()) ** 2

    best = max(between(float(one)) for one in values)
    assert between(otsu(values)) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_it_is_the_threshold_of_scikit_image_on_two_heaps() -> None:
    """skimage.filters.threshold_otsu (0.25, 256 bins) gives 0.9941 for these: between the heaps, as here."""
    random = torch.Generator().manual_seed(0)
    values = torch.cat([torch.rand(300, generator=random), 4 + torch.rand(50, generator=random)])
    assert 1.0 < otsu(values) <= 4.1
    assert int((values < otsu(values)).sum()) == 300


def test_naive_examples_are_those_below_the_threshold_after_the_warmup() -> None:
    loss = torch.tensor([0.01, 0.02, 2.0, 0.0, 3.0, math.nan, 0.01])
    sampler = NaiveSplit(0.5, naive=0.25, warmup=0.4)
    assert not sampler.split(state(4, 7, loss=loss)).any()
    assert sampler.split(state(5, 7, loss=loss)).tolist() == [True, True, False, True, False, False, True]
    assert not sampler.split(state(5, 7, loss=torch.full((7,), math.nan))).any()
    assert not sampler.split(state(5, 7, loss=torch.full((7,), 0.3))).any()  # nobody is below the others


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.05, 1), st.floats(0, 1))
def test_most_visits_go_to_the_rest(easy: int, hard: int, fraction: float, naive: float) -> None:
    loss = torch.cat([torch.linspace(0, 0.1, easy), torch.linspace(5, 6, hard)])
    sampler = NaiveSplit(fraction, naive, warmup=0.0)
    told = state(3, easy + hard, loss=loss)
    split = sampler.split(told)
    indices, weights = sampler.epoch(told)
    count = sampler.visits(easy + hard)
    assert weights is None
    assert len(indices.unique()) == len(indices) == count
    if bool(split.any()):
        spared = int(split[indices].sum())
        assert spared == max(count - int((~split).sum()), min(int(split.sum()), round(naive * count)))


# ------------------------------------------------------------------------------------------------------------------- diversity


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_quotas_fill_small_clusters_and_share_the_rest_equally(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    count = data.draw(st.integers(0, total))
    shares = equal(torch.tensor(sizes), count).tolist()
    assert sum(shares) == count
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    open_ = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    if open_:  # nobody has more than one place more than a cluster that could still take one
        assert max(shares) <= min(open_) + 1


def test_copies_are_left_out_first() -> None:
    originals = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    features = torch.cat([originals, originals, originals])
    alone = redundancy(torch.nn.functional.normalize(features, dim=1))
    assert float(alone[:20].max()) < 0.9
    torch.testing.assert_close(alone[20:], torch.ones(40))
    for count in (10, 20, 30):
        chosen = diverse(features, count, torch.Generator().manual_seed(count))
        assert torch.equal(chosen, chosen.unique())
        assert len(chosen) == count
        assert len((chosen % 20).unique()) == min(count, 20)  # a copy only where nothing else is left


def test_a_rare_kind_gets_as_much_as_a_common_one() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.eye(4) * 10
    kinds = torch.tensor([0] * 400 + [1] * 60 + [2] * 30 + [3] * 10)
    features = centres[kinds] + 0.3 * torch.randn(500, 4, generator=random)
    shares = kinds[diverse(features, 80, random)].bincount(minlength=4)
    # Of 80 at random, 64 would be of the first kind and 1.6 of the last. Five clusters of centres over four kinds: one is halved.
    assert int(shares[0]) <= 2 * 80 // 5 + 6
    assert int(shares[3]) >= 6


def test_clusters_are_found() -> None:
    random = torch.Generator().manual_seed(3)
    kinds = torch.arange(3).repeat_interleave(50)
    points = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])[kinds] + torch.rand(150, 2, generator=random)
    found, centres = kmeans(points, 3, random)
    assert [len(found[kinds == kind].unique()) for kind in range(3)] == [1, 1, 1]
    torch.testing.assert_close(centres[found[0]], points[:50].mean(0), atol=0.05, rtol=0)  # by mini-batches
    assert kmeans(points[:1].repeat(5, 1), 3, random)[0].max() < 3


def test_a_choice_stays_until_the_next_one(data: Data) -> None:
    asked: list[int] = []
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    sampler, memory = DynamicDiversity(0.2, every=2), {}

    def embedded() -> Tensor:
        asked.append(1)
        return features

    drawn = [
        sampler.epoch(state(epoch, 60, features=embedded, memory=memory))[0].sort().values for epoch in range(1, 7)
    ]
    assert len(asked) == 2  # before epochs 3 and 5
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


# ------------------------------------------------------------------------------------------------------------------------ loop


@dataclass(frozen=True)
class Reader:
    """Draws with replacement, and keeps what it was told."""

    told: list[SamplerState]
    reads = frozenset({"loss", "bound", "features"})

    def epoch(self, state: SamplerState) -> tuple[Tensor, None]:
        assert state.loss is not None
        assert state.bound is not None
        assert state.features is not None
        self.told.append(
            SamplerState(
                state.epoch,
                state.epochs,
                state.size,
                state.generator,
                state.loss.clone(),
                state.bound.clone(),
                partial(torch.clone, state.features()),
            )
        )
        return torch.randint(0, state.size, (40,), generator=state.generator), None


def test_the_loop_tells_what_the_last_visit_said(data: Data) -> None:
    module, log, sampler = network(dropout=0.5), Log(), Reader([])
    train(module, TASK, data, resolved(sampler=sampler, epochs=4), observers=[log])
    loss, bound = torch.full((60,), math.nan), torch.full((60,), math.nan)
    for epoch, told in enumerate(sampler.told, 1):
        assert torch.equal(told.loss.isnan(), loss.isnan())
        torch.testing.assert_close(told.loss, loss, equal_nan=True)
        torch.testing.assert_close(told.bound, bound, equal_nan=True)
        for _, number, indices, outputs, losses in log.batches:
            if number != epoch:
                continue
            wrong = outputs.softmax(1) - torch.nn.functional.one_hot(data.target[indices], 3)
            for index, value, norm in zip(
                indices.tolist(), losses, wrong.norm(dim=1), strict=True
            ):  # the last one stays
                loss[index], bound[index] = value, norm
    assert len(sampler.told) == 4
    assert sampler.told[0].loss.isnan().all()
    # Features before the first step are those of the initial network, without dropout.
    first = sampler.told[0].features()  # type: ignore[misc]
    torch.testing.assert_close(first, network().eval()[:2](data.inputs[:60]))


def test_features_do_not_move_the_training(data: Data) -> None:
    """Reading features and bounds draws no random numbers and leaves dropout and statistics as they are."""

    @dataclass(frozen=True)
    class Blind:
        """The same visits without reading."""

        def epoch(self, state: SamplerState) -> tuple[Tensor, None]:
            return torch.randint(0, state.size, (40,), generator=state.generator), None

    with_dropout = [
        train(network(dropout=0.5), TASK, data, resolved(sampler=sampler)).module for sampler in (Reader([]), Blind())
    ]
    assert same(*with_dropout)


def test_a_sampler_that_reads_nothing_is_told_nothing(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Blind:
        """Asserts that there is nothing to read."""

        def epoch(self, state: SamplerState) -> tuple[Tensor, None]:
            assert (state.loss, state.bound, state.features) == (None, None, None)
            return torch.arange(state.size), None

    def refuse(*_: object) -> Tensor:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(loop_module, "gradient_bound", refuse)
    monkeypatch.setattr(loop_module, "features", refuse)
    train(network(), TASK, data, resolved(sampler=Blind()))


def test_what_a_sampler_remembers_it_finds_again(data: Data) -> None:
    @dataclass(frozen=True)
    class Counting:
        """Visits one more example in each epoch."""

        def epoch(self, state: SamplerState) -> tuple[Tensor, None]:
            state.memory["count"] = state.memory.get("count", torch.tensor(0)) + 1
            return torch.arange(int(state.memory["count"])), None

    log = Log()
    train(network(), TASK, data, resolved(sampler=Counting()), observers=[log])
    assert [len(indices) for _, _, indices, _, _ in log.batches] == [1, 2, 3]


SAMPLERS: list[Sampler] = [
    Proportional("loss", 0.7),
    Proportional("bound"),
    NaiveSplit(0.6),
    DynamicDiversity(0.5, every=1),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_policy_learns_three_heaps(data: Data, sampler: Sampler) -> None:
    module = train(network(), TASK, data, resolved(sampler=sampler, epochs=15)).module
    right = (module(data.inputs[60:]).argmax(1) == data.target[60:]).float().mean()
    assert right > 0.7  # chance is a third; all of the data gives .83
