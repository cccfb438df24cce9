"""Previews: what is embedded looks like its source and keeps to its budget."""

from __future__ import annotations

import base64
import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from materials import tiny
from PIL import Image

from imprint.reporting.previews import SHORTEST_CUT, cut_to_fit, previews
from imprint.reporting.thumbnails import sheets, small


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def tile(packed: dict, k: int) -> np.ndarray:
    """Cut picture `k` out of its sheet, as the page does."""
    across, side = packed["across"], packed["tile"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed["sheets"][k // across**2]))))
    (width, height), y, x = packed["size"][k], k % across**2 // across * side, k % across * side
    return sheet[y : y + height, x : x + width]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(1, 60_000))
def test_texts_are_cut_at_one_length_that_fits(lengths: list[int], budget: int) -> None:
    texts, cut = cut_to_fit(["x" * length for length in lengths], budget)
    assert [len(text) + lost for text, lost in zip(texts, cut, strict=True)] == lengths
    longest = max(map(len, texts))
    total = sum(map(len, texts))
    assert total <= budget or longest <= SHORTEST_CUT
    if any(cut):
        assert {len(text) for text, lost in zip(texts, cut, strict=True) if lost} == {longest}
        wider = sum(min(length, longest + 1) for length in lengths)
        assert wider > budget  # one character more would not fit


def test_a_tile_is_its_picture_whatever_its_neighbours_are() -> None:
    rng = np.random.default_rng(0)
    # Smooth pictures of every brightness, more than one sheet of them.
    arrays = [
        np.full((28, 28), v, np.uint8) // 2 + np.arange(28, dtype=np.uint8)[:, None] * 2
        for v in rng.integers(0, 150, 300)
    ]
    packed = sheets([small(encoded(array)) for array in arrays], budget=10**7)
    assert len(packed["sheets"]) == 2
    for k in (0, 15, 16, 255, 256, 299):
        # WebP is lossy: on such pictures a few grey levels of 256.
        assert np.abs(tile(packed, k)[:, :, 0].astype(int) - arrays[k]).mean() < 4


def test_a_wide_picture_keeps_its_shape() -> None:
    packed = sheets([small(encoded(np.zeros((50, 200, 3), np.uint8)))], budget=10**6)
    assert packed["size"] == [[96, 24]]


def test_many_photos_keep_to_the_budget() -> None:
    rng = np.random.default_rng(1)
    photos = [small(encoded(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8), "JPEG")) for _ in range(64)]
    roomy, tight = sheets(photos, 10**7), sheets(photos, 90_000)
    assert roomy["tile"] == 96
    assert sum(map(len, tight["sheets"])) * 3 / 4 <= 90_000


@pytest.mark.parametrize("source", [b"", b"not an image", encoded(np.zeros((9, 9), np.uint8))[:40], None, np.zeros(7)])
def test_what_is_no_picture_has_no_thumbnail(source: object) -> None:
    assert small(source) is None


def test_arrays_with_channels_first_or_last_and_floats_are_pictures() -> None:
    red = np.zeros((3, 12, 10))
    red[0] = 1.0
    for array in (red, red.transpose(1, 2, 0)):
        picture = small(array)
        assert picture is not None
        assert picture.size == (10, 12)
        assert picture.getpixel((3, 3)) == (255, 0, 0)


def test_transparent_pictures_lie_on_white() -> None:
    picture = small(encoded(np.zeros((8, 8, 4), np.uint8)))
    assert picture is not None
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_rows_are_asked_for_in_blocks_and_in_order() -> None:
    asked: list[int] = []

    def read(ids: list[str]) -> pl.DataFrame:
        asked.append(len(ids))
        return pl.DataFrame({"a": [f"value of {one}" for one in ids], "b": [None] * len(ids)})

    ids = [f"id {k}" for k in range(600)]
    found = previews(tiny(read=read, kinds={"a": "categorical", "b": "numeric"}), ids)
    assert asked == [256, 256, 88]
    assert found["cells"] == [[f"value of {one}", None] for one in ids]
    assert "images" not in found
