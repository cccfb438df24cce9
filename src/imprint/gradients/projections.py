"""Random projections of per-example gradients, computed from their factors: a few hundred numbers that keep inner products.

    E[<project(g), project(h)>] = <g, h>

Three kinds, for `k` numbers. "Error" is the expected squared relative error of the squared norm of a gradient of one position.

"factored": two matrices per layer, `in x k_in` and `out x k_out`, where `k_in k_out` is the layer's share of the `k` numbers (LoGra).
    `k_in in + k_out out` multiplications a position; error above `4 / sqrt(k)`. A layer with fewer parameters than its share is kept as
    it is. The only one that keeps layers apart.
"paired": two matrices per layer, `in x k` and `out x k`. What they give is multiplied number by number, and layers are added up.
    `k (in + out)` multiplications a position, or `k in out` an example if that is less; error `8 / k`.
"sparse": each coordinate of the whole gradient is added, with a sign, to two of the `k` numbers. Gradients are written out, some rows at
    a time: `in out` multiplications a position; error `2 / k`, that of a dense matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import EvidenceError, nearest
from imprint.fitting import generator
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import BLOCK_NUMBERS, TOUCH, full, rows

KINDS = ("factored", "paired", "sparse")
# Places that each coordinate of a sparse projection is added to. One is unbiased as well; two make a large error of a gradient that
# has few large numbers much rarer.
PLACES = 2
# A gradient at hand itself that is longer than this is projected sparsely: a dense matrix would be larger than the model.
LONGEST = 2**15

Kind = Literal["factored", "paired", "sparse"]


@dataclass
class _Sides:
    """The random numbers of one layer; `None` is the identity."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    places: Tensor | None = None
    signs: Tensor | None = None


@dataclass(eq=False)
class Projection:
    """A random projection of the gradients of one model.

    Attributes:
        size: Numbers per example.
        seed: The same seed, kind, size and model give the same projection, on any machine.
        kind: "factored", "paired" or "sparse".
        entries: "rademacher" (a sign) or "gaussian": what the matrices are made of.

    >>> layers = [LayerGradient("head", "linear", torch.eye(3)[:, None], torch.ones(3, 1, 2))]
    >>> projected = Projection(size=4, kind="factored").project(layers)
    >>> projected.shape
    torch.Size([3, 4])
    >>> exact = Projection(size=6).project(layers)  # as many numbers as the layer has: nothing is lost
    >>> torch.allclose(exact @ exact.T, 2 * torch.eye(3))
    True
    """

    size: int = 512
    seed: int = 0
    kind: Kind = "factored"
    entries: Literal["rademacher", "gaussian"] = "rademacher"
    blocks: dict[str, slice] = field(default_factory=dict)
    _sides: dict[str, _Sides] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EvidenceError(f"No projection is called '{self.kind}'.", nearest(self.kind, KINDS))
        if self.size < 1:
            raise EvidenceError(
                f"A projection to {self.size} numbers keeps nothing.", "Ask for 1 or more; 512 is usual."
            )

    @classmethod
    def of(cls, module: nn.Module, size: int = 512, seed: int = 0, kind: Kind = "factored") -> Projection:
        """A projection for a model; one that has no more parameters than `size` is kept as it is."""
        parameters = sum(one.numel() for one in module.parameters() if one.requires_grad)
        return cls(size, seed, kind) if parameters > size else cls(max(1, parameters), seed, "factored")

    def project(self, layers: Sequence[LayerGradient]) -> Float[Tensor, "example size"]:
        """The projected gradients of a batch; all batches must be of the same layers.

        Raises:
            EvidenceError: There are more layers than numbers.
        """
        if not self.blocks:
            self.blocks = self._blocks(layers)
        if list(self.blocks) != [layer.name for layer in layers]:
            raise ValueError("A projection serves the layers that it was first called with.")
        first = layers[0].outputs
        found = first.new_zeros(len(layers[0]), self.size)
        for layer in layers:
            part = found[:, self.blocks[layer.name]]
            sides = self._sides_of(layer, part.shape[1])
            if sides.places is not None:
                part += _scattered(layer, sides, part.shape[1])
            elif self.kind == "paired":
                part += _paired(layer, sides, self.size)
            elif layer.parameters <= part.shape[1]:
                part[:, : layer.parameters] = full(layer).flatten(1)
            else:
                both = _kronecker(layer, sides)
                part[:, : both.shape[1]] = both
        return found

    def _blocks(self, layers: Sequence[LayerGradient]) -> dict[str, slice]:
        """Which columns are of which layer; but for a factored projection, all are of all."""
        if self.kind != "factored":
            return {layer.name: slice(0, self.size) for layer in layers}
        found, begin = {}, 0
        for layer, share in zip(layers, shares([layer.parameters for layer in layers], self.size), strict=True):
            found[layer.name] = slice(begin, begin + share)
            begin += share
        return found

    def _sides_of(self, layer: LayerGradient, share: int) -> _Sides:
        """A layer's random numbers, made when they are first asked for."""
        if layer.name not in self._sides:
            height, width = layer.shape
            if self.kind == "sparse" or (layer.shape[0] == 1 and width > max(LONGEST, share)):
                random = generator(self.seed, "projection", layer.name, "places")
                shape = (PLACES, height * width)
                sides = _Sides(
                    places=torch.randint(share, shape, generator=random, dtype=torch.int32),
                    signs=torch.randint(2, shape, generator=random, dtype=torch.int8) * 2 - 1,
                )
            elif self.kind == "paired":
                # One side's numbers are scaled, so that the product's are.
                inputs = None if height == 1 else self._matrix(layer.name, "inputs", height, share) * math.sqrt(share)
                sides = _Sides(inputs, self._matrix(layer.name, "outputs", width, share))
            elif layer.parameters <= share:
                sides = _Sides()
            else:
                high, wide = sizes(height, width, share)
                sides = _Sides(
                    None if high == height else self._matrix(layer.name, "inputs", height, high),
                    None if wide == width else self._matrix(layer.name, "outputs", width, wide),
                )
            self._sides[layer.name] = sides
        sides, like = self._sides[layer.name], layer.outputs
        for side in ("inputs", "outputs"):
            if (matrix := getattr(sides, side)) is not None and (matrix.device, matrix.dtype) != (
                like.device,
                like.dtype,
            ):
                setattr(sides, side, matrix.to(like))
        if sides.places is not None and sides.signs is not None and sides.places.device != like.device:
            sides.places, sides.signs = sides.places.to(like.device), sides.signs.to(like.device)
        return sides

    def _matrix(self, name: str, side: str, height: int, width: int) -> Float[Tensor, "height width"]:
        random = generator(self.seed, "projection", name, side)
        if self.entries == "gaussian":
            return torch.randn(height, width, generator=random) / math.sqrt(width)
        signs = torch.randint(2, (height, width), generator=random, dtype=torch.int8)
        return (signs * 2 - 1).float() / math.sqrt(width)


def shares(parameters: Sequence[int], size: int) -> list[int]:
    """How many of the numbers each layer gets: in proportion to the square root of its parameters, at most as many as it has.

    The error of a sum is least when a layer's share is in proportion to its squared gradient norm, which grows with its parameters,
    but more slowly: the small head of a network often has as large a gradient as the wide layer below it.

    Raises:
        EvidenceError: There are more layers than numbers.

    >>> shares([200_000, 2_500, 10], 500)
    [447, 50, 3]
    """
    if size < len(parameters):
        raise EvidenceError(
            f"{size} numbers cannot hold something of each of {len(parameters)} layers.",
            f"Project to {len(parameters)} numbers or more, or choose kind='sparse'.",
        )
    found = [0] * len(parameters)
    left, open_ = min(size, sum(parameters)), list(range(len(parameters)))
    while open_:
        total = sum(math.sqrt(parameters[one]) for one in open_)
        wanted = {one: max(1.0, left * math.sqrt(parameters[one]) / total) for one in open_}
        filled = [one for one in open_ if wanted[one] >= parameters[one] or wanted[one] == 1.0]
        if not filled:
            break
        for one in filled:
            found[one] = min(parameters[one], int(wanted[one]))
            left -= found[one]
            open_.remove(one)
    for one in open_:
        found[one] = int(wanted[one])
    # What rounding left over, by the largest remainder.
    rest = left - sum(found[one] for one in open_)
    for one in sorted(open_, key=lambda one: found[one] - wanted[one])[:rest]:
        found[one] += 1
    return found


def sizes(height: int, width: int, share: int) -> tuple[int, int]:
    """How many numbers a factored projection makes of each side, so that their product is at most `share` and the error least.

    >>> sizes(785, 256, 400), sizes(257, 10, 50)
    ((20, 20), (5, 10))
    """

    def error(high: int, wide: int) -> float:
        return (1 if high == height else 1 + 2 / high) * (1 if wide == width else 1 + 2 / wide)

    pairs = [(min(height, share // wide), wide) for wide in range(1, min(width, share) + 1)]
    return min(pairs, key=lambda pair: error(*pair))


def _projected(layer: LayerGradient, sides: _Sides) -> tuple[Tensor, Tensor]:
    """Both factors projected: `[example, position, k_in]`, `[example, position, k_out]`."""
    outputs = layer.outputs if sides.outputs is None else layer.outputs @ sides.outputs
    if layer.kind != "embedding":
        return layer.inputs if sides.inputs is None else layer.inputs @ sides.inputs, outputs
    if sides.inputs is None:
        return torch.nn.functional.one_hot(layer.inputs, layer.codes).to(outputs), outputs
    return sides.inputs[layer.inputs], outputs


def _kronecker(layer: LayerGradient, sides: _Sides) -> Float[Tensor, "example number"]:
    inputs, outputs = _projected(layer, sides)
    found = inputs.mT @ outputs
    if layer.tied is not None:
        inputs, outputs = _projected(layer.tied, _Sides(sides.outputs, sides.inputs))
        found = found + outputs.mT @ inputs
    return found.flatten(1)


def _paired(layer: LayerGradient, sides: _Sides, size: int) -> Float[Tensor, "example number"]:
    """Position by position, or from the gradient written out: what takes fewer operations; some examples at a time."""
    height, width = layer.shape
    by_position = layer.positions * size * (height + width + TOUCH)
    by_gradient = layer.positions * height * width + size * height * (width + TOUCH)
    written = layer.kind != "embedding" and sides.inputs is not None and by_gradient < by_position
    each = height * (width + size) if written else 2 * layer.positions * size
    step = max(1, BLOCK_NUMBERS // each)
    one = _paired_rows if written else _paired_positions
    return torch.cat([one(layer[begin : begin + step], sides) for begin in range(0, len(layer), step)])


def _paired_rows(layer: LayerGradient, sides: _Sides) -> Float[Tensor, "example number"]:
    assert sides.inputs is not None
    assert sides.outputs is not None
    return (full(layer) @ sides.outputs).mul_(sides.inputs).sum(1)


def _paired_positions(layer: LayerGradient, sides: _Sides) -> Float[Tensor, "example number"]:
    inputs, outputs = _projected(layer, sides)
    found = (inputs * outputs).sum(1)
    if layer.tied is not None:
        inputs, outputs = _projected(layer.tied, _Sides(sides.outputs, sides.inputs))
        found = found + (inputs * outputs).sum(1)
    return found


def _scattered(layer: LayerGradient, sides: _Sides, size: int) -> Float[Tensor, "example number"]:
    assert sides.places is not None
    assert sides.signs is not None
    height, width = layer.shape
    examples = len(layer)
    found = layer.outputs.new_zeros(size, examples)
    tall = max(1, BLOCK_NUMBERS // (width * max(1, examples)))
    for begin in range(0, height, tall):
        end = min(begin + tall, height)
        gradient = rows(layer, begin, end).flatten(1).T
        some = slice(begin * width, end * width)
        for places, signs in zip(sides.places[:, some], sides.signs[:, some], strict=True):
            found.index_add_(0, places, gradient * signs[:, None])
    return found.T / math.sqrt(PLACES)
