"""The recorder: keeps what the training pass says anyway, so that no second pass is needed.

Per batch it copies the outputs (as float16) into a buffer in the order of the visits, one operation; per epoch it puts them in
index order and appends them to `dynamics.lance` and the visits to `order.lance`. With very many classes, loss, margin, confidence and
correctness are kept instead of logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from imprint.fitting import State
from imprint.recording import tables
from imprint.tasks import Batch, Task

# Largest finite float16; what lies beyond is recorded as this.
FLOAT16_MAX = 65504.0
SUMMARY = ("loss", "margin", "confidence", "correct")


class Recorder:
    """Observes a training and writes `order` and `dynamics`.

    Args:
        folder: `RUN/evidence`.
        task: Gives margin and correctness.
        target: Encoded targets of the training examples.
        mode: "logits" or "summary".
    """

    def __init__(self, folder: Path, task: Task, target: Tensor, mode: str = "logits") -> None:
        self.folder, self.task, self.target, self.mode = folder, task, target, mode
        self.size = len(target)
        self._target_there = target  # on the device of the outputs
        self.filled = 0
        self.values: Tensor | None = None  # [visit, class] float16, or [visit, 4] for the summary
        self.indices: list[Tensor] = []
        self.steps: list[tuple[int, int]] = []  # (step, visits)

    def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
        """Copy the batch into the buffer."""
        count = len(indices)
        values = outputs.reshape(count, -1) if self.mode == "logits" else self._summary(indices, outputs, loss)
        if self.values is None or self.filled + count > len(self.values) or self.values.device != values.device:
            self._grow(self.filled + count, values)
        assert self.values is not None
        self.values[self.filled : self.filled + count].copy_(values)
        self.filled += count
        self.indices.append(indices)
        self.steps.append((step, count))

    def on_epoch(self, state: State, loss: float) -> None:
        """Write the epoch and begin the next."""
        self.write(state.epoch)

    def write(self, epoch: int) -> None:
        """Append the buffered visits as epoch `epoch`."""
        indices, values = self.visited()
        whole = _in_index_order(indices, values, self.size)
        self.folder.mkdir(parents=True, exist_ok=True)
        number = np.full(self.size, epoch, np.int16)
        columns: dict[str, Any] = {"epoch": number, "index": np.arange(self.size, dtype=np.int32)}
        if self.mode == "logits":
            columns["logits"] = tables.fixed(whole)
        else:
            columns |= {name: tables.fixed(whole[:, place].contiguous()) for place, name in enumerate(SUMMARY)}
        tables.append(self.folder / "dynamics.lance", pa.table(columns))
        steps = np.repeat([step for step, _ in self.steps], [count for _, count in self.steps]).astype(np.int32)
        tables.append(
            self.folder / "order.lance",
            pa.table(
                {
                    "epoch": np.full(len(steps), epoch, np.int16),
                    "step": steps,
                    "index": indices.numpy().astype(np.int32),
                }
            ),
        )
        self.filled, self.indices, self.steps = 0, [], []

    def visited(self) -> tuple[Tensor, Tensor]:
        """Indices of the unfinished epoch's visits, and what was recorded of each, on the CPU."""
        if self.values is None or not self.indices:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.float16)
        values = self.values[: self.filled].cpu().clamp(-FLOAT16_MAX, FLOAT16_MAX)
        where = self.indices[-1].device  # a restored part may lie on another device than what came since
        return torch.cat([part.to(where) for part in self.indices]).cpu(), values

    def cut(self, last: int) -> None:
        """Forget every epoch after `last`."""
        for name in ("dynamics", "order"):
            tables.cut(self.folder / f"{name}.lance", last)

    def state(self) -> dict[str, Tensor]:
        """The unfinished epoch, for a checkpoint."""
        indices, values = self.visited()
        return {"indices": indices, "values": values, "steps": torch.tensor(self.steps)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put an unfinished epoch back."""
        self.filled, self.indices, self.steps = 0, [], []
        self.steps = [(int(step), int(count)) for step, count in tensors["steps"].tolist()]
        self.indices = list(torch.split(tensors["indices"], [count for _, count in self.steps]))
        self.filled = len(tensors["indices"])
        self._grow(self.filled, tensors["values"])
        assert self.values is not None
        self.values[: self.filled].copy_(tensors["values"])

    def _grow(self, least: int, like: Tensor) -> None:
        """A buffer of an epoch's usual size; a sampler that repeats examples makes it grow."""
        length = max(self.size, least)
        if self.values is not None and least > len(self.values):
            length = max(length, 2 * len(self.values))
        values = torch.empty(length, like.shape[1], dtype=torch.float16, device=like.device)
        if self.values is not None:
            values[: self.filled].copy_(self.values[: self.filled])
        self.values = values

    def _summary(self, indices: Tensor, outputs: Tensor, loss: Tensor) -> Tensor:
        if self._target_there.device != outputs.device:
            self._target_there = self.target.to(outputs.device)
        target = self._target_there.index_select(0, indices)
        margin, correct = self.task.margin(outputs, target), self.task.correct(outputs, target)
        return torch.stack([loss, margin, (-loss).exp(), correct.float()], 1)


def losses(task: Task, outputs: Tensor, target: Tensor) -> Tensor:
    """Per-example losses of outputs that are at hand already."""
    return task.loss(outputs, Batch(torch.empty(0), target))


def _in_index_order(indices: Tensor, values: Tensor, size: int) -> Tensor:
    """`[example, ...]`: the last visit of each example; NaN for one that the epoch left out."""
    if len(indices) == size and bool((torch.bincount(indices, minlength=size) == 1).all()):
        ordered = torch.empty_like(values)
        ordered[indices] = values
        return ordered
    ordered = torch.full((size, values.shape[1]), torch.nan, dtype=torch.float16)
    last = torch.full((size,), -1).scatter_reduce(0, indices, torch.arange(len(indices)), "amax")
    seen = last >= 0
    ordered[seen] = values[last[seen]]
    return ordered
