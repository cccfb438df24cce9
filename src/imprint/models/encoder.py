"""What an encoder is, and how one is written to and read from a folder.

An encoder turns raw input columns into tensors. It is fitted once, on training rows only, and then frozen; a module is
trained on what it gives. On disk it is `encoder.json` (which encoder, its settings), `tensors.safetensors` (its numbers)
and, for tables, a skops file. Nothing is pickled: opening a stranger's encoder executes nothing.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint.errors import RunError

# Statistics of a column, a vocabulary or a pixel mean settle long before this many rows.
MOST_FITTED_ROWS = 50_000
FORMAT = 1

# Key in encoder.json -> where the class is; imported only when such a folder is opened.
CLASSES = {
    "table": "imprint.models.table:TableEncoder",
    "text": "imprint.models.text:TextEncoder",
    "tokens": "imprint.models.tokens:TokenEncoder",
    "subwords": "imprint.models.subwords:Subwords",
    "image": "imprint.models.image:ImageEncoder",
    "array": "imprint.models.array:ArrayEncoder",
    "frozen": "imprint.models.frozen:FrozenEncoder",
}

Normalisation = tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]


class Source(Protocol):
    """What an encoder asks of a corpus (`imprint.corpus.Corpus` has it, and more)."""

    @property
    def roles(self) -> Any: ...

    @property
    def kinds(self) -> dict[str, str]: ...

    @property
    def modality(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...] | None: ...

    def read(self, rows: Any, columns: Sequence[str] | None = None) -> pl.DataFrame: ...


class Encoder(Protocol):
    """Raw input columns -> tensors.

    Attributes:
        name: What it is, for people and manifests.
        shape: Of one encoded example.
        frozen_features: True where the encoding is itself a good feature space (tables, texts, embeddings); False for pixels.
        normalisation: Mean and standard deviation of each channel over the training images, which the module applies (the
            encoding itself stays uint8 in memory); None where the encoding needs no more scaling.
    """

    name: str
    shape: tuple[int, ...]
    normalisation: Normalisation | None

    @property
    def frozen_features(self) -> bool: ...

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Learn statistics from (a seeded sample of) these rows, which must be training rows."""
        ...

    def encode(self, frame: pl.DataFrame) -> Tensor:
        """`[len(frame), *shape]`: float32, uint8 for images, int64 for token codes. A row's encoding depends on no other row."""
        ...

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """For each row the reason why it cannot be encoded, or None."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted encoder; `load` gives it back with bitwise the same encodings."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        ...


def sample_rows(rows: Int64[np.ndarray, " row"], most: int, seed: int) -> Int64[np.ndarray, " sampled"]:
    """At most `most` of these rows, ascending: the same ones for the same set of rows and seed."""
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `length`.

    >>> list(slices(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def write(folder: Path, encoder: str, spec: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    """Write `encoder.json` and `tensors.safetensors`, the part of the format that all encoders share."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
    text = json.dumps({"encoder": encoder, "format": FORMAT} | spec, indent=1, ensure_ascii=False)
    (folder / "encoder.json").write_text(text, encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote. A missing, damaged or newer folder raises `RunError`."""
    folder = Path(folder)
    remedy = "Train the run again, or restore the folder from a copy."
    try:
        spec = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "tensors.safetensors") if (folder / "tensors.safetensors").exists() else {}
    except FileNotFoundError:
        raise RunError(f"No encoder in '{folder}': encoder.json is missing.", remedy) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"The encoder in '{folder}' is damaged: {error}.", remedy) from error
    if not isinstance(spec, dict) or spec.get("encoder") not in CLASSES:
        raise RunError(f"'{folder / 'encoder.json'}' describes no encoder that is known here.", remedy)
    if spec.get("format") != FORMAT:
        raise RunError(
            f"The encoder in '{folder}' has format {spec.get('format')}; this Imprint reads format {FORMAT}.",
            "Open it with the Imprint that wrote it (manifest.json names the version).",
        )
    return spec, tensors


def load_encoder(folder: Path | str, model: Any = None) -> Encoder:
    """Read a fitted encoder from its folder.

    Args:
        folder: Where `Encoder.save` wrote it (RUN/encoder).
        model: Only for a run that was trained on a user's own frozen backbone: that `Frozen(backbone)`. Its architecture is
            code and is not stored; its weights are, and are loaded into it.

    Raises:
        RunError: The folder is missing, damaged, or holds a type that is not on the allow-list.
        MissingExtra: The encoder's optional package is not installed.
    """
    folder = Path(folder)
    spec, _ = read(folder)
    module, _, name = CLASSES[spec["encoder"]].partition(":")
    loaded = getattr(importlib.import_module(module), name)
    try:
        return loaded.load(folder, model) if spec["encoder"] == "frozen" else loaded.load(folder)
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise RunError(
            f"The encoder in '{folder}' is incomplete: {error}.", "Restore the folder from a copy, or train again."
        ) from error
