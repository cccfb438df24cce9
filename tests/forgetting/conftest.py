"""Small runs to forget from: 200 points of three clouds, with a text that is each example's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

import imprint
from imprint.corpus import Corpus
from imprint.recording import Run


def clouds(store: Path, rows: int = 200, task: str = "classification", **columns: object) -> Corpus:
    """Gaussian clouds, one per class; a fifth are test examples, a tenth validation."""
    random = np.random.default_rng(0)
    label = random.integers(0, 3, rows)
    values = (random.normal(size=(3, 4)) * 2)[label] + random.normal(size=(rows, 4))
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(4)}).with_columns(
        key=pl.Series([f"person-{row:05d}" for row in range(rows)]),
        label=pl.Series([f"class {value}" for value in label] if task == "classification" else values @ [1, 2, 0, -1]),
        split=pl.Series(
            [{0: "test", 1: "valid" if row % 10 == 1 else "train"}.get(row % 5, "train") for row in range(rows)]
        ),
        **columns,  # type: ignore[arg-type]
    )
    return imprint.open(frame, target="label", id="key", split="split", store=store)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return clouds(tmp_path_factory.mktemp("forgetting"))


@pytest.fixture(scope="session")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network."""
    folder = tmp_path_factory.mktemp("forgetting-run")
    return imprint.fit(imprint.Learner("mlp", epochs=3, batch_size=32), corpus, folder / "base", progress=False)


@pytest.fixture(scope="session")
def ridge(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return imprint.fit(imprint.Learner("ridge"), corpus, tmp_path_factory.mktemp("ridge") / "base", progress=False)


@pytest.fixture(scope="session")
def logistic(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return imprint.fit(imprint.Learner("logistic"), corpus, tmp_path_factory.mktemp("log") / "base", progress=False)


@pytest.fixture(scope="session")
def sharded(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained in 3 shards of 3 slices."""
    learner = imprint.Learner("mlp", epochs=4, batch_size=16, deletable="sisa(shards=3, slices=3)")
    return imprint.fit(learner, corpus, tmp_path_factory.mktemp("sisa") / "base", progress=False)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network that reads digits: 600 of them, two thirds to train on."""
    folder = tmp_path_factory.mktemp("digits")
    images, target = load_digits(return_X_y=True)
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(600)],
            "x": pl.Series(images[:600].astype(np.float32)),
            "label": [f"c{value}" for value in target[:600]],
            "split": ["test" if number % 3 == 0 else "train" for number in range(600)],
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("mlp", epochs=15, batch_size=32), corpus, folder / "base", progress=False)


@pytest.fixture(scope="session")
def sevens(digits: Run) -> np.ndarray:
    """Places of all training examples of the class 7."""
    return np.flatnonzero(digits.target().numpy() == 7)


@pytest.fixture(scope="session")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network that fits a curve: 300 points, two thirds to train on."""
    folder = tmp_path_factory.mktemp("wave")
    random = np.random.default_rng(0)
    x = random.uniform(-3, 3, 300)
    frame = pl.DataFrame(
        {"x": x, "z": random.normal(size=300), "y": np.sin(x) + 0.1 * random.normal(size=300)}
    ).with_columns(
        id=pl.Series([f"point-{number}" for number in range(300)]),
        split=pl.Series(["test" if number % 3 == 0 else "train" for number in range(300)]),
    )
    corpus = imprint.open(frame, target="y", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("mlp", epochs=40, batch_size=32), corpus, folder / "base", progress=False)
