"""What an example looks like, small enough to embed: a thumbnail, a text, or the cells of its row.

Previews share a byte budget, so that a report of long reviews or large photos can still be mailed: images are packed at the
best quality that fits, texts are cut at the length that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from imprint.reporting.material import Material
from imprint.reporting.thumbnails import sheets, small
from imprint.reporting.words import word

IMAGE_BYTES = 1_300_000  # a third more in base64
TEXT_CHARACTERS = 1_200_000
SHORTEST_CUT = 80
CELL_CHARACTERS = 240
MOST_COLUMNS = 40
BLOCK = 256


def previews(material: Material, ids: list[str]) -> dict[str, Any]:
    """Previews of these examples, in this order.

    Returns:
        `images` (see `sheets`) if there are images; `text` and `cut` (how many characters each lost) if there are texts;
        `columns`, `cells` and `more_columns` for the other inputs.
    """
    kinds = dict(material.kinds)
    picture = next((name for name, kind in kinds.items() if kind in ("image", "array")), None)
    prose = (
        next((name for name, kind in kinds.items() if kind == "text"), None) if material.modality != "table" else None
    )
    plain = [name for name in kinds if name not in (picture, prose)]
    shown = plain[:MOST_COLUMNS]
    images: list[Any] = []
    texts: list[str] = []
    cells: list[list[str | None]] = []
    for frame in _blocks(material, ids):
        if picture is not None:
            images += _pictures(frame[picture])
        if prose is not None:
            texts += frame[prose].cast(pl.String).fill_null("").to_list()
        cells += [[_cell(value) for value in row] for row in frame.select(shown).iter_rows()] if shown else []
    found: dict[str, Any] = {}
    if picture is not None and any(image is not None for image in images):
        found["images"] = sheets(images, IMAGE_BYTES)
    if prose is not None:
        found["text"], found["cut"] = cut_to_fit(texts, TEXT_CHARACTERS)
    if shown:
        found |= {"columns": shown, "cells": cells, "more_columns": len(plain) - len(shown)}
    return found


def _blocks(material: Material, ids: list[str]) -> Iterator[pl.DataFrame]:
    """The inputs of `ids` in blocks, so that no more than `BLOCK` full-size images are in memory."""
    for start in range(0, len(ids), BLOCK):
        yield material.read(ids[start : start + BLOCK])


def _pictures(column: pl.Series) -> list[Any]:
    """Thumbnails of a column of encoded images or of arrays; None where there is nothing to show."""
    values = column.to_numpy() if isinstance(column.dtype, pl.Array) and not column.null_count() else column.to_list()
    try:
        return [small(np.asarray(value) if isinstance(value, list) else value) for value in values]
    except ImportError:  # Pillow comes with the extra 'image'; without it arrays are still audited
        return [None] * len(column)


def _cell(value: Any) -> str | None:
    text = word(value)
    return text if text is None or len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def cut_to_fit(texts: Sequence[str], budget: int) -> tuple[list[str], list[int]]:
    """Cut texts at one common length, the longest at which all of them together fit the budget.

    >>> texts, cut = cut_to_fit(["short", "x" * 500, "y" * 300], 405)
    >>> [len(text) for text in texts], cut
    ([5, 200, 200], [0, 300, 100])
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    limit = int(lengths.max(initial=0))
    if lengths.sum() > budget:
        ordered = np.sort(lengths)
        # With the k shortest kept whole, the others may each have an equal part of what is left.
        part = (budget - np.concatenate([[0], ordered[:-1].cumsum()])) // np.arange(len(ordered), 0, -1)
        limit = max(SHORTEST_CUT, int(part[part <= ordered].max(initial=SHORTEST_CUT)))
    return [text[:limit] for text in texts], np.maximum(lengths - limit, 0).tolist()
