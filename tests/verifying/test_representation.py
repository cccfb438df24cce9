"""Features, their alignment and what a linear probe finds in them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import nn

from imprint.errors import MethodError
from imprint.fitting import Data
from imprint.fitting import ridge as ridge_module
from imprint.forgetting import Forgetting
from imprint.verifying import representation
from imprint.verifying.representation import DECAY, cka, features, probe


def test_features_are_what_goes_into_the_last_layer(job: Forgetting, clouds: Data) -> None:
    found = features(job, job.task, clouds.inputs)
    assert found.shape == (150, 256)
    with torch.no_grad():
        assert torch.allclose(job.module[-1](found), job.module(clouds.inputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, features(job.module, job.task, clouds.inputs))


def test_features_come_in_pieces_and_leave_the_mode_alone(
    job: Forgetting, clouds: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = features(job, job.task, clouds.inputs)
    monkeypatch.setattr(representation, "PIECE", 7)
    module = copy.deepcopy(job.module).train()  # with dropout, were it heeded
    assert torch.allclose(features(module, job.task, clouds.inputs), whole, rtol=1e-4, atol=1e-5)
    assert module.training


def test_without_a_linear_layer_it_is_said(job: Forgetting) -> None:
    with pytest.raises(MethodError, match=r"has no nn\.Linear"):
        features(nn.Sequential(nn.Flatten()), job.task, torch.zeros(2, 3))


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.1, 10), st.floats(-5, 5))
def test_alignment_does_not_see_rotation_scale_or_shift(seed: int, width: int, scale: float, shift: float) -> None:
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(20, width, generator=random, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))
    b = torch.randn(20, 3, generator=random, dtype=torch.float64)
    assert cka(a, scale * a @ rotation + shift) == pytest.approx(1)
    assert cka(a, b) == pytest.approx(cka(scale * a @ rotation + shift, b))
    assert cka(a, b) == pytest.approx(cka(b, a))
    assert 0 <= cka(a, b) <= 1 + 1e-12


def test_alignment_reads_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=random), torch.randn(50, 6, generator=random)
    whole = cka(a, b)
    monkeypatch.setattr(ridge_module, "BLOCK", 30)  # three rows of ten numbers
    assert cka(a, b) == pytest.approx(whole)


def test_unrelated_features_of_few_rows_are_far_from_zero_and_of_many_rows_near() -> None:
    """Independent normal features of d1, d2 columns: about sqrt(d1 d2) / rows once rows are many."""
    random = torch.Generator().manual_seed(0)
    values = [cka(torch.randn(n, 20, generator=random), torch.randn(n, 20, generator=random)) for n in (10, 5000)]
    assert values[0] > 0.5
    assert values[1] == pytest.approx(20 / 5000, rel=0.3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_features_that_do_not_vary_are_aligned_with_nothing(value: float) -> None:
    a = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert cka(a, torch.full((30, 2), value)) == 0.0
    assert cka(torch.full((30, 2), value), a) == 0.0


def test_alignment_of_other_rows_is_refused() -> None:
    with pytest.raises(MethodError, match="Features of 3 and of 4 rows"):
        cka(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(MethodError, match="Features of 0 and of 0 rows"):
        cka(torch.zeros(0, 1), torch.zeros(0, 1))


def test_the_probe_is_scikit_learns_ridge(clouds: Data) -> None:
    """A ridge head on features brought to one scale, alpha = decay x rows, on -1 and 1; for values its R2."""
    x, y = clouds.inputs, clouds.target
    seen, asked = x[:100], x[100:]
    spread = (seen - seen.mean(0)).square().mean().sqrt()
    model = Ridge(alpha=DECAY * 100).fit(seen / spread, 2 * torch.eye(3)[y[:100]] - 1)
    expected = (model.predict(asked / spread).argmax(1) == y[100:].numpy()).mean()
    assert probe(seen, y[:100], asked, y[100:], 3) == pytest.approx(expected)
    assert expected > 0.6  # of three classes
    values = x.sum(1)
    fitted = Ridge(alpha=DECAY * 100).fit((seen / spread)[:, :2], values[:100])
    assert probe(seen[:, :2], values[:100], asked[:, :2], values[100:], None) == pytest.approx(
        fitted.score((asked / spread)[:, :2], values[100:]), abs=0.02
    )


def test_the_probe_does_not_see_scale_and_finds_no_class_in_noise(clouds: Data) -> None:
    x, y = clouds.inputs, clouds.target
    known = probe(x[:100], y[:100], x[100:], y[100:], 3)
    assert probe(1e4 * x[:100] + 7, y[:100], 1e4 * x[100:] + 7, y[100:], 3) == pytest.approx(known)
    constant = torch.ones(150, 4)
    assert probe(constant[:100], y[:100], constant[100:], y[100:], 3) <= 0.4  # one class for all; there are three alike
    labels = torch.stack([x[:, 0] > 1, x[:, 1] > 1], 1).float()
    assert probe(x[:100], labels[:100], x[100:], labels[100:], None) > 0.8
