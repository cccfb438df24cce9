"""Numbers of any scale -> features that a network can learn from.

Each column is centred on its median, divided by its interquartile range (as a standard deviation) and bent smoothly into
(-BOUND, BOUND), so that one absurd value cannot drown a column. This is the preprocessing of RealMLP (Holzmüller,
Grinsztajn, Steinwart 2024, arXiv:2407.04491). A missing value becomes the median, and an indicator column says so if
values were missing in training. Two-valued columns become 0 and 1; constant ones are dropped.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BOUND = 5.0
# Far outside any bound, and its square is finite in float32.
FAR = 1e6
# A normal distribution's interquartile range in standard deviations.
NORMAL_IQR = 1.349


@dataclass(frozen=True)
class Standardise:
    """Fitted statistics; `__call__` applies them.

    Attributes:
        centre, scale: Of each kept column.
        bound: Of each kept column; infinite for two-valued columns, which are not bent.
        kept: Indices of the columns that are kept.
        flagged: Indices of the columns that get a missing-value indicator.
    """

    centre: Float[Tensor, " kept"]
    scale: Float[Tensor, " kept"]
    bound: Float[Tensor, " kept"]
    kept: Tensor
    flagged: Tensor

    @property
    def width(self) -> int:
        """How many columns come out."""
        return len(self.kept) + len(self.flagged)

    @classmethod
    def fit(cls, values: Float[np.ndarray, "example column"]) -> Standardise:
        """Learn the statistics of each column. NaN is missing; infinities are extreme values."""
        missing = np.isnan(values)
        finite = np.where(np.isfinite(values), values, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value: dropped below
            low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
            centre, spread = np.nanmedian(finite, axis=0), np.nanstd(finite, axis=0)
            first, third = np.nanquantile(finite, [0.25, 0.75], axis=0)
        kept = np.flatnonzero(high > low)  # NaN > NaN is False: a column of nothing but missing values is dropped, too
        low, high, centre, spread, first, third = (s[kept] for s in (low, high, centre, spread, first, third))
        two = ((finite[:, kept] == low) | (finite[:, kept] == high) | np.isnan(finite[:, kept])).all(axis=0)
        # A column that is mostly one value has no interquartile range; its standard deviation serves.
        scale = np.where(third > first, (third - first) / NORMAL_IQR, spread)
        flagged = np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0))
        return cls(
            torch.from_numpy(np.where(two, low, centre)),
            torch.from_numpy(np.where(two, high - low, scale)),
            torch.from_numpy(np.where(two, np.inf, BOUND)),
            torch.from_numpy(kept.astype(np.int64)),
            torch.from_numpy(flagged.astype(np.int64)),
        )

    def __call__(self, values: Float[np.ndarray, "example column"]) -> Float[Tensor, "example width"]:
        """Apply to any rows. Float64 until centred, so that large offsets (years, ids, time stamps) keep their differences."""
        raw = torch.from_numpy(np.require(values, requirements=["C", "W"]))  # Polars gives read-only memory
        scaled = ((raw[:, self.kept] - self.centre) / self.scale).float()
        scaled = torch.where(scaled.isnan(), torch.where(self.bound.isinf(), 0.5, 0.0).float(), scaled).clamp_(
            -FAR, FAR
        )
        bent = scaled * (scaled / self.bound.float()).square_().add_(1).rsqrt_()
        # A two-valued column is not bent, but may hold a third value some day.
        bent.clamp_(-BOUND, BOUND)
        return torch.cat([bent, raw[:, self.flagged].isnan().float()], dim=1)

    def names(self, columns: list[str]) -> list[str]:
        """Names of the columns that come out."""
        return [columns[i] for i in self.kept.tolist()] + [f"{columns[i]} is missing" for i in self.flagged.tolist()]

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors; `Standardise(**tensors)` is the inverse."""
        return {name: getattr(self, name) for name in ("centre", "scale", "bound", "kept", "flagged")}
