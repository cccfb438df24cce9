"""Single-label classification: logits, cross-entropy in nats, accuracy.

Targets are kept as the values that the user wrote (strings, integers, booleans); `encode` maps them to class codes in the
order of `classes`, which is sorted so that the same data always gives the same codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.errors import TargetError
from imprint.tasks.base import Batch, Task


@dataclass(frozen=True)
class Classification(Task):
    """One of `classes` per example. Outputs are logits `[example, class]`."""

    classes: tuple[Any, ...] = ()
    name: ClassVar[str] = "classification"

    @classmethod
    def fit(cls, target: pl.Series) -> Classification:
        classes = tuple(target.drop_nulls().unique().sort().to_list())
        if len(classes) < 2:
            held = f"only the class {classes[0]!r}" if classes else "no value at all"
            raise TargetError(
                f"Column '{target.name}' holds {held}; a classifier needs at least 2 classes.",
                "Choose another target with --target, or check how the file was read.",
            )
        return cls(classes)

    @property
    def width(self) -> int:
        return len(self.classes)

    def encode(self, target: pl.Series) -> Int[Tensor, " example"]:
        values = pl.Series("value", self.classes)
        table = pl.DataFrame({"value": values, "code": pl.arange(0, len(values), eager=True)})
        codes = pl.DataFrame({"value": target.cast(values.dtype)}).join(
            table, on="value", how="left", maintain_order="left"
        )["code"]
        if codes.null_count():
            unknown = target.filter(codes.is_null())[0]
            raise TargetError(
                f"Value {unknown!r} of the target is not one of the {len(values)} classes of this task.",
                "Relabel to a known class, or train a new learner on this corpus.",
            )
        return torch.from_numpy(codes.to_numpy().copy())

    def decode(self, encoded: Int[Tensor, " example"]) -> pl.Series:
        return pl.Series(self.classes).gather(encoded.numpy())

    def loss(self, outputs: Float[Tensor, "example class"], batch: Batch) -> Float[Tensor, " example"]:
        return F.cross_entropy(outputs, batch.target, reduction="none")

    def margin(
        self, outputs: Float[Tensor, "example class"], target: Int[Tensor, " example"]
    ) -> Float[Tensor, " example"]:
        """Logit of the target less the largest other logit."""
        own = outputs.gather(1, target[:, None])
        others = outputs.scatter(1, target[:, None], -torch.inf)
        return own.squeeze(1) - others.amax(1)

    def predict(self, outputs: Float[Tensor, "example class"]) -> Int[Tensor, " example"]:
        return outputs.argmax(1)

    def correct(
        self, outputs: Float[Tensor, "example class"], target: Int[Tensor, " example"]
    ) -> Bool[Tensor, " example"]:
        return outputs.argmax(1) == target

    def probabilities(self, outputs: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes class"]:
        return outputs.softmax(-1)

    def credit(
        self, outputs: Float[Tensor, "example class"], target: Int[Tensor, " example"]
    ) -> Float[Tensor, " example"]:
        """1 for a right prediction, 0 for a wrong one."""
        return (outputs.argmax(1) == target).double()

    def metrics(self, outputs: Float[Tensor, "example class"], target: Int[Tensor, " example"]) -> dict[str, float]:
        """accuracy, balanced accuracy (mean recall over the classes that occur), mean negative log-likelihood in nats."""
        hit = (outputs.argmax(1) == target).double()
        total = torch.bincount(target, minlength=self.width)
        recall = torch.bincount(target, weights=hit, minlength=self.width)[total > 0] / total[total > 0]
        return {
            "accuracy": float(hit.mean()),
            "balanced_accuracy": float(recall.mean()),
            "nll": float(F.cross_entropy(outputs.double(), target)),
        }

    @property
    def headline(self) -> str:
        return "accuracy"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "classes": list(self.classes)}
