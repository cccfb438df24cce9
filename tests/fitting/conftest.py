"""Tiny problems in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint.fitting import Data, Learner
from imprint.tasks import Classification

TASK = Classification((0, 1, 2))


@pytest.fixture
def data() -> Data:
    """90 examples in 4 dimensions, 3 classes; the last 30 rows are for testing."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (90,), generator=random)
    inputs = torch.randn(3, 4, generator=random)[target] * 2 + torch.randn(90, 4, generator=random)
    return Data(inputs, target, None, {"train": torch.arange(60), "test": torch.arange(60, 90)})


def resolved(**settings: Any) -> Learner:
    """A learner with nothing left to resolve."""
    usual: dict[str, Any] = {
        "task": "classification", "epochs": 3, "batch_size": 16, "learning_rate": 0.05, "weight_decay": 0.0, "augment": "none",
        "precision": "float32", "device": "cpu", "record": "none",
    }  # fmt: skip
    return Learner(**{**usual, **settings})


def network(seed: int = 0, dropout: float = 0.0) -> torch.nn.Module:
    """A small network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 3)
        )
