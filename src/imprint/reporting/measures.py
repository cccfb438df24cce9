"""The figures that the page shows, computed from frames: confusion, balance, and reliability bins (`imprint.tasks.reliability`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from imprint.reporting.words import texts
from imprint.tasks.reliability import reliability

__all__ = ["balance", "confusion", "histogram", "reliability"]


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
