"""Small corpora that a network learns in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import imprint
from imprint.corpus import Corpus

Blobs = Callable[..., Corpus]


def blobs(
    store: Path, *, rows: int = 300, width: int = 5, classes: int = 3, seed: int = 0, **columns: object
) -> Corpus:
    """Gaussian clouds, one per class; four fifths are training examples. `columns` are added as they are."""
    random = np.random.default_rng(seed)
    label = random.integers(0, classes, rows)
    centre = random.normal(size=(classes, width)) * 2
    values = centre[label] + random.normal(size=(rows, width))
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(width)}).with_columns(
        key=pl.Series([f"e-{row:05d}" for row in range(rows)]),
        label=pl.Series([f"class {value}" for value in label]),
        split=pl.Series(["test" if row % 5 == 0 else "train" for row in range(rows)]),
        **columns,  # type: ignore[arg-type]
    )
    given = {"weight": "importance"} if "importance" in columns else {}
    given |= {"group": "person"} if "person" in columns else {}
    return imprint.open(frame, target="label", id="key", split="split", store=store, **given)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def corpus(store: Path) -> Corpus:
    return blobs(store)
