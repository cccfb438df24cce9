"""A corpus as tensors: encoded once, in memory when it fits, else in a memory-mapped file.

All splits are encoded into one matrix `[row, ...]`, and a training set is a list of rows into it. So the members of a fleet, the
epochs of a training and the evaluation all read the same matrix, and a batch is one `index_select` either way: from memory or,
through the page cache, from disk.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from imprint.corpus.hashing import hash_series
from imprint.errors import ResourceError
from imprint.fitting.memory import available_memory
from imprint.fitting.progress import Progress, silent
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Encoded inputs may take this share of the available memory; the rest is for the module, the evidence buffers and the page cache.
MEMORY_SHARE = 0.4
# Bytes of encoded inputs that one chunk of a streamed encoding may take.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Data:
    """Encoded examples of a corpus version.

    Attributes:
        inputs: `[row, *shape]`, float32 or uint8; in memory or mapped from a file.
        target: Encoded targets `[row, ...]`.
        weight: Per-example weights `[row]`, or None for all one.
        splits: Rows of each split, ascending; "train" is what a training reads.
        keys: A hash of each row's id, where the corpus has been read for them: what a sharded training parts examples by.
    """

    inputs: Shaped[Tensor, "row ..."]
    target: Shaped[Tensor, "row ..."]
    weight: Shaped[Tensor, " row"] | None
    splits: Mapping[str, Int[Tensor, " example"]]
    keys: Int[Tensor, " row"] | None = None

    @property
    def rows(self) -> Int[Tensor, " example"]:
        """Training rows, ascending."""
        return self.splits["train"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded example."""
        return tuple(self.inputs.shape[1:])

    def train_on(self, rows: Tensor | None = None, target: Tensor | None = None, weight: Tensor | None = None) -> Data:
        """The same inputs with another training set.

        Args:
            rows: Training rows; None keeps them.
            target: Encoded targets of those rows; None keeps them.
            weight: Weights of those rows; None keeps them.
        """
        rows = self.rows if rows is None else torch.as_tensor(rows)
        changed: dict[str, Any] = {"splits": {**self.splits, "train": rows}}
        if target is not None:
            changed["target"] = self.target.index_copy(0, rows, target.to(self.target.dtype))
        if weight is not None:
            ones = torch.ones(len(self.target)) if self.weight is None else self.weight
            changed["weight"] = ones.index_copy(0, rows, weight.to(ones.dtype))
        return replace(self, **changed)


def training_rows(corpus: Corpus) -> np.ndarray:
    """Rows that a training reads: the split "train", or all rows where there is no such split."""
    return corpus.rows("train") if "train" in corpus.splits else corpus.rows()


def encode(
    corpus: Corpus, encoder: Any, task: Task, *, scratch: Path | None = None, progress: Progress = silent
) -> Data:
    """Encode a whole corpus, once.

    Args:
        corpus: What to encode; it is read in batches.
        encoder: A fitted encoder.
        task: Encodes the targets.
        scratch: Folder for the memory-mapped matrix when the inputs do not fit in memory. The caller removes it.
        progress: Told the rows encoded so far.

    Raises:
        ResourceError: The inputs do not fit in memory and there is no `scratch`, or the disk is full.
    """
    inputs = encode_inputs(corpus, encoder, scratch=scratch, progress=progress)
    splits = {name: torch.from_numpy(np.asarray(corpus.rows(name), dtype=np.int64)) for name in corpus.splits}
    splits["train"] = torch.from_numpy(np.asarray(training_rows(corpus), dtype=np.int64))
    weight = None if corpus.weights is None else torch.from_numpy(np.array(corpus.weights, dtype=np.float32))
    keys = torch.from_numpy(hash_series(corpus.ids).view(np.int64))
    return Data(inputs, task.encode(corpus.target), weight, splits, keys)


def encode_inputs(
    corpus: Corpus, encoder: Any, *, scratch: Path | None = None, progress: Progress = silent
) -> Shaped[Tensor, "row ..."]:
    """Encoded inputs of every row; see `encode`."""
    total, per_row = len(corpus), math.prod(encoder.shape)
    inputs: Tensor | None = None
    done = 0
    for rows, frame in corpus.batches(size=int(min(16384, max(64, CHUNK_BYTES // (4 * max(1, per_row)))))):
        encoded = encoder.encode(frame)
        if inputs is None:
            inputs = _allocate(total, tuple(encoded.shape[1:]), encoded.dtype, scratch)
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            inputs[int(rows[0]) : int(rows[-1]) + 1] = encoded
        else:
            inputs[torch.from_numpy(rows)] = encoded
        done += len(rows)
        progress("encode", done, total)
    return torch.empty(0, *encoder.shape) if inputs is None else inputs


def _allocate(total: int, shape: tuple[int, ...], dtype: torch.dtype, scratch: Path | None) -> Tensor:
    """An uninitialised matrix in memory, or mapped from `scratch/inputs` when it would take more than its share."""
    count = total * math.prod(shape)
    size = count * dtype.itemsize
    free = available_memory()
    if size <= MEMORY_SHARE * free:
        return torch.empty(total, *shape, dtype=dtype)
    if scratch is None:
        raise ResourceError(
            f"The encoded inputs take {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free.",
            "Free memory, train on fewer rows, or use imprint.fit with a run folder, which keeps them on disk.",
        )
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "inputs"
    try:
        with path.open("wb") as file:
            # Reserve the blocks now: a full disk is an error here, and not a fatal signal in the middle of the encoding.
            _reserve(file.fileno(), size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceError(
            f"The encoded inputs take {size / 2**30:.1f} GiB and do not fit on the disk of {scratch}.",
            "Free disk space, or put the run on another disk.",
        ) from error
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(total, *shape)


def _reserve(descriptor: int, size: int) -> None:
    import os

    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)
