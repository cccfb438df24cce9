"""Images: pixel-exact decoding, sizes, colours, orientation, transparency, broken files, and life without Pillow."""

from __future__ import annotations

import builtins
import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from imprint import models
from imprint.errors import LearnerError, MissingExtra, SourceError
from imprint.models.image import ImageEncoder

from . import fakes


def of(*files: bytes | None) -> fakes.FakeCorpus:
    return fakes.FakeCorpus(
        pl.DataFrame({"image": list(files)}, schema={"image": pl.Binary}), {"image": "image"}, "image"
    )


def fit(corpus: fakes.FakeCorpus, **options: Any) -> ImageEncoder:
    return ImageEncoder(**options).fit(corpus, np.arange(len(corpus.data)))


def test_pixels_of_agreeing_images_are_untouched(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    corpus = of(*map(fakes.encoded, pixels))
    encoder = fit(corpus)
    assert encoder.shape == (3, 12, 10)
    assert torch.equal(encoder.encode(corpus.data), torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    mean, deviation = encoder.normalisation or pytest.fail("no statistics")
    assert np.allclose(mean, pixels.mean((0, 1, 2)), atol=1e-3)
    assert np.allclose(deviation, pixels.std((0, 1, 2)), atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "longest", "shape"),
    [
        ([(12, 10)] * 3, 64, (12, 10)),
        ([(100, 50)] * 3, 64, (64, 32)),  # all agree, but too long: scaled down as a whole
        ([(20, 20), (40, 20), (40, 40)], 64, (40, 20)),  # medians of heights and widths
        ([(300, 200), (400, 200)], 96, (96, 55)),
        ([(1, 900)], 64, (1, 64)),
    ],
)
def test_sizes(sizes: list[tuple[int, int]], longest: int, shape: tuple[int, int]) -> None:
    corpus = of(*(fakes.encoded(np.zeros((*size, 3), dtype=np.uint8)) for size in sizes))
    encoder = fit(corpus, longest=longest)
    assert encoder.shape == (3, *shape)
    assert encoder.encode(corpus.data).shape == (len(sizes), 3, *shape)


def test_colour_goes_by_the_majority() -> None:
    grey, colour = fakes.encoded(np.full((4, 4), 9, np.uint8)), fakes.encoded(np.full((4, 4, 3), 90, np.uint8))
    assert fit(of(grey, grey, colour)).shape == (1, 4, 4)
    mixed = of(grey, colour, colour)
    encoder = fit(mixed)
    assert encoder.shape == (3, 4, 4)
    assert encoder.encode(mixed.data)[0].unique().tolist() == [9]


def test_exif_orientation_is_applied() -> None:
    """Orientation 6: the camera was turned, the stored picture has to be rotated clockwise."""
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[0, 0] = 255  # top left as stored, top right as seen
    exif = Image.Exif()
    exif[0x0112] = 6
    corpus = of(fakes.encoded(stored, "PNG", exif=exif))
    encoded = fit(corpus).encode(corpus.data)
    assert encoded.shape == (1, 3, 3, 2)
    assert encoded[0, 0].tolist() == [[0, 255], [0, 0], [0, 0]]


def test_transparency_is_laid_on_white_and_sixteen_bits_are_scaled() -> None:
    clear = of(fakes.encoded(np.zeros((4, 4, 4), np.uint8)))
    assert fit(clear).encode(clear.data).unique().tolist() == [255]
    deep = of(fakes.encoded(np.full((4, 4), 128 * 257, np.uint16)))
    assert fit(deep).encode(deep.data).unique().tolist() == [128]


def test_palettes_and_bitmaps_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(buffer, "PNG")
    bitmap = of(buffer.getvalue())
    assert fit(bitmap).encode(bitmap.data).flatten().tolist() == [0, 255]
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), (200, 10, 30), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE).save(
        buffer, "GIF"
    )
    palette = of(buffer.getvalue())
    assert fit(palette).encode(palette.data)[0, :, 0, 0].tolist() == [200, 10, 30]


def test_broken_files_are_told_apart_and_named() -> None:
    good = fakes.encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    corpus = of(good, None, b"", b"<html>404</html>", good[: len(good) // 2])
    encoder = fit(corpus)
    reasons = encoder.broken(corpus.data)
    assert reasons[:4] == [None, "empty", "empty", "not an image, or of an unknown format"]
    assert reasons[4] is not None
    with pytest.raises(SourceError, match="row 1 of this batch"):
        encoder.encode(corpus.data)
    with pytest.raises(SourceError, match="None of 2 training images"):
        fit(of(b"text", None))


def test_a_decompression_bomb_is_broken_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = of(fakes.encoded(np.zeros((8, 8, 3), np.uint8)))
    encoder = fit(corpus)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert "decompression bomb" in (encoder.broken(corpus.data)[0] or "")


def test_without_pillow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> ModuleType:
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return load(name, *rest, **more)

    for module in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    corpus = fakes.FakeCorpus(pl.DataFrame({"image": [b""]}), {"image": "image"}, "image")
    with pytest.raises(MissingExtra, match=r"pip install 'imprint\[image\]'"):
        models.encoder_for(corpus)
    # Tables need none of it.
    table = fakes.table(40)
    assert models.encoder_for(table).fit(table, np.arange(40)).shape


def test_two_image_columns_are_refused() -> None:
    file = fakes.encoded(np.zeros((2, 2, 3), np.uint8))
    corpus = fakes.FakeCorpus(pl.DataFrame({"a": [file], "b": [file]}), {"a": "image", "b": "image"}, "image")
    with pytest.raises(LearnerError, match="there are 2"):
        models.encoder_for(corpus).fit(corpus, np.arange(1))
