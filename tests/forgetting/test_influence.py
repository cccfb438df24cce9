"""The influence step: on a quadratic it is the model that never saw the examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import Forgetting, influence, prepare
from imprint.forgetting.influence import affordable, norm, summed
from imprint.forgetting.job import Part
from imprint.forgetting.layout import examples_of
from imprint.recording import Run


def least_squares(part: Part) -> torch.Tensor:
    x = torch.cat([part.inputs().double(), torch.ones(len(part), 1)], 1)
    return torch.linalg.lstsq(x, part.target.double()[:, None]).solution[:, 0]


def linear(solution: torch.Tensor) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(len(solution) - 1, 1))
    with torch.no_grad():
        module[1].weight.copy_(solution[None, :-1])
        module[1].bias.copy_(solution[-1:])
    return module


@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_on_a_quadratic_it_is_the_solution_without_the_examples(wave: Run, curvature: str) -> None:
    places = np.flatnonzero(wave.target().numpy() > 1)  # a fifth: far from a small change
    whole = prepare(wave, np.array([0]))
    every = least_squares(Part(whole.data, whole.data.rows, torch.arange(len(whole.data.rows))))
    job = prepare(wave, places, module=linear(every))
    wanted = least_squares(job.retain)
    assert float((wanted - every).norm()) > 0.1
    done = influence(job, curvature=curvature, of="retained", damping=1e-6, price=None)
    found = torch.cat([done.module[1].weight[0], done.module[1].bias]).detach().double()
    assert torch.allclose(found, wanted, atol=1e-4)


def test_of_all_examples_it_is_right_to_first_order(wave: Run) -> None:
    errors = []
    for count in (1, 2, 4):
        places = np.arange(count)
        whole = prepare(wave, np.array([0]))
        every = least_squares(Part(whole.data, whole.data.rows, torch.arange(len(whole.data.rows))))
        job = prepare(wave, places, module=linear(every))
        done = influence(job, curvature="kfac", damping=1e-6, price=None)
        found = torch.cat([done.module[1].weight[0], done.module[1].bias]).detach().double()
        wanted = least_squares(job.retain)
        errors.append(float((found - wanted).norm() / (wanted - every).norm()))
    assert max(errors) < 0.15


def test_the_step_costs_no_more_than_its_price(digits: Run, sevens: np.ndarray) -> None:
    before = prepare(digits, sevens)

    def loss(job: Forgetting) -> float:
        return float(job.loss(job.outputs(job.retain), job.retain.target).mean())

    def moved(price: float | None) -> tuple[float, float]:
        job = prepare(digits, sevens)
        influence(job, curvature="kfac", damping=0.01, price=price)
        pairs = zip(job.module.parameters(), before.module.parameters(), strict=True)
        return norm([one - other for one, other in pairs]), loss(job) - loss(before)

    whole, cost = moved(None)
    assert cost > 0.1
    for price in (0.1, 0.01):
        length, paid = moved(price)
        assert paid <= price
        assert np.log2(whole / length) == pytest.approx(
            round(np.log2(whole / length)), abs=1e-3
        )  # halved so many times
        assert length < whole
    assert moved(2 * cost) == (pytest.approx(whole), pytest.approx(cost))


def test_a_step_that_cannot_be_afforded_is_not_taken(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    before = {name: one.detach().clone() for name, one in job.module.named_parameters()}
    uphill = {name: 1e6 * torch.ones_like(one) for name, one in before.items()}
    assert affordable(job, uphill, 0.0) == 0
    assert all(torch.equal(one, before[name]) for name, one in job.module.named_parameters())


def test_gradients_are_summed_over_blocks(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    found = summed(examples_of(job, job.forget))
    loss = job.loss(job.forward(job.forget.inputs()), job.forget.target).sum()
    weight = torch.autograd.grad(loss, job.module[-1].weight)[0]
    assert torch.allclose(found["7"][:-1].T, weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [{"curvature": "exact"}, {"of": "mine"}, {"damping": 0}, {"price": -1}])
def test_impossible_settings(digits: Run, sevens: np.ndarray, settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(MethodError, match=f"{name}="):
        influence(prepare(digits, sevens), **settings)
