"""Texts -> token codes, for a model that reads a text word by word.

A word that occurs at least twice in the training texts has a code of its own. All others share `BUCKETS` codes, told apart by a hash
(out-of-vocabulary buckets, as in TensorFlow's StringLookup); as words that occur once in the training texts are among them, the model
learns what a rare word is worth. There is one token per word, so that a score of a token is the score of a word. A word is a run of
letters, digits and underscores, apostrophes inside it included; a sign is a word, and so is each character of Chinese and Japanese, which
put no space between words.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor

from imprint.errors import ColumnError, LearnerError
from imprint.models.encoder import MOST_FITTED_ROWS, Normalisation, Source, read, sample_rows, write

# Codes: what fills a row after its last word, a text without words, the buckets, then the words, the most frequent first.
PADDING, EMPTY, FIRST_BUCKET = 0, 1, 2
BUCKETS = 256
FIRST_WORD = FIRST_BUCKET + BUCKETS
MOST_CODES = 8192
# A row has as many places as 19 of 20 training texts need, but no more than this: attention takes the square of it.
LONGEST, COVERED = 128, 0.95
# Beyond this a text is not looked at: it has had its `LONGEST` words long before.
MOST_CHARACTERS = 20_000
# Characters of scripts that are written without spaces between words.
SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}"
LETTER = rf"[\w--[{SINGLE}]]"
WORD = rf"[{SINGLE}]|{LETTER}+(?:['\x{{2019}}]{LETTER}+)*|[^\w\s]"


class Span(NamedTuple):
    """A word of a text: from character `start` up to, not including, `end`."""

    word: str
    start: int
    end: int


class TokenEncoder:
    """Text columns (joined by line breaks) -> int64 codes `[length]`, 0 after the last word. Case is ignored.

    Args:
        seed: Of the sample that the vocabulary is learned from.

    Attributes:
        codes: How many codes there are.
        vocabulary: The words that have codes of their own.
    """

    name = "tokens"
    frozen_features = False
    normalisation: Normalisation | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.shape: tuple[int, ...] = ()

    @property
    def codes(self) -> int:
        return FIRST_WORD + len(self.vocabulary)

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Learn the vocabulary and the length from at most 50,000 of these rows."""
        self.columns = list(corpus.roles.inputs)
        said = _words(self.texts(corpus.read(sample_rows(rows, MOST_FITTED_ROWS, self.seed), self.columns)))
        lengths = said.list.len().to_numpy()
        lengths = lengths[lengths > 0]
        if not len(lengths):
            raise LearnerError(f"No training text in {self.columns} has a word.", "Choose other inputs.")
        # A word must occur twice to be learned from, except where there are too few texts for that.
        least = 2 if len(lengths) >= 100 else 1
        counts = said.explode().drop_nulls().str.to_lowercase().value_counts(name="count")
        word = counts.columns[0]
        known = counts.filter(pl.col("count") >= least).sort(["count", word], descending=[True, False])
        self._learned(known[word].head(MOST_CODES - FIRST_WORD).to_list(), int(np.ceil(np.quantile(lengths, COVERED))))
        return self

    def encode(self, frame: pl.DataFrame) -> Int64[Tensor, "example length"]:
        said = _words(self.texts(frame)).list.head(self.shape[0])
        filled = torch.from_numpy(np.arange(self.shape[0]) < said.list.len().to_numpy()[:, None])
        words = said.explode().drop_nulls().str.to_lowercase()
        encoded = torch.zeros(len(frame), *self.shape, dtype=torch.int64)
        if len(words):
            unique = words.unique()
            own = pl.Series([self._codes.get(word, _bucket(word)) for word in unique], dtype=pl.Int64)
            encoded[filled] = words.replace_strict(unique, own, return_dtype=pl.Int64).to_torch()
        encoded[~filled.any(1), 0] = EMPTY
        return encoded

    def texts(self, frame: pl.DataFrame) -> pl.Series:
        """What is read of each row; a missing cell counts as empty."""
        if absent := [column for column in self.columns if column not in frame.columns]:
            raise ColumnError(
                f"Column '{absent[0]}' is missing; the model was trained with it.",
                f"Give all of: {', '.join(self.columns)}.",
            )
        joined = pl.concat_str(pl.col(self.columns).cast(pl.String), separator="\n", ignore_nulls=True)
        return frame.select(joined.fill_null("").alias("text"))["text"]

    def spans(self, frame: pl.DataFrame) -> list[list[Span]]:
        """For each row the places of its tokens in its text (`texts`), as many as it has codes; a text without words has an empty one."""
        texts = self.texts(frame)
        found = []
        for text, words in zip(texts, _words(texts).list.head(self.shape[0]).to_list(), strict=True):
            # All that lies between words is white: a word begins where it is first found after the one before it.
            end, spans = 0, []
            for word in words:
                start = text.index(word, end)
                end = start + len(word)
                spans.append(Span(word, start, end))
            found.append(spans or [Span("", 0, 0)])
        return found

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """Every text can be encoded, one without words by a code of its own."""
        return [None] * len(frame)

    def save(self, folder: Path) -> None:
        spec = {"seed": self.seed, "columns": self.columns, "length": self.shape[0], "vocabulary": self.vocabulary}
        write(folder, "tokens", spec)

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec, _ = read(folder)
        encoder = cls(spec["seed"])
        encoder.columns = spec["columns"]
        encoder._learned(spec["vocabulary"], spec["length"])
        return encoder

    def _learned(self, vocabulary: list[str], length: int) -> None:
        self.vocabulary, self.shape = vocabulary, (min(LONGEST, length),)
        self._codes = {word: FIRST_WORD + place for place, word in enumerate(vocabulary)}


def _words(texts: pl.Series) -> pl.Series:
    """Words of each text, as they are written."""
    return texts.str.slice(0, MOST_CHARACTERS).str.extract_all(WORD)


def _bucket(word: str) -> int:
    """The code that a word without one of its own shares."""
    return FIRST_BUCKET + zlib.crc32(word.encode()) % BUCKETS
