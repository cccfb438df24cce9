"""Ridge heads in closed form: one of them, many with weights of their own, and all that leave something out.

A head minimises the weighted mean of its squared errors and a penalty on its weights, not on its intercept:

    sum_i w_i |W' x_i + b - y_i|^2 / S  +  decay |W|^2,        S = sum_i w_i,

which is scikit-learn's `Ridge` with alpha = decay * S. As a mean, it means the same for a subset as for the whole, and the same for
examples that count twice as for two copies of each.

One solution costs the moments of the examples (n d^2) and a Cholesky factor. A head whose examples differ from those of another in
few places needs neither: with `A` the penalised moments and `K(q, i) = x_q' A^-1 x_i` (inputs with a one for the intercept), new
weights `w + delta` and targets `y + change` of some examples R give

    f_new(q) = f(q) + K(q, R) (I + delta K(R, R))^-1 (delta (y - f) + (w + delta) change)(R),

of which leave-one-out, `f(q) - K(q, i) e_i / (1 - K(i, i))`, is the simplest case (Cook and Weisberg 1982; Woodbury 1950). `A` is
kept by its eigenvectors, so that a head of fewer examples can have its own penalty `decay * S_new` at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Numbers of float64 that a block of examples may hold: 32 MB.
BLOCK = 2**22
# A penalty below this share of the mean square of a feature is lost in rounding: without any, it stands for "as little as possible".
LEAST = 1e-10
# Directions that carry less than this share of the largest one's mean square are rounding.
RANK = 1e-13


class Matrix(Protocol):
    """Inputs `[example, feature]`: a tensor, or something that makes rows when they are asked for."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...


class Moments(NamedTuple):
    """What a ridge head needs to know of its examples; each with any leading axes (members).

    Attributes:
        total: Sum of the weights.
        inputs: Weighted sum of the inputs.
        square: Weighted sum of their outer products.
        target: Weighted sum of the targets.
        cross: Weighted sum of the outer products of inputs and targets.
    """

    total: Float[Tensor, "*member"]
    inputs: Float[Tensor, "*member feature"]
    square: Float[Tensor, "*member feature feature"]
    target: Float[Tensor, "*member output"]
    cross: Float[Tensor, "*member feature output"]

    def plus(self, other: Moments) -> Moments:
        """The moments of both together."""
        return Moments(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def ridge(
    inputs: Matrix,
    target: Float[Tensor, "example output"],
    weight: Float[Tensor, " example"] | None = None,
    decay: float = 1e-2,
) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"]]:
    """Weights and intercept of a ridge head, in float64.

    Args:
        inputs: `[example, feature]`, of any type; read in blocks.
        target: What to come near to.
        weight: Of each example, from 0; None for all one.
        decay: The penalty, see the module.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> W, b = ridge(x, 3 * x + 1, decay=0.0)
    >>> torch.allclose(W, torch.tensor([[3.0]], dtype=W.dtype)), torch.allclose(b, torch.ones(1, dtype=b.dtype))
    (True, True)
    """
    weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight.double()
    target = target.double()
    origin = centre(inputs, weight)
    if inputs.shape[1] <= inputs.shape[0]:
        return solve(moments(inputs, target, weight, origin), torch.tensor(decay).to(weight), origin)
    # More features than examples: the same in the space of the examples, W = X' (X X' + alpha)^-1 y.
    total, half = weight.sum(), weight.sqrt()[:, None]
    middle = (weight @ target) / total
    kernel = half * products(inputs, origin) * half.T
    alpha = penalty(torch.tensor(decay).to(weight), total, kernel.trace(), inputs.shape[1])
    kernel.diagonal().add_(alpha)
    dual = half * torch.cholesky_solve(half * (target - middle), torch.linalg.cholesky(kernel))
    W = sum((inputs[part].double() - origin).T @ dual[part] for part in blocks(*inputs.shape))
    assert isinstance(W, Tensor)
    return W, middle - origin @ W


def moments(
    inputs: Matrix,
    target: Float[Tensor, "example output"],
    weight: Float[Tensor, " example"],
    origin: Float[Tensor, " feature"] | None = None,
    rows: Int[Tensor, " example"] | None = None,
) -> Moments:
    """Moments of examples about a point near their middle, in one pass, in float64.

    Args:
        inputs: Of all examples.
        target: Of the examples that are summed over.
        weight: Of these as well; below zero takes an example away.
        origin: Is subtracted from the inputs, so that large means cost no digits; None where that is done already.
        rows: Which of the inputs these examples are; None for all.
    """
    width = inputs.shape[1]
    found: Moments | None = None
    for part in blocks(len(target), width):
        x = inputs[part if rows is None else rows[part]].double()
        x = x if origin is None else x - origin
        w, y = weight[part], target[part]
        if bool((w == w[0]).all()):  # the usual case, which needs no weighted copy
            one = Moments(w.sum(), x.sum(0) * w[0], x.T @ x * w[0], y.sum(0) * w[0], x.T @ y * w[0])
        else:
            weighted = x * w[:, None]
            one = Moments(w.sum(), weighted.sum(0), x.T @ weighted, w @ y, weighted.T @ y)
        found = one if found is None else found.plus(one)
    if found is None:
        zeros = [(), (width,), (width, width), target.shape[1:], (width, *target.shape[1:])]
        return Moments(*(target.new_zeros(shape) for shape in zeros))
    return found


def solve(
    moments: Moments, decay: Float[Tensor, "*member"], origin: Float[Tensor, " feature"] | None = None
) -> tuple[Float[Tensor, "*member feature output"], Float[Tensor, "*member output"]]:
    """Weights and intercepts of the heads with these moments about `origin` (None for zero), each with its own penalty."""
    total = moments.total[..., None]
    mean, middle = moments.inputs / total, moments.target / total
    square = moments.square - moments.inputs[..., :, None] * mean[..., None, :]
    cross = moments.cross - moments.inputs[..., :, None] * middle[..., None, :]
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    alpha = penalty(decay, moments.total, diagonal.sum(-1), square.shape[-1])
    diagonal.add_(alpha[..., None])
    W = torch.cholesky_solve(cross, torch.linalg.cholesky(square))
    mean = mean if origin is None else mean + origin
    return W, middle - (mean[..., None, :] @ W).squeeze(-2)


def penalty(
    decay: Float[Tensor, "*member"], total: Float[Tensor, "*member"], trace: Float[Tensor, "*member"], width: int
) -> Float[Tensor, "*member"]:
    """What is added to the diagonal: `decay * total`, or a little above rounding where that is less."""
    return torch.maximum(decay * total, LEAST * trace / width + torch.finfo(torch.float64).tiny)


# ------------------------------------------------------------------------------------------------------------ few examples changed


@dataclass(frozen=True)
class Factored:
    """The moments of all examples by their eigenvectors: what every head that differs from theirs in few examples is made from.

    Attributes:
        origin: Weighted mean of the inputs.
        basis: Eigenvectors of the centred moments, as columns; those of the examples' own span where there are fewer examples.
        spectrum: Their eigenvalues.
        total: Sum of the weights.
        middle: Weighted mean of the targets.
        cross: Centred moments of inputs and targets, in the basis.
    """

    origin: Float[Tensor, " feature"]
    basis: Float[Tensor, "feature direction"]
    spectrum: Float[Tensor, " direction"]
    total: Float[Tensor, ""]
    middle: Float[Tensor, " output"]
    cross: Float[Tensor, "direction output"]

    def coordinates(self, inputs: Tensor) -> Float[Tensor, "... direction"]:
        """Inputs in the basis, in float64."""
        return (inputs.double() - self.origin) @ self.basis

    def inverse(self, decay: Float[Tensor, " member"], total: Float[Tensor, " member"]) -> Float[Tensor, "member dir"]:
        """The diagonal of the inverse of the penalised moments, for each penalty."""
        width = len(self.origin)
        return 1 / (self.spectrum + penalty(decay, total, self.spectrum.sum(), width)[:, None])

    def outputs(
        self, coordinates: Float[Tensor, "*axes direction"], inverse: Float[Tensor, " direction"]
    ) -> Float[Tensor, "*axes output"]:
        """What the head of all examples says, under one penalty."""
        return self.middle + coordinates @ (inverse[:, None] * self.cross)

    def correction(
        self,
        changed: Float[Tensor, "member change direction"],
        target: Float[Tensor, "member change output"],
        delta: Float[Tensor, "member change"],
        push: Float[Tensor, "member change output"] | None,
        inverse: Float[Tensor, "member direction"],
    ) -> Float[Tensor, "member change output"]:
        """Coefficients `c` such that a changed head says `f(q) + K(q, changed) c`; see the module.

        Args:
            changed: Coordinates of the examples that differ; members with fewer are filled up with examples of `delta` 0.
            target: Their targets in the head of all examples.
            delta: New weight less old weight.
            push: New weight times the change of the target; None where no target changes.
            inverse: Of each member's penalised moments.
        """
        kernel = 1 / self.total + (changed * inverse[:, None]) @ changed.mT
        said = self.middle + (changed * inverse[:, None]) @ self.cross
        right = delta[..., None] * (target - said)
        if push is not None:
            right = right + push
        system = delta[..., None] * kernel
        system.diagonal(dim1=-2, dim2=-1).add_(1)
        if system.shape[-1] == 1:
            return right / system
        return torch.linalg.solve(system, right)

    def heads(
        self,
        changed: Float[Tensor, "member change direction"],
        correction: Float[Tensor, "member change output"],
        inverse: Float[Tensor, "member direction"],
    ) -> tuple[Float[Tensor, "member direction output"], Float[Tensor, "member output"]]:
        """Weights (in the basis) and intercepts (at the origin) of changed heads."""
        weights = inverse[..., None] * (self.cross + changed.mT @ correction)
        return weights, self.middle + correction.sum(1) / self.total


def factor(
    inputs: Matrix, target: Float[Tensor, "example output"], weight: Float[Tensor, " example"] | None = None
) -> Factored:
    """Factor the moments of all examples, once."""
    target = target.double()
    weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight.double()
    origin, basis, spectrum = directions(inputs, weight)
    total = weight.sum()
    middle = (weight @ target) / total
    centred = weight[:, None] * (target - middle)
    cross = sum((inputs[part].double() - origin).T @ centred[part] for part in blocks(*inputs.shape))
    assert isinstance(cross, Tensor)
    return Factored(origin, basis, spectrum, total, middle, basis.T @ cross)


def leave_one_out(
    inputs: Matrix,
    target: Float[Tensor, "example output"],
    decay: float,
    queries: Float[Tensor, "query feature"],
    *,
    weight: Float[Tensor, " example"] | None = None,
    size: int = 64,
) -> Iterator[tuple[slice, Float[Tensor, "example query output"]]]:
    """What each of the heads that leave one example out says of some queries, from one factorisation.

    Args:
        inputs: `[example, feature]`.
        target: What to come near to.
        decay: The penalty, see the module; above zero.
        queries: Inputs of the queries.
        weight: Of each example, above 0; None for all one.
        size: Examples at a time.

    Yields:
        Which examples were left out in turn, and what the heads without them say; float64.

    >>> x, y = torch.tensor([[0.0], [1.0], [2.0], [5.0]]), torch.tensor([[1.0], [0.0], [2.0], [3.0]])
    >>> [(part, outputs)] = leave_one_out(x, y, 0.1, x)
    >>> W, b = ridge(x[1:], y[1:], decay=0.1)
    >>> torch.allclose(outputs[0], x.double() @ W + b)
    True
    """
    weight = torch.ones(len(target), dtype=torch.float64, device=target.device) if weight is None else weight.double()
    factored = factor(inputs, target, weight)
    asked = factored.coordinates(queries)
    for begin in range(0, len(target), size):
        part = slice(begin, min(begin + size, len(target)))
        left = weight[part]
        inverse = factored.inverse(torch.full_like(left, decay), factored.total - left)
        changed = factored.coordinates(inputs[part])[:, None]
        found = factored.correction(changed, target[part].double()[:, None], -left[:, None], None, inverse)
        weights, intercepts = factored.heads(changed, found, inverse)
        yield part, asked @ weights + intercepts[:, None]


# ------------------------------------------------------------------------------------------------------------------------- blocks


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows whose float64 copies stay small."""
    size = max(1, BLOCK // max(1, width))
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def centre(inputs: Matrix, weight: Float[Tensor, " example"]) -> Float[Tensor, " feature"]:
    """Weighted mean of the inputs, in float64."""
    summed = sum(weight[part] @ inputs[part].double() for part in blocks(*inputs.shape))
    assert isinstance(summed, Tensor)
    return summed / weight.sum()


def products(inputs: Matrix, origin: Float[Tensor, " feature"]) -> Float[Tensor, "example example"]:
    """Inner products of all pairs of centred inputs."""
    count, width = inputs.shape
    found = origin.new_empty(count, count)
    for part in blocks(count, width):
        left = inputs[part].double() - origin
        for other in blocks(count, width):
            if other.start <= part.start:
                block = left @ (inputs[other].double() - origin).T
                found[part, other] = block
                found[other, part] = block.T
    return found


def directions(
    inputs: Matrix, weight: Float[Tensor, " example"]
) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature direction"], Float[Tensor, " direction"]]:
    """Weighted mean of the inputs, and the eigenvectors and eigenvalues of their centred moments.

    Where there are fewer examples than features these are the directions that the examples span; no solution has a part outside.
    """
    origin = centre(inputs, weight)
    count, width = inputs.shape
    if width <= count:
        square = origin.new_zeros(width, width)
        for part in blocks(count, width):
            x = inputs[part].double() - origin
            square += x.T @ (x * weight[part, None])
        spectrum, basis = torch.linalg.eigh(square)
        return origin, basis, spectrum.clamp(min=0)
    half = weight.sqrt()[:, None]
    spectrum, vectors = torch.linalg.eigh(half * products(inputs, origin) * half.T)
    kept = spectrum > RANK * spectrum[-1]
    spectrum, vectors = spectrum[kept], half * vectors[:, kept]
    basis = sum((inputs[part].double() - origin).T @ vectors[part] for part in blocks(count, width))
    assert isinstance(basis, Tensor)
    return origin, basis / spectrum.sqrt(), spectrum
