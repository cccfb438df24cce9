"""Thumbnails, packed into a few WebP sheets.

One image file per example would spend more on file headers than on pixels: 28 x 28 pixels take about 700 bytes as a PNG and
200 as a tile of a sheet. The page shows a tile by moving the sheet behind a small window.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

ACROSS = (
    16  # tiles in a row of a sheet; a sheet is square, so 256 tiles, which a browser decodes when it is first shown
)
# (side, WebP quality), from the best to the smallest; the first that fits the budget is taken.
SETTINGS = ((96, 75), (64, 75), (64, 50), (48, 40))
LARGEST = SETTINGS[0][0]


def small(source: Any, largest: int = LARGEST) -> Image | None:
    """The image of encoded bytes or of an array, scaled down to fit a square of `largest` pixels; None if there is nothing to show."""
    from PIL import Image

    if source is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else Image.fromarray(_pixels(source))
            image.draft("RGB", (2 * largest, 2 * largest))  # a JPEG is decoded at a fraction of its size
            image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                ground = Image.new("RGBA", image.size, "white")
                ground.alpha_composite(image.convert("RGBA"))
                image = ground
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # the audit reports broken images itself; here there is only nothing to show


def _pixels(values: Any) -> np.ndarray:
    """`[h, w]`, `[h, w, channel]` or `[channel, h, w]` as uint8, with the channels last."""
    array = np.asarray(values)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3):
        raise ValueError("not an image")
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float64))
        low, high = float(array.min()), float(array.max())
        # The usual scales are kept, so that a dark picture stays dark; any other is stretched.
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif low >= 0 and 32 < high <= 255:
            low, high = 0.0, 255.0
        array = ((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def sheets(images: Sequence[Image | None], budget: int) -> dict[str, Any]:
    """Pack images into sheets of at most `budget` bytes together, if the smallest setting allows.

    Returns:
        `tile`: side of a tile in pixels, `across`: tiles per row and column of a sheet, `sheets`: base64 WebP files,
        `size`: per image [width, height] inside its tile, or None where there is no image.
    """
    native = max((max(image.size) for image in images if image is not None), default=0)
    if native == 0:
        return {"tile": 0, "across": ACROSS, "sheets": [], "size": [None] * len(images)}
    sheet_count = -(-len(images) // ACROSS**2)
    for side, quality in SETTINGS:
        tile = min(
            side, -(-native // 16) * 16
        )  # multiples of WebP's block, so that neighbours do not bleed into a tile
        first, sizes = _sheet(images[: ACROSS**2], tile, quality)
        if len(first) * sheet_count <= budget or (side, quality) == SETTINGS[-1]:
            break
    files = [first]
    for start in range(ACROSS**2, len(images), ACROSS**2):
        file, more = _sheet(images[start : start + ACROSS**2], tile, quality)
        files.append(file)
        sizes += more
    return {
        "tile": tile,
        "across": ACROSS,
        "sheets": [base64.b64encode(file).decode() for file in files],
        "size": sizes,
    }


def _sheet(images: Sequence[Image | None], tile: int, quality: int) -> tuple[bytes, list[list[int] | None]]:
    from PIL import Image

    sheet = np.full((-(-len(images) // ACROSS) * tile, ACROSS * tile, 3), 128, np.uint8)
    sizes: list[list[int] | None] = []
    for k, image in enumerate(images):
        if image is None:
            sizes.append(None)
            continue
        if max(image.size) > tile:
            image = image.copy()
            image.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        top, left = k // ACROSS * tile, k % ACROSS * tile
        # The rest of the tile repeats the picture's edge: compression smears across an edge, and here it finds none.
        rest = ((0, tile - image.height), (0, tile - image.width), (0, 0))
        sheet[top : top + tile, left : left + tile] = np.pad(np.asarray(image), rest, mode="edge")
        sizes.append([image.width, image.height])
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue(), sizes
