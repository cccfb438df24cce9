"""Label-agnostic forgetting: its two losses, and that no label is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import laf, prepare
from imprint.forgetting.laf import Autoencoder, apart, autoencoder, hidden, repaired, unlike
from imprint.models import features
from imprint.recording import Run


def test_the_loss_of_representations_lies_between_one_and_e() -> None:
    torch.manual_seed(0)
    auto = Autoencoder(6, 2)
    for size in (0.0, 1.0, 1e4):
        found = unlike(auto, size * torch.randn(20, 6))
        assert bool(((found >= 1) & (found <= np.e)).all())
    known = nn.Identity()
    known.forward = lambda given, random: (given, None)  # it gives back what it is given
    assert unlike(known, torch.randn(3, 6)).tolist() == [1.0, 1.0, 1.0]


def test_distance_is_one_less_the_cosine() -> None:
    one, other = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert apart(one, other).tolist() == [0.0, 1.0]


def test_the_divergence_of_a_code_is_that_of_normals() -> None:
    torch.manual_seed(0)
    auto, given = Autoencoder(6, 2).double(), torch.randn(5, 6, dtype=torch.float64)
    mean, log = auto.code(auto.encode(given)).chunk(2, 1)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log))
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(auto(given)[1], wanted)


def test_representations_are_the_models_features_with_gradients(digits: Run) -> None:
    job = prepare(digits, np.arange(5))
    job.module.eval()
    found = hidden(job, job.forget.inputs())
    assert torch.equal(found, features(job.module, job.forget.inputs()))
    assert found.requires_grad


def test_an_autoencoder_knows_what_it_has_learned(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    auto = autoencoder(job, job.forget, 8, "forgotten")
    with torch.no_grad():
        error = [
            float((auto(one, False)[0] - one).square().sum(1).mean() / one.square().sum(1).mean())
            for one in (hidden(job, part.inputs()) for part in (job.forget, job.retain))
        ]
    assert error[0] < 0.3 < error[1]


def test_no_label_is_read(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    shuffled = replace(job.data, target=job.data.target[torch.randperm(len(job.data.target))])
    other = prepare(digits, sevens, data=shuffled)
    for one, same in zip(laf(job, epochs=2).module.parameters(), laf(other, epochs=2).module.parameters(), strict=True):
        assert torch.equal(one, same)


def test_repair_trains_the_output_layer_alone(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    before = [one.detach().clone() for one in job.module.parameters()]
    loss = job.loss(job.outputs(job.retain), job.retain.target).mean()
    assert repaired(job, 1, 1e-3) == len(list(job.retain.batches(32)))
    after = list(job.module.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before[:-2], after[:-2], strict=True))
    assert job.loss(job.outputs(job.retain), job.retain.target).mean() < loss


def test_a_linear_model_has_no_representation(wave: Run) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(wave.data.inputs.shape[1], 1))
    with pytest.raises(MethodError, match="no representation that could be moved"):
        laf(prepare(wave, np.arange(5), module=module))


@pytest.mark.parametrize("settings", [{"latent": 0}, {"repair": -1}, {"temperature": 0}])
def test_impossible_settings(digits: Run, sevens: np.ndarray, settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(MethodError, match=f"{name}="):
        laf(prepare(digits, sevens), **settings)
