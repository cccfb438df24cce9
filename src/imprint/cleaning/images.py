"""Images: near duplicates, blank, dark and bright ones, odd sizes and shapes. All from one decoding pass.

Each image is decoded once to a grey thumbnail of 16 x 16, from which come its brightness, its contrast and a perceptual descriptor: the
low frequencies of the discrete cosine transform, less the mean, at length 1 (the real-valued pHash; Zauner 2010). Candidate copies
are decoded again, in colour and at 32 x 32, and compared by correlation.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Int, UInt8

from imprint.cleaning.flags import Flags
from imprint.cleaning.near import CORRELATION, correlation, distinct_pairs, near_pairs, similarities
from imprint.cleaning.texts import judge_pairs, representatives
from imprint.methods import Derived, method
from imprint.recording.needs import Table

if TYPE_CHECKING:
    from imprint.corpus import Corpus

SIDE, COMPARED, FREQUENCIES = 16, 32, 8
# Images that a thread decodes before it asks for more: one by one, asking costs as much as decoding a small one.
PIECE = 64
# An image whose grey values spread by less than this (of 255) shows nothing.
BLANK = 2.0
# Nearly all of an image is darker, or brighter, than this; and it is rare for the corpus to be so.
DARK, BRIGHT, RARE = 30, 225, 0.02
# How many times smaller, larger or more oblong than the median image, and how rare that must be.
ODD = 2.0
# Share of the blank images with one label from which that label goes with being blank.
ONE_LABEL = 0.9


@dataclass(frozen=True)
class Thumbnails:
    """What the decoding pass keeps of every row of a corpus; rows that cannot be decoded have width 0.

    Attributes:
        grey: `[row, 16, 16]`.
        width, height: Of the original, in pixels.
    """

    grey: UInt8[np.ndarray, "row 16 16"]
    width: Int[np.ndarray, " row"]
    height: Int[np.ndarray, " row"]


def thumbnails(corpus: Corpus) -> Thumbnails:
    """Decode every image once, in threads (the decoders release the interpreter's lock)."""
    column = _column(corpus)
    found = Thumbnails(
        np.zeros((len(corpus), SIDE, SIDE), np.uint8), np.zeros(len(corpus), np.int32), np.zeros(len(corpus), np.int32)
    )

    def fill(rows: Int[np.ndarray, " row"], some: pl.DataFrame) -> None:
        for row, encoded in zip(rows.tolist(), some[column], strict=True):
            found.grey[row], found.width[row], found.height[row] = _grey(encoded)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows, frame in corpus.batches(None, [column], size=1024):
            pieces = range(0, len(rows), PIECE)
            done = pool.map(fill, [rows[at : at + PIECE] for at in pieces], frame.iter_slices(PIECE))
            deque(done, maxlen=0)  # waits, and raises what a thread raised
    return found


THUMBNAILS = Derived("thumbnails", function=thumbnails, needs=(Table(),), rowwise=False)


def _blank(corpus: Corpus, row: Int[np.ndarray, " example"]) -> tuple[np.ndarray, float, str, Sequence[str]]:
    words = "blank: all pixels are nearly the same"
    labels = corpus.target.gather(row)
    if len(row) > 1 and labels.dtype != pl.List:
        label, count = labels.value_counts(sort=True).row(0)
        if count >= ONE_LABEL * len(row):
            return (
                row,
                0.5,
                "review",
                [f"{words}, and so are {len(row) - 1} others, of which {label!r} is the usual label"] * len(row),
            )
    return row, 0.9, "drop", [words] * len(row)


def _column(corpus: Corpus) -> str:
    return next(name for name, kind in corpus.kinds.items() if kind == "image")


def _grey(encoded: bytes) -> tuple[np.ndarray, int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            image.draft("L", (2 * SIDE, 2 * SIDE))
            return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)), width, height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return np.zeros((SIDE, SIDE), np.uint8), 0, 0


def _colour(encoded: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB").resize((COMPARED, COMPARED), Image.Resampling.BOX), np.float32).ravel()


def descriptors(grey: UInt8[np.ndarray, "row 16 16"]) -> Float[np.ndarray, "row frequency"]:
    """Low frequencies of the cosine transform without the mean, at length 1; zeros for a blank image."""
    from scipy.fft import dctn

    low = dctn(grey.astype(np.float32), axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    low = low.reshape(len(grey), -1)[:, 1:]
    length = np.linalg.norm(low, axis=1, keepdims=True)
    return low / np.where(length > BLANK * SIDE, length, np.inf)


@method(
    "clean", "near-duplicate-images", kind="duplicate", modalities=["image"], needs=[Table(), THUMBNAILS],
    higher="as for exact duplicates, times the correlation of pixels",
    source="perceptual hash: Zauner 2010; duplicates in CIFAR: Barz, Denzler 2020, arXiv:1902.00423",
)  # fmt: skip
def near_duplicate_images(corpus: Corpus, thumbnails: Thumbnails) -> Flags:
    """Images whose pixels correlate at 0.97 or more with another one's and that are much nearer to it than to others.

    Brightness, contrast and the way of encoding do not count; cropping, moving and turning do.
    """
    rows = representatives(corpus)
    vectors = descriptors(thumbnails.grey[rows])
    shown = np.flatnonzero(vectors.any(1))
    pairs = distinct_pairs(corpus, rows[shown], near_pairs(vectors[shown], equal=0.03))
    column = _column(corpus)

    def similarity(frame: pl.DataFrame, local: Int[np.ndarray, "pair two"]) -> Float[np.ndarray, " pair"]:
        return correlation(np.stack([_colour(encoded) for encoded in frame[column]]), local)

    return judge_pairs(corpus, pairs, similarities(corpus, pairs, [column], similarity), CORRELATION)


@method(
    "clean", "image-quality", kind="outlier", modalities=["image"], needs=[Table(), THUMBNAILS],
    higher="blank (0.9; 0.5 where one label goes with it), nearly all dark or bright (0.6), odd shape or size (from 0.3, by how odd)",
    source="as CleanVision, Cleanlab 2022",
)  # fmt: skip
def image_quality(corpus: Corpus, thumbnails: Thumbnails) -> Flags:
    """Images that show nothing, that are nearly all dark or bright, or whose size or shape is far from the others'.

    - blank: the grey values spread by less than 2 of 255; to be dropped, unless blank images nearly all share one label: then being
      blank says something (the letter I of a heavy typeface is a filled square), and they are to be looked at.
    - dark, bright: 95 % of the thumbnail below 30, or above 225, in a corpus where fewer than 2 % are so.
    - odd: area or aspect ratio at least twice or at most half the median, in a corpus where fewer than 2 % are so.
    """
    read = thumbnails.width > 0
    grey = thumbnails.grey.reshape(len(read), -1)
    blank = read & (grey.std(1) < BLANK)
    dark = read & ~blank & (np.quantile(grey, 0.95, axis=1) < DARK)
    bright = read & ~blank & (np.quantile(grey, 0.05, axis=1) > BRIGHT)
    width, height = np.maximum(thumbnails.width, 1).astype(float), np.maximum(thumbnails.height, 1).astype(float)
    found: list[tuple[np.ndarray, float | np.ndarray, str, Sequence[str]]] = [_blank(corpus, np.flatnonzero(blank))]
    for flagged, words in ((dark, "nearly all dark"), (bright, "nearly all bright")):
        if flagged.sum() < RARE * max(1, read.sum()):
            found.append((np.flatnonzero(flagged), 0.6, "review", [words] * int(flagged.sum())))
    for value, name in ((width * height, "area"), (width / height, "aspect ratio")):
        times = value / np.median(value[read]) if read.any() else value
        odd = read & (np.abs(np.log(times)) >= np.log(ODD))
        if odd.sum() < RARE * max(1, read.sum()):
            row = np.flatnonzero(odd)
            oddity = 1 - 0.7 * np.log(ODD) / np.abs(np.log(times[row]))
            sizes = [
                f"{w} x {h} pixels: {name} {t:.2g} times the median"
                for w, h, t in zip(thumbnails.width[row], thumbnails.height[row], times[row], strict=True)
            ]
            found.append((row, oddity, "review", sizes))
    return Flags(
        row=np.concatenate([row for row, *_ in found]),
        severity=np.concatenate([np.broadcast_to(severity, len(row)) for row, severity, *_ in found]).astype(
            np.float32
        ),
        suggestion=[suggestion for row, _, suggestion, _ in found for _ in row],
        evidence=[words for *_, many in found for words in many],
        over="corpus",
    )
