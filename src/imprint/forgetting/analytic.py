"""Forgetting in closed form: a ridge head is a function of its examples' moments, and moments can be taken away again.

A ridge head on features that no example changes is the solution of `(X'X + decay S) W = X'Y`. An example stands in it only as a
term of these sums, so that without some examples, the head is solved from the sums less their terms: no example that stays is read,
and the result is the head of a training that never held those that go. ACU keeps the inverse of the sums and updates it by Woodbury's
identity; here the sums are kept themselves and solved again, since the penalty `decay * S` falls with the number of examples, and one
Cholesky factor of `d x d` costs less than the pass that a refit takes. `add` is the inverse: the terms of new examples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import MethodError
from imprint.fitting.heads import Design, Summed, device_of, put, regressand
from imprint.fitting.ridge import Matrix, Moments, moments, ridge
from imprint.forgetting.controls import ENCODER
from imprint.forgetting.job import Forgetting, Forgotten, Part
from imprint.methods import method
from imprint.models import solver_of
from imprint.recording.fit import MOMENTS


@method(
    "forget", "analytic", higher="forgets more", needs=(), source="Tang et al. 2025 (ACU), arXiv:2505.12239", exact=True
)
def analytic(job: Forgetting) -> Forgotten:
    """Take the examples out of a ridge head's moments, and solve it again: exact, and no retained example is read.

    Serves heads with `model="ridge"` (also behind a frozen backbone). The run keeps the moments that its head was solved from; its child
    keeps those that are left, so that requests can follow one another in any order.
    """
    if solver_of(job.learner.model) != "ridge":
        raise MethodError(
            f"'analytic' takes examples out of a ridge head, and this run trained {job.learner.model!r}.",
            "Fit with Learner(model='ridge'), or choose another method.",
        )
    left, note = without(job)
    decay = float(job.learner.weight_decay or 0.0)
    if left is None:
        part = job.retain
        W, b = ridge(design(job, part), outcome(job, part), weight(job, part), decay)
    else:
        W, b = left.head(decay)
    put(job.module, W, b)
    guarantee = f"The ridge head that the retained examples alone have, to rounding. {ENCODER}"
    evidence = None if left is None else {MOMENTS: left.tensors()}
    return Forgotten(job.module.eval(), True, guarantee, notes=(note,) if note else (), evidence=evidence)


def without(job: Forgetting) -> tuple[Summed | None, str]:
    """The moments that are left when the examples to forget are taken away, and what to know of how they were had."""
    from imprint.forgetting.child import kept

    recorded = kept(job.run, MOMENTS)
    if recorded is not None:
        there = Summed.from_tensors({name: value.to(device_of(job.learner)) for name, value in recorded.items()})
        return downdate(there, design(job, job.forget), outcome(job, job.forget), weight(job, job.forget)), ""
    part = job.retain
    if job.forget.data.inputs.shape[0] and design(job, part).shape[1] > len(part):
        return (
            None,
            "The run keeps no moments (it has more features than examples): the head was solved from the retained examples.",
        )
    note = "The run keeps no moments: they were summed over the retained examples."
    return Summed.of(design(job, part), outcome(job, part), weight(job, part)), note


def downdate(
    summed: Summed,
    inputs: Matrix,
    target: Float[Tensor, "example output"],
    weight: Float[Tensor, " example"] | None = None,
) -> Summed:
    """Moments less these examples, about the middle of those that are left.

    Args:
        summed: Moments that hold the examples.
        inputs: Their features, read in blocks.
        target: What the head came near to.
        weight: Their weights; None for all one.

    >>> x, y = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    >>> W, b = downdate(Summed.of(x, y), x[:3], y[:3]).head(0.1)
    >>> expected, _ = ridge(x[3:], y[3:], decay=0.1)
    >>> torch.allclose(W, expected)
    True
    """
    return _changed(summed, inputs, target, weight, -1.0)


def add(
    summed: Summed,
    inputs: Matrix,
    target: Float[Tensor, "example output"],
    weight: Float[Tensor, " example"] | None = None,
) -> Summed:
    """Moments with these examples besides: the inverse of `downdate`, and how a head goes on learning."""
    return _changed(summed, inputs, target, weight, 1.0)


def recentred(summed: Summed) -> Summed:
    """The same examples, with moments about their own middle: the old one tells of examples that have gone."""
    m, origin = summed
    middle = m.inputs / m.total
    return Summed(
        Moments(
            m.total,
            torch.zeros_like(m.inputs),
            m.square - torch.outer(m.inputs, middle),
            m.target,
            m.cross - torch.outer(middle, m.target),
        ),
        origin + middle,
    )


def _changed(summed: Summed, inputs: Matrix, target: Tensor, weight: Tensor | None, sign: float) -> Summed:
    weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight.double()
    change = moments(inputs, target.double(), sign * weight, summed.origin)
    return recentred(Summed(summed.moments.plus(change), summed.origin))


# ------------------------------------------------------------------------------------------------- what a head sees of a part


def design(job: Forgetting, part: Part) -> Design:
    """Features of a part, made when they are asked for."""
    return Design(job.module, part.data.inputs, part.rows, device_of(job.learner))


def outcome(job: Forgetting, part: Part) -> Float[Tensor, "example output"]:
    """What a ridge head comes near to."""
    return regressand(job.task, part.target.to(device_of(job.learner)))


def weight(job: Forgetting, part: Part) -> Float[Tensor, " example"] | None:
    """Weights of a part, float64; None for all one."""
    return None if part.weight is None else part.weight.double().to(device_of(job.learner))


__all__ = ["Summed", "add", "analytic", "design", "downdate", "outcome", "recentred", "weight", "without"]
