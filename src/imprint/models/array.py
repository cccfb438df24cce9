"""One column of fixed-shape arrays -> tensors.

Vectors are standardised. Image-shaped arrays become `[channel, height, width]`: uint8 ones stay uint8 as decoded images do,
floats stay floats. Arrays of any other rank are flattened and treated as vectors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor

from imprint.errors import ColumnError, LearnerError, SourceError
from imprint.models.encoder import MOST_FITTED_ROWS, Normalisation, Source, read, sample_rows, slices, write
from imprint.models.standardise import Standardise

# Elements that are held as float64 while statistics are computed, or per step of an encoding: 80 MB.
MOST_ELEMENTS = 10_000_000
CHANNELS = (1, 3, 4)


class ArrayEncoder:
    """One array column -> float32 `[element]`, or `[channel, height, width]` in uint8 or float32.

    A `[height, width]` array has one channel. With three axes the channel axis is the last one if its length is 1, 3 or 4,
    else the first one if its length is.
    """

    name = "array"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.shape: tuple[int, ...] = ()
        self.normalisation: Normalisation | None = None
        self.standardise: Standardise | None = None

    @property
    def frozen_features(self) -> bool:
        """Vectors are features, pixels are not."""
        return self.standardise is not None

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Learn each element's scale (vectors) or each channel's (images) from a seeded sample of these rows."""
        arrays = [column for column in corpus.roles.inputs if corpus.kinds[column] == "array"]
        if len(arrays) != 1 or corpus.shape is None:
            raise LearnerError(
                f"An array encoder reads one column of fixed-shape arrays; there are {len(arrays)}.",
                "Choose it with inputs=['COLUMN'].",
            )
        self.column, self.raw_shape = arrays[0], tuple(corpus.shape)
        self.layout = _layout(self.raw_shape)
        most = min(MOST_FITTED_ROWS, max(100, MOST_ELEMENTS // math.prod(self.raw_shape)))
        sampled = sample_rows(rows, most, self.seed)
        values = self._values(corpus.read(sampled, [self.column]))
        if self.layout == "vector":
            self.dtype = torch.float32
            self.standardise = Standardise.fit(values.reshape(len(values), -1).astype(np.float64))
            if not self.standardise.width:
                raise LearnerError(
                    f"Nothing can be learned from column '{self.column}': all its elements are constant.",
                    "Choose other inputs.",
                )
            self.shape = (self.standardise.width,)
            return self
        images = _channels_first(values, self.layout)
        self.shape = tuple(images.shape[1:])
        self.dtype = torch.uint8 if values.dtype == np.uint8 else torch.float32
        pixels = torch.from_numpy(np.ascontiguousarray(images)).double()
        if not pixels.isfinite().any():
            raise LearnerError(f"Column '{self.column}' holds no finite number.", "Choose other inputs.")
        pixels = pixels.nan_to_num(0.0, 0.0, 0.0)
        deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
        self.normalisation = (mean.float(), torch.where(deviation > 0, deviation, 1.0).float())
        return self

    def encode(self, frame: pl.DataFrame) -> Tensor:
        """Missing elements of a vector become its median, those of a float image zero."""
        encoded = torch.empty(len(frame), *self.shape, dtype=self.dtype)
        for part in slices(len(frame), max(1, MOST_ELEMENTS // math.prod(self.raw_shape))):
            values = self._values(frame[part])
            if self.standardise is not None:
                encoded[part] = self.standardise(values.reshape(len(values), -1).astype(np.float64))
            else:
                images = torch.from_numpy(np.ascontiguousarray(_channels_first(values, self.layout)))
                encoded[part] = images if images.dtype == torch.uint8 else images.float().nan_to_num(0.0, 0.0, 0.0)
        return encoded

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """A missing array cannot be encoded."""
        return ["missing" if absent else None for absent in frame[self.column].is_null()]

    def save(self, folder: Path) -> None:
        spec = {
            "seed": self.seed, "column": self.column, "raw_shape": list(self.raw_shape), "shape": list(self.shape),
            "layout": self.layout, "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip
        tensors = self.standardise.tensors() if self.standardise else {}
        if self.normalisation:
            tensors = {"mean": self.normalisation[0], "deviation": self.normalisation[1]}
        write(folder, "array", spec, tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec, tensors = read(folder)
        encoder = cls(spec["seed"])
        encoder.column, encoder.layout = spec["column"], spec["layout"]
        encoder.raw_shape, encoder.shape = tuple(spec["raw_shape"]), tuple(spec["shape"])
        encoder.dtype = torch.uint8 if spec["dtype"] == "uint8" else torch.float32
        if encoder.layout == "vector":
            encoder.standardise = Standardise(**tensors)
        else:
            encoder.normalisation = (tensors["mean"], tensors["deviation"])
        return encoder

    def _values(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        """`[example, *raw_shape]` in the column's own type."""
        if self.column not in frame.columns:
            raise ColumnError(
                f"Column '{self.column}' is missing; the model was trained with it.", "Give the arrays under this name."
            )
        series = frame[self.column]
        if series.null_count():
            raise SourceError(
                f"{series.null_count()} arrays in column '{self.column}' are missing.", "Drop these rows (corpus.drop)."
            )
        while series.dtype == pl.List:
            series = series.explode()
        values = series.to_numpy()
        wanted = len(frame) * math.prod(self.raw_shape)
        if values.size != wanted:
            raise SourceError(
                f"Column '{self.column}' holds {values.size} numbers in {len(frame)} rows; shape {self.raw_shape} asks for {wanted}.",
                "Give arrays of the shape that the model was trained with.",
            )
        # A copy: Polars' memory is read-only, and the tensors made from it are not.
        return values.reshape(len(frame), *self.raw_shape).copy()


def _layout(shape: tuple[int, ...]) -> str:
    """vector | plane (one channel) | last | first (where the channels are)

    >>> [_layout(s) for s in [(64,), (28, 28), (32, 32, 3), (3, 32, 32), (7, 8, 9)]]
    ['vector', 'plane', 'last', 'first', 'vector']
    """
    if len(shape) == 2:
        return "plane"
    if len(shape) == 3 and shape[-1] in CHANNELS:
        return "last"
    return "first" if len(shape) == 3 and shape[0] in CHANNELS else "vector"


def _channels_first(values: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    if layout == "plane":
        return values[:, None]
    return values.transpose(0, 3, 1, 2) if layout == "last" else values
