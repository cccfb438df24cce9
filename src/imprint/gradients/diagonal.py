"""The diagonal of the Fisher matrix: the mean squared gradient of each weight."""

from __future__ import annotations

from typing import ClassVar, Self

from imprint.gradients.covariance import squares
from imprint.gradients.curvature import Curvature, Stream


class Diagonal(Curvature):
    """Mean squared gradients of the weights; one pass over the gradients.

    It knows nothing of how weights act together, which is most of what curvature is; it costs the least.
    """

    kind: ClassVar[str] = "diagonal"

    @classmethod
    def fit(cls, stream: Stream) -> Self:
        """Fit to gradients of examples, in one pass."""
        found = squares(stream)
        layers = {name: one.curvature() for name, one in found.items()}
        return cls(layers, max(one.examples for one in found.values()))
