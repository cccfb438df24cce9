"""Shapley values against the definition, computed over every subset."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.fleets.permutations import constant, draw, marginals, walk
from imprint.scoring import shapley, standard_error
from imprint.tasks import Classification, Multilabel, Regression

EXAMPLES = 6
FAR = 4.5


class Game:
    """A metric of sets of examples, drawn at random; counts the sets that it was asked for."""

    def __init__(self, examples: int = EXAMPLES, seed: int = 0) -> None:
        self.table = np.random.default_rng(seed).random(2**examples)
        self.table[0], self.asked = 0.1, 0

    def __call__(self, sets: np.ndarray) -> np.ndarray:
        assert (np.diff(sets, axis=1) > 0).all()  # ascending, so that equal sets are trained alike
        self.asked += len(sets)
        return self.table[(1 << sets).sum(1)]

    @property
    def full(self) -> float:
        return float(self.table[-1])


def exact(game: Game, examples: int = EXAMPLES) -> np.ndarray:
    """The weighted mean over all subsets without an example of what it adds to them."""
    found = np.zeros(examples)
    for example in range(examples):
        for code in range(2**examples):
            if not code >> example & 1:
                size = code.bit_count()
                weight = math.factorial(size) * math.factorial(examples - size - 1) / math.factorial(examples)
                found[example] += weight * (game.table[code | 1 << example] - game.table[code])
    return found


def test_all_orders_give_the_shapley_value() -> None:
    game = Game()
    orders = np.array(list(itertools.permutations(range(EXAMPLES))))
    found = marginals(orders, walk(orders, game, 0.1, game.full))
    values = shapley(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(values, exact(game), atol=1e-12)
    assert values.sum() == pytest.approx(game.full - 0.1)
    assert game.asked == 2**EXAMPLES - 2  # each set once, but for the empty and the full one


def test_drawn_orders_find_the_shapley_value() -> None:
    game = Game(seed=1)
    orders = draw(EXAMPLES, 2000, seed=3)
    found = torch.from_numpy(marginals(orders, walk(orders, game, 0.1, game.full)))
    off = (shapley(found) - torch.from_numpy(exact(game))) / standard_error(found)
    assert (off.abs() < FAR).all()
    assert 0.2 < float(off.square().mean().sqrt()) < 2  # the standard error is neither boasting nor idle


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 0.05, 0.3]))
def test_a_walk_that_goes_on_ends_as_one_in_a_sitting(seed: int, examples: int, orders: int, tolerance: float) -> None:
    game, drawn = Game(examples, seed), draw(examples, orders, seed)
    kept: list[np.ndarray] = []
    whole = walk(drawn, game, 0.1, game.full, tolerance, keep=lambda _, metric, __: kept.append(metric))
    for cut in range(len(kept)):
        done = np.stack(kept[:cut], axis=1) if cut else np.empty((orders, 0))
        again = walk(drawn, game, 0.1, game.full, tolerance, done=done)
        np.testing.assert_array_equal(again, whole)
    added = marginals(drawn, whole).sum(1)
    # What an order adds up to: all of it, or all but the tolerance where it was left.
    assert (np.abs(added - (game.full - 0.1)) <= tolerance + 1e-12).all()
    if not tolerance:
        assert not np.isnan(whole).any()


def test_orders_are_left_where_nothing_is_to_be_gained() -> None:
    """A metric that is full from the third example on: five more lengths are looked at, and no more."""

    def value(sets: np.ndarray) -> np.ndarray:
        return np.minimum(sets.shape[1], 3) / 3 + np.zeros(len(sets))

    orders = draw(50, 4)
    metric = walk(orders, value, 0.0, 1.0, 0.01)
    assert (~np.isnan(metric)).sum(1).tolist() == [1 + 2 + 5 + 1] * 4  # empty, two below, five at the top, full
    added = marginals(orders, metric)
    np.testing.assert_allclose(added.sum(1), 1.0)
    assert ((added > 0.3).sum(1) == 3).all()


def test_more_orders_keep_the_first() -> None:
    np.testing.assert_array_equal(draw(20, 8, seed=2)[:3], draw(20, 3, seed=2))
    assert (np.sort(draw(20, 8), axis=1) == np.arange(20)).all()


def test_no_example_is_the_best_constant_answer() -> None:
    assert constant(Classification(("a", "b", "c")), torch.tensor([2, 2, 0, 1])) == 0.5
    assert constant(Regression(0.0, 1.0), torch.tensor([1.0, 2.0, 6.0])) == pytest.approx(
        0.0, abs=1e-9
    )  # R2 of the mean
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert constant(Multilabel(("x", "y")), labels) == pytest.approx((1 + 2 / 3 + 1) / 3)  # always {x}
