"""K-FAC: the Fisher matrix of a layer as the Kronecker product of the covariances of its inputs and of its output gradients.

Exact where the two are independent of each other. Martens, Grosse 2015, arXiv:1503.05671; convolutions and sequences: Grosse, Martens
2016, arXiv:1602.01407.
"""

from __future__ import annotations

from typing import ClassVar, Self

from imprint.gradients.covariance import covariances
from imprint.gradients.curvature import Curvature, LayerCurvature, Stream


class Kfac(Curvature):
    """Eigenvectors of the covariances, and products of their eigenvalues; one pass over the gradients."""

    kind: ClassVar[str] = "kfac"

    @classmethod
    def fit(cls, stream: Stream) -> Self:
        """Fit to gradients of examples, in one pass."""
        layers, examples = {}, 0
        for name, one in covariances(stream).items():
            (inputs, left), (outputs, right) = one.directions()
            layers[name] = LayerCurvature(inputs[:, None] * outputs, inputs, outputs, left, right)
            examples = one.examples
        return cls(layers, examples)
