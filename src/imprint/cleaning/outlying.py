"""Outliers: examples far from all others in the model's features.

The distance to the nearest neighbours is the plainest density estimate, and a strong one (Ramaswamy et al. 2000; Sun et al. 2022,
arXiv:2204.06507). Classes differ in spread, so how far is too far is judged within the class.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.cleaning.flags import Flags
from imprint.cleaning.neighbours import neighbours
from imprint.methods import method
from imprint.recording.needs import Features, Target

NEIGHBOURS = 10
# The neighbours are sought among at most this many examples, drawn at random: enough to see what is dense.
REFERENCE = 30_000
# Robust z of the log distance from which an example is an outlier.
FAR = 4.0
# A class is judged by itself from this many examples on.
OWN_SCALE = 50


@method(
    "clean", "outliers", kind="outlier", needs=[Features(), Target()],
    higher="farther from its neighbours than is usual for its class",
    source="Ramaswamy et al. 2000, SIGMOD; Sun et al. 2022, arXiv:2204.06507",
)  # fmt: skip
def outliers(features: Float[Tensor, "example feature"], target: Tensor) -> Flags:
    """Examples far from their ten nearest neighbours in standardised features.

    The mean distance is taken as a logarithm and compared with the class's median in robust standard deviations (z), which
    are at least a tenth of a doubling, so that a class of near copies does not make everything else an outlier. Flagged above
    z = 4. Severity = 1 - 4 / (2 z): one half at the threshold, towards 1 far beyond it.
    """
    count = len(features)
    if count <= 2 * NEIGHBOURS:
        return Flags.none()
    scaled = standardised(features).numpy()
    pool = np.sort(np.random.default_rng(0).choice(count, min(count, REFERENCE), replace=False))
    distance, found = neighbours(scaled, scaled[pool], NEIGHBOURS + 1)
    itself = pool[found] == np.arange(count)[:, None]
    # Leave the example itself out where it is in the pool, else its farthest neighbour.
    itself[~itself.any(1), -1] = True
    mean = distance[~itself].reshape(count, -1).mean(1)
    group = target.numpy() if target.dtype == torch.int64 else np.zeros(count, np.int64)
    z = _robust_z(np.log(np.maximum(mean, 1e-6)), group)
    row = np.flatnonzero(z > FAR)
    if not len(row):
        return Flags.none()
    words = pl.select(
        pl.format(
            "mean distance {} to its {} nearest neighbours (robust z {} within its class)",
            pl.Series(mean[row]).round(2), NEIGHBOURS, pl.Series(z[row]).round(1),
        )
    ).to_series()  # fmt: skip
    return Flags(row, (1 - FAR / (2 * z[row])).astype(np.float32), ["review"] * len(row), words.to_list())


def standardised(features: Float[Tensor, "example feature"]) -> Float[Tensor, "example feature"]:
    """Each feature with mean 0 and standard deviation 1; constant ones become 0."""
    spread, mean = torch.std_mean(features.float(), dim=0)
    return (features.float() - mean) / torch.where(spread > 1e-6 * spread.max(), spread, torch.inf)


def _robust_z(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(value - median) / (1.4826 x median absolute deviation), within groups that are large enough, else over all."""
    least = 0.1 * np.log(2)
    frame = pl.DataFrame({"value": values, "group": group})
    frame = frame.with_columns(pl.when(pl.len().over("group") >= OWN_SCALE).then("group").alias("group"))
    centred = frame.select("group", (pl.col("value") - pl.col("value").median().over("group")).alias("value"))
    spread = pl.col("value").abs().median().over("group") * 1.4826
    return centred.select(pl.col("value") / spread.clip(lower_bound=least)).to_series().to_numpy()
