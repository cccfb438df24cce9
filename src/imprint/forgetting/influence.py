"""One preconditioned step: where the optimum goes when examples are left out, to first order.

    weights <- weights + (n F + damping)^-1 x sum over the forgotten of the gradients of their losses

with the Fisher matrix F of the training examples (true, that is Gauss-Newton, by default EK-FAC), so that the curvature of all losses is
`n F`. Where the loss is quadratic, the curvature exact, that of the retained examples and not damped, and the parent at its optimum, this
is the retrained model. Networks are neither: near the end of a training there is hardly any curvature left, and the step is as long as
the weights themselves. It is halved until the retained examples hardly suffer: its direction is right nearby.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import MethodError, nearest
from imprint.fitting import generator
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.layout import by_parameter, curvature_of, examples_of
from imprint.forgetting.stepping import finite, some, within
from imprint.gradients import Examples
from imprint.gradients.curvature_evidence import KINDS
from imprint.gradients.linear import combined
from imprint.methods import method

OF = ("all", "retained")
# Retained examples that the length of a step is judged on, and how often it is halved at most.
JUDGED, HALVINGS = 2048, 12
SEARCH = {"price": (0.05, 0.01, 0.2), "damping": (1.0, 0.1, 10.0), "of": OF}


@method(
    "forget", "influence", higher="forgets more", needs=(), exact=False, search=SEARCH,
    source="Koh, Liang 2017, arXiv:1703.04730; Warnecke et al. 2021, arXiv:2108.11577; EK-FAC: Grosse et al. 2023, arXiv:2308.03296",
)  # fmt: skip
def influence(
    job: Forgetting, *, curvature: str = "ekfac", of: str = "all", damping: float = 1.0, price: float | None = 0.05
) -> Forgotten:
    """One step along the curvature's inverse times the forgotten gradients, away from what these examples did (influence).

    Args:
        job: The request.
        curvature: "ekfac", "kfac" or "diagonal".
        of: Whose curvature: "all" takes what the run has recorded, if it has; "retained" is fitted to the retained examples, which is
            nearer to the truth for large requests and costs two passes over them.
        damping: What is added to each direction of a layer, in units of its mean curvature. Attribution has the best scores at 1.
        price: Nats that the mean loss of retained examples may rise: the step is halved until it does not. None for the step as it comes.

    Raises:
        MethodError: There is no such curvature.
    """
    if curvature not in KINDS:
        raise MethodError(f"There is no curvature={curvature!r}.", nearest(curvature, KINDS))
    if of not in OF:
        raise MethodError(f"of={of!r} says nothing of whose curvature.", nearest(of, OF))
    damping = within("damping", damping, 0, 1e9, open_low=True)
    price = price if price is None else within("price", price, 0, 1e9)
    examples = examples_of(job, job.forget)
    fitted = curvature_of(job, job.retain if of == "retained" else None, curvature, "true")
    total = len(job.retain) + (len(job.forget) if of == "all" else 0)
    moves = {name: fitted[name].to(one).solve(one[None], damping)[0] / total for name, one in summed(examples).items()}
    change = by_parameter(examples, moves)
    share = 1.0 if price is None else affordable(job, change, price)
    move(job, change, share)
    finite(job.module)
    size = norm(job.parameters())
    note = f"The step is {share * norm(change.values()) / max(size, 1e-30):.2g} of the length of the weights"
    notes = (note + (f", and 1/{round(1 / share)} of what it would be." if 0 < share < 1 else "."),)
    if share == 0:
        notes = ("No step was taken: even the shortest costs more on the retained examples than was allowed.",)
    return Forgotten(job.module.eval(), False, NONE, notes=notes)


def move(job: Forgetting, change: Mapping[str, Tensor], share: float) -> None:
    """Add a share of a change to a job's weights."""
    named = dict(job.module.named_parameters())
    with torch.no_grad():
        for name, one in change.items():
            named[name].add_(one.to(named[name]), alpha=share)


def affordable(job: Forgetting, change: Mapping[str, Tensor], price: float) -> float:
    """The largest of 1, 1/2, 1/4, ... of a change that raises the mean loss of (some of) the retained examples by at most so much; or 0."""
    part = some(job.retain, JUDGED, generator(job.seed, "forget", "judged"))

    def loss() -> float:
        return float(job.loss(job.outputs(part), part.target).mean())

    before, start = loss(), {name: one.detach().clone() for name, one in job.module.named_parameters()}
    found = 0.0
    for halved in range(HALVINGS):
        move(job, change, 2.0**-halved)
        rise = loss() - before
        with torch.no_grad():
            for name, one in job.module.named_parameters():
                one.copy_(start[name])
        if rise <= price:
            found = 2.0**-halved
            break
    return found


def norm(tensors: Iterable[Tensor]) -> float:
    """Length of all of them together.

    >>> norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    5.0
    """
    return math.sqrt(sum(float(one.detach().double().square().sum()) for one in tensors))


def summed(examples: Examples) -> dict[str, Float[Tensor, "in out"]]:
    """The sum over examples of their gradients, by layer."""
    found: dict[str, Tensor] = {}
    for _, layers in examples.blocks():
        for layer in layers:
            one = combined(layer, layer.outputs.new_ones(1, len(layer)))[0]
            found[layer.name] = found[layer.name] + one if layer.name in found else one
    return found
