"""The Task contract: the only place that knows what an output means.

A task turns raw targets into tensors, says how many outputs a model needs, and gives the per-example loss first:
everything else in the system (recording, scoring, fleets, verification) is built on `[example]` losses and on outputs
whose first axis is the example. Outputs may carry further axes (classes, labels, tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass
class Batch:
    """Examples on their way through a model.

    Attributes:
        inputs: What the module is called with, first axis = example.
        target: Encoded targets, first axis = example (see `Task.encode`).
        weight: Per-example weights of the loss, or None for all ones.
        rows: Rows of the corpus that these examples are.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return int(self.target.shape[0])


@dataclass(frozen=True)
class Task(ABC):
    """How outputs, per-example loss and metrics follow from a model and a batch.

    A task is fitted once on raw targets (`Task.fit`), after which it is immutable and can be written as JSON (`spec`).

    Attributes:
        criterion: What a learner trains with instead of the task's own loss (`imprint.fitting.losses`); it is the learner's and so
            no part of the task's `spec`.
    """

    name: ClassVar[str]
    criterion: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    @abstractmethod
    def fit(cls, target: pl.Series) -> Task:
        """Learn the encoding (classes, scale) from raw targets; raises `TargetError` if they cannot be learned."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many outputs a model needs per example."""

    @abstractmethod
    def encode(self, target: pl.Series) -> Tensor:
        """Raw targets -> tensor, first axis = example. A value unknown to the task raises `TargetError`."""

    @abstractmethod
    def decode(self, encoded: Tensor) -> pl.Series:
        """The inverse of `encode`."""

    def outputs(self, module: nn.Module, batch: Batch) -> Float[Tensor, "example *axes"]:
        """What the model says about a batch (logits, or values in units of the encoded target)."""
        return module(batch.inputs)

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "example *axes"], batch: Batch) -> Float[Tensor, " example"]:
        """Unweighted loss of each example: its negative log-likelihood in nats."""

    def objective(self, outputs: Float[Tensor, "example *axes"], batch: Batch) -> Float[Tensor, " example"]:
        """What a training makes small: the learner's loss, which is the task's own unless the learner names another."""
        return self.loss(outputs, batch) if self.criterion is None else self.criterion(outputs, batch.target)

    @abstractmethod
    def margin(self, outputs: Float[Tensor, "example *axes"], target: Tensor) -> Float[Tensor, " example"]:
        """How clearly the model agrees with the target; higher = more clearly, above zero = agrees (classification)."""

    @abstractmethod
    def predict(self, outputs: Float[Tensor, "example *axes"]) -> Tensor:
        """Encoded prediction of each example."""

    @abstractmethod
    def correct(self, outputs: Float[Tensor, "example *axes"], target: Tensor) -> Bool[Tensor, " example"]:
        """Does the prediction agree with the target? (regression: nearer than the target's spread)"""

    @abstractmethod
    def credit(self, outputs: Float[Tensor, "example *axes"], target: Tensor) -> Float[Tensor, " example"]:
        """What each example adds to the headline metric: the metric is the mean of these, higher = better.

        Verdicts need it: the spread of per-example differences says how far a small test set can be trusted.
        """

    @abstractmethod
    def metrics(self, outputs: Float[Tensor, "example *axes"], target: Tensor) -> dict[str, float]:
        """Metrics over all these examples; the first one is the headline."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """Name of the metric that verdicts are made on; higher is better."""

    def probabilities(self, outputs: Float[Tensor, "example *axes"]) -> Float[Tensor, "example *axes"]:
        """Predicted probabilities with the outputs' shape. Tasks without probabilities raise `MethodError`."""
        from imprint.errors import MethodError

        raise MethodError(
            f"A {self.name} task has no class probabilities.", "Choose a method for this task: imprint methods"
        )

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which `imprint.tasks.from_spec` rebuilds the task."""
