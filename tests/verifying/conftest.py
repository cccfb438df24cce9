"""A small job to measure on: points of three clouds, a network trained on all of them, and some to forget. It has no run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imprint.fitting import Data, Learner, train
from imprint.forgetting import Forgetting, Part
from imprint.models import module_for
from imprint.tasks import Classification


@pytest.fixture(scope="session")
def clouds() -> Data:
    """150 points in 6 dimensions, 120 of them to train on."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(150) % 3
    inputs = 2 * torch.eye(6)[target] + torch.randn(150, 6, generator=random)
    return Data(inputs, target, None, {"train": torch.arange(120), "test": torch.arange(120, 150)})


def mlp(seed: int) -> torch.nn.Module:
    return module_for("mlp", (6,), width=3, seed=seed)


@pytest.fixture(scope="session")
def learner() -> Learner:
    return replace(
        Learner("mlp", "classification", epochs=15, batch_size=16, learning_rate=3e-3, weight_decay=1e-2, seed=0),
        optimizer="adamw", schedule="constant", device="cpu", precision="float32", augment="none",
    )  # fmt: skip


@pytest.fixture(scope="session")
def job(clouds: Data, learner: Learner) -> Forgetting:
    """Forty of the 120, whose targets are wrong: each is called what the next class is called."""
    gone = torch.arange(120) < 40
    wrong = clouds.train_on(clouds.rows, torch.where(gone, (clouds.target[:120] + 1) % 3, clouds.target[:120]))
    task: Any = Classification(("a", "b", "c"))
    run: Any = SimpleNamespace(path="a run")
    module = train(mlp(0), task, wrong, learner).module
    parts = (Part(wrong, wrong.rows, torch.from_numpy(np.flatnonzero(one))) for one in (gone, ~gone))
    return Forgetting(run, module, task, learner, 0, *parts)


@pytest.fixture(scope="session")
def retrained(job: Forgetting) -> torch.nn.Module:
    """The same learner, trained without them."""
    return train(mlp(0), job.task, job.without, job.learner).module
