"""Looking at encoded images: do they decode, how large are they, and what is their content's hash."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from imprint.corpus.hashing import digest
from imprint.errors import MissingExtra

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")


@dataclass(frozen=True)
class Look:
    """What is known of one encoded image. `reason` says why it cannot be used, or is None."""

    hash: int
    width: int
    height: int
    reason: str | None


def pillow() -> Any:
    """Pillow's Image module; `MissingExtra` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("image", "Reading images") from error
    return Image


def look(data: bytes | None) -> Look:
    """Decode an image once to see that it is whole.

    JPEGs are decoded at an eighth of their size, which reads every byte at a fraction of the cost. Pillow's limit on the
    number of pixels (a guard against decompression bombs) stays as it is.
    """
    if data is None:
        return Look(0, 0, 0, "image missing")
    if not data:
        return Look(0, 0, 0, "image is empty (0 bytes)")
    image_module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with image_module.open(io.BytesIO(data)) as image:
                width, height = image.size
                image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
                image.load()
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        limit = image_module.MAX_IMAGE_PIXELS
        return Look(
            0,
            0,
            0,
            f"image has more pixels than Pillow's limit of {limit:,} (a decompression bomb?); raise PIL.Image.MAX_IMAGE_PIXELS to allow it",
        )
    except image_module.UnidentifiedImageError:
        return Look(0, 0, 0, f"not an image ({len(data):,} bytes beginning {data[:8]!r})")
    except Exception as error:  # a decoder may raise anything on damaged bytes (struct.error, SyntaxError, ...)
        return Look(0, 0, 0, f"image cannot be decoded: {str(error) or type(error).__name__}")
    return Look(digest(data), width, height, None)


def look_at_all(sources: Iterable[Any], read: Callable[[Any], bytes | None]) -> Iterator[Look]:
    """Looks at many images, in order, on a few threads (decoding lets go of the interpreter's lock).

    Args:
        sources: What `read` takes, one per image.
        read: Bytes of one image, or None if there are none; an `OSError` becomes the reason.
    """
    pillow()

    def one(source: Any) -> Look:
        try:
            return look(read(source))
        except OSError as error:
            return Look(0, 0, 0, f"file cannot be read: {error.strerror or error}")

    def several(some: list[Any]) -> list[Look]:
        return [one(source) for source in some]

    # A few at a time: handing over one small image costs as much as decoding it.
    rest = iter(sources)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for looks in threads.map(several, iter(lambda: list(islice(rest, 16)), [])):
            yield from looks


def read_file(root: Path) -> Callable[[str], bytes]:
    """Reader of image files under a folder."""
    return lambda relative: (root / relative).read_bytes()
