"""How honest a classifier's confidence is: accuracy against confidence, and the expected calibration error."""

from __future__ import annotations

import numpy as np
import polars as pl


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> tuple[pl.DataFrame, float]:
    """Accuracy against confidence in equally wide bins, and the expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: Probability of the predicted class, 0..1, `[example]`.
        correct: Whether the prediction was right, `[example]`.
        bins: Number of bins over 0..1; a confidence of exactly 1 falls into the last.

    Returns:
        `low, high, count, confidence, accuracy` of the bins that hold examples, and the ECE: the gap between accuracy and
        confidence, averaged over examples; 0 = calibrated.

    >>> reliability(np.array([0.85, 0.85, 0.25, 0.25]), np.array([1, 0, 0, 0]))[1]
    0.3
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    # Rounded first, so that 0.7 does not fall into the bin below because 0.7 * 10 is a little less than 7.
    cell = np.clip(np.floor(np.round(confidence * bins, 9)), 0, bins - 1).astype(np.int64)
    count = np.bincount(cell, minlength=bins)
    held = np.flatnonzero(count)
    mean_confidence = np.bincount(cell, confidence, bins)[held] / count[held]
    accuracy = np.bincount(cell, np.asarray(correct, dtype=np.float64), bins)[held] / count[held]
    table = pl.DataFrame(
        {
            "low": held / bins,
            "high": (held + 1) / bins,
            "count": count[held],
            "confidence": mean_confidence,
            "accuracy": accuracy,
        }
    )
    gap = float((np.abs(accuracy - mean_confidence) * count[held]).sum() / max(len(confidence), 1))
    return table, round(gap, 12)
