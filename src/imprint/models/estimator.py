"""A scikit-learn classifier or regressor in the place of a network.

It is fitted once on encoded features, with example weights, and its outputs are log-probabilities `[example, class]`, so
that everything that reads logits can read them. It has no gradients and no training dynamics: methods that need these say so.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import LearnerError, MethodError, RunError
from imprint.models import skops_files

# The log-probability of what an estimator rules out; float16 evidence can hold it.
IMPOSSIBLE = -30.0
FILE = "estimator.skops"


def is_estimator(model: Any) -> bool:
    """Is this a scikit-learn classifier or regressor (an object, not its class)?"""
    return not isinstance(model, type | str | nn.Module) and all(
        callable(getattr(model, name, None)) for name in ("fit", "predict", "get_params")
    )


class Estimator(nn.Module):
    """A scikit-learn estimator that can be called like a module: encoded inputs -> outputs, without gradients.

    Args:
        estimator: Any scikit-learn classifier or regressor; a clone is fitted, the object itself is left as it is.
        width: How many outputs the task needs.
        seed: Becomes the estimator's `random_state` where it has one that is None.
    """

    def __init__(self, estimator: Any, width: int, seed: int = 0) -> None:
        super().__init__()
        from sklearn.base import clone

        self.estimator, self.width, self.multilabel = clone(estimator), width, False
        settings = self.estimator.get_params()
        self.estimator.set_params(
            **{name: seed for name in settings if name.split("__")[-1] == "random_state" and settings[name] is None}
        )

    @property
    def name(self) -> str:
        """Its class."""
        return type(self.estimator).__name__

    def fit(self, inputs: Tensor, target: Tensor, weight: Float[Tensor, " example"] | None = None) -> Estimator:
        """Fit on encoded inputs and encoded targets: class codes, 0/1 labels `[example, label]`, or standardised values."""
        arguments = {}
        if weight is not None and not bool((weight == weight[0]).all()):
            if not _takes_weights(self.estimator):
                raise LearnerError(
                    f"{self.name} takes no example weights, and these examples have different ones.",
                    "Choose an estimator whose fit has sample_weight, or reset the weights.",
                )
            arguments["sample_weight"] = weight.numpy()
        self.multilabel = target.ndim == 2
        try:
            self.estimator.fit(_flat(inputs), target.numpy(), **arguments)
        except Exception as error:
            raise LearnerError(
                f"{self.name} cannot be fitted: {type(error).__name__}: {error}.",
                "Choose an estimator for this task, with settings that fit the data.",
            ) from error
        return self

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Float[Tensor, "example output"]:
        """Log-probabilities (classification), log-odds (multilabel) or values (regression)."""
        values = _flat(inputs)
        if self.multilabel:
            outputs = _log_odds(self._label_probabilities(values))
        elif hasattr(self.estimator, "classes_"):
            outputs = self._place(self._log_probabilities(values))
        else:
            outputs = np.asarray(self.estimator.predict(values), dtype=np.float64).reshape(len(values), self.width)
        return torch.from_numpy(np.ascontiguousarray(outputs, dtype=np.float32))

    def features(self, inputs: Tensor) -> Float[Tensor, "example feature"]:
        """The encoded inputs themselves: an estimator has no hidden layer."""
        return inputs.flatten(1).float()

    def save(self, folder: Path) -> None:
        """Write it with skops into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        skops_files.dump(
            {"estimator": self.estimator, "width": self.width, "multilabel": self.multilabel}, folder / FILE
        )

    @classmethod
    def load(cls, folder: Path) -> Estimator:
        """Read what `save` wrote; a file that holds other types than scikit-learn's is refused with `RunError`."""
        held = skops_files.load(Path(folder) / FILE)
        if not isinstance(held, dict) or not {"estimator", "width", "multilabel"} <= set(held):
            raise RunError(f"'{Path(folder) / FILE}' does not hold an estimator.", "Train the run again.")
        loaded = cls.__new__(cls)
        nn.Module.__init__(loaded)
        loaded.estimator, loaded.width, loaded.multilabel = held["estimator"], held["width"], held["multilabel"]
        return loaded

    def _log_probabilities(self, values: np.ndarray) -> Float[np.ndarray, "example seen"]:
        """Over the classes that were seen in training; margins of a support vector machine serve as logits."""
        if hasattr(self.estimator, "predict_proba"):
            with np.errstate(divide="ignore"):
                return np.log(self.estimator.predict_proba(values))
        if hasattr(self.estimator, "decision_function"):
            margins = self.estimator.decision_function(values)
            logits = np.stack([-margins / 2, margins / 2], axis=1) if margins.ndim == 1 else margins
            return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        raise MethodError(
            f"{self.name} gives classes only, neither probabilities nor margins.",
            "Choose an estimator with predict_proba, or wrap it in CalibratedClassifierCV.",
        )

    def _place(self, seen: Float[np.ndarray, "example seen"]) -> Float[np.ndarray, "example class"]:
        """Into the task's class codes; a class without training examples is impossible."""
        placed = np.full((len(seen), self.width), IMPOSSIBLE)
        placed[:, np.asarray(self.estimator.classes_, dtype=np.int64)] = np.maximum(seen, IMPOSSIBLE)
        return placed

    def _label_probabilities(self, values: np.ndarray) -> Float[np.ndarray, "example label"]:
        given = self.estimator.predict_proba(values)
        if not isinstance(given, list):
            return given
        classes = self.estimator.classes_
        # A label that was never (or always) there has one class only.
        columns = [
            p[:, list(c).index(1)] if 1 in list(c) else np.zeros(len(p)) for p, c in zip(given, classes, strict=True)
        ]
        return np.stack(columns, axis=1)


def require_network(module: nn.Module, needed_for: str) -> None:
    """Raise `MethodError` if this is a scikit-learn estimator, which has no gradients and no training dynamics.

    Args:
        module: A run's module.
        needed_for: The method that asks, for the message.
    """
    if isinstance(module, Estimator):
        raise MethodError(
            f"{needed_for} needs gradients or training dynamics, and {module.name} is a scikit-learn estimator without them.",
            "Train a network (Learner(model='auto')), or choose a method that reads outputs only.",
        )


def _flat(inputs: Tensor) -> Float[np.ndarray, "example feature"]:
    return inputs.flatten(1).numpy()


def _log_odds(probabilities: Float[np.ndarray, "example label"]) -> Float[np.ndarray, "example label"]:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), IMPOSSIBLE, -IMPOSSIBLE)


def _takes_weights(estimator: Any) -> bool:
    return "sample_weight" in inspect.signature(estimator.fit).parameters
