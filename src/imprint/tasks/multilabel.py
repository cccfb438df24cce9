"""Multilabel classification: any number of labels per example, one logit each.

The target is a list column (`["rain", "night"]`). Loss is the mean binary cross-entropy over labels, so that its size does
not depend on how many labels there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import TargetError
from imprint.tasks.base import Batch, Task


@dataclass(frozen=True)
class Multilabel(Task):
    """A set of `labels` per example. Outputs are logits `[example, label]`; targets are 0/1 floats of that shape."""

    labels: tuple[Any, ...] = ()
    name: ClassVar[str] = "multilabel"

    @classmethod
    def fit(cls, target: pl.Series) -> Multilabel:
        if target.dtype != pl.List:
            raise TargetError(
                f"Column '{target.name}' is {target.dtype}, not a list of labels.",
                "Give a list per row, or use task='classification'.",
            )
        labels = tuple(target.explode().drop_nulls().unique().sort().to_list())
        if not labels:
            raise TargetError(f"Column '{target.name}' holds no label in any row.", "Choose another target.")
        return cls(labels)

    @property
    def width(self) -> int:
        return len(self.labels)

    def encode(self, target: pl.Series) -> Float[Tensor, "example label"]:
        table = pl.DataFrame({"value": list(self.labels), "code": range(self.width)})
        long = pl.DataFrame({"row": range(len(target)), "value": target}).explode("value").drop_nulls()
        long = long.with_columns(pl.col("value").cast(table["value"].dtype)).join(table, on="value", how="left")
        if long["code"].null_count():
            unknown = long.filter(pl.col("code").is_null())["value"][0]
            raise TargetError(
                f"Label {unknown!r} is not one of the {self.width} labels of this task.",
                "Relabel to known labels, or train a new learner.",
            )
        encoded = torch.zeros(len(target), self.width)
        encoded[long["row"].to_torch().long(), long["code"].to_torch().long()] = 1.0
        return encoded

    def decode(self, encoded: Float[Tensor, "example label"]) -> pl.Series:
        return pl.Series([[self.labels[j] for j in row.nonzero().flatten().tolist()] for row in encoded > 0.5])

    def loss(self, outputs: Float[Tensor, "example label"], batch: Batch) -> Float[Tensor, " example"]:
        return F.binary_cross_entropy_with_logits(outputs, batch.target, reduction="none").mean(1)

    def margin(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> Float[Tensor, " example"]:
        """The smallest logit margin over labels: below zero = at least one label is predicted wrongly."""
        return (outputs * (2 * target - 1)).amin(1)

    def predict(self, outputs: Float[Tensor, "example label"]) -> Float[Tensor, "example label"]:
        return (outputs > 0).float()

    def correct(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> Bool[Tensor, " example"]:
        """All labels right."""
        return ((outputs > 0) == (target > 0.5)).all(1)

    def probabilities(self, outputs: Float[Tensor, "*axes label"]) -> Float[Tensor, "*axes label"]:
        return outputs.sigmoid()

    def credit(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> Float[Tensor, " example"]:
        """F1 of the example's own set of labels; 1 where both sets are empty."""
        said, true = outputs > 0, target > 0.5
        sizes = (said.sum(1) + true.sum(1)).double()
        return torch.where(sizes > 0, 2 * (said & true).sum(1) / sizes.clamp(min=1), torch.ones_like(sizes))

    def metrics(
        self, outputs: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
    ) -> dict[str, float]:
        """F1 averaged over examples, micro-averaged F1, share of right example-label pairs, share of exact sets, mean loss in nats."""
        said, true = outputs > 0, target > 0.5
        hits = float((said & true).sum())
        asked = float(said.sum() + true.sum())
        return {
            "f1": float(self.credit(outputs, target).mean()),
            "f1_micro": 2 * hits / asked if asked else math.nan,
            "label_accuracy": float((said == true).double().mean()),
            "exact": float((said == true).all(1).double().mean()),
            "nll": float(F.binary_cross_entropy_with_logits(outputs.double(), target.double())),
        }

    @property
    def headline(self) -> str:
        return "f1"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "labels": list(self.labels)}
