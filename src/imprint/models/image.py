"""Images -> uint8 tensors of one size.

Pixels stay uint8 in memory (a quarter of float32); the module subtracts the training images' mean and divides by their
standard deviation on the way in. Decoding is Pillow's, in threads: it releases the GIL.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from imprint.errors import ColumnError, LearnerError, MissingExtra, SourceError
from imprint.models.encoder import Normalisation, Source, read, sample_rows, slices, write

LONGEST = 64
# Sizes and colours are settled by this many headers, means and deviations by this many pictures.
MOST_HEADERS, MOST_PICTURES = 5_000, 2_000
CHUNK = 4096
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}

Result = TypeVar("Result")


class ImageEncoder:
    """Encoded image bytes -> uint8 `[channel, height, width]`.

    Images keep their size if all agree and none is longer than `longest`. Otherwise all are resized to one size: the median
    width and height of the training images, scaled down so that the longer of the two is at most `longest`. They become
    greyscale if most training images are. EXIF orientation is applied, transparency is laid on white.

    Args:
        longest: The most pixels along either side.
        seed: Of the sample of images that sizes, colours and means are taken from.
    """

    name = "image"
    frozen_features = False

    def __init__(self, longest: int = LONGEST, seed: int = 0) -> None:
        if longest < 1:
            raise LearnerError(
                f"An image cannot be {longest} pixels long.", "Give a size of 1 or more, such as image:96."
            )
        pillow()
        self.longest, self.seed = longest, seed
        self.shape: tuple[int, ...] = ()
        self.normalisation: Normalisation | None = None

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Settle size and colour, then measure mean and standard deviation of each channel."""
        images = [column for column in corpus.roles.inputs if corpus.kinds[column] == "image"]
        if len(images) != 1:
            raise LearnerError(
                f"An image encoder reads one image column; there are {len(images)}.",
                "Choose it with inputs=['COLUMN'].",
            )
        self.column = images[0]
        seen: list[tuple[int, int, str]] = []
        sampled = sample_rows(rows, MOST_HEADERS, self.seed)
        for part in slices(len(sampled), 512):
            contents = corpus.read(sampled[part], [self.column])[self.column].to_list()
            seen += [header for header in _threaded(_header, contents) if header is not None]
        if not seen:
            raise SourceError(
                f"None of {len(sampled)} training images in column '{self.column}' can be read.", "Check the files."
            )
        heights, widths = (np.array([header[axis] for header in seen]) for axis in (0, 1))
        grey = Counter(header[2] in GREY_MODES for header in seen).most_common(1)[0][0]
        height, width = float(np.median(heights)), float(np.median(widths))
        shrink = min(1.0, self.longest / max(height, width))
        self.shape = (1 if grey else 3, max(1, round(height * shrink)), max(1, round(width * shrink)))
        self.normalisation = self._measure(corpus, sample_rows(rows, MOST_PICTURES, self.seed))
        return self

    def encode(self, frame: pl.DataFrame) -> UInt8[Tensor, "example channel height width"]:
        """Decode and resize. An unreadable image raises `SourceError`; `broken` finds them beforehand."""
        contents = self._contents(frame)
        encoded = torch.empty(len(contents), *self.shape, dtype=torch.uint8)
        for part in slices(len(contents), CHUNK):
            decoded = _threaded(self._decode, contents[part])
            if bad := [(row, one) for row, one in enumerate(decoded) if isinstance(one, str)]:
                row, reason = bad[0]
                raise SourceError(
                    f"The image in row {part.start + row} of this batch cannot be read: {reason}.",
                    "Drop it (corpus.drop), or set aside unreadable rows by opening the source again.",
                )
            encoded[part] = torch.from_numpy(np.stack(decoded))
        return encoded

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """Decodes each image fully, so that a truncated one is found, too."""
        decoded = _threaded(self._decode, self._contents(frame))
        return [one if isinstance(one, str) else None for one in decoded]

    def save(self, folder: Path) -> None:
        assert self.normalisation is not None, "fit before save"
        mean, deviation = self.normalisation
        spec = {"longest": self.longest, "seed": self.seed, "column": self.column, "shape": list(self.shape)}
        write(folder, "image", spec, {"mean": mean, "deviation": deviation})

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec, tensors = read(folder)
        encoder = cls(spec["longest"], spec["seed"])
        encoder.column, encoder.shape = spec["column"], tuple(spec["shape"])
        encoder.normalisation = (tensors["mean"], tensors["deviation"])
        return encoder

    def _contents(self, frame: pl.DataFrame) -> list[bytes | None]:
        if self.column not in frame.columns:
            raise ColumnError(
                f"Column '{self.column}' is missing; the model was trained with it.", "Give the images under this name."
            )
        return frame[self.column].to_list()

    def _measure(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Normalisation:
        contents = corpus.read(rows, [self.column])[self.column].to_list()
        decoded = [one for one in _threaded(self._decode, contents) if not isinstance(one, str)]
        return channel_statistics(torch.from_numpy(np.stack(decoded)))

    def _decode(self, content: bytes | None) -> UInt8[np.ndarray, "channel height width"] | str:
        """The picture, or the reason why there is none."""
        channels, height, width = self.shape
        if not content:
            return "empty"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pillow().Image.DecompressionBombWarning)
                with pillow().Image.open(io.BytesIO(content)) as opened:
                    image = _plain(pillow().ImageOps.exif_transpose(opened), grey=channels == 1)
                    if image.size != (width, height):
                        image = image.resize((width, height), pillow().Image.Resampling.BILINEAR)
                    pixels = np.asarray(image)
        except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
            return _reason(error)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def channel_statistics(images: UInt8[Tensor, "example channel height width"]) -> Normalisation:
    """Mean and standard deviation of each channel; a constant channel gets a deviation of 1.

    >>> channel_statistics(torch.tensor([[[[0, 4]]]], dtype=torch.uint8))
    (tensor([2.]), tensor([2.]))
    """
    values = images.double()
    deviation, mean = torch.std_mean(values, dim=(0, 2, 3), correction=0)
    return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()


def pillow() -> Any:
    """The package PIL with the two modules used here, imported when first needed."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise MissingExtra("image", "Reading images") from None
    return PIL


def _plain(image: Any, grey: bool) -> Any:
    """One of the modes L and RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Deep greyscale: 16 bits are scaled to 8, which convert() would clip.
        values = np.asarray(image).astype(np.float64)
        top = 65_535 if values.max() > 255 else 255
        image = pillow().Image.fromarray(np.clip(values * 255 / top, 0, 255).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = pillow().Image.new("RGBA", coloured.size, "white")
        image = pillow().Image.alpha_composite(white, coloured)
    return image.convert("L" if grey else "RGB")


def _header(content: bytes | None) -> tuple[int, int, str] | None:
    """Height, width (as seen, after EXIF rotation) and mode, without decoding the pixels; None for a damaged file."""
    if not content:
        return None
    try:
        with pillow().Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
            return (width, height, image.mode) if turned else (height, width, image.mode)
    except Exception:  # as in _decode; broken() tells the reason
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, pillow().UnidentifiedImageError):
        return "not an image, or of an unknown format"
    text = str(error).strip().split("\n")[0]
    return text or type(error).__name__


def _threaded(function: Callable[[Any], Result], items: list[Any]) -> list[Result]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))
