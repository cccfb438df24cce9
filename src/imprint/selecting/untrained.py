"""A corpus that nothing was trained on, with as much of a run as a method asks for that needs no training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from imprint import models, tasks
from imprint.corpus import Corpus
from imprint.evidence import inputs
from imprint.fitting import training_rows
from imprint.recording.needs import Features, Need


@dataclass(frozen=True)
class Encoding:
    """An encoder fitted on the training rows: what stands in for a model."""

    encoder: Any

    def encode(self, frame: pl.DataFrame) -> Tensor:
        """Encoded inputs of raw rows."""
        return self.encoder.encode(frame)


@dataclass(frozen=True)
class Untrained:
    """A corpus in the place of a run.

    Attributes:
        corpus: The corpus.
        data: Encoded inputs at hand: none.
    """

    corpus: Corpus
    data: None = None

    @property
    def path(self) -> str:
        """How messages name it."""
        return f"of the corpus {self.corpus.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """The corpus's."""
        return self.corpus.fingerprint

    @property
    def manifest(self) -> dict[str, Any]:
        """The part of a run's manifest that says which splits there are."""
        return {"corpus": {"splits": self.corpus.splits}}

    @cached_property
    def examples(self) -> pl.DataFrame:
        """`row, id, position, split` of every row."""
        own = self.corpus
        return pl.DataFrame(
            [
                pl.Series("row", np.arange(len(own))), own.ids.alias("id"), own.positions.alias("position"),
                own.split_names.alias("split"),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows())

    def rows(self, split: str | None = "train") -> np.ndarray:
        """Rows of a split, ascending; None for all. Training rows are all rows where there is no split "train"."""
        return training_rows(self.corpus) if split == "train" else self.corpus.rows(split)

    @cached_property
    def task(self) -> tasks.Task:
        """The task that the target asks for."""
        return tasks.fit("auto", self.corpus.target)

    def target(self, split: str | None = "train") -> Tensor:
        """Encoded targets of a split's rows."""
        return self.task.encode(self.corpus.target)[torch.from_numpy(self.rows(split))]

    def gather(self, needs: Iterable[Need], block: slice | None = None) -> dict[str, Tensor]:
        """Values of needs by name. Without a model, the features of an example are what the encoder says of it."""
        assert all(isinstance(need, Features) for need in needs)
        rows = {need.name: self.rows(need.split)[block or slice(None)] for need in needs}  # type: ignore[attr-defined]
        return {name: inputs(self, some) for name, some in rows.items()}  # type: ignore[arg-type]

    def model(self) -> Encoding:
        """The corpus's own encoder."""
        return self._encoding

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of what was read."""
        if "_encoding" not in self.__dict__:
            return ()
        name = self._encoding.encoder.name
        return (f"nothing was trained: what an example looks like is what the encoder {name} of the corpus says of it",)

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding(models.encoder_for(self.corpus).fit(self.corpus, self.rows()))
