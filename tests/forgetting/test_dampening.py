"""Selective synaptic dampening: its formula by hand, and the evidence that it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import layout, prepare, ssd
from imprint.forgetting.dampening import dampened
from imprint.forgetting.layout import by_parameter, examples_of
from imprint.gradients.moments import by_layer
from imprint.recording import Run
from imprint.recording.needs import Curvature

POSITIVE = st.floats(0, 1e4)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=20), st.floats(0.1, 50), st.floats(0.1, 50))
def test_only_disproportionate_weights_are_touched_and_none_grows(
    pairs: list[tuple[float, float]], alpha: float, dampening: float
) -> None:
    forgotten, others = torch.tensor(pairs, dtype=torch.float64).T
    factor = dampened(forgotten, others, alpha, dampening)
    assert bool((factor[forgotten <= alpha * others] == 1).all())
    assert bool(((factor >= 0) & (factor <= 1)).all())
    chosen = forgotten > alpha * others
    wanted = (dampening * others[chosen] / forgotten[chosen]).clamp(max=1)
    assert torch.allclose(factor[chosen], wanted)


@pytest.mark.parametrize("against", ["retained", "all"])
def test_a_linear_model_by_hand(wave: Run, against: str) -> None:
    places = np.flatnonzero(wave.target().numpy() > 1)
    width = wave.data.inputs.shape[1]
    module = nn.Sequential(nn.Flatten(), nn.Linear(width, 1))
    job = prepare(wave, places, module=module)
    before = {name: one.detach().clone() for name, one in module.named_parameters()}

    def fisher(parts: list) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = torch.cat([one.inputs() for one in parts]), torch.cat([one.target for one in parts])
        error = x @ before["1.weight"][0] + before["1.bias"] - y
        return (error[:, None] * x).square().mean(0), error.square().mean()

    gone, others = fisher([job.forget]), fisher([job.retain] if against == "retained" else [job.forget, job.retain])
    alpha = float((gone[0] / others[0]).mean())  # some weights are more than that, and some are less
    done = ssd(job, alpha=alpha, dampening=0.5, against=against)
    for name, one, other in zip(("1.weight", "1.bias"), gone, others, strict=True):
        factor = torch.where(one > alpha * other, (0.5 * other / one).clamp(max=1), torch.ones_like(one))
        assert torch.allclose(done.module.get_parameter(name), before[name] * factor, rtol=1e-4, atol=1e-6)
    assert done.trained == 0


def test_the_recorded_diagonal_is_read_and_not_fitted_again(
    digits: Run, sevens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = ssd(prepare(digits, sevens))
    need = Curvature(approximation="diagonal", fisher="empirical")
    assert not digits.has(need)
    digits.collect([need])
    fitted: list[int] = []

    def counting(*given: object) -> object:
        fitted.append(len(given[1]))
        return original(*given)

    original = layout.fitted
    monkeypatch.setattr(layout, "fitted", counting)
    read = ssd(prepare(digits, sevens))
    assert fitted == [len(sevens)]  # of the forgotten alone
    for one, other in zip(fresh.module.parameters(), read.module.parameters(), strict=True):
        assert torch.allclose(
            one, other, rtol=1e-4, atol=1e-7
        )  # all, forgotten and retained: two give the third, up to rounding
    # A module that is not the run's own has another curvature.
    other = digits.model().module.__class__(*[replace_layer(layer) for layer in digits.model().module])
    ssd(prepare(digits, sevens, module=other))
    assert fitted[1:] == [len(sevens), len(digits) - len(sevens)]  # and no example is looked at twice


def replace_layer(layer: nn.Module) -> nn.Module:
    return nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else layer


def test_a_tenth_can_be_forgotten_only_beside_the_others(digits: Run, sevens: np.ndarray) -> None:
    # The mean over all holds the forgotten ones: F_forgotten is never n / n_forgotten times as large.
    most = len(digits) / len(sevens)
    assert ssd(prepare(digits, sevens), alpha=1.01 * most, against="all").notes[0].startswith("0 of")
    assert not ssd(prepare(digits, sevens), alpha=1.01 * most).notes[0].startswith("0 of")


def test_impossible_settings(digits: Run, sevens: np.ndarray) -> None:
    with pytest.raises(MethodError, match="against='mine'"):
        ssd(prepare(digits, sevens), against="mine")
    with pytest.raises(MethodError, match="alpha=-1"):
        ssd(prepare(digits, sevens), alpha=-1)


class Several(nn.Module):
    """One layer of each kind that has an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)
        self.linear, self.scale = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(inputs)).mean((2, 3))) * self.scale


def test_numbers_by_layer_go_back_to_their_parameters(run: Run) -> None:
    torch.manual_seed(0)
    job = prepare(run, np.arange(7), module=Several())
    shape = (len(job.data.target), 1, 5, 5)
    data = replace(job.data, inputs=torch.randn(shape), target=job.data.target % 2)
    job = replace(job, forget=replace(job.forget, data=data), retain=replace(job.retain, data=data))
    examples = examples_of(job, job.forget)
    values = {name: torch.randn(one.shape) for name, one in job.module.named_parameters()}
    back = by_parameter(examples, by_layer(examples, values))
    assert back.keys() == values.keys()
    assert all(torch.equal(back[name], values[name]) for name in values)
    alone = by_parameter(examples, {"linear": torch.zeros(10)}, fill=1.0)
    assert float(alone["linear.bias"].sum()) == 0
    assert float(alone["conv.weight"].mean()) == 1
