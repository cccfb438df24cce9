"""A corpus in memory with no more than what an encoder asks of one."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from PIL import Image


@dataclass
class FakeCorpus:
    """Remembers which rows were read, so that a test can tell what a fit has seen."""

    data: pl.DataFrame
    kinds: dict[str, str]
    modality: str
    shape: tuple[int, ...] | None = None
    seen: set[int] = field(default_factory=set)

    @property
    def roles(self) -> Any:
        return SimpleNamespace(inputs=tuple(self.kinds))

    def read(self, rows: Any, columns: Any = None) -> pl.DataFrame:
        rows = np.asarray(rows)
        self.seen |= set(rows.tolist())
        return self.data[rows].select(list(columns) if columns is not None else list(self.kinds))


def table(n: int = 400, seed: int = 0) -> FakeCorpus:
    """Numbers with holes, a heavy tail, a constant, a category, free strings, dates and a boolean."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, n)
    words = ["red", "green", "blue", "dark", "light", "old", "new", "wide", "thin", "round"]
    data = pl.DataFrame(
        {
            "age": pl.Series(np.where(rng.random(n) < 0.1, np.nan, age)).fill_nan(None),
            "income": rng.lognormal(10, 2, n),
            "count": rng.integers(0, 50, n),
            "constant": np.full(n, 7.0),
            "member": rng.random(n) < 0.5,
            "city": [None if rng.random() < 0.05 else str(c) for c in rng.choice(["Bern", "Lima", "Oslo"], n)],
            "note": [f"{' '.join(rng.choice(words, 3))} {i}" for i in range(n)],
            "day": pl.datetime_range(pl.datetime(2020, 1, 1), pl.datetime(2030, 1, 1), "1h", eager=True)[:n],
        }
    )
    kinds = {
        "age": "numeric", "income": "numeric", "count": "numeric", "constant": "numeric", "member": "categorical",
        "city": "categorical", "note": "text", "day": "datetime",
    }  # fmt: skip
    return FakeCorpus(data, kinds, "table")


def texts(n: int = 300, seed: int = 0) -> FakeCorpus:
    """Sentences of a small vocabulary; a null, an empty and a very long one among them."""
    rng = np.random.default_rng(seed)
    words = ["the", "a", "film", "play", "was", "good", "bad", "awful", "really", "not", "never", "who", "dog", "sea"]
    rows: list[str | None] = [" ".join(rng.choice(words, rng.integers(3, 12))) + "." for _ in range(n)]
    rows[3], rows[7], rows[11] = None, "   ", " ".join(rng.choice(words, 3000))
    return FakeCorpus(pl.DataFrame({"text": rows}), {"text": "text"}, "text")


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def images(n: int = 40, size: tuple[int, int] = (12, 10), grey: bool = False, seed: int = 0) -> FakeCorpus:
    """Random pictures of one size (height, width), losslessly stored."""
    rng = np.random.default_rng(seed)
    shape = size if grey else (*size, 3)
    files = [encoded(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(n)]
    return FakeCorpus(pl.DataFrame({"image": files}), {"image": "image"}, "image")


def arrays(values: np.ndarray) -> FakeCorpus:
    """One column of fixed-shape arrays."""
    column = pl.Series("x", values)
    return FakeCorpus(pl.DataFrame({"x": column}), {"x": "array"}, "array", values.shape[1:])
