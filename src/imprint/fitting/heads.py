"""Heads that are solved, not stepped to: "ridge", "logistic" and "rcal", one linear layer at the exact minimum of its objective.

A solved head is a module like any other (`Linear` on the flattened input, or behind the normalisation of images), with weights in
the checkpoint; it has no epochs, no order of examples and no seed, and so no training dynamics. `Learner.weight_decay` is its
penalty in units of the mean loss (see `imprint.fitting.ridge` and `imprint.fitting.logistic`); encoders give features with a mean
square of about one, so that it means the same for every corpus.

A ridge head learns each class or label as the numbers -1 and 1, a regression's standardised target as it is. Its largest output is
a class as good as that of a logistic head, but as logits its outputs are too close together: probabilities made of them
are flatter than they should be. Where probabilities matter, take "logistic".

"rcal" is a logistic head, too, on the examples and on features that are drawn from the classes that lie behind their labels: for wrong
labels and rare classes at once (`imprint.fitting.recovery`). Its seed is that of the draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import LearnerError
from imprint.fitting.data import Data
from imprint.fitting.learner import Learner
from imprint.fitting.logistic import logistic
from imprint.fitting.recovery import recovered_head
from imprint.fitting.ridge import Matrix, Moments, centre, moments, ridge, solve
from imprint.fitting.seeds import generator
from imprint.models import solver_of
from imprint.tasks import Task


class Design:
    """The inputs of a head `[example, feature]`: rows are made when they are asked for.

    Args:
        module: A module whose last layer is the head.
        inputs: Encoded inputs of all rows, in memory or mapped from disk.
        rows: Which rows the examples are.
        device: Where to compute.
        origin: Is subtracted from each row.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        rows: Tensor,
        device: torch.device,
        origin: Float[Tensor, " feature"] | None = None,
    ) -> None:
        self.origin = origin
        self.body = nn.Sequential(*list(module.children())[:-1]).to(device).eval()
        self.inputs, self.rows, self.device = inputs, rows, device
        self.shape = (len(rows), head(module).in_features)

    def __len__(self) -> int:
        return self.shape[0]

    @torch.no_grad()
    def __getitem__(self, places: Any) -> Float[Tensor, "example feature"]:
        rows = self.rows[places.to(self.rows.device) if isinstance(places, Tensor) else places]
        found = self.body(self.inputs.index_select(0, rows.to(self.inputs.device)).to(self.device)).double()
        return found if self.origin is None else found - self.origin


def head(module: nn.Module) -> nn.Linear:
    """The layer that is solved: the last one."""
    last = list(module.children())[-1]
    assert isinstance(last, nn.Linear)
    return last


def regressand(task: Task, target: Tensor) -> Float[Tensor, "example output"]:
    """What a ridge head comes near to: -1 and 1 for classes and labels, the standardised value of a regression; float64.

    >>> from imprint.tasks import Classification
    >>> regressand(Classification(("a", "b", "c")), torch.tensor([2])).tolist()
    [[-1.0, -1.0, 1.0]]
    """
    if task.name == "regression":
        return target.double()[:, None]
    if target.ndim == 2:
        return 2 * target.double() - 1
    found = torch.full((len(target), task.width), -1.0, dtype=torch.float64, device=target.device)
    return found.scatter_(1, target[:, None], 1.0)


def check(learner: Learner, task: Task) -> str:
    """The solver of a learner, "ridge", "logistic" or "rcal".

    Raises:
        LearnerError: It cannot serve this task, or the learner has a sampler, which a solution at once has no place for.
    """
    solver = solver_of(learner.model)
    if solver is None:
        raise LearnerError(
            f"model={learner.model!r} is not solved but trained.", "Choose 'ridge', 'logistic' or 'rcal'."
        )
    if solver == "logistic" and task.name == "regression":
        raise LearnerError("A logistic head predicts classes, and this target is a number.", "Use model='ridge'.")
    if solver == "rcal" and task.name != "classification":
        raise LearnerError(
            f"The head 'rcal' recovers distributions of classes, and this task is {task.name}.", "Use model='ridge'."
        )
    if learner.sampler is not None:
        raise LearnerError(
            f"A {solver} head is solved from all examples at once, so a sampler has no place in it.",
            "Give weights to the examples (corpus.reweight), or use model='linear'.",
        )
    return solver


def device_of(learner: Learner) -> torch.device:
    """Where to solve: float64 is needed, which not every device has."""
    device = torch.device(learner.device)
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def solve_head(learner: Learner, module: nn.Module, task: Task, data: Data) -> nn.Module:
    """Put the exact solution on the training rows of `data` into the last layer of a module.

    Args:
        learner: A resolved learner whose model is "ridge", "logistic" or "rcal".
        module: From `imprint.fitting.build.build`; it is changed in place.
        task: Fitted.
        data: Encoded examples.

    Returns:
        The module, in evaluation mode.

    Raises:
        LearnerError: See `check`; or the weights are impossible.
    """
    return solved(learner, module, task, data)[0]


def solved(learner: Learner, module: nn.Module, task: Task, data: Data) -> tuple[nn.Module, Summed | None]:
    """As `solve_head`, and what a ridge head was solved from: None for other heads, and where there are more features than examples."""
    solver, device = check(learner, task), device_of(learner)
    design = Design(module, data.inputs, data.rows, device)
    target = data.target[data.rows].to(device)
    weight = None if data.weight is None else checked(data.weight[data.rows]).to(device)
    decay = float(learner.weight_decay or 0.0)
    summed = None
    if solver == "rcal":
        features, known = design[torch.arange(len(design))].cpu(), None if weight is None else weight.cpu()
        W, b = recovered_head(features, target.cpu(), task.width, known, decay, generator(learner.seed, "recover"))
    elif solver == "logistic":
        W, b = logistic(design, target, weight, decay, classes=task.width)
    elif design.shape[1] <= design.shape[0]:
        summed = Summed.of(design, regressand(task, target), weight)
        W, b = summed.head(decay)
    else:
        W, b = ridge(design, regressand(task, target), weight, decay)
    put(module, W, b)
    return module.eval(), summed


class Summed(NamedTuple):
    """What a ridge head needs to know of its examples: their moments, and the point that these are about.

    Attributes:
        moments: Of the examples, less the origin.
        origin: Near the middle of the inputs.
    """

    moments: Moments
    origin: Float[Tensor, " feature"]

    @classmethod
    def of(
        cls, inputs: Matrix, target: Float[Tensor, "example output"], weight: Float[Tensor, " example"] | None = None
    ) -> Summed:
        """Of these examples; see `imprint.fitting.ridge`."""
        weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight
        origin = centre(inputs, weight.double())
        return cls(moments(inputs, target.double(), weight.double(), origin), origin)

    def head(self, decay: float) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"]]:
        """Weights and intercept, in float64."""
        return solve(self.moments, torch.tensor(decay).to(self.origin), self.origin)

    def tensors(self) -> dict[str, Tensor]:
        """As a file of evidence holds them."""
        return {**self.moments._asdict(), "origin": self.origin}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Summed:
        """The inverse of `tensors`."""
        return cls(Moments(*(tensors[name] for name in Moments._fields)), tensors["origin"])


@torch.no_grad()
def put(module: nn.Module, weights: Float[Tensor, "feature output"], intercept: Float[Tensor, " output"]) -> None:
    """Make this solution the last layer of a module."""
    last = head(module)
    last.weight.copy_(weights.T)
    last.bias.copy_(intercept)


def checked(weight: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Weights that a solution can be made of."""
    if not (weight >= 0).all() or not weight.sum() > 0:
        raise LearnerError(
            "The weights hold negative values, or none above 0.", "Give weights from 0, some of them above."
        )
    return weight.double()
