"""Texts -> feature vectors: one or more blocks of features side by side.

The default puts static word vectors (what words mean) beside a latent semantic analysis (what matters in this corpus).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imprint.errors import ColumnError, LearnerError, nearest
from imprint.models import wordllama
from imprint.models.encoder import MOST_FITTED_ROWS, Normalisation, Source, read, sample_rows, slices, write
from imprint.models.sentences import PREFIX, Sentences
from imprint.models.tfidf import Tfidf
from imprint.models.wordllama import Wordllama

BLOCKS: dict[str, type[Wordllama] | type[Tfidf]] = {"wordllama": Wordllama, "tfidf": Tfidf}
CHUNK = 16_384


class Block(Protocol):
    """A way to turn texts into vectors."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def fit(self, texts: list[str]) -> Self: ...

    def vectors(self, texts: list[str]) -> Float[Tensor, "example width"]: ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]: ...


def default_name() -> str:
    """The best encoder that is installed."""
    return "wordllama+tfidf" if wordllama.installed() else "tfidf"


def known(name: str) -> bool:
    """Is this the name of a text encoder (or of several, joined by '+')?"""
    return all(part in (*BLOCKS, "minilm") or part.startswith(PREFIX) for part in name.split("+"))


class TextEncoder:
    """Text columns (joined by line breaks) -> one float32 vector `[feature]`.

    Each block is centred on its mean over the training texts and divided by its overall standard deviation; an empty text is
    the zero vector, that is, the average text.

    Args:
        name: Block names joined by "+": "wordllama", "tfidf", "minilm", "sentence-transformers:NAME-OR-PATH".
        seed: Of the sample and of the SVD.
    """

    frozen_features = True
    normalisation: Normalisation | None = None

    def __init__(self, name: str = "", seed: int = 0) -> None:
        self.name, self.seed = name or default_name(), seed
        self.shape: tuple[int, ...] = ()
        if not known(self.name):
            raise LearnerError(f"Unknown text encoder '{name}'.", nearest(name, [*BLOCKS, "minilm", f"{PREFIX}NAME"]))
        self.blocks: list[Block] = [
            BLOCKS[part](seed) if part in BLOCKS else Sentences(part, seed) for part in self.name.split("+")
        ]

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Fit each block, then its centre and scale, on at most 50,000 of these rows."""
        self.columns = list(corpus.roles.inputs)
        texts = _texts(corpus.read(sample_rows(rows, MOST_FITTED_ROWS, self.seed), self.columns), self.columns)
        texts = [text for text in texts if text]
        if not texts:
            raise LearnerError(f"All training texts in {self.columns} are empty.", "Choose other inputs.")
        means, scales = [], []
        for block in self.blocks:
            vectors = block.fit(texts).vectors(texts[:CHUNK])
            means.append(vectors.mean(0))
            spread = float((vectors - means[-1]).square().mean().sqrt())
            # All texts alike (or a single one): there is nothing to scale.
            scales.append(torch.full((block.width,), spread if spread > 0 else 1.0))
        self.mean, self.scale = torch.cat(means), torch.cat(scales)
        self.shape = (len(self.mean),)
        return self

    def encode(self, frame: pl.DataFrame) -> Float[Tensor, "example feature"]:
        texts = _texts(frame, self.columns)
        encoded = torch.empty(len(texts), *self.shape)
        for part in slices(len(texts), CHUNK):
            some = texts[part]
            vectors = torch.cat([block.vectors(some) for block in self.blocks], dim=1)
            filled = torch.tensor([bool(text) for text in some])
            encoded[part] = (vectors - self.mean) / self.scale * filled[:, None]
        return encoded

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """Every text can be encoded, an empty one as the zero vector."""
        return [None] * len(frame)

    def save(self, folder: Path) -> None:
        states = [block.state() for block in self.blocks]
        tensors = {f"{i}.{name}": tensor for i, (_, held) in enumerate(states) for name, tensor in held.items()}
        spec = {"name": self.name, "seed": self.seed, "columns": self.columns, "blocks": [part for part, _ in states]}
        write(folder, "text", spec, {"mean": self.mean, "scale": self.scale, **tensors})

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec, tensors = read(folder)
        encoder = cls.__new__(cls)
        encoder.name, encoder.seed, encoder.columns = spec["name"], spec["seed"], spec["columns"]
        encoder.blocks = []
        for i, part in enumerate(encoder.name.split("+")):
            held = {name.removeprefix(f"{i}."): tensor for name, tensor in tensors.items() if name.startswith(f"{i}.")}
            encoder.blocks.append(BLOCKS.get(part, Sentences).restore(spec["blocks"][i], held))
        encoder.mean, encoder.scale = tensors["mean"], tensors["scale"]
        encoder.shape = (len(encoder.mean),)
        return encoder


def _texts(frame: pl.DataFrame, columns: list[str]) -> list[str]:
    """One stripped text per row; a missing cell counts as empty."""
    if absent := [column for column in columns if column not in frame.columns]:
        raise ColumnError(
            f"Column '{absent[0]}' is missing; the model was trained with it.", f"Give all of: {', '.join(columns)}."
        )
    joined = pl.concat_str(pl.col(columns).cast(pl.String), separator="\n", ignore_nulls=True)
    return frame.select(joined.fill_null("").str.strip_chars().alias("text"))["text"].to_list()
