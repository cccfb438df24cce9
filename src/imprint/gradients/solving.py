"""Products of gradients under the damped inverse of the curvature, `grad_query^T (F + lambda)^-1 grad_example`, in the cheapest order.

With several positions the query's solved gradient is written out (`Written`): `in out` multiplications a pair. With one position a
gradient is an outer product, and in the basis of the curvature's directions (hats) the score is

    sum over i, j of  a^_q[i] a^_e[i]  W[i, j]  g^_q[j] g^_e[j],            W = 1 / (curvature + lambda),

so a rank-one term `u v^T` of W costs only `in + out` multiplications a pair: `(u a^_q . a^_e) (v g^_q . g^_e)`. W is nearly of low rank: it
is flat wherever the damping outweighs the curvature. `Factored` takes the rows of the leading directions in full and few terms for the
others, with as many as bring the expected error below `TOLERANCE`, and multiplies with few digits (bfloat16) where that is faster; these
errors are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.gradients.curvature import DAMPING, LayerCurvature
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import full, products

# Expected error of a score as a share of the spread of scores. Drawing the random signs of the true Fisher anew moves scores far more
# (`benchmarks/influence.py` prints both).
TOLERANCE = 0.01
# Shares of the `in` directions that are tried as leading ones.
LEADING = (0.0, 0.125, 0.25, 0.5)
# Wider layers are not decomposed: it would take minutes.
WIDEST = 2048
# Numbers at a time that stay in a processor's cache.
CACHED = 2**21


class Solution(Protocol):
    """The solved gradients of some queries in one layer."""

    def __call__(self, examples: LayerGradient) -> Float[Tensor, "query example"]:
        """Their products with the gradients of examples."""
        ...


@dataclass(frozen=True, eq=False)
class Written:
    """Solved gradients, written out: a layer of kind "other"."""

    solved: LayerGradient

    def __call__(self, examples: LayerGradient) -> Float[Tensor, "query example"]:
        return products([self.solved], [examples])


@dataclass(frozen=True, eq=False)
class Inverse:
    """`block` in the rows `rows` of W, and `W[i, j] ~ sum over terms r of left[r, i] right[r, j]` in the others.

    Attributes:
        left, right: The terms, zero in these rows.
        rows: Leading `in` directions.
        block: W there.
        error: Expected error of a score, as a share of the root mean square of scores.
    """

    left: Float[Tensor, "term in"]
    right: Float[Tensor, "term out"]
    rows: Int[Tensor, " row"]
    block: Float[Tensor, "row out"]
    error: float

    @property
    def cost(self) -> int:
        """Multiplications a pair."""
        return self.block.numel() + len(self.left) * (self.left.shape[1] + self.right.shape[1])

    def dense(self) -> Float[Tensor, "in out"]:
        """W as it is approximated."""
        whole = self.left.T @ self.right
        whole[self.rows] += self.block
        return whole


def compressed(layer: LayerCurvature, share: float = DAMPING, tolerance: float = TOLERANCE) -> Inverse:
    """The damped inverse in the form that costs the fewest multiplications a pair.

    A product `a^_q[i] a^_e[i]` has the root mean square `inputs[i]`, and `g^_q[j] g^_e[j]` that of `outputs[j]`: errors of W are weighed by
    these.

    Args:
        layer: The curvature.
        share: Of the mean curvature, as damping.
        tolerance: Largest `error`; 0 gives W in full.
    """
    exact = layer.inverse(share)
    dtype, (height, width) = exact.dtype, exact.shape
    whole = torch.arange(height, device=exact.device)
    best = Inverse(exact.new_zeros(0, height), exact.new_zeros(0, width), whole, exact, 0.0)
    if tolerance <= 0 or layer.damping(share) <= 0 or not 2 <= min(height, width) <= WIDEST:
        return best
    inverse = exact.double()
    # Directions in which training gradients hardly go: their weights only have to keep the division below in range.
    s, t = (size.double().clamp(min=float(size.max()) * 1e-7 + 1e-300) for size in (layer.inputs, layer.outputs))
    weighed = s[:, None] * inverse * t
    scale = float(weighed.norm())
    order = s.argsort(descending=True)
    chosen: tuple[int, int] | None = None
    cost = height * width
    for part in LEADING:
        rows = int(part * height)
        terms = _terms(weighed[order[rows:]], tolerance * scale)
        if rows * width + terms * (height + width) < cost:
            cost, chosen = rows * width + terms * (height + width), (rows, terms)
    if chosen is None:
        return best
    count, terms = chosen
    leading = order[:count]
    weighed[leading] = 0
    u, size, vt = torch.linalg.svd(weighed, full_matrices=False)
    error = float(size[terms:].norm()) / scale
    left, right = (u[:, :terms] * size[:terms] / s[:, None]).T, vt[:terms] / t
    return Inverse(left.to(dtype), right.to(dtype), leading, exact[leading], error)


def _terms(matrix: Float[Tensor, "row column"], error: float) -> int:
    """How many of its leading singular vectors give a matrix to an error."""
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)  # the smallest first
    return int((squares.cumsum(0).sqrt() > error).sum())


@dataclass(frozen=True, eq=False)
class Factored:
    """Queries of a layer with one position, along the curvature's directions, and the inverse in its cheapest form.

    Attributes:
        curvature: Whose directions they are.
        inputs: Each term's share of each query's inputs.
        outputs: The same of the gradients of the outputs.
        rows: The leading `in` directions.
        block: The queries' solved gradients along these.
    """

    curvature: LayerCurvature
    inputs: Float[Tensor, "term query in"]
    outputs: Float[Tensor, "term query out"]
    rows: Int[Tensor, " row"]
    block: Float[Tensor, "query row out"]

    @classmethod
    def of(cls, curvature: LayerCurvature, queries: LayerGradient, inverse: Inverse) -> Factored:
        """Solve for some queries."""
        inputs, outputs = (one[:, 0] for one in curvature.rotated(queries))
        leading = inputs[:, inverse.rows]
        return cls(
            curvature,
            inverse.left[:, None] * inputs,
            inverse.right[:, None] * outputs,
            inverse.rows,
            inverse.block * leading[:, :, None] * outputs[:, None],
        )

    def __call__(self, examples: LayerGradient) -> Float[Tensor, "query example"]:
        inputs, outputs = (one[:, 0] for one in self.curvature.rotated(examples))
        terms, queries, _ = self.inputs.shape
        found = inputs.new_zeros(queries, len(examples))
        short = short_type(found)
        inputs, outputs = inputs.to(short), outputs.to(short)
        if terms:
            a, g = self.inputs.flatten(0, 1).to(short), self.outputs.flatten(0, 1).to(short)
            step = max(16, CACHED // (terms * queries))
            for begin in range(0, len(examples), step):
                some = slice(begin, begin + step)
                product = (a @ inputs[some].T).to(found.dtype).mul_(g @ outputs[some].T)
                found[:, some] = product.view(terms, queries, -1).sum(0)
        width = outputs.shape[1]
        leading, block = inputs[:, self.rows], self.block.to(short)
        tall = max(1, CACHED // max(1, width * len(examples)))
        for begin in range(0, len(self.rows), tall):
            gradient = leading[:, begin : begin + tall, None] * outputs[:, None]
            found += block[:, begin : begin + tall].flatten(1) @ gradient.flatten(1).T
        return found


def short_type(like: Tensor) -> torch.dtype:
    """bfloat16 for float32 where the processor multiplies it faster, else the type itself."""
    if like.dtype != torch.float32:
        return like.dtype
    if like.is_cuda:
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else like.dtype
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if like.device.type == "cpu" and known is not None and known() else like.dtype


def solution(
    curvature: LayerCurvature, queries: LayerGradient, inverse: Inverse | None = None, share: float = DAMPING
) -> Solution:
    """Solve for the gradients of queries in one layer, in the form in which their products with examples cost the least.

    Args:
        curvature: Of the layer.
        queries: Their gradients.
        inverse: `compressed(curvature)`, where the layer has one position.
        share: Of the mean curvature, as damping.
    """
    height, width = curvature.values.shape
    short = inverse is not None and inverse.error > 0  # an inverse in full is multiplied with all digits
    if short and queries.positions == 1 and queries.kind != "embedding":
        assert inverse is not None
        turning = height**2 * (curvature.left is not None) + width**2 * (curvature.right is not None)
        if turning + len(queries) * inverse.cost <= len(queries) * height * width:
            return Factored.of(curvature, queries, inverse)
    solved = curvature.solve(full(queries).view(len(queries), height, width), share)
    whole = LayerGradient(queries.name, "other", solved.new_ones(len(queries), 1, 1), solved.flatten(1)[:, None])
    return Written(whole)
