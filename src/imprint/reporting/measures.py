"""The figures that the page shows, computed from frames: reliability bins, confusion, balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from imprint.reporting.words import texts


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


def confusion(target: pl.Series, predicted: pl.Series, classes: list[str]) -> np.ndarray:
    """Counts `[target class, predicted class]`; values outside `classes` are left out.

    >>> confusion(pl.Series(["a", "a", "b"]), pl.Series(["a", "b", "b"]), ["a", "b"]).tolist()
    [[1, 1], [0, 1]]
    """
    codes = pl.Enum(classes)
    frame = pl.DataFrame(
        {"t": texts(target).cast(codes, strict=False), "p": texts(predicted).cast(codes, strict=False)}
    )
    frame = frame.drop_nulls().select(pl.all().to_physical().cast(pl.Int64))
    width = len(classes)
    cells = frame["t"].to_numpy() * width + frame["p"].to_numpy()
    return np.bincount(cells, minlength=width * width).reshape(width, width)


def balance(split: pl.Series, label: pl.Series) -> pl.DataFrame:
    """Count of each label in each split: `label` (str) and one column per split, most frequent first. Lists count each of their labels.

    >>> balance(pl.Series(["train", "train", "test"]), pl.Series(["a", "b", "b"])).rows()
    [('b', 1, 1), ('a', 1, 0)]
    """
    frame = pl.DataFrame({"split": split, "label": label})
    if isinstance(label.dtype, (pl.List, pl.Array)):
        frame = frame.explode("label")
    frame = frame.drop_nulls("label").with_columns(texts(frame.drop_nulls("label")["label"]))
    if frame.is_empty():
        return pl.DataFrame(schema={"label": pl.String})
    order = split.unique(maintain_order=True).to_list()
    counts = frame.group_by("label", "split").len().pivot("split", index="label", values="len").fill_null(0)
    columns = [name for name in order if name in counts.columns]
    return counts.select("label", *columns).sort(pl.sum_horizontal(columns), "label", descending=[True, False])


def histogram(values: np.ndarray, bins: int = 24) -> dict[str, Any]:
    """Edges and counts of a numeric target."""
    count, edges = np.histogram(values[np.isfinite(values)], bins=bins)
    return {"edges": edges.tolist(), "count": count.tolist()}
