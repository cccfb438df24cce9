"""SCRUB's divergences against independent ones; Blindspot and Gaussian fine-tuning of a curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

import imprint
from imprint.errors import MethodError
from imprint.forgetting import blindspot, gaussian, prepare, scrub
from imprint.forgetting.controls import among, trained
from imprint.forgetting.distilling import attended, divergence, listening
from imprint.recording import Run
from imprint.tasks import Classification, Multilabel, Regression


def test_divergences_are_those_of_the_distributions() -> None:
    one, other = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = 2.0
    found = divergence(Classification(("a", "b", "c")), one, other, t)
    assert torch.allclose(found, t**2 * kl_divergence(Categorical(logits=other / t), Categorical(logits=one / t)))
    found = divergence(Multilabel(("a", "b", "c")), one, other, t)
    assert torch.allclose(found, t**2 * kl_divergence(Bernoulli(logits=other / t), Bernoulli(logits=one / t)).mean(1))
    found = divergence(Regression(), one[:, :1], other[:, :1])
    assert torch.allclose(found, kl_divergence(Normal(other[:, 0], 1.0), Normal(one[:, 0], 1.0)))


def test_scrub_without_ascent_only_obeys(digits: Run, sevens: np.ndarray) -> None:
    # With the loss switched off and no way up, the student has nothing to learn that it does not know.
    job, before = prepare(digits, sevens), prepare(digits, sevens)
    for part in job.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    done = scrub(job, gamma=0.0, ascents=1, epochs=1, learning_rate=1e-9)
    assert torch.allclose(job.outputs(job.retain, done.module), before.outputs(before.retain), atol=1e-2)


def test_attention_maps_have_length_one() -> None:
    assert torch.allclose(attended(torch.randn(4, 3, 5, 5)).norm(dim=1), torch.ones(4))
    images = torch.zeros(1, 2, 1, 2)
    images[0, :, 0, 0] = torch.tensor([1.0, 3.0])  # squares 1 and 9, on average 5; nothing at the other place
    assert attended(images).tolist() == [[1.0, 0.0]]


def test_hidden_activations_are_those_between_the_layers() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    inputs = torch.randn(5, 2)
    with listening(module) as heard:
        module(inputs)
    assert [one.shape for one in heard] == [(5, 3), (5, 4)]
    assert torch.equal(heard[0], module[:2](inputs))
    with listening(module) as again:
        pass
    assert again == []


@pytest.mark.parametrize("method", [blindspot, gaussian])
def test_a_part_of_a_curve_is_forgotten(wave: Run, method) -> None:
    places = np.flatnonzero(wave.target().numpy() > 0.8)  # the top of the wave
    before = prepare(wave, places)
    oracle = trained(before, replace(among(wave.learner, before.retain.places), seed=1))
    job = prepare(wave, places)
    done = method(job)

    def error(module: nn.Module, part: object) -> float:
        return float(job.loss(job.outputs(part, module), part.target).mean())

    known, retrained = error(before.module, job.forget), error(oracle, job.forget)
    assert retrained > 2 * known  # a model that never saw it does not know it
    assert error(done.module, job.forget) > known
    assert error(done.module, job.retain) < error(before.module, job.retain) + 0.1  # of a variance of 1, in halves
    again = method(prepare(wave, places))
    pairs = zip(done.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_blindspot_goes_where_its_blind_model_is(wave: Run) -> None:
    places = np.flatnonzero(wave.target().numpy() > 0.8)
    job = prepare(wave, places)
    done = blindspot(job, epochs=30, blind_epochs=1)
    assert "for 1 of the parent's 40 epochs" in done.notes[0]
    top, known = job.outputs(job.forget, done.module), prepare(wave, places).outputs(job.forget)
    assert float(top.mean()) < float(known.mean()) - 0.1  # a model of one epoch stays near the mean, 0


def test_they_serve_quantities_alone(run: Run, tmp_path) -> None:
    for name in ("blindspot", "gaussian"):
        with pytest.raises(MethodError, match=f"The method '{name}' is for regression"):
            imprint.forget(run, ids=run.ids[:3].to_list(), method=name, path=tmp_path / name, progress=False)


def test_blindspot_needs_to_know_how_the_parent_was_built(wave: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(wave, np.arange(5))
    monkeypatch.setitem(wave.manifest, "watched", {"by": "imprint.watch"})
    with pytest.raises(MethodError, match="a loop of your own"):
        blindspot(job)
