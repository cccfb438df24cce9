"""Regression on one numeric target: squared error on the standardised target, R2.

Models are trained on `(target - mean) / scale`, so that learning rates mean the same for prices and for fractions; `decode`
gives values in the user's unit again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import TargetError
from imprint.tasks.base import Batch, Task


@dataclass(frozen=True)
class Regression(Task):
    """One real value per example. Outputs are `[example, 1]`, standardised."""

    mean: float = 0.0
    scale: float = 1.0
    name: ClassVar[str] = "regression"

    @classmethod
    def fit(cls, target: pl.Series) -> Regression:
        if not target.dtype.is_numeric():
            raise TargetError(
                f"Column '{target.name}' is not numeric ({target.dtype}); regression needs numbers.",
                "Use task='classification', or clean the column.",
            )
        values = target.drop_nulls().cast(pl.Float64).to_numpy()
        mean, scale = (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)
        if not (scale > 0 and math.isfinite(mean) and math.isfinite(scale)):
            raise TargetError(
                f"Column '{target.name}' is constant or not finite (mean {mean}, standard deviation {scale}).",
                "Choose another target.",
            )
        return cls(mean, scale)

    @property
    def width(self) -> int:
        return 1

    def encode(self, target: pl.Series) -> Float[Tensor, " example"]:
        values = torch.from_numpy(target.cast(pl.Float64).to_numpy().copy())
        return ((values - self.mean) / self.scale).float()

    def decode(self, encoded: Float[Tensor, " example"]) -> pl.Series:
        return pl.Series((encoded.double() * self.scale + self.mean).numpy())

    def loss(self, outputs: Float[Tensor, "example one"], batch: Batch) -> Float[Tensor, " example"]:
        """Half the squared error, in squared standard deviations of the target."""
        return 0.5 * (outputs.squeeze(1) - batch.target) ** 2

    def margin(
        self, outputs: Float[Tensor, "example one"], target: Float[Tensor, " example"]
    ) -> Float[Tensor, " example"]:
        """Minus the absolute error, in standard deviations of the target."""
        return -(outputs.squeeze(1) - target).abs()

    def predict(self, outputs: Float[Tensor, "example one"]) -> Float[Tensor, " example"]:
        return outputs.squeeze(1)

    def correct(
        self, outputs: Float[Tensor, "example one"], target: Float[Tensor, " example"]
    ) -> Bool[Tensor, " example"]:
        """Within one half of the target's standard deviation."""
        return (outputs.squeeze(1) - target).abs() < 0.5

    def credit(
        self, outputs: Float[Tensor, "example one"], target: Float[Tensor, " example"]
    ) -> Float[Tensor, " example"]:
        """1 less the squared error in units of the variance of these targets; the mean is R2."""
        spread = target.double().var(correction=0)
        return 1 - (outputs.squeeze(1) - target).double() ** 2 / spread

    def metrics(self, outputs: Float[Tensor, "example one"], target: Float[Tensor, " example"]) -> dict[str, float]:
        """R2, and root mean squared and mean absolute error in the user's unit."""
        error = (outputs.squeeze(1) - target).double()
        spread = float(target.double().var(correction=0)) if len(target) > 1 else 0.0
        mse = float((error**2).mean())
        return {
            "r2": 1 - mse / spread if spread > 0 else float("nan"),
            "rmse": mse**0.5 * self.scale,
            "mae": float(error.abs().mean()) * self.scale,
        }

    @property
    def headline(self) -> str:
        return "r2"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.mean, "scale": self.scale}
