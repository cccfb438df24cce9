"""Logistic heads to the exact minimum: one, or many with weights of their own, by Newton's method.

A head minimises the weighted mean of its cross-entropies and a penalty on its weights, not on its intercept:

    sum_i w_i loss(W' x_i + b, y_i) / S  +  decay/2 |W|^2,        S = sum_i w_i,

softmax cross-entropy for classes and binary cross-entropy, summed, for labels. That is scikit-learn's `LogisticRegression` with
C = 1 / (decay * S). The minimum is unique; the penalty keeps it finite where the classes can be separated.

A Newton step is found by conjugate gradients, in the basis of the inputs' principal directions, where the diagonal of the Hessian
is a good preconditioner. All members share the products with the inputs, which is where the time goes. Steps are taken in float32
and judged in float64: a step need not be exact, the minimum is, since the iteration ends only when the gradient vanishes. Where float32
does not get there, steps go on in float64.

A class without examples has no finite intercept: its logit is `IMPOSSIBLE`, as that of a scikit-learn estimator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting.ridge import Matrix, blocks, centre, directions
from imprint.models.estimator import IMPOSSIBLE

# A head is as near to the minimum as its gradient is small: |W - W*| <= |gradient| / decay.
TOLERANCE = 1e-7
# Below this a gradient is rounding: sums of float64.
ROUNDING = 1e-12
LEAST_DECAY = 1e-8
MOST_STEPS, MOST_PRODUCTS, MOST_HALVINGS = 200, 400, 30
# Steps in float32; a problem that takes more is too stiff for it, and goes on in float64.
ROUGH_STEPS = 30
# Numbers of the logits of a block of examples: 16 MB in float64.
BLOCK = 2**21
# Beyond this many features the eigenvectors cost more than they save.
WIDEST = 2048


def logistic(
    inputs: Matrix,
    target: Tensor,
    weight: Float[Tensor, " example"] | None = None,
    decay: float = 1e-3,
    *,
    classes: int | None = None,
) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"]]:
    """Weights and intercept of a logistic head, in float64.

    Args:
        inputs: `[example, feature]`, of any type.
        target: Class codes `[example]`, or labels `[example, label]`, 0 or 1.
        weight: Of each example, from 0; None for all one.
        decay: The penalty, see the module.
        classes: How many classes there are; None for as many as the largest code says.

    Raises:
        LearnerError: The minimum was not reached.

    >>> x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0, 1])
    >>> W, b = logistic(x, y, decay=0.1)
    >>> p = torch.softmax(x.double() @ W + b, 1)[:, 1]
    >>> torch.allclose(p.sum(), y.double().sum())                   # the intercept is free: as many ones as were seen
    True
    """
    if classes is None and target.ndim == 1:
        classes = int(target.max()) + 1
    weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight.double()
    space = principal(inputs, weight)
    heads = minimise(
        space.design, target[:, None], weight[:, None], torch.tensor([decay]).to(weight), classes or target.shape[1]
    )
    W, b = space.heads(heads)
    return W[0], b[0]


@dataclass(frozen=True)
class Space:
    """Inputs in their principal directions.

    Attributes:
        design: `[example, 1 + direction]`, float64: a one, then the coordinates.
        origin: What the coordinates are about.
        basis: The directions as columns; None for the axes themselves.
    """

    design: Float[Tensor, "example column"]
    origin: Float[Tensor, " feature"]
    basis: Float[Tensor, "feature direction"] | None

    def heads(
        self, found: Float[Tensor, "column member output"]
    ) -> tuple[Float[Tensor, "member feature output"], Float[Tensor, "member output"]]:
        """Weights and intercepts in terms of the inputs."""
        weights = found[1:].movedim(0, 1)
        W = weights if self.basis is None else self.basis @ weights
        return W, found[0] - self.origin @ W


def principal(inputs: Matrix, weight: Float[Tensor, " example"]) -> Space:
    """Inputs in their principal directions about their weighted mean; a rotation, which leaves the penalty as it is."""
    count, width = inputs.shape
    basis: Tensor | None = None
    if min(count, width) <= WIDEST or width > count:
        origin, basis, _ = directions(inputs, weight)
    else:
        origin = centre(inputs, weight)
    design = origin.new_ones(count, 1 + (width if basis is None else basis.shape[1]))
    for part in blocks(count, width):
        x = inputs[part].double() - origin
        design[part, 1:] = x if basis is None else x @ basis
    return Space(design, origin, basis)


def minimise(
    design: Float[Tensor, "example column"],
    target: Tensor,
    weight: Float[Tensor, "example member"],
    decay: Float[Tensor, " member"],
    outputs: int,
    *,
    start: Float[Tensor, "column 1 output"] | None = None,
) -> Float[Tensor, "column member output"]:
    """Logistic heads of many members over the same inputs: intercepts in the first row, weights below.

    Args:
        design: A column of ones, then the features, near to uncorrelated; float64.
        target: Class codes `[example, member or 1]` or labels `[example, member or 1, label]`.
        weight: Of each example for each member, from 0; float64.
        decay: The penalty of each member; less than 1e-8 counts as that.
        outputs: Classes or labels.
        start: Where to start; None for zero. The minimum does not depend on it.

    Raises:
        LearnerError: A minimum was not reached.
    """
    whole = problem = Problem.of(design, target, weight, decay.clamp(min=LEAST_DECAY), outputs)
    members = weight.shape[1]
    heads = design.new_zeros(design.shape[1], members, outputs)
    if start is not None:
        heads += start
    heads.masked_fill_(problem.absent, 0)
    alive = torch.arange(members, device=design.device)
    point, first = problem.at(heads), None
    found = heads.clone()
    steps = 0
    while steps < MOST_STEPS:
        steps += 1
        if steps == ROUGH_STEPS:
            problem = problem.exact()
            point = problem.at(heads)
        norm = point.gradient.square().sum((0, 2)).sqrt()
        first = norm if first is None else torch.maximum(first, norm)
        going = norm > problem.tolerance
        found[:, alive] = heads
        if not going.any():
            return whole.closed(found)
        if not going.all():
            alive, heads, first, problem = alive[going], heads[:, going], first[going], problem.of_members(going)
            point, norm = point.of_members(going), norm[going]
        step = problem.newton(point, (norm / first).sqrt().clamp(0.03, 0.3))
        heads, point, moved = problem.search(heads, point, norm, step)
        if not moved.any():
            break
    raise LearnerError(
        f"A logistic head was not solved to the end: its gradient is {float(norm.max()):.1e} after {steps} steps.",
        "Raise weight_decay (1e-4 is small), or look for extreme values in the inputs.",
    )


@dataclass(frozen=True)
class Point:
    """The objective where the search stands: value, gradient, and predicted probabilities."""

    value: Float[Tensor, " member"]
    gradient: Float[Tensor, "column member output"]
    probability: Float[Tensor, "example member output"]

    def of_members(self, members: Bool[Tensor, " member"]) -> Point:
        """Only these."""
        return Point(self.value[members], self.gradient[:, members], self.probability[:, members])


@dataclass(frozen=True)
class Problem:
    """The objectives of some members."""

    design: Float[Tensor, "example column"]
    rough: Float[Tensor, "example column"]
    target: Tensor
    weight: Float[Tensor, "example member"]
    decay: Float[Tensor, " member"]
    absent: Bool[Tensor, "member output"]
    always: Bool[Tensor, "member output"]

    @classmethod
    def of(cls, design: Tensor, target: Tensor, weight: Tensor, decay: Tensor, outputs: int) -> Problem:
        """Scales weights to a sum of one, and finds outputs that have no finite intercept."""
        weight = weight / weight.sum(0)
        members = weight.shape[1]
        shares = weight.new_zeros(members, outputs)
        if target.ndim == 2:
            for output in range(outputs):
                shares[:, output] = (weight * (target == output)).sum(0)
            always = torch.zeros_like(shares, dtype=torch.bool)
        else:
            for output in range(outputs):
                shares[:, output] = (weight * target[..., output]).sum(0)
            always = shares >= 1 - 1e-12
        return cls(design, design.float(), target, weight, decay, (shares <= 0) | always, always)

    def exact(self) -> Problem:
        """The same, with steps in float64."""
        return replace(self, rough=self.design)

    def of_members(self, members: Bool[Tensor, " member"]) -> Problem:
        """Only these."""
        target = self.target if self.target.shape[1] == 1 else self.target[:, members]
        return Problem(
            self.design, self.rough, target, self.weight[:, members], self.decay[members], self.absent[members],
            self.always[members],
        )  # fmt: skip

    @property
    def tolerance(self) -> Float[Tensor, " member"]:
        """The norm of a gradient that is small enough."""
        return (TOLERANCE * self.decay).clamp(min=ROUNDING)

    def closed(self, heads: Tensor) -> Tensor:
        """The answer, with the intercepts of outputs that were never (or always) seen.

        A constant added to all classes changes nothing: the intercepts of those that were seen have the mean zero.
        """
        if self.target.ndim == 2:
            seen = ~self.absent
            heads[0] -= (heads[0] * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
        heads[0] = torch.where(self.absent, torch.where(self.always, -IMPOSSIBLE, IMPOSSIBLE), heads[0])
        return heads

    def parts(self, outputs: int) -> list[slice]:
        """Blocks of examples."""
        size = max(1, BLOCK // max(1, self.weight.shape[1] * outputs))
        return [slice(begin, min(begin + size, len(self.design))) for begin in range(0, len(self.design), size)]

    def at(self, heads: Float[Tensor, "column member output"]) -> Point:
        """Value, gradient and probabilities."""
        columns, members, outputs = heads.shape
        value, gradient = heads.new_zeros(members), torch.zeros_like(heads)
        probability = heads.new_empty(len(self.design), members, outputs, dtype=self.rough.dtype)
        for part in self.parts(outputs):
            x, w, y = self.design[part], self.weight[part], self.target[part]
            logits = (x @ heads.view(columns, -1)).view(-1, members, outputs)
            if y.ndim == 2:
                logits = logits.masked_fill_(self.absent, -torch.inf)
                codes = y.expand(-1, members)[..., None]
                largest = logits.logsumexp(-1)
                own = logits.gather(-1, codes).squeeze(-1)
                # An absent class weighs nothing here, but infinity times nothing is not a number.
                value += torch.where(w > 0, w * (largest - own), 0).sum(0)
                wrong = (logits - largest[..., None]).exp_()
                probability[part] = wrong
                wrong.scatter_add_(-1, codes, torch.full_like(own, -1)[..., None])
            else:
                losses = (F.softplus(logits) - logits * y).masked_fill_(self.absent, 0)
                value += (w * losses.sum(-1)).sum(0)
                wrong = logits.sigmoid()
                probability[part] = wrong
                wrong = (wrong - y).masked_fill_(self.absent, 0)
            gradient += (x.T @ (w[..., None] * wrong).view(len(x), -1)).view_as(gradient)
        value += self.decay / 2 * heads[1:].square().sum((0, 2))
        gradient[1:] += self.decay[:, None] * heads[1:]
        return Point(value, gradient.masked_fill_(self.absent, 0), probability)

    def curvature(
        self, probability: Tensor, direction: Float[Tensor, "column member output"], held: Float[Tensor, " member"]
    ) -> Tensor:
        """The Hessian times a direction; intercepts, which no penalty holds, are bent by `held` besides."""
        columns, members, outputs = direction.shape
        found = torch.zeros_like(direction)
        for part in self.parts(outputs):
            x, p = self.rough[part], probability[part]
            change = (x @ direction.view(columns, -1)).view(-1, members, outputs)
            change = p * (change - (p * change).sum(-1, keepdim=True) if self.target.ndim == 2 else (1 - p) * change)
            change *= self.weight[part, :, None].to(self.rough.dtype)
            found += (x.T @ change.view(len(x), -1)).view_as(found)
        found[1:] += self.decay[:, None].to(self.rough.dtype) * direction[1:]
        found[0] += held[:, None] * direction[0]
        return found.masked_fill_(self.absent, 0)

    def diagonal(
        self, probability: Float[Tensor, "example member output"], held: Float[Tensor, " member"]
    ) -> Float[Tensor, "column member output"]:
        """The diagonal of the Hessian, with `held` for the intercepts."""
        columns, (_, members, outputs) = self.design.shape[1], probability.shape
        found = self.rough.new_zeros(columns, members, outputs)
        for part in self.parts(outputs):
            p = probability[part]
            bent = self.weight[part, :, None].to(self.rough.dtype) * p * (1 - p)
            found += (self.rough[part].square().T @ bent.view(len(p), -1)).view_as(found)
        found[1:] += self.decay[:, None].to(self.rough.dtype)
        found[0] += held[:, None]
        return found.clamp_(min=torch.finfo(torch.float32).tiny * 1e6)

    def held(self, point: Point) -> Float[Tensor, " member"]:
        """What holds the intercepts in a step: where a class is all but ruled out nothing else bends them, and a step would
        go astray. It vanishes with the gradient, so that steps near the minimum are Newton's own."""
        return (self.decay * point.gradient.square().sum((0, 2)).sqrt().clamp(max=1)).to(self.rough.dtype)

    def newton(self, point: Point, accuracy: Float[Tensor, " member"]) -> Float[Tensor, "column member output"]:
        """The step to the minimum of the quadratic model, by preconditioned conjugate gradients to the accuracy asked for."""
        # Gradients shrink far below what float32 can square: each member's is solved for at the size of one.
        size = point.gradient.square().sum((0, 2)).sqrt()
        residual = -(point.gradient / size[:, None]).to(self.rough.dtype)
        held = self.held(point)
        inverse = 1 / self.diagonal(point.probability, held)
        step = torch.zeros_like(residual)
        conditioned = inverse * residual
        direction = conditioned.clone()
        product = (residual * conditioned).sum((0, 2))
        for _ in range(MOST_PRODUCTS):
            bent = self.curvature(point.probability, direction, held)
            curve = (direction * bent).sum((0, 2))
            going = (residual.square().sum((0, 2)).sqrt() > accuracy) & (curve > 0)
            if not going.any():
                break
            length = torch.where(going, product / curve, 0)[:, None]
            step += length * direction
            residual -= length * bent
            conditioned = inverse * residual
            renewed = (residual * conditioned).sum((0, 2))
            direction = conditioned + torch.where(going, renewed / product, 0)[:, None] * direction
            product = renewed
        return step.double() * size[:, None]

    def search(
        self, heads: Tensor, point: Point, norm: Float[Tensor, " member"], step: Float[Tensor, "column member output"]
    ) -> tuple[Tensor, Point, Bool[Tensor, " member"]]:
        """Go as far along the step as the objective falls; near the minimum, where its fall is rounding, as the gradient does."""
        slope = (point.gradient * step).sum((0, 2))
        length = torch.ones_like(slope)
        for _ in range(MOST_HALVINGS):
            tried = heads + length[:, None] * step
            there = self.at(tried)
            fallen = there.value <= point.value + 1e-4 * length * slope
            flat = (length * slope).abs() <= 1e-11 * point.value.abs().clamp(min=1e-3)
            taken = fallen | (flat & (there.gradient.square().sum((0, 2)).sqrt() < norm))
            if taken.all():
                return tried, there, taken
            length = torch.where(taken, length, length / 2)
        keep = ~taken
        tried[:, keep] = heads[:, keep]
        return tried, self.at(tried), taken
