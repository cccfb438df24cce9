"""A small run to trace: 160 digits of three classes, a quarter of them to ask about."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

import imprint
from imprint.recording import Run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tracing")
    images, target = load_digits(n_class=3, return_X_y=True)
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(160)],
            "x": pl.Series(images[:160].astype(np.float32)),
            "label": [f"d{value}" for value in target[:160]],
            "split": ["test" if number % 4 == 0 else "train" for number in range(160)],
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("linear", epochs=4, batch_size=32), corpus, folder / "run", progress=False)
