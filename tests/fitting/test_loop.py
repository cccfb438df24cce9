"""The loop against an independent one, and what weights, samplers, averages and seeds must do."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting import Data, SamplerState, Shuffled, generator, predict, train
from imprint.fitting.loop import batch_bounds

from .conftest import TASK, network, resolved


class Log:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, Tensor, Tensor, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.module: torch.nn.Module | None = None

    def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
        self.batches.append((step, epoch, indices.clone(), outputs.clone(), loss.clone()))
        if self.module is not None:
            self.weights.append({name: value.clone() for name, value in self.module.state_dict().items()})

    def on_epoch(self, state: Any, loss: float) -> None:
        self.losses.append(loss)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_plain_gradient_descent(data: Data) -> None:
    learner = resolved(optimizer="sgd", schedule="constant", epochs=2)
    ours = train(network(), TASK, data, learner).module
    theirs = network()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in (1, 2):
        order = torch.randperm(60, generator=generator(0, "shuffle", epoch))
        for indices in order.tensor_split(4):
            loss = torch.nn.functional.cross_entropy(theirs(data.inputs[indices]), data.target[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_same_seed_same_weights_and_other_seed_other_weights(data: Data) -> None:
    first, second, third = (train(network(dropout=0.5), TASK, data, resolved(seed=seed)).module for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, third)


def test_the_callers_random_state_is_left_alone(data: Data) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(network(dropout=0.5), TASK, data, resolved())
    assert torch.equal(before, torch.get_rng_state())


def test_weight_two_is_the_example_twice_and_weight_zero_is_no_example(data: Data) -> None:
    learner = resolved(batch_size=1000, epochs=4, optimizer="sgd")  # whole batches, so that the order does not matter
    weight = torch.ones(90)
    weight[:10], weight[10:20] = 2.0, 0.0
    weighted = train(network(), TASK, replace(data, weight=weight), learner).module
    rows = torch.cat([torch.arange(60).repeat_interleave(weight[:60].long())])
    repeated = train(network(), TASK, replace(data, splits={"train": rows}), learner).module
    for name, value in repeated.state_dict().items():
        torch.testing.assert_close(weighted.state_dict()[name], value)


def test_impossible_weights_are_refused(data: Data) -> None:
    for weight in (torch.zeros(90), -torch.ones(90)):
        with pytest.raises(LearnerError, match="weights"):
            train(network(), TASK, replace(data, weight=weight), resolved())


def test_every_example_is_seen_once_per_epoch_and_observed_as_trained_on(data: Data) -> None:
    log = Log()
    train(network(), TASK, data, resolved(epochs=2), observers=[log])
    for epoch in (1, 2):
        seen = torch.cat([indices for _, number, indices, _, _ in log.batches if number == epoch])
        assert sorted(seen.tolist()) == list(range(60))
    assert [step for step, *_ in log.batches] == list(range(1, len(log.batches) + 1))
    _, _, indices, outputs, loss = log.batches[0]
    torch.testing.assert_close(outputs, network()(data.inputs[indices]).detach())
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs, data.target[indices], reduction="none"))
    first = torch.cat([loss for _, epoch, *_, loss in log.batches if epoch == 1])
    assert log.losses[0] == pytest.approx(float(first.mean()), rel=1e-5)


def test_the_average_is_the_exponential_one(data: Data) -> None:
    module, log = network(), Log()
    log.module = module
    averaged = train(module, TASK, data, resolved(ema=0.8, epochs=1), observers=[log]).module
    # The first update copies the weights, later ones move 20 % of the way.
    expected = copy.deepcopy(log.weights[0])
    for weights in log.weights[1:]:
        expected = {name: 0.8 * value + 0.2 * weights[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(averaged.state_dict()[name], value)


class Chosen:
    """A sampler that gives what it is told."""

    def __init__(self, indices: list[int], weights: list[float] | None = None) -> None:
        self.indices, self.weights = torch.tensor(indices), None if weights is None else torch.tensor(weights)

    def epoch(self, state: SamplerState) -> tuple[Tensor, Tensor | None]:
        return self.indices, self.weights


def test_a_sampler_decides_what_is_visited_and_how_much_it_counts(data: Data) -> None:
    log = Log()
    train(network(), TASK, data, resolved(sampler=Chosen([5, 5, 3]), epochs=1), observers=[log])
    assert [index for _, _, indices, _, _ in log.batches for index in indices.tolist()] == [5, 5, 3]
    learner = resolved(optimizer="sgd", epochs=3)
    weighted = train(network(), TASK, data, replace(learner, sampler=Chosen([1, 2], [1.0, 0.0]))).module
    half = train(network(), TASK, data, replace(learner, sampler=Chosen([1], [0.5]))).module
    for name, value in half.state_dict().items():
        torch.testing.assert_close(weighted.state_dict()[name], value)


@pytest.mark.parametrize("sampler", [Chosen([]), Chosen([60]), Chosen([-1]), Chosen([1, 2], [1.0])])
def test_an_impossible_sampler_is_refused(data: Data, sampler: Chosen) -> None:
    with pytest.raises(LearnerError, match="sampler gave"):
        train(network(), TASK, data, resolved(sampler=sampler))


def test_divergence_is_an_error_that_names_the_learning_rate(data: Data) -> None:
    data = replace(data, inputs=data.inputs * 1e30)
    with pytest.raises(LearnerError, match=r"(?s)diverged.*learning_rate"):
        train(network(), TASK, data, resolved(optimizer="sgd", learning_rate=1e6))


def test_an_unresolved_learner_is_refused(data: Data) -> None:
    with pytest.raises(LearnerError, match="resolved"):
        train(network(), TASK, data, resolved(epochs=None))


def test_a_module_without_parameters_is_refused(data: Data) -> None:
    with pytest.raises(LearnerError, match="no parameter"):
        train(torch.nn.Identity(), TASK, data, resolved())


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 600))
def test_batches_cover_everything_and_differ_by_at_most_one(visits: int, batch_size: int) -> None:
    bounds = batch_bounds(visits, batch_size)
    sizes = [after - before for before, after in itertools.pairwise(bounds)]
    assert bounds[0] == 0
    assert bounds[-1] == visits
    assert min(sizes) > 0
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_predictions_do_not_depend_on_the_batch_size(size: int) -> None:
    module, inputs = network(dropout=0.5), torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    module.train()
    rows = torch.arange(29, -1, -1)
    said = predict(module, TASK, inputs, rows, size=size)
    torch.testing.assert_close(said, module.eval()(inputs[rows]).detach())


def test_predicting_restores_the_training_mode_and_handles_no_rows() -> None:
    module = network()
    module.train()
    assert predict(module, TASK, torch.randn(5, 4), torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    assert module.training


@pytest.mark.parametrize("size", [1, 10, 500_000, 500_017])
def test_the_default_order_is_a_new_permutation_each_epoch(size: int) -> None:
    orders = []
    for epoch in (1, 2):
        indices, weights = Shuffled().epoch(SamplerState(epoch, 2, size, generator(0, "shuffle", epoch)))
        assert torch.equal(indices.sort().values, torch.arange(size))
        assert weights is None
        orders.append(indices)
    assert size == 1 or not torch.equal(*orders)
    if size >= 500_000:  # blocks: nearly all steps are to the next example, and the blocks themselves are mixed
        assert 0.96 < float((orders[0].diff() == 1).float().mean()) < 0.98
        starts = orders[0][::32].double()
        assert abs(float(torch.corrcoef(torch.stack([starts, torch.arange(len(starts)).double()]))[0, 1])) < 0.05
