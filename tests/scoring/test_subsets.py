"""Values from fleets against their definitions, computed by enumeration of every subset or every bootstrap sample."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imprint.errors import MethodError
from imprint.methods import lookup
from imprint.scoring import banzhaf, data_oob, difference, memorisation

# Points on a line with two labels, one of them wrong among its neighbours, and held-out points.
PLACES = np.array([0.0, 0.9, 1.7, 2.9, 5.0, 6.1, 7.7, 8.2, 9.9])
LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 1, 1])
HELD_OUT = np.linspace(-0.4, 10.3, 40)
HELD_OUT_LABELS = (HELD_OUT > 4.1).astype(int)
# Four and a half standard errors: one comparison in 150,000 is farther off by chance.
FAR = 4.5


def every_subset(count: int) -> Tensor:
    """All subsets as rows of a bool matrix, the empty one first."""
    return torch.tensor(list(itertools.product([False, True], repeat=count)))


def nearest_mean(chosen: np.ndarray) -> float:
    """Held-out accuracy of the rule "the class whose mean is nearer"; without both classes that of always saying the one, or 0."""
    means = [
        PLACES[chosen & (label == LABELS)].mean() if (chosen & (label == LABELS)).any() else np.inf for label in (0, 1)
    ]
    if np.isinf(means).all():
        return 0.0
    said = np.abs(HELD_OUT - means[1]) < np.abs(HELD_OUT - means[0])
    return float((said == HELD_OUT_LABELS).mean())


def nearest_neighbour(chosen: np.ndarray) -> np.ndarray:
    """Whether 1-nearest-neighbour, trained on the chosen ones, gives each example its own label."""
    distance = np.where(chosen[None, :], np.abs(PLACES[:, None] - PLACES[None, :]), np.inf)
    return LABELS[distance.argmin(1)] == LABELS


def others_by_distance(example: int) -> np.ndarray:
    """Whether the other examples, the nearest first, have the label of this one."""
    order = np.abs(PLACES - PLACES[example]).argsort()
    return (LABELS[order[1:]] == LABELS[example]).astype(float)


def test_banzhaf_is_its_definition() -> None:
    """The value is the mean over all subsets without the example of what it adds."""
    membership = every_subset(len(PLACES))
    utility = {tuple(row): nearest_mean(np.array(row)) for row in membership.tolist()}
    found = banzhaf(torch.tensor(list(utility.values()), dtype=torch.float64), membership)
    for example in range(len(PLACES)):
        added = []
        for row, metric in utility.items():
            if not row[example]:
                with_it = (*row[:example], True, *row[example + 1 :])
                added.append(utility[with_it] - metric)
        assert len(added) == 2 ** (len(PLACES) - 1)
        assert float(found[example]) == pytest.approx(np.mean(added), abs=1e-9)
    assert found.abs().max() > 0.05


def test_sampled_subsets_find_the_banzhaf_value() -> None:
    everything = every_subset(len(PLACES))
    utilities = torch.tensor([nearest_mean(np.array(row)) for row in everything.tolist()], dtype=torch.float64)
    exact = banzhaf(utilities, everything)
    errors = []
    for members in (200, 3200):
        drawn = torch.randint(len(everything), (members,), generator=torch.Generator().manual_seed(members))
        found = banzhaf(utilities[drawn], everything[drawn])
        stated = 2 * utilities.std() / members**0.5  # as the docstring says
        assert ((found - exact).abs() < FAR * stated).all()
        errors.append(float((found - exact).square().mean().sqrt() / stated))
    assert all(
        0.4 < error < 1.6 for error in errors
    )  # the error falls as the standard error does: 9 examples, so within +-60 %


def test_data_oob_is_its_definition() -> None:
    """Over all samples of 5 out of 5 with replacement, and in closed form."""
    keep = np.array([0, 2, 3, 4, 6])
    places, labels = PLACES[keep], LABELS[keep]
    count = len(keep)
    draws = np.array(list(itertools.product(range(count), repeat=count)))
    counts = np.stack([(draws == example).sum(1) for example in range(count)], axis=1)
    distance = np.abs(places[:, None] - places[None, :])
    credit = np.stack(
        [labels[np.where(row > 0, distance, np.inf).argmin(1)] == labels for row in counts]
    )  # 1-nearest-neighbour
    found = data_oob(torch.from_numpy(credit).float(), torch.from_numpy(counts))
    for example in range(count):
        same = labels[distance[example].argsort()[1:]] == labels[example]
        # The j-th nearest other (from 0) is the nearest that was drawn: none of the j nearer ones was, and not none of j + 1.
        others = count - 1
        missed = ((others - np.arange(others + 1)) / others) ** count
        assert float(found[example]) == pytest.approx(float((-np.diff(missed) * same).sum()), abs=1e-6)


def test_memorisation_of_a_nearest_neighbour_has_a_closed_form() -> None:
    """It knows what it saw: 1 less the chance that the nearest other example in the subset has the same label."""
    membership = every_subset(len(PLACES))[1:]
    correct = torch.tensor(np.stack([nearest_neighbour(np.array(row)) for row in membership.tolist()])).float()
    found = memorisation(correct, membership)
    others = len(PLACES) - 1
    for example in range(len(PLACES)):
        nearest = 2.0 ** (others - 1 - np.arange(others))  # subsets of which the j-th is the nearest
        out = (nearest * others_by_distance(example)).sum() / (2**others - 1)
        assert float(found[example]) == pytest.approx(1 - out, abs=1e-6)
    assert int(found.argmax()) in (2, 6)  # the two with a wrong label


def test_sampled_subsets_find_the_memorisation() -> None:
    everything = every_subset(len(PLACES))[1:]
    correct = torch.tensor(np.stack([nearest_neighbour(np.array(row)) for row in everything.tolist()])).float()
    exact = memorisation(correct, everything)
    drawn = torch.randint(len(everything), (1000,), generator=torch.Generator().manual_seed(0))
    found = memorisation(correct[drawn], everything[drawn])
    out = 1 - exact  # a share of about 500 members; those that saw the example are always right
    assert ((found - exact).abs() < FAR * (out * (1 - out) / 450).sqrt() + 1e-6).all()


def test_nothing_to_compare_is_no_difference() -> None:
    membership = torch.tensor([[True, False, True], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert difference(values, membership).tolist() == [0.0, 0.0, -3.0]
    assert data_oob(values, torch.tensor([[1, 0, 1], [2, 0, 0]])).tolist() == [2.5, 3.5, 6.0]


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 7))
def test_examples_are_valued_apart(seed: int, members: int, examples: int) -> None:
    """A block of examples gives what all of them give, and a constant added to every member changes nothing."""
    random = torch.Generator().manual_seed(seed)
    membership = torch.rand(members, examples, generator=random) < 0.5
    values = torch.rand(members, examples, generator=random)
    utility = torch.rand(members, generator=random, dtype=torch.float64)
    cut = examples // 2
    left, right = slice(0, cut), slice(cut, None)
    whole = memorisation(values, membership)
    assert torch.equal(whole, torch.cat([memorisation(values[:, part], membership[:, part]) for part in (left, right)]))
    torch.testing.assert_close(banzhaf(utility + 3, membership), banzhaf(utility, membership), atol=1e-12, rtol=0)
    # Swapping who saw and who did not changes the sign.
    torch.testing.assert_close(difference(values, ~membership), -difference(values, membership))


def test_a_method_says_how_many_trainings_it_takes() -> None:
    assert lookup("score", "memorisation").trainings == 64  # one fleet, read twice
    assert lookup("score", "memorisation").with_members(256).trainings == 256
    assert lookup("score", "data-oob").with_members(7).trainings == 7
    assert lookup("score", "el2n").with_members(256).trainings == 0
    with pytest.raises(MethodError, match="1 members are no fleet"):
        lookup("score", "banzhaf").with_members(1)
