"""Sums over the examples' gradients that curvature is made of: covariances of a layer's two factors, and squared gradients.

All of them are taken block by block, and what is held is as large as the layer, whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.gradients.curvature import LayerCurvature, Stream
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import full, merged

# A side with more numbers keeps its own axes as directions: its covariance would take more than 256 MiB, its eigenvectors minutes.
WIDEST = 8192
# Up to this size sums and eigenvectors are taken in float64.
SMALL = 2048
# Numbers of gradients that are written out at a time to be squared: 4 MiB of float32, which stay in the cache until they are summed.
# With 64 MiB that takes five times as long.
BLOCK_NUMBERS = 2**20


def eigenvectors(covariance: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues (0 or more, the largest first) and eigenvectors of a covariance, in float64 where it is small.

    >>> eigenvectors(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))[0].tolist()
    [4.0, 1.0]
    """
    exact = covariance.double() if len(covariance) <= SMALL else covariance
    values, vectors = torch.linalg.eigh((exact + exact.T) / 2)
    return values.flip(0).clamp(min=0).to(covariance.dtype), vectors.flip(1).to(covariance.dtype).contiguous()


class Covariance:
    """Sums of `a a^T` and of `g g^T` over examples and positions, and how many there were."""

    def __init__(self) -> None:
        self.examples = 0
        self.positions = 0
        self.left: Tensor | None = None
        self.right: Tensor | None = None
        self.dtype = torch.float32

    def add(self, layer: LayerGradient) -> None:
        """Take in a block of examples."""
        self.dtype = layer.outputs.dtype
        self.examples += len(layer)
        self.positions += len(layer) * layer.positions
        self.right = _outer(self.right, layer.outputs)
        if layer.kind == "embedding":
            # The covariance of indicators of codes is diagonal: how often each occurs.
            count = torch.bincount(layer.inputs.flatten(), minlength=layer.codes).to(self.dtype)
            self.left = count if self.left is None else self.left + count
            if layer.tied is not None:
                self.right = _outer(self.right, layer.tied.inputs)
                self.left = self.left + layer.tied.outputs.square().sum((0, 1))
        else:
            self.left = _outer(self.left, layer.inputs)

    def directions(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """((mean squares, directions) of the inputs, the same of the outputs).

        As in Grosse and Martens (2016), a position of the inputs counts in full and one of the outputs by its share, so that the product of
        the two is the mean squared gradient of an example whose positions are independent.
        """
        assert self.left is not None
        assert self.right is not None
        return _solved(self.left / self.examples, self.dtype), _solved(self.right / self.positions, self.dtype)


def _outer(total: Tensor | None, values: Float[Tensor, "example position n"]) -> Tensor:
    """Add the sum of outer products; of squares where there are too many numbers."""
    flat = values.flatten(0, 1)
    wide = flat.shape[1]
    if wide > WIDEST or wide == 1:
        one = flat.square().sum(0)
    else:
        one = flat.T @ flat
        one = one.double() if wide <= SMALL else one
    return one if total is None else total.add_(one)


def _solved(mean: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if mean.dim() == 1:
        return mean.to(dtype), None
    values, vectors = eigenvectors(mean)
    return values.to(dtype), vectors.to(dtype)


def covariances(stream: Stream) -> dict[str, Covariance]:
    """The covariances of each layer, from one pass.

    Raises:
        EvidenceError: There is no example, or a gradient is not finite.
    """
    found: dict[str, Covariance] = {}
    for layers in stream():
        for layer in layers:
            found.setdefault(layer.name, Covariance()).add(layer)
    for name, one in found.items():
        for side in (one.left, one.right):
            assert side is not None
            check_finite(name, side)
    check_some(found)
    return found


class Squares:
    """The sum over examples of squared gradients along pairs of directions, and the mean squares of their factors."""

    def __init__(self, left: Tensor | None = None, right: Tensor | None = None) -> None:
        empty = torch.empty(0)
        self.basis = LayerCurvature(empty, empty, empty, left, right)
        self.examples = 0
        self.dtype = torch.float32
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, layer: LayerGradient) -> None:
        """Take in a block of examples."""
        self.examples += len(layer)
        self.dtype = layer.outputs.dtype
        found = self._embedding(layer) if layer.kind == "embedding" else self._factors(layer)
        exact = [one.double() if one.numel() <= SMALL**2 else one for one in found]
        if self.sums is None:
            self.sums = (exact[0], exact[1], exact[2])
        else:
            for total, one in zip(self.sums, exact, strict=True):
                total += one

    def curvature(self) -> LayerCurvature:
        """The mean over examples."""
        assert self.sums is not None
        values, inputs, outputs = ((one / self.examples).to(self.dtype) for one in self.sums)
        return LayerCurvature(values, inputs, outputs, self.basis.left, self.basis.right)

    def _factors(self, layer: LayerGradient) -> tuple[Tensor, Tensor, Tensor]:
        inputs, outputs = self.basis.rotated(layer)
        height, width = layer.shape
        if layer.positions == 1:  # the square of a product is the product of squares
            a, g = inputs[:, 0].square(), outputs[:, 0].square()
            return a.T @ g, a.sum(0), g.sum(0)
        values, left, right = outputs.new_zeros(height, width), inputs.new_zeros(height), outputs.new_zeros(width)
        tall = min(height, max(1, BLOCK_NUMBERS // width))
        step = max(1, BLOCK_NUMBERS // max(tall * width, layer.positions * height))
        for start in range(0, len(layer), step):
            a, g = inputs[start : start + step], outputs[start : start + step]
            for begin in range(0, height, tall):
                values[begin : begin + tall] += (a[:, :, begin : begin + tall].mT @ g).square_().sum(0)
            left += a.square().sum((0, 1))
            right += g.square().sum((0, 1))
        return values, left, right / layer.positions

    def _embedding(self, layer: LayerGradient) -> tuple[Tensor, Tensor, Tensor]:
        right = self.basis.right
        values = layer.outputs.new_zeros(layer.shape)
        if layer.tied is None:
            _, code, row = merged(layer)
            values.index_add_(0, code, (row if right is None else row @ right).square())
        else:
            for number in range(len(layer)):
                values += self.basis.forth(full(layer[number : number + 1]))[0].square_()
        outputs = (layer.outputs if right is None else layer.outputs @ right).square().sum((0, 1)) / layer.positions
        return values, torch.bincount(layer.inputs.flatten(), minlength=layer.codes).to(values.dtype), outputs


def squares(
    stream: Stream, bases: Mapping[str, tuple[Tensor | None, Tensor | None]] | None = None
) -> dict[str, Squares]:
    """Squared gradients of each layer along pairs of directions, from one pass.

    Args:
        stream: The gradients.
        bases: (`in`, `out`) directions of each layer; None for the weights themselves.

    Raises:
        EvidenceError: There is no example, or a gradient is not finite.
    """
    found: dict[str, Squares] = {}
    for layers in stream():
        for layer in layers:
            if layer.name not in found:
                found[layer.name] = Squares(*(bases[layer.name] if bases is not None else (None, None)))
            found[layer.name].add(layer)
    for name, one in found.items():
        assert one.sums is not None
        check_finite(name, one.sums[0])
    check_some(found)
    return found


def check_finite(name: str, values: Tensor) -> None:
    """Raise `EvidenceError` if a sum over gradients is not finite."""
    if not bool(torch.isfinite(values).all()):
        raise EvidenceError(
            f"Gradients of the layer '{name}' are not finite numbers.",
            "The training has diverged, or inputs hold infinities: lower the learning rate, clean the inputs.",
        )


def check_some(found: Mapping[str, object]) -> None:
    """Raise `EvidenceError` if no gradient was seen."""
    if not found:
        raise EvidenceError("Curvature cannot be fitted to no examples.", "Give a stream with at least one block.")
