"""Tail-patch: what does one more step of training on the examples that an attribution names first do to the query? Nothing is retrained.

From the final model, one step of gradient descent on the mean loss of the k examples with the highest scores for a query; the gain is the
rise of the query's margin (log-odds-like: target less the largest other; of a quantity, the fall of its absolute error). Beside it stand
steps on k random training examples, on k random ones of the query's class, and on the k that the similarity of features names: what helps
a query in a step is mostly its class, so that an attribution is worth its price where it gains more than these.

    gain(q, S) = margin_q(weights - rate * gradient of mean over S of loss) - margin_q(weights)

Chang et al. 2024 (arXiv:2410.17413) take the step on one example after the other, each from the final model, and average the changes of
the target's probability. To first order in the step that is the same sum, in one pass in place of k.

Rate: the same for all steps. The learning rate of a training means nothing to plain gradient descent where the training was Adam's, is 0
where its schedule has ended, and is unknown of a loop that was not ours; so by default it is such that a step on k random examples moves
the weights by a ten-thousandth of their length (`STEP`): far enough to be seen in float32, near enough that changes stay nearly linear.

What it cannot say: a step knows nothing of the many that a training takes, and gradients of this very step are what `gradient-dot` ranks
by. A method may lead here and know little of what another training set would have made of the model; that is the linear datamodeling score.

Steps are taken one after the other, each on a copy of the weights that replaces them from outside (`torch.func.functional_call`): that
serves any module, and costs a forward and a backward pass over k examples and a forward pass over one query. Random sets are shared by all
queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from imprint.errors import MethodError
from imprint.fitting import Progress, as_input, silent
from imprint.gradients.examples import check_differentiable, reader
from imprint.recording import Run
from imprint.tasks import Batch, Task
from imprint.verifying.removal import FEWEST_QUERIES

# Length of the step on random examples, in lengths of all trained weights.
STEP = 1e-4
# Random sets, and random sets of each class: their mean is what a query is held against.
RANDOM_SETS, CLASS_SETS = 10, 5
# Queries that go through a model together.
BLOCK_QUERIES = 256
# What knows no gradient, and names examples by their features.
SIMILAR = ("embedding", "embedding-class")


@dataclass(frozen=True)
class TailPatch:
    """What the steps did.

    Attributes:
        queries: Which queries they were taken for: places among those of the attribution.
        patched: Examples in a step.
        rate: Of the steps.
        gains: Name -> rise of the margin of each query.
    """

    queries: Int[np.ndarray, " query"]
    patched: int
    rate: float
    gains: dict[str, Float[Tensor, " query"]]


class Stepped(nn.Module):
    """A model from which one step of gradient descent can be taken, and taken back.

    Args:
        model: In evaluation mode; its parameters that require gradients take part.
        task: Gives loss and margin.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        return self.task.outputs(self.model, Batch(inputs, target))

    @property
    def weights(self) -> dict[str, Tensor]:
        """What a step moves."""
        return {name: one.detach() for name, one in self.named_parameters() if one.requires_grad}

    def gradient(self, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Of the mean loss of some examples."""
        own = {name: one for name, one in self.named_parameters() if one.requires_grad}
        with torch.enable_grad():
            loss = self.task.objective(self(inputs, target), Batch(inputs, target)).mean()
            found = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(own, found, strict=True))

    @torch.no_grad()
    def margins(
        self, inputs: Tensor, target: Tensor, gradient: Mapping[str, Tensor] | None = None, rate: float = 0.0
    ) -> Float[Tensor, " query"]:
        """Margins of some queries, after a step against a gradient if one is given."""
        weights = self.weights
        moved = {name: weights[name] - rate * one for name, one in (gradient or {}).items()}
        blocks = zip(torch.split(inputs, BLOCK_QUERIES), torch.split(target, BLOCK_QUERIES), strict=True)
        margins = [self.task.margin(functional_call(self, moved, some), some[1]) for some in blocks]
        return torch.cat(margins).double().cpu()


def tail_patch(
    run: Run,
    rows: Int[np.ndarray, " query"],
    scores: Mapping[str, Any],
    k: int,
    *,
    queries: int = 30,
    rate: float | None = None,
    progress: Progress = silent,
) -> TailPatch:
    """Step on the examples that each of several attributions names first, and on as many at random.

    Args:
        run: What the attributions are about.
        rows: Rows of the corpus that the queries are.
        scores: Name -> scores of the training examples for these queries (`imprint.tracing.Factors` or its like).
        k: Examples in a step.
        queries: For how many queries, drawn at random from all of them.
        rate: Of the steps; None for the rule of this module.
        progress: Told the steps taken.

    Raises:
        MethodError: The number or the rate makes no sense, there are too few queries, or nothing has a gradient.
        EvidenceError: The run's model has no gradients, or its inputs are not at hand.
    """
    check(k, len(run), len(rows), rate)
    check_differentiable(run)
    model = run.model()
    device = torch.device(model.device)
    stepped = Stepped(model.module.to(device).eval(), run.task)
    random = np.random.default_rng(0)
    asked = np.sort(random.choice(len(rows), min(queries, len(rows)), replace=False))
    training, some = run.rows(), rows[asked]
    read = {"train": reader(run, model, training), "query": reader(run, model, some)}

    def at(which: str, places: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs, target = read[which](places)
        return as_input(inputs.to(device), device), target.to(device)

    def moved(places: np.ndarray) -> dict[str, Tensor]:
        return stepped.gradient(*at("train", places))

    everyone = np.arange(len(asked))
    anything = [random.choice(len(training), k, replace=False) for _ in range(RANDOM_SETS)]
    steps = [moved(places) for places in anything]
    rate = rate or _rate(stepped.weights, steps)
    named = {name: one.top(k)[0].examples[torch.from_numpy(asked)].numpy() for name, one in scores.items()}
    classes = _by_class(run, some)
    total, done = len(named) * len(asked) + CLASS_SETS * len(classes), 0
    inputs, target = at("query", everyone)
    before = stepped.margins(inputs, target)
    gains = {"random": torch.stack([stepped.margins(inputs, target, one, rate) for one in steps]).mean(0) - before}
    del steps, inputs
    if classes:
        gains["same-class"] = torch.zeros_like(before)
        for mine, candidates in classes:
            for _ in range(CLASS_SETS):
                picked = random.choice(candidates, min(k, len(candidates)), replace=False)
                after = stepped.margins(*at("query", mine), moved(picked), rate)
                gains["same-class"][torch.from_numpy(mine)] += (after - before[torch.from_numpy(mine)]) / CLASS_SETS
                done += 1
                progress("tail-patch", done, total)
    for name, chosen in named.items():
        found = []
        for query, places in enumerate(chosen):
            found.append(stepped.margins(*at("query", everyone[query : query + 1]), moved(places), rate))
            done += 1
            progress("tail-patch", done, total)
        gains[name] = torch.cat(found) - before
    return TailPatch(asked, k, rate, gains)


def check(k: int, examples: int, queries: int, rate: float | None) -> None:
    """Raise `MethodError` where steps cannot be taken."""
    if int(k) != k or not 1 <= k <= examples // 2:
        raise MethodError(
            f"tail_patch={k} is no number of examples to step on, of {examples:,}.",
            f"Give a whole number from 1 to {examples // 2:,}; 10 is usual.",
        )
    if rate is not None and not 0 < rate < float("inf"):
        raise MethodError(f"A step with the rate {rate} is none.", "Give a number above 0, or None for the rule.")
    if queries < FEWEST_QUERIES:
        raise MethodError(
            f"There are {queries} queries; a tail-patch is measured on {FEWEST_QUERIES} or more.",
            "Trace more queries, such as a whole split.",
        )


def length(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean length of several tensors as one vector.

    >>> length({"weight": torch.tensor([[3.0], [0.0]]), "bias": torch.tensor([4.0])})
    5.0
    """
    return float(torch.stack([one.double().square().sum() for one in tensors.values()]).sum().sqrt())


def _rate(weights: Mapping[str, Tensor], gradients: list[dict[str, Tensor]]) -> float:
    """Such that steps on these gradients have, as a root mean square, the length `STEP` of the weights'."""
    typical = float(np.sqrt(np.mean([length(one) ** 2 for one in gradients])))
    if not typical > 0:
        raise MethodError(
            "Random training examples have no gradient: the model has learned them by heart, and no step changes it.",
            "Verify with the linear datamodeling score alone.",
        )
    return STEP * (length(weights) or 1.0) / typical


def _by_class(run: Run, rows: Int[np.ndarray, " query"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class among the queries: the places of the queries, and those of the training examples; empty without classes."""
    if run.task.name != "classification":
        return []
    target, own = run.target().numpy(), run.target(None)[torch.from_numpy(rows)].numpy()
    pairs = ((np.flatnonzero(own == one), np.flatnonzero(target == one)) for one in np.unique(own))
    return [(mine, candidates) for mine, candidates in pairs if len(candidates)]
