"""EK-FAC: the eigenvectors of K-FAC, and along each pair of them the mean squared gradient instead of the product of eigenvalues.

It is the nearest matrix to the Fisher (in the Frobenius norm) of all that are diagonal in that basis. George et al. 2018,
arXiv:1806.03884; for influence functions: Grosse et al. 2023, arXiv:2308.03296.
"""

from __future__ import annotations

from typing import ClassVar, Self

from imprint.gradients.covariance import covariances, squares
from imprint.gradients.curvature import Curvature, Stream


class Ekfac(Curvature):
    """Eigenvectors of the covariances, and mean squared gradients along them; two passes over the gradients."""

    kind: ClassVar[str] = "ekfac"
    passes: ClassVar[int] = 2

    @classmethod
    def fit(cls, stream: Stream) -> Self:
        """Fit to gradients of examples, in two passes."""
        bases = {}
        for name, one in covariances(stream).items():
            (_, left), (_, right) = one.directions()
            bases[name] = left, right
        found = squares(stream, bases)
        layers = {name: one.curvature() for name, one in found.items()}
        return cls(layers, max(one.examples for one in found.values()))
