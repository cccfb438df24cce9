"""A trained model in use: raw inputs in, outputs and decoded predictions out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.fitting import as_input, predict
from imprint.models import features
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Rows encoded at a time.
SIZE = 8192


class Reordered(nn.Module):
    """A user's module whose outputs are put into the order of the task's classes.

    Args:
        module: The user's.
        order: For each class of the task its place among the module's outputs.

    >>> Reordered(nn.Identity(), torch.tensor([2, 0, 1]))(torch.tensor([[5.0, 6.0, 7.0]]))
    tensor([[7., 5., 6.]])
    """

    order: Tensor

    def __init__(self, module: nn.Module, order: Int[Tensor, " class"]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("order", order, persistent=False)

    def forward(self, inputs: Tensor) -> Float[Tensor, "example class"]:
        """Outputs in the task's order."""
        return self.module(inputs).index_select(1, self.order)

    def features(self, inputs: Tensor) -> Float[Tensor, "example feature"]:
        """The module's own."""
        return features(self.module, inputs)

    def narrow(self, inputs: Tensor) -> Tensor:
        """Inputs less what is padding in all of them."""
        return narrow(self.module, inputs)


def narrow(module: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs less what is padding in all of them, of a module that knows what is (it has a method `narrow`); else as they are."""
    own = getattr(module, "narrow", None)
    return own(inputs) if callable(own) else inputs


@dataclass(frozen=True)
class Model:
    """A trained module with its encoder and task.

    Attributes:
        module: In evaluation mode; a scikit-learn estimator is an `imprint.models.Estimator`.
        encoder: Turns raw columns into the module's inputs; None for a run of `imprint.watch` without one.
        task: Gives outputs their meaning.
        device: Where the module computes.
    """

    module: nn.Module
    encoder: Any
    task: Task
    device: str = "cpu"

    def outputs(self, source: pl.DataFrame | Corpus | Tensor) -> Float[Tensor, "example ..."]:
        """Outputs (logits, or standardised values) of raw rows, of a corpus, or of encoded inputs."""
        if isinstance(source, Tensor):
            return self.forward(source)
        return torch.cat([self.forward(self.encode(frame)) for frame in self._frames(source)])

    def probabilities(self, source: pl.DataFrame | Corpus | Tensor) -> Float[Tensor, "example ..."]:
        """Predicted probabilities; a regression has none and raises `MethodError`."""
        return self.task.probabilities(self.outputs(source))

    def predict(self, source: pl.DataFrame | Corpus | Tensor) -> pl.Series:
        """Predictions in the user's terms: class values, label lists, or numbers in the target's unit."""
        return self.task.decode(self.task.predict(self.outputs(source)))

    def encode(self, frame: pl.DataFrame) -> Tensor:
        """Encoded inputs of raw rows."""
        if self.encoder is None:
            raise EvidenceError(
                "This run has no encoder: it recorded a loop of your own, and how a row becomes an input of the module is not known.",
                "Give the inputs: imprint.load(path, corpus, model=module, inputs=...) with a tensor [row, ...] or a function of rows, "
                "or imprint.watch(..., inputs=...) or encoder=. Outputs alone can be recorded with recorder.outputs(ids, logits).",
            )
        return self.encoder.encode(frame)

    def forward(self, inputs: Tensor) -> Float[Tensor, "example ..."]:
        """Outputs of encoded inputs, float32 on the CPU."""
        return predict(self.module, self.task, inputs, device=self.device)

    def features(self, inputs: Tensor) -> Float[Tensor, "example feature"]:
        """Feature vectors of encoded inputs: the encoding itself where it is a feature space, else the module's last hidden layer."""
        if getattr(self.encoder, "frozen_features", False):
            return inputs.float().flatten(1)
        device = torch.device(self.device)
        with torch.inference_mode():
            parts = [
                features(self.module, as_input(part.to(device), device)).float().cpu()
                for part in torch.split(inputs, 1024)
            ]
        return torch.cat(parts)

    def _frames(self, source: pl.DataFrame | Corpus) -> Iterator[pl.DataFrame]:
        if isinstance(source, pl.DataFrame):
            yield from source.iter_slices(SIZE)
        else:
            for _, frame in source.batches(size=SIZE):
                yield frame
