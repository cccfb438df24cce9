"""Learning curves: per epoch the loss, metrics on each split, learning rate and time; a small JSON file.

Training metrics come from the recorded training pass; the other splits are evaluated on at most `MOST` evenly spaced rows, so that
a curve costs little. The figures over all rows are those of the `outputs` evidence.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from imprint.fitting import Data, State, predict
from imprint.recording.files import read_json, write_json
from imprint.recording.recorder import Recorder
from imprint.tasks import Batch, Task

MOST = 5000


class Curves:
    """Observes a training and writes `curves.json`.

    Args:
        path: `RUN/evidence/curves.json`.
        task: Gives the metrics.
        data: The splits to evaluate.
        recorder: Whose buffer holds the training outputs; it must observe after this.
        device: Where to evaluate.
    """

    def __init__(self, path: Path, task: Task, data: Data, recorder: Recorder | None, device: str = "cpu") -> None:
        self.path, self.task, self.data, self.recorder, self.device = path, task, data, recorder, device
        self.rows: list[dict[str, Any]] = []
        self.subsets = {
            name: rows[torch.linspace(0, len(rows) - 1, min(MOST, len(rows))).long()]
            for name, rows in data.splits.items()
            if name != "train" and len(rows)
        }

    @property
    def judge(self) -> str | None:
        """The split that the best checkpoint is chosen on: a validation split if there is one, else any other."""
        return next((name for name in self.subsets if name.startswith("val")), next(iter(self.subsets), None))

    def headline(self) -> float | None:
        """The headline metric of the newest epoch on the judging split."""
        value = None if self.judge is None else self.rows[-1][self.judge].get(self.task.headline)
        return None if value is None else float(value)

    def on_batch(self, *_: Any) -> None:
        """Nothing to do."""

    def on_epoch(self, state: State, loss: float) -> None:
        """Evaluate and write."""
        row: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "loss": loss,
            "learning_rate": state.learning_rate,
            "seconds": round(state.seconds, 3),
        }
        if self.recorder is not None and self.recorder.mode == "logits":
            indices, values = self.recorder.visited()
            # Visits come in random order, so the first ones are a fair sample.
            indices, outputs = indices[: 4 * MOST], values[: 4 * MOST].float()
            row["train"] = finite(self.task.metrics(outputs, self.recorder.target[indices]))
        self._evaluated(row, state.model)

    def once(self, module: torch.nn.Module, seconds: float) -> None:
        """Evaluate and write what was solved in one step."""
        rows = self.data.rows[torch.linspace(0, len(self.data.rows) - 1, min(4 * MOST, len(self.data.rows))).long()]
        outputs = predict(module, self.task, self.data.inputs, rows, device=self.device)
        target = self.data.target[rows]
        loss = float(self.task.loss(outputs, Batch(self.data.inputs[:0], target)).mean())
        row = {"epoch": 1, "step": 1, "loss": loss, "learning_rate": None, "seconds": round(seconds, 3)}
        self._evaluated({**row, "train": finite(self.task.metrics(outputs, target))}, module)

    def _evaluated(self, row: dict[str, Any], module: torch.nn.Module) -> None:
        """Add the metrics of the other splits, and write."""
        for name, rows in self.subsets.items():
            outputs = predict(module, self.task, self.data.inputs, rows, device=self.device)
            row[name] = finite(self.task.metrics(outputs, self.data.target[rows]))
        self.rows.append(row)
        write_json(self.path, self.rows)

    def cut(self, last: int) -> None:
        """Forget every epoch after `last`."""
        self.rows = [row for row in read_json(self.path) if row["epoch"] <= last] if self.path.exists() else []


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a metric that is undefined is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
