"""A corpus and a run in memory, with what the cleaning methods ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint import tasks
from imprint.errors import EvidenceError
from imprint.recording.needs import Dynamics, Features, Need, OutOfFold


@dataclass
class MemoryCorpus:
    """Inputs, target and splits held in memory."""

    inputs: pl.DataFrame
    target: pl.Series
    kinds: dict[str, str]
    modality: str
    split_names: pl.Series
    shape: tuple[int, ...] | None = None
    set_aside: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"position": pl.Int64, "reason": pl.String})
    )
    fingerprint: str = "0" * 16
    groups: pl.Series | None = None

    def __post_init__(self) -> None:
        self.ids = pl.Series([f"r{row}" for row in range(len(self.inputs))])
        self.positions = pl.Series(np.arange(len(self.inputs)))
        self.content = self.inputs.hash_rows().to_numpy()
        self.splits = dict(self.split_names.value_counts().iter_rows())

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, split: str | None = None) -> np.ndarray:
        return np.arange(len(self)) if split is None else np.flatnonzero(self.split_names == split)

    def read(self, rows: np.ndarray, columns: list[str] | None = None) -> pl.DataFrame:
        return self.inputs.select(columns or list(self.kinds))[np.asarray(rows)]

    def batches(
        self, rows: np.ndarray | None = None, columns: list[str] | None = None, size: int = 100
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
        rows = self.rows() if rows is None else rows
        for start in range(0, len(rows), size):
            yield rows[start : start + size], self.read(rows[start : start + size], columns)


@dataclass
class MemoryRun:
    """A trajectory of logits held in memory; counts how often evidence was gathered."""

    corpus: MemoryCorpus
    logits: torch.Tensor
    features: torch.Tensor | None = None
    out_of_fold: torch.Tensor | None = None
    path: str = "memory"
    gathered: list[Need] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = tasks.fit("auto", self.corpus.target)
        self.learner = SimpleNamespace(epochs=len(self.logits))
        self.fingerprint = self.corpus.fingerprint
        self.examples = pl.DataFrame(
            {"id": self.corpus.ids, "position": self.corpus.positions, "split": self.corpus.split_names}
        )

    def rows(self, split: str | None = "train") -> np.ndarray:
        return self.corpus.rows(split)

    def held_out_loss(self) -> torch.Tensor:
        return torch.empty(0)

    def target(self, split: str = "train") -> torch.Tensor:
        return self.task.encode(self.corpus.target.gather(self.rows(split)))

    def gather(self, needs: list[Need], block: slice | None = None) -> dict[str, Any]:
        rows = block or slice(None)
        values: dict[str, Any] = {}
        for need in needs:
            self.gathered.append(need)
            match need:
                case Dynamics(field="logits", epochs=None):
                    values[need.name] = self.logits[:, rows]
                case Dynamics(field="probabilities", epochs=None):
                    values[need.name] = self.task.probabilities(self.logits[:, rows])
                case OutOfFold() if self.out_of_fold is not None:
                    values[need.name] = self.out_of_fold[rows]
                case Features() if self.features is not None:
                    values[need.name] = self.features[rows]
                case _:
                    raise EvidenceError(f"No {need} here.", "Record it.")
        return values


@pytest.fixture
def corpus_of() -> Any:
    """Makes a corpus: `corpus_of(inputs, target, kinds, modality, train=...)`."""

    def make(
        inputs: pl.DataFrame,
        target: Any,
        kinds: dict[str, str],
        modality: str,
        train: np.ndarray | None = None,
        **more: Any,
    ) -> MemoryCorpus:
        train = np.ones(len(inputs), bool) if train is None else train
        splits = pl.Series(np.where(train, "train", "test"))
        return MemoryCorpus(inputs, pl.Series("target", target), kinds, modality, splits, **more)

    return make


@pytest.fixture
def run_of() -> Any:
    """Makes a run: `run_of(corpus, logits, features=None, out_of_fold=None)`."""
    return MemoryRun


@pytest.fixture(scope="session")
def grouped_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recorded logistic regression: label = sign of x, turned around in the group "odd", which is no input; 1,500 rows."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1500))
    group = rng.choice(["even", "odd", "plain"], 1500, p=[0.4, 0.2, 0.4])
    label = np.where((x > 0) ^ (group == "odd"), "high", "low")
    folder = tmp_path_factory.mktemp("grouped")
    frame = pl.DataFrame(
        {"x": x, "noise": noise, "team": group, "label": label, "split": np.where(np.arange(1500) % 2, "train", "test")}
    )
    corpus = imprint.open(frame, target="label", inputs=["x", "noise"], split="split", store=folder / "store")
    corpus = replace(corpus, groups=pl.Series("team", group))
    return imprint.fit(imprint.Learner("linear", epochs=8), corpus, folder / "run", progress=False)
