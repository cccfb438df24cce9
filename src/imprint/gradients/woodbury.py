"""The exact inverse of a damped Fisher matrix of few examples, in the space of these examples instead of that of the parameters.

With the gradients of m examples as columns of `G`, and the damping `D` on the diagonal,

    (D + G G^T / m)^-1 = D^-1 - D^-1 G (m + G^T D^-1 G)^-1 G^T D^-1        (Woodbury 1950),

and all that it takes are inner products of gradients, which come from their factors: nothing has the size of the parameters, and it costs
`m^2 (in + out)` multiplications a layer and `m^3 / 3` for the Cholesky factor, whatever the number of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.gradients.curvature import DAMPING
from imprint.gradients.layer import LayerGradient
from imprint.gradients.linear import FisherMatrix, combined, times
from imprint.gradients.products import products, squared_norms


def damping(layers: Sequence[LayerGradient], share: float = DAMPING) -> dict[str, float]:
    """A share of the mean curvature of each layer: of the mean squared gradient of a parameter; see `LayerCurvature.damping`."""
    return {layer.name: share * float(squared_norms([layer]).double().mean()) / layer.parameters for layer in layers}


class Woodbury:
    """The inverse of the damped Fisher matrix of some examples.

    A layer in which none of them has a gradient has no curvature to invert, and counts nothing.

    Args:
        columns: The gradients of the examples.
        share: Of each layer's mean curvature, as damping.
    """

    def __init__(self, columns: Sequence[LayerGradient], share: float = DAMPING) -> None:
        self.columns = list(columns)
        self.damping = damping(columns, share)

    def scaled(self, layers: Sequence[LayerGradient]) -> list[LayerGradient]:
        """`D^-1` times gradients."""
        return [times(layer, self._inverse(layer.name)) for layer in layers]

    @cached_property
    def _columns(self) -> list[LayerGradient]:
        return self.scaled(self.columns)

    @cached_property
    def _factor(self) -> Float[Tensor, "m m"]:
        """Cholesky factor of `m + G^T D^-1 G`, float64."""
        kernel = products(self._columns, self.columns).double()
        kernel.diagonal().add_(len(kernel))
        return torch.linalg.cholesky(kernel)

    def weights(self, against: Float[Tensor, "vector m"]) -> Float[Tensor, "vector m"]:
        """`(m + G^T D^-1 G)^-1` times each row."""
        return torch.cholesky_solve(against.double().T, self._factor).T.to(against.dtype)

    def products(
        self, queries: Sequence[LayerGradient], examples: Sequence[LayerGradient], weights: Float[Tensor, "query m"]
    ) -> Float[Tensor, "query example"]:
        """Products of gradients under the inverse.

        Args:
            queries: `scaled` gradients of some examples.
            examples: Gradients of others.
            weights: `weights(products(queries, columns))`.
        """
        return products(queries, examples).sub_(weights @ products(self._columns, examples))

    def solve(
        self, matrix: FisherMatrix, vectors: Float[Tensor, "vector parameter"]
    ) -> Float[Tensor, "vector parameter"]:
        """The inverse times vectors of parameters that are laid out as those of `matrix`."""
        inverse = torch.cat(
            [vectors.new_full((high * wide,), self._inverse(name)) for name, (high, wide) in matrix.shapes.items()]
        )
        scaled = vectors * inverse
        weights = self.weights(matrix.products(scaled, self.columns))
        return scaled - matrix.joined({layer.name: combined(layer, weights) for layer in self._columns})

    def _inverse(self, name: str) -> float:
        return 1 / self.damping[name] if self.damping[name] > 0 else 0.0
