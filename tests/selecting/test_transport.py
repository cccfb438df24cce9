"""GOT-D: potentials beside those of the linear program, the gradient beside differences of it, and what is chosen."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog
from scipy.stats import spearmanr
from torch.nn.functional import normalize

import imprint.selecting.transport as module
from imprint.selecting import got_d
from imprint.selecting.transport import calibrated, potentials


def drawn(examples: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    x = torch.randn(examples, width, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += shift
    return x


def exact(cost: np.ndarray, mass: np.ndarray) -> tuple[float, np.ndarray]:
    """Optimal transport distance to a target of equal masses, and its derivative by `mass`, by a linear program."""
    rows, columns = cost.shape
    constraints = sparse.vstack(
        [sparse.kron(sparse.eye(rows), np.ones((1, columns))), sparse.kron(np.ones((1, rows)), sparse.eye(columns))]
    ).tocsr()
    sums = np.concatenate([mass, np.full(columns, 1 / columns)])
    solved = linprog(cost.ravel(), A_eq=constraints, b_eq=sums, method="highs")
    return solved.fun, solved.eqlin.marginals[:rows]


@pytest.fixture(scope="module")
def small() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """41 examples, 12 targets elsewhere, and the costs. No sum of masses of some equals that of others: potentials are unique."""
    x, y = drawn(41, 4, 0), drawn(12, 4, 1, shift=1.5)
    cost = 1 - normalize(x.double(), dim=1) @ normalize(y.double(), dim=1).T
    return x, y, cost.numpy()


def test_potentials_are_those_of_the_linear_program(small: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    x, y, cost = small
    distance, f = exact(cost, np.full(41, 1 / 41))
    found = potentials(x, y)
    assert found.error <= module.ERROR
    assert spearmanr(f, found.examples).statistic > 0.99
    finer = potentials(x, y, share=0.01)
    assert finer.error <= module.ERROR
    # Potentials of the two problems differ by the order of epsilon times a logarithm of the sizes.
    apart = np.abs((f - f.mean()) - (finer.examples - finer.examples.mean()).numpy())
    assert apart.max() < finer.epsilon * log(41 * 12) < 0.1 * f.std()
    # The entropic distance lies above the exact one, by no more than epsilon times the information of a plan.
    entropic = float(found.examples.mean() + found.target.mean())
    slack = found.epsilon * log(12)
    assert distance - 0.1 * slack < entropic < distance + 1.1 * slack


def test_the_gradient_is_the_difference_that_mass_makes(small: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    x, y, cost = small
    mass = np.full(41, 1 / 41)
    gradient = calibrated(potentials(x, y, share=0.01).examples).numpy()
    assert abs(gradient.mean()) < 1e-12
    before, _ = exact(cost, mass)
    step = 1e-4
    for example in (int(gradient.argmin()), int(gradient.argmax()), 7):
        more = mass - step / 40
        more[example] = mass[example] + step
        after, _ = exact(cost, more)
        assert (after - before) / step == pytest.approx(gradient[example], abs=0.05 * gradient.std())
    assert gradient.min() < 0 < gradient.max()


def test_blocks_and_samples_change_little(
    small: tuple[torch.Tensor, torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, _ = small
    whole = potentials(x, y)
    for name, value in {"KEPT": 0, "BLOCK": 30, "SAMPLE": 20}.items():
        monkeypatch.setattr(module, name, value)
    parts = potentials(x, y)
    assert parts.error <= module.ERROR
    assert parts.epsilon == pytest.approx(whole.epsilon, rel=0.2)  # the spread is that of the sample
    assert spearmanr(whole.examples, parts.examples).statistic > 0.99


def test_what_the_target_has_much_of_and_the_pool_little_is_chosen() -> None:
    kind = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    pool = torch.eye(3)[kind] + 0.1 * drawn(100, 3, 0)
    of_target = torch.tensor([0] * 10 + [2] * 10)
    target = torch.eye(3)[of_target] + 0.1 * drawn(20, 3, 1)
    picks = got_d(pool, target, 10, torch.Generator().manual_seed(0))
    assert (kind[picks.order] == 2).all()
    assert picks.value is not None
    assert picks.value[picks.order].diff().max() <= 0
    means = [float(picks.value[kind == one].mean()) for one in range(3)]
    # The target has none of kind 1; of kind 0 the pool has more than the target.
    assert means[2] > means[0] > means[1]


def test_towards_one_target_the_gradient_is_the_cost() -> None:
    x, y = drawn(30, 3, 0), drawn(1, 3, 1)
    cost = 1 - normalize(x.double(), dim=1) @ normalize(y.double(), dim=1)[0]
    picks = got_d(x, y, 30, torch.Generator())
    assert picks.value is not None
    torch.testing.assert_close(-picks.value.double(), (cost - cost.mean()) * 30 / 29, atol=1e-5, rtol=0)
    assert picks.order.tolist() == cost.argsort().tolist()


def test_targets_beyond_the_most_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TARGETS", 5)
    x, y = drawn(20, 3, 0), drawn(9, 3, 1)
    picks = got_d(x, y, 3, torch.Generator())
    assert picks.note == "5 of 9 targets were used, evenly spaced."
    used = got_d(x, y[[0, 2, 4, 6, 8]], 3, torch.Generator())
    assert used.note == ""
    assert torch.equal(picks.order, used.order)


def test_passes_that_do_not_suffice_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASSES", 1)
    assert "of the target's mass elsewhere" in got_d(drawn(20, 3, 0), drawn(9, 3, 1), 3, torch.Generator()).note


def test_equal_features_have_equal_gradients() -> None:
    picks = got_d(torch.ones(6, 2), torch.ones(3, 2), 2, torch.Generator())
    assert picks.value is not None
    assert picks.value.tolist() == pytest.approx([0.0] * 6, abs=1e-6)
    assert len(picks.order.unique()) == 2
