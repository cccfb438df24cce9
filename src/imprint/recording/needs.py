"""What a method may ask of a run: small frozen values that name evidence.

A need's `name` is the parameter through which a method receives it. Needs are hashable, so that the union over several
methods is a set, and what is missing is collected once.
"""

from __future__ import annotations

from dataclasses import dataclass

FIELDS = ("logits", "probabilities", "loss", "margin", "confidence", "correct", "predicted")


@dataclass(frozen=True)
class Need:
    """A named piece of evidence. `kind` is the evidence it is read from, or None when the record always holds it."""

    field: str
    kind: str | None = None

    @property
    def name(self) -> str:
        """The parameter name under which a method receives the value."""
        return self.field


@dataclass(frozen=True)
class Dynamics(Need):
    """What the model said of each training example as it was trained on it: `[epoch, example]` or `[epoch, example, class]`.

    Attributes:
        field: One of `FIELDS`. "loss" in nats (or squared standard deviations), "margin" = target logit less the largest other,
            "confidence" = exp(-loss): the probability given to the target (classification), the geometric mean of the labels'
            probabilities (multilabel), 1 for a perfect value (regression).
        epochs: None for all, k > 0 for the first k recorded epochs, -k for the last k, or a fraction in (0, 1) of them (0.2 =
            the first fifth, at least one).
    """

    kind: str | None = "dynamics"
    epochs: int | float | None = None


@dataclass(frozen=True)
class Outputs(Need):
    """What the final model says of the examples of a split: `[example]` or `[example, class]`."""

    kind: str | None = "outputs"
    split: str | None = "train"


@dataclass(frozen=True)
class OutOfFold(Need):
    """Predictions on each training example by a model that was trained without it: `[example]` or `[example, class]`."""

    kind: str | None = "out_of_fold"
    folds: int = 5


@dataclass(frozen=True)
class Features(Need):
    """Feature vectors of the examples: `[example, feature]` float32. `split=None` gives every row of the corpus."""

    field: str = "features"
    kind: str | None = "features"
    split: str | None = "train"


@dataclass(frozen=True)
class Target(Need):
    """Encoded targets of the examples, as the task encodes them."""

    field: str = "target"
    split: str | None = "train"


@dataclass(frozen=True)
class Rows(Need):
    """Rows of the corpus that the examples of a split are: int64 `[example]`."""

    field: str = "rows"
    split: str | None = "train"


@dataclass(frozen=True)
class Classes(Need):
    """The values that class (or label) codes stand for, as a tuple; empty for regression."""

    field: str = "classes"


@dataclass(frozen=True)
class HeldOutLoss(Need):
    """Mean loss on held-out examples after each recorded epoch, in nats: `[epoch]`; empty where none were held out."""

    field: str = "held_out_loss"


@dataclass(frozen=True)
class Table(Need):
    """The corpus itself, for methods that read input columns, splits or content hashes."""

    field: str = "corpus"
