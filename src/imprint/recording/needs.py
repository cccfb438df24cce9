"""What a method may ask of a run: small frozen values that name evidence.

A need's `name` is the parameter through which a method receives it. Needs are hashable, so that the union over several
methods is a set, and what is missing is collected once.
"""

from __future__ import annotations

from dataclasses import dataclass

FIELDS = ("logits", "probabilities", "loss", "margin", "confidence", "correct", "predicted")
# Trainings in a fleet where nobody says how many. Every example is then in about 32 of them and out of about 32, which puts the
# standard error of a difference of two shares at 0.125 or less.
MEMBERS = 64
# Random orders of the examples, for Shapley values: with 32 of them the standard error is a sixth of the spread of one order's.
ORDERS = 32
# As the split of a need: the examples that models are judged on (see `imprint.recording.held_out`).
HELD_OUT = "<held-out>"


@dataclass(frozen=True)
class Need:
    """A named piece of evidence. `kind` is the evidence it is read from, or None when the record always holds it."""

    field: str
    kind: str | None = None

    @property
    def name(self) -> str:
        """The parameter name under which a method receives the value."""
        return self.field

    @property
    def store(self) -> str | None:
        """What tells its evidence from other evidence of the same kind: needs with one store are collected once."""
        return self.kind

    @property
    def trainings(self) -> int:
        """How many trainings it takes to collect."""
        return 0

    @property
    def per_example(self) -> bool:
        """Whether it can be read in blocks of examples; else it is read once, whole."""
        return True


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

    @property
    def trainings(self) -> int:
        return self.folds


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


@dataclass(frozen=True)
class FleetNeed(Need):
    """Evidence that is read from a fleet: many trainings, kept in `RUN/fleets/STORE`. Needs with the same store share the fleet."""

    members: int = MEMBERS

    @property
    def trainings(self) -> int:
        return self.members


@dataclass(frozen=True)
class _OfSubsets(FleetNeed):
    """Read from models that were trained on random subsets: each training example is in each by a coin of its own."""

    kind: str | None = "subsets"
    fraction: float = 0.5

    @property
    def store(self) -> str:
        return f"subsets-{self.members}-{self.fraction:g}"


@dataclass(frozen=True)
class Subsets(_OfSubsets):
    """What models trained on random subsets say of the examples of a split: `[member, example]` or `[member, example, class]`.

    Attributes:
        field: One of `FIELDS`, or "credit": what the example adds to the headline metric (1 or 0 for right or wrong; of several
            labels the F1; of a quantity 1 less the squared error in squared standard deviations of the target).
        members: How many models.
        fraction: Chance of an example to be in a subset.
        split: Whose examples are judged; None for every row.
    """

    split: str | None = "train"


@dataclass(frozen=True)
class Membership(_OfSubsets):
    """Which member was trained on which training example: bool `[member, example]`."""

    field: str = "membership"


@dataclass(frozen=True)
class Utility(_OfSubsets):
    """Headline metric of each member on held-out examples: float64 `[member]`.

    They are those of the validation split if there is one, else of the test split.
    """

    field: str = "utility"

    @property
    def per_example(self) -> bool:
        return False


@dataclass(frozen=True)
class _OfBags(FleetNeed):
    """Read from models that were trained on bootstrap samples: as many examples as there are, drawn with replacement."""

    kind: str | None = "bags"

    @property
    def store(self) -> str:
        return f"bags-{self.members}"


@dataclass(frozen=True)
class Bags(_OfBags):
    """What models trained on bootstrap samples say of the examples of a split; fields as of `Subsets`."""

    split: str | None = "train"


@dataclass(frozen=True)
class BagCounts(_OfBags):
    """How often each member drew each training example: int64 `[member, example]`."""

    field: str = "counts"


@dataclass(frozen=True)
class Permutations(FleetNeed):
    """What each training example added to the held-out metric when it joined those before it: float64 `[order, example]`.

    Attributes:
        members: How many random orders. Each takes up to as many trainings as there are examples.
        tolerance: An order is left when the metric has come this near to that of all examples, and the rest adds 0; 0 walks
            every order to its end.
    """

    field: str = "marginals"
    kind: str | None = "permutations"
    members: int = ORDERS
    tolerance: float = 0.01

    @property
    def store(self) -> str:
        return f"permutations-{self.members}-{self.tolerance:g}"


@dataclass(frozen=True)
class Gradients(Need):
    """Projected gradients of the examples' losses with respect to the model's weights: `[example, size]` float32.

    Inner products of them are unbiased estimates of those of the gradients. On disk they are float16.

    Attributes:
        size: Numbers per example; fewer where the model has fewer parameters.
        projection: "factored", "paired" or "sparse"; see `imprint.gradients.projections`.
        of: What is differentiated: "loss", or "margin" (`log p/(1-p)` of the target).
        checkpoint: "last", "first", "best", an epoch, "kept": all that are on disk, `[checkpoint, example, size]`, or "early": those of
            the first fifth of the epochs, at least the first, of the same shape.
        split: Whose; None for every row of the corpus.
    """

    field: str = "gradients"
    kind: str | None = "gradients"
    size: int = 512
    projection: str = "factored"
    of: str = "loss"
    checkpoint: str | int = "last"
    split: str | None = "train"

    @property
    def store(self) -> str:
        return f"gradients-{self.size}-{self.projection}-{self.of}-{self.checkpoint}"


@dataclass(frozen=True)
class GradientValues(Gradients):
    """What was differentiated for `Gradients` of the same settings: the loss or margin of each example, `[example]`."""

    field: str = "values"


@dataclass(frozen=True)
class GradientBlocks(Gradients):
    """Which columns of `Gradients` of the same settings are of which layer: name -> slice."""

    field: str = "blocks"

    @property
    def per_example(self) -> bool:
        return False


@dataclass(frozen=True)
class GradientNorms(Need):
    """Norm of the gradient of each example's loss with respect to all trained weights: `[example]` float32; attributes of `Gradients`."""

    field: str = "norms"
    kind: str | None = "gradient_norms"
    checkpoint: str | int = "last"
    split: str | None = "train"

    @property
    def store(self) -> str:
        return f"gradient-norms-{self.checkpoint}"


@dataclass(frozen=True)
class LayerGradients(Need):
    """The examples with the model, to take exact gradients of block by block; nothing is kept.

    The value is a tuple of `imprint.gradients.Examples`, one per checkpoint, each with its learning rate; attributes of `Gradients`.
    """

    field: str = "examples"
    kind: str | None = "layer_gradients"
    of: str = "loss"
    checkpoint: str | int = "last"
    split: str | None = "train"

    @property
    def store(self) -> None:
        return None

    @property
    def per_example(self) -> bool:
        return False


@dataclass(frozen=True)
class LearningRates(LayerGradients):
    """The learning rate that each kept checkpoint stands for: its epoch's and those since the checkpoint before it, `[checkpoint]`."""

    field: str = "rates"
    checkpoint: str | int = "kept"


@dataclass(frozen=True)
class SecondMoments(LayerGradients):
    """Adam's running means of squared gradients at the last checkpoint, by layer: an `imprint.gradients.moments.Moments`."""

    field: str = "moments"


@dataclass(frozen=True)
class Curvature(Need):
    """The curvature of the training loss at a checkpoint, layer by layer: an `imprint.gradients.curvature.Curvature`.

    Attributes:
        approximation: "diagonal", "kfac" or "ekfac".
        fisher: "true" (labels drawn from the model's own predictions) or "empirical" (the labels of the data).
        checkpoint: "last", "first", "best", or an epoch.
    """

    field: str = "curvature"
    kind: str | None = "curvature"
    approximation: str = "ekfac"
    fisher: str = "true"
    checkpoint: str | int = "last"

    @property
    def store(self) -> str:
        return f"curvature-{self.approximation}-{self.fisher}-{self.checkpoint}"

    @property
    def per_example(self) -> bool:
        return False
