"""Samplers as values: what they draw, how they are stored, and how a `DataLoader` follows them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting import (
    Data,
    DynamicDiversity,
    Feed,
    Fixed,
    Learner,
    NaiveSplit,
    Proportional,
    Repeated,
    SamplerState,
    Shuffled,
    generator,
    sampler_from,
    train,
)  # fmt: skip
from imprint.fitting.samplers import has_spec, visits

from .conftest import TASK, network, resolved

OURS = [
    Shuffled(), Fixed([3, 1, 2]), Fixed([4, 0], [0.5, 1.5]), Repeated(0.25), Repeated(1.0, replace=True), Proportional("loss", 0.5),
    Proportional(trust=0.3), NaiveSplit(0.5, 0.1, 0.0), DynamicDiversity(0.2, every=2),
]  # fmt: skip


def state(epoch: int, size: int, epochs: int = 20, seed: int = 0, **told: Any) -> SamplerState:
    return SamplerState(epoch, epochs, size, generator(seed, "shuffle", epoch), seed=seed, **told)


@pytest.mark.parametrize("sampler", OURS, ids=repr)
def test_a_spec_is_json_and_gives_the_sampler_back(sampler: Any) -> None:
    spec = json.loads(json.dumps(sampler.spec()))
    assert sampler_from(spec) == sampler
    assert has_spec(sampler)
    learner = Learner.from_spec(json.loads(json.dumps(resolved(sampler=sampler).spec())))
    assert learner.sampler == sampler
    assert learner == resolved(sampler=sampler)


@pytest.mark.parametrize("sampler", OURS, ids=repr)
def test_it_visits_as_many_as_it_says_and_draws_the_same_again(sampler: Any) -> None:
    drawn = [sampler.epoch(state(2, 40)) for _ in range(2)]
    assert len(drawn[0][0]) == visits(sampler, 40)
    assert torch.equal(drawn[0][0], drawn[1][0])


def test_samplers_of_ones_own_are_stored_by_name_only() -> None:
    @dataclass(frozen=True)
    class Mine(Repeated):
        """Not registered, though it has a spec."""

    spec = resolved(sampler=Mine(0.5)).spec()
    assert spec["sampler"].startswith("python:")
    assert Learner.from_spec(spec).sampler == spec["sampler"]


def test_unknown_and_malformed_specs_are_errors() -> None:
    with pytest.raises(LearnerError, match="repeated"):
        sampler_from({"sampler": "repeatd", "fraction": 0.1})
    with pytest.raises(LearnerError, match="not made of"):
        sampler_from({"sampler": "repeated", "share": 0.1})
    with pytest.raises(LearnerError, match="share of the examples"):
        sampler_from({"sampler": "repeated", "fraction": 1.5})


@pytest.mark.parametrize(
    "made",
    [
        lambda: Repeated(0), lambda: Repeated(True), lambda: Fixed([]), lambda: Fixed([-1]), lambda: Fixed([1, 1]),
        lambda: Fixed([1, 2], [1.0]), lambda: Fixed([1], [-1.0]), lambda: Proportional("size"), lambda: Proportional(trust=1.0),
        lambda: NaiveSplit(naive=2.0), lambda: DynamicDiversity(0.5, every=0),
    ],
)  # fmt: skip
def test_impossible_settings_are_errors(made: Any) -> None:
    with pytest.raises(LearnerError):
        made()


def test_fixed_samplers_are_equal_where_they_choose_and_weigh_alike() -> None:
    assert Fixed([1, 2]) == Fixed(torch.tensor([1, 2])) != Fixed([1, 3])
    assert Fixed([1, 2], [1.0, 1.0]) != Fixed([1, 2])
    assert hash(Fixed([1, 2])) == hash(Fixed([1, 2]))
    assert len(repr(Fixed(list(range(10_000))))) < 60  # it is shown in messages and is the key of groups of members


def test_a_fixed_sampler_trains_as_these_examples_alone(data: Data) -> None:
    order, weights = [31, 2, 45, 7, 59, 11, 20, 3, 50], [1.0, 2.0, 0.5, 0.5, 1.0, 1.5, 0.5, 1.0, 1.0]
    learner = resolved(batch_size=4)
    ours = train(network(), TASK, data, replace(learner, sampler=Fixed(order, weights))).module
    ascending = sorted(zip(order, weights, strict=True))
    alone = data.train_on(
        torch.tensor([row for row, _ in ascending]), weight=torch.tensor([weight for _, weight in ascending])
    )
    theirs = train(network(), TASK, alone, learner).module
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 3))
def test_walks_visit_every_example_in_turn(size: int, fraction: float, seed: int) -> None:
    sampler = Repeated(fraction)
    count = sampler.visits(size)
    length = math.ceil(size / count)
    for walk in range(2):
        epochs = [sampler.epoch(state(1 + walk * length + place, size, seed=seed))[0] for place in range(length)]
        assert all(len(one) == len(one.unique()) == count for one in epochs)
        seen = torch.cat(epochs)
        assert sorted(seen[:size].tolist()) == list(range(size))  # each once, before any comes again
    assert sampler.epoch(state(1, size))[1] is None


def test_walks_are_drawn_anew_and_follow_the_seed() -> None:
    whole = Repeated(1.0)
    orders = [whole.epoch(state(epoch, 50, seed=seed))[0] for epoch, seed in [(1, 0), (2, 0), (1, 1)]]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_draws_with_replacement_know_nothing_of_each_other() -> None:
    """Over 2000 epochs each of 10 examples is in 3 of 10 subsets, and in two in a row as often as chance has it."""
    sampler = Repeated(0.3, replace=True)
    inside = torch.zeros(2000, 10)
    for epoch in range(2000):
        drawn = sampler.epoch(state(epoch + 1, 10))[0]
        assert len(drawn.unique()) == 3
        inside[epoch, drawn] = 1
    # Standard errors: sqrt(.3 * .7 / 2000) = .01 and sqrt(.09 * .91 / 2000) = .0064; five of each.
    assert (inside.mean(0) - 0.3).abs().max() < 0.05
    assert ((inside[1:] * inside[:-1]).mean(0) - 0.09).abs().max() < 0.035
    assert torch.equal(sampler.epoch(state(1, 10))[0], Shuffled().epoch(state(1, 10))[0][:3])


# ---------------------------------------------------------------------------------------------------------------- DataLoader


@pytest.mark.parametrize("sampler", OURS, ids=repr)
def test_a_feed_has_the_length_of_its_epochs(sampler: Any) -> None:
    feed = Feed(sampler, 40, epochs=3, features=lambda: torch.eye(40))
    assert len(feed) == len(list(feed)) == visits(sampler, 40)


@dataclass(frozen=True)
class Growing:
    """A sampler whose epochs grow, and that remembers how often it was asked."""

    def epoch(self, state: SamplerState) -> tuple[Tensor, Tensor]:
        state.memory["asked"] = state.memory.get("asked", torch.tensor(0)) + 1
        return torch.arange(state.epoch).repeat(2), torch.arange(2.0 * state.epoch)


def test_a_feed_of_a_sampler_that_does_not_say_its_visits() -> None:
    feed = Feed(Growing(), 10, epochs=3)
    assert len(feed) == 2
    assert "asked" not in feed.feedback.memory  # asking for the length leaves no trace
    for epoch in (1, 2, 3):
        assert len(list(feed)) == len(feed) == 2 * epoch
    # An example that is visited with different weights has their mean, so that the epoch's sum is right.
    assert feed.weights(torch.tensor([0, 2])).tolist() == [1.5, 3.5]
    assert feed.feedback.memory["asked"] == 3


def test_a_feed_says_what_is_missing() -> None:
    with pytest.raises(LearnerError, match="features="):
        Feed(DynamicDiversity(0.5), 10, epochs=3)
    feed = Feed(Proportional("bound"), 10, epochs=3)
    with pytest.raises(LearnerError, match="bounds"):
        feed.tell(torch.tensor([0]), torch.tensor([1.0]))

    class Wrong(Shuffled):
        reads = frozenset({"los"})

    with pytest.raises(LearnerError, match="'loss'"):
        Feed(Wrong(), 10, epochs=3)


def test_a_feed_goes_on_where_it_was_saved() -> None:
    sampler = Proportional("loss", 0.5)

    def losses(indices: Tensor) -> Tensor:
        return indices.float() + 1

    def told(feed: Feed, indices: list[int]) -> None:
        feed.tell(torch.tensor(indices), losses(torch.tensor(indices)))

    whole = Feed(sampler, 20, epochs=4)
    epochs = []
    for _ in range(4):
        epochs.append(list(whole))
        told(whole, epochs[-1])
    begun = Feed(sampler, 20, epochs=4)
    told(begun, list(begun))
    second = list(begun)
    told(begun, second[:4])  # stopped within the second epoch
    later = Feed(sampler, 20, epochs=4)
    later.load_state_dict(begun.state_dict())
    later.set_epoch(1)  # counted from 0: the second epoch once more
    assert list(later) == second == epochs[1]
    assert torch.equal(later.weights(torch.tensor(second)), begun.weights(torch.tensor(second)))
    told(later, second[4:])
    assert list(later) == epochs[2]
