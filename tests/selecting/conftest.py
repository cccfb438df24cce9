"""A small run to select from: 200 digits of three unequal classes, with a validation and a test split."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

import imprint
from imprint.corpus import Corpus
from imprint.recording import Run

SPLITS = {0: "valid", 1: "test"}
WORDS = ("red", "green", "blue", "round", "square", "long")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """120 of its rows are training examples: 60 zeros, 36 ones and 24 twos; 40 are valid, 40 test."""
    images, target = load_digits(n_class=3, return_X_y=True)
    rows = np.concatenate([np.flatnonzero(target == number)[:size] for number, size in ((0, 100), (1, 60), (2, 40))])
    number = np.arange(len(rows))
    frame = pl.DataFrame(
        {
            "id": [f"digit-{place}" for place in number],
            "x": pl.Series(images[rows].astype(np.float32)),
            "label": [f"d{value}" for value in target[rows]],
            "split": [SPLITS.get(int(place) % 5, "train") for place in number],
        }
    )
    folder = tmp_path_factory.mktemp("selecting")
    return imprint.open(frame, target="label", id="id", split="split", store=folder / "store")


@pytest.fixture(scope="session")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("selecting-run")
    return imprint.fit(imprint.Learner("linear", epochs=4, batch_size=32), corpus, folder / "run", progress=False)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 texts of two words each, 45 of them to train on."""
    random = np.random.default_rng(0)
    said = [" ".join(random.choice(WORDS, 2, replace=False)) for _ in range(60)]
    frame = pl.DataFrame(
        {
            "id": [f"t{row}" for row in range(60)],
            "text": [f"{text} once{row}" for row, text in enumerate(said)],
            "label": ["colour" if text.split()[0] in WORDS[:3] else "shape" for text in said],
            "split": ["test" if row % 4 == 0 else "train" for row in range(60)],
        }
    )
    folder = tmp_path_factory.mktemp("selecting-texts")
    return imprint.open(frame, target="label", id="id", split="split", inputs="text", store=folder / "store")
