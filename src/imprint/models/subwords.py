"""Texts -> the subword codes of a Hugging Face tokenizer, for a user's own transformer.

The tokenizer is the user's, so nothing is fitted. On disk it is `tokenizer.json`, which the `tokenizers` library reads: no code runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from imprint.errors import ColumnError, LearnerError, MissingExtra, RunError
from imprint.models.encoder import Normalisation, Source, read, slices, write

# Stands where a text has ended. It is no code of any tokenizer, so the mask of the padding is in the encoding.
PADDING = -1
# The length of what a tokenizer without a limit of its own gives; those of most published encoders.
LONGEST = 512
CHUNK = 4096


class Subwords:
    """Text columns (joined by line breaks) -> int32 codes `[position]`, special tokens included, `PADDING` behind the end.

    Args:
        tokenizer: A fast tokenizer of `transformers`, or a `tokenizers.Tokenizer`.
        length: Texts are cut after so many tokens; None for the tokenizer's own limit, at most 512.

    Raises:
        LearnerError: The tokenizer is written in Python, or the length is no number above 0.
    """

    name = "subwords"
    frozen_features = False
    normalisation: Normalisation | None = None

    def __init__(self, tokenizer: Any, length: int | None = None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:  # pragma: no cover - depends on the installation
            raise MissingExtra("transformers", "Encoding texts with a tokenizer") from error
        inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(inner, Tokenizer):
            raise LearnerError(
                f"The tokenizer {type(tokenizer).__name__} is written in Python, and cannot be kept with the run.",
                "Take its fast version (AutoTokenizer gives it), or give inputs= in place of the tokenizer.",
            )
        limit = min(int(getattr(tokenizer, "model_max_length", LONGEST)), LONGEST)
        self.length = limit if length is None else length
        if self.length < 1:
            raise LearnerError(f"length={length} tokens are none.", "Give 1 or more.")
        self.tokenizer = Tokenizer.from_str(inner.to_str())  # settings of the user's own are not touched
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.length)
        self.columns: list[str] = []

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one encoded text."""
        return (self.length,)

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Take note of which columns are the input."""
        self.columns = list(corpus.roles.inputs)
        return self

    def encode(self, frame: pl.DataFrame) -> Int32[Tensor, "example position"]:
        """Codes of the texts."""
        texts = self._texts(frame)
        found = np.full((len(texts), self.length), PADDING, dtype=np.int32)
        for part in slices(len(texts), CHUNK):
            for row, one in enumerate(self.tokenizer.encode_batch(texts[part]), part.start):
                found[row, : len(one.ids)] = one.ids
        return torch.from_numpy(found)

    def _texts(self, frame: pl.DataFrame) -> list[str]:
        """One text per row as it is, white space included; a missing cell is empty."""
        if absent := [column for column in self.columns if column not in frame.columns]:
            raise ColumnError(
                f"Column '{absent[0]}' is missing; the model was trained with it.",
                f"Give all of: {', '.join(self.columns)}.",
            )
        joined = pl.concat_str(pl.col(self.columns).cast(pl.String), separator="\n", ignore_nulls=True)
        return frame.select(joined.fill_null("").alias("text"))["text"].to_list()

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """Every text has codes."""
        return [None] * len(frame)

    def save(self, folder: Path) -> None:
        """Write `encoder.json` and `tokenizer.json`."""
        write(folder, self.name, {"length": self.length, "columns": self.columns})
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        from tokenizers import Tokenizer

        spec, _ = read(folder)
        path = Path(folder) / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise RunError(
                f"'{path}' is missing or damaged: {error}.", "Restore it from a copy, or record the training again."
            ) from error
        encoder = cls(tokenizer, spec["length"])
        encoder.columns = spec["columns"]
        return encoder


__all__ = ["PADDING", "Subwords"]
