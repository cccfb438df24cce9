"""What all tests share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

# A property says what holds, not how soon: Hypothesis' limit of 200 ms an example failed once, on a first call while the other core
# was busy. Every other part of the check stays.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, new for each test."""
    return np.random.default_rng(0)
