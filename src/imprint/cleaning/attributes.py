"""Cheap attributes of examples: what can be read off a row without a model, and the slices that such attributes cut.

Of a table its columns; of texts how long they are; of images their brightness, contrast and colours, of the whole and of the border; of
arrays their mean and spread; and the group where there is one. Whether a model fails on some of them (`slices`), leans on one of
them (`cues`) or treats them unevenly (`macro`, `subpopulations`) is asked by others.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# A number with more different values than this is cut at its quantiles into BINS parts.
FEW, BINS = 12, 5
# Images are looked at in this many pixels a side; of these the outermost are the border.
SIDE = 16


def attributes(corpus: Corpus, rows: Int[np.ndarray, " row"]) -> dict[str, pl.Series]:
    """Cheap attributes of these rows: name -> one value per row, a number, a date or a word."""
    names = list(corpus.kinds)
    parts = [_read(corpus, frame) for _, frame in corpus.batches(rows, names, size=2048)]
    found = {name: pl.concat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if corpus.groups is not None:
        found = {"group": corpus.groups.gather(rows), **found}
    return found


def _read(corpus: Corpus, frame: pl.DataFrame) -> dict[str, pl.Series]:
    found: dict[str, pl.Series] = {}
    for name, kind in corpus.kinds.items():
        if kind == "text":
            found[f"words in {name}"] = frame[name].fill_null("").str.count_matches(r"\S+").cast(pl.Int64)
        elif kind == "image":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                looks = np.array(list(pool.map(_look, frame[name].to_list())), dtype=np.float64).reshape(-1, len(LOOKS))
            found |= {look: pl.Series(looks[:, place]) for place, look in enumerate(LOOKS)}
        elif kind == "array":
            flat = _flat(frame[name])
            found |= {f"mean of {name}": pl.Series(flat.mean(1)), f"spread of {name}": pl.Series(flat.std(1))}
        else:
            found[name] = frame[name]
    return found


LOOKS = (
    "brightness", "contrast", "redness", "blueness", "border brightness", "border redness", "border blueness", "pixels",
)  # fmt: skip


def _look(encoded: bytes) -> Sequence[float]:
    """Brightness and its spread (0..255), red and blue less green, the same of the border, and the number of pixels."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = image.width * image.height
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return [np.nan] * len(LOOKS)
    rim = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    inside, border = small.reshape(-1, 3).mean(0), rim.mean(0)
    return [
        inside.mean(), small.mean(2).std(), inside[0] - inside[1], inside[2] - inside[1],
        border.mean(), border[0] - border[1], border[2] - border[1], pixels,
    ]  # fmt: skip


def _flat(values: pl.Series) -> Float[np.ndarray, "row value"]:
    count = len(values)
    while values.dtype in (pl.List, pl.Array):
        values = values.explode()
    return np.nan_to_num(values.to_numpy().astype(np.float64)).reshape(count, -1)


@dataclass(frozen=True)
class Cuts:
    """Attributes cut into slices.

    Attributes:
        code: Of each row and attribute the number of its slice, 0..; -1 in none (a rare value).
        names: Of each attribute the names of its slices, in words.
    """

    code: Int[np.ndarray, "row attribute"]
    names: tuple[tuple[str, ...], ...]

    def mask(self, attribute: int, number: int) -> Bool[np.ndarray, " row"]:
        """The rows in a slice."""
        return self.code[:, attribute] == number


def cut(values: dict[str, pl.Series], least: int) -> Cuts:
    """Cut attributes into slices of at least this many rows, and with as many outside.

    Words and numbers of few different values are cut value by value, other numbers and dates at their quantiles; what is missing is a
    slice.

    Args:
        values: Name -> one value per row.
        least: Smallest slice.

    >>> cuts = cut({"sex": pl.Series(["f", "m", "m", "f", "x"]), "same": pl.Series([1, 1, 1, 1, 1])}, 2)
    >>> cuts.names, cuts.code.tolist()
    ((('sex = f', 'sex = m'), ()), [[0, -1], [1, -1], [1, -1], [0, -1], [-1, -1]])
    """
    codes, names = [], []
    for name, series in values.items():
        raw, words = _parts(name, series)
        counts = np.bincount(raw, minlength=len(words)) if len(raw) else np.zeros(len(words), np.int64)
        kept = np.flatnonzero((counts >= least) & (counts <= len(raw) - least))
        place = np.full(len(words), -1)
        place[kept] = np.arange(len(kept))
        codes.append(place[raw])
        names.append(tuple(words[number] for number in kept))
    count = len(next(iter(values.values()))) if values else 0
    code = np.stack(codes, 1).astype(np.int32) if codes else np.empty((count, 0), np.int32)
    return Cuts(code, tuple(names))


def _parts(name: str, values: pl.Series) -> tuple[Int[np.ndarray, " row"], list[str]]:
    """The part of each row, and the parts in words."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        distinct = values.drop_nulls().unique()
        if len(distinct) > FEW:
            return _quantiles(name, values)
    text = values.cast(pl.String)
    different = text.drop_nulls().unique().sort()
    table = pl.DataFrame({"value": different, "code": np.arange(len(different))})
    code = pl.DataFrame({"value": text}).join(table, on="value", how="left", maintain_order="left")["code"]
    words = [*(f"{name} = {value}" for value in different), f"{name} is missing"]
    return code.fill_null(len(different)).to_numpy().astype(np.int64), words


def _quantiles(name: str, values: pl.Series) -> tuple[Int[np.ndarray, " row"], list[str]]:
    numbers = values.to_physical().cast(pl.Float64)
    present = numbers.drop_nulls().to_numpy()
    edges = np.unique(np.quantile(present, np.arange(1, BINS) / BINS, method="lower"))
    # Where one value is nearly all there is, what is below it is the other part.
    edges = edges[edges < present.max()] if edges[0] < present.max() else np.unique(present)[-2:-1]
    code = np.searchsorted(edges, numbers.fill_null(0.0).to_numpy(), side="left")
    shown = [_shown(edge, values) for edge in edges]
    words = [
        f"{name} <= {shown[0]}",
        *(f"{low} < {name} <= {high}" for low, high in pairwise(shown)),
        f"{name} > {shown[-1]}",
    ]
    return np.where(numbers.is_null().to_numpy(), len(words), code), [*words, f"{name} is missing"]


def _shown(edge: float, values: pl.Series) -> Any:
    if values.dtype.is_temporal():
        return pl.Series([int(edge)]).cast(values.dtype)[0]
    return f"{edge:,.0f}" if edge == round(edge) else f"{edge:,.4g}" if abs(edge) < 1000 else f"{edge:,.1f}"
