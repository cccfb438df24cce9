"""Gradients of a run's examples, taken from its model when they are asked for: what streams through memory and is never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import as_input, encode
from imprint.fitting.data import MEMORY_SHARE
from imprint.fitting.memory import available_memory
from imprint.gradients.capture import Capture, Of
from imprint.gradients.layer import LayerGradient
from imprint.recording.model import narrow

if TYPE_CHECKING:
    from imprint.recording import Run
    from imprint.recording.model import Model
    from imprint.recording.needs import Need

# Factors of gradients in memory at a time. What the backward pass holds beside them is of the same order. With twice as many, single
# tensors are so large that the allocator gives their pages back after each block, and a fifth of the time goes into getting them anew.
BLOCK_BYTES = 2**26
MOST = 2048


@dataclass(eq=False)
class Examples:
    """Some examples of a run, whose gradients at one checkpoint can be taken block by block.

    Attributes:
        read: Places of examples -> (encoded inputs, encoded targets).
        total: How many examples there are.
        capture: Takes the gradients.
        device: Where.
        weight: What products of these gradients count; TracIn: the learning rate of the checkpoint.
        checkpoint: Its name.
        block: Bytes of factors in memory at a time; None for the usual ones.
    """

    read: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    total: int
    capture: Capture
    device: torch.device
    weight: float = 1.0
    checkpoint: str = "last"
    block: int | None = None

    def __len__(self) -> int:
        return self.total

    def layers(self, examples: slice = slice(None)) -> list[LayerGradient]:
        """The layers' gradients of some of the examples."""
        return self.with_values(examples)[1]

    def with_values(self, examples: slice = slice(None)) -> tuple[Float[Tensor, " example"], list[LayerGradient]]:
        """What is differentiated, and the layers' gradients, of some of the examples."""
        inputs, target = self.read(np.arange(len(self))[examples])
        return self.capture.with_values(as_input(inputs.to(self.device), self.device), target.to(self.device))

    @cached_property
    def probe(self) -> list[LayerGradient]:
        """The gradients of the first few examples: what the layers are, and how large."""
        return self.layers(slice(0, 4))

    @property
    def bytes_each(self) -> int:
        """Bytes of the factors of one example's gradient."""
        return max(1, sum(layer.nbytes for layer in self.probe) // max(1, len(self.probe[0])))

    @property
    def size(self) -> int:
        """How many examples are captured at a time."""
        return int(min(MOST, max(1, (self.block or BLOCK_BYTES) // self.bytes_each)))

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, list[LayerGradient]]]:
        """All examples, some at a time: (which, their gradients)."""
        size = size or self.size
        for begin in range(0, len(self), size):
            some = slice(begin, min(begin + size, len(self)))
            yield some, self.layers(some)


def examples_of(
    run: Run,
    rows: Int[np.ndarray, " example"],
    checkpoint: str | int = "last",
    of: Of = "loss",
    layers: Sequence[str] | str | None = None,
    weight: float = 1.0,
) -> Examples:
    """Rows of a run's corpus, with the model of a checkpoint.

    Raises:
        EvidenceError: The run's model has no gradients, or its inputs are not at hand.
        RunError: There is no such checkpoint.
    """
    check_differentiable(run)
    model = run.model(checkpoint)
    name = run.checkpoints.named(str(checkpoint)).name
    device = torch.device(model.device)
    capture = Capture(model.module.to(device), run.task, of=of, layers=layers, note=run.note)
    return Examples(reader(run, model, rows), len(rows), capture, device, weight, name)


def check_differentiable(run: Run) -> None:
    """Raise `EvidenceError` where a run's model is no torch module."""
    if estimator := run.manifest.get("estimator"):
        raise EvidenceError(
            f"The run {run.path} trained a {estimator}, which has no gradients.",
            "Fit a torch model (model='auto', 'linear', 'mlp', 'cnn' or your own nn.Module).",
        )


def reader(run: Run, model: Model, rows: Int[np.ndarray, " example"]) -> Callable[[np.ndarray], tuple[Tensor, Tensor]]:
    """Reads encoded inputs and targets of rows by their places; from memory if they are there or fit, else encoding them again."""
    target = run.target(None)
    if run.data is None and run.encoder is None:
        model.encode(pl.DataFrame())  # says what is missing, before anything is done
    if run.data is None and run.encoder is not None and _fits(run):
        run.data = encode(run.corpus, run.encoder, run.task)

    def read(places: np.ndarray) -> tuple[Tensor, Tensor]:
        some = rows[places]
        labels = target[torch.from_numpy(some)]
        if run.data is not None:
            return narrow(model.module, run.data.inputs[torch.from_numpy(some)]), labels
        ascending, place = np.unique(some, return_inverse=True)
        return narrow(model.module, model.encode(run.corpus.read(ascending))[torch.from_numpy(place)]), labels

    return read


def _fits(run: Run) -> bool:
    return 4 * len(run.examples) * int(np.prod(run.encoder.shape)) <= MEMORY_SHARE * available_memory()


def notes(run: Run, needs: Iterable[Need]) -> tuple[str, ...]:
    """What to know of the gradients that some needs read; empty where they read none."""
    kinds = {"gradients", "gradient_norms", "layer_gradients", "curvature"}
    return run.notes if any(need.kind in kinds for need in needs) else ()


def kept_checkpoints(run: Run) -> list[tuple[str, float]]:
    """The names of a run's kept checkpoints with the learning rate that each stands for, oldest first.

    A checkpoint stands for its epoch and those since the one before it, so its learning rate is the sum of theirs: with every epoch
    kept that is TracIn's weight, and with fewer it is the nearest sum to it.

    Raises:
        EvidenceError: The run has recorded no learning rates.
    """
    complete = [one for one in run.checkpoints.all() if one.complete]
    curves = run.curves()
    if not complete or "learning_rate" not in curves.columns or curves["learning_rate"].null_count():
        raise EvidenceError(
            f"The run {run.path} has recorded no learning rates.",
            "Fit with a torch model that is trained in epochs; tell them to a recorded loop, recorder.epoch(learning_rate=...); or choose "
            "gradient-dot, which takes the last checkpoint alone.",
        )
    epochs, rates = curves["epoch"].to_numpy(), curves["learning_rate"].to_numpy()
    found, before = [], 0
    for one in complete:
        found.append((one.name, float(rates[(epochs > before) & (epochs <= one.epoch)].sum())))
        before = one.epoch
    return found
