"""Linear algebra with gradients that are never written out: products with vectors, weighted sums, the Fisher matrix as an operator.

Vectors of parameters are rows of `[vector, parameter]`: the layers one after the other, each row by row of its `[in, out]` gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.gradients.covariance import check_some
from imprint.gradients.curvature import Stream
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import BLOCK_NUMBERS, full, merged, products


def written(layers: Sequence[LayerGradient]) -> Float[Tensor, "example parameter"]:
    """The gradients themselves, all layers in one row.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]]))
    >>> written([layer])
    tensor([[3., 6.]])
    """
    return torch.cat([full(layer).flatten(1) for layer in layers], 1)


def inner(layer: LayerGradient, vectors: Float[Tensor, "vector in out"]) -> Float[Tensor, "vector example"]:
    """Inner products of vectors with the gradients of examples in one layer.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]]))
    >>> inner(layer, torch.tensor([[[1.0], [10.0]]]))
    tensor([[63.]])
    """
    count, height, _ = vectors.shape
    if layer.kind != "embedding" and count < height:
        # [example, position, vector, out]: the vectors are read once, and the gradients never written.
        side_by_side = vectors.transpose(0, 1).flatten(1)
        step = max(1, BLOCK_NUMBERS // (layer.positions * side_by_side.shape[1]))
        found = []
        for some in (layer[begin : begin + step] for begin in range(0, len(layer), step)):
            through = (some.inputs @ side_by_side).view(len(some), layer.positions, count, -1)
            found.append(torch.einsum("etvo,eto->ve", through, some.outputs))
        return torch.cat(found, 1)
    whole = LayerGradient(layer.name, "other", vectors.new_ones(count, 1, 1), vectors.flatten(1)[:, None])
    return products([whole], [layer])


def combined(layer: LayerGradient, weights: Float[Tensor, "vector example"]) -> Float[Tensor, "vector in out"]:
    """Weighted sums of the gradients of examples in one layer.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[3.0]], [[4.0]]]))
    >>> combined(layer, torch.tensor([[1.0, 10.0]]))
    tensor([[[83.]]])
    """
    height, width = layer.shape
    if layer.kind != "embedding":
        found = layer.outputs.new_zeros(height, len(weights) * width)
        step = max(1, BLOCK_NUMBERS // (layer.positions * found.shape[1]))
        for begin in range(0, len(layer), step):
            some = layer[begin : begin + step]
            outputs = torch.einsum("ve,eto->etvo", weights[:, begin : begin + step], some.outputs)
            found.addmm_(some.inputs.flatten(0, 1).T, outputs.flatten(0, 1).flatten(1))
        return found.view(height, len(weights), width).transpose(0, 1)
    found = layer.outputs.new_zeros(len(weights), height, width)
    example, code, row = merged(layer)
    for one, weight in zip(found, weights, strict=True):
        one.index_add_(0, code, row * weight[example, None])
    if layer.tied is not None:
        head = layer.tied
        found += combined(LayerGradient(head.name, "linear", head.inputs, head.outputs), weights).mT
    return found


def times(layer: LayerGradient, factor: float) -> LayerGradient:
    """Gradients multiplied by a number.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0]]]), torch.tensor([[[3.0]]]))
    >>> full(times(layer, 2.0))
    tensor([[[6.]]])
    """
    tied = None if layer.tied is None else times(layer.tied, factor)
    return replace(layer, outputs=layer.outputs * factor, tied=tied)


@dataclass(frozen=True, eq=False)
class FisherMatrix:
    """The Fisher matrix of a stream of gradients, plus damping, as an operator on vectors of parameters.

    Attributes:
        stream: The gradients of the examples that it is the second moment of; one pass per product.
        shapes: `(in, out)` of each layer, by name.
        damping: What is added to its diagonal, by layer.
    """

    stream: Stream
    shapes: dict[str, tuple[int, int]]
    damping: dict[str, float]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(height * width for height, width in self.shapes.values())

    def parts(self, vectors: Float[Tensor, "vector parameter"]) -> dict[str, Float[Tensor, "vector in out"]]:
        """Vectors by layer."""
        sizes = [height * width for height, width in self.shapes.values()]
        named = zip(self.shapes.items(), torch.split(vectors, sizes, 1), strict=True)
        return {name: part.reshape(len(vectors), *shape) for (name, shape), part in named}

    def joined(self, parts: dict[str, Float[Tensor, "vector in out"]]) -> Float[Tensor, "vector parameter"]:
        """The inverse of `parts`."""
        return torch.cat([parts[name].flatten(1) for name in self.shapes], 1)

    def products(
        self, vectors: Float[Tensor, "vector parameter"], layers: Sequence[LayerGradient]
    ) -> Float[Tensor, "vector example"]:
        """Inner products of vectors with the gradients of some examples."""
        parts = self.parts(vectors)
        return torch.stack([inner(layer, parts[layer.name]) for layer in layers]).sum(0)

    def undamped(self, vectors: Float[Tensor, "vector parameter"]) -> Float[Tensor, "vector parameter"]:
        """The matrix times each vector, without damping."""
        found = {name: vectors.new_zeros(len(vectors), *shape) for name, shape in self.shapes.items()}
        examples = 0
        for layers in self.stream():
            weights = self.products(vectors, layers)
            for layer in layers:
                found[layer.name] += combined(layer, weights)
            examples += len(layers[0])
        check_some({"examples": examples} if examples else {})
        return self.joined(found) / examples

    def __call__(self, vectors: Float[Tensor, "vector parameter"]) -> Float[Tensor, "vector parameter"]:
        """The damped matrix times each vector."""
        return self.undamped(vectors) + vectors * self.diagonal(vectors)

    def diagonal(self, like: Tensor) -> Float[Tensor, " parameter"]:
        """The damping of each parameter."""
        return torch.cat(
            [like.new_full((height * width,), self.damping[name]) for name, (height, width) in self.shapes.items()]
        )
