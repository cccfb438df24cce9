"""The gradient of one layer's weights for each example of a batch, in the factored form in which the backward pass makes it.

    gradient[e] = sum over positions t of inputs[e, t] outputs[e, t]^T          [in, out]

A position is a place of an image, a token, or the one position of a layer that is called once per example. The gradient has `in * out`
numbers, its factors `position * (in + out)`; all that this package computes, it computes from the factors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

KINDS = ("linear", "conv", "embedding", "affine", "other")


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """One layer, a batch of examples.

    Attributes:
        name: Of the module in the model; of a bias that is counted apart from its tied weight, that of the parameter.
        kind: One of `KINDS`. "affine" (scale and shift of a norm, a bias alone) and "other" hold the gradient itself: `[example, 1,
            parameter]` in `outputs`, ones in `inputs`.
        inputs: What went into the layer, `[example, position, in]`; a column of ones is appended where it has a bias. Convolutions:
            the unfolded patches. Embeddings: token codes, int64 `[example, position]`.
        outputs: Gradient of each example's own loss with respect to what came out: `[example, position, out]`.
        codes: How many token codes an embedding has.
        tied: The other use of an embedding's weights: of the linear layer (an output head) that shares them. Its gradient is
            `[out, in]` of this layer, and is added transposed.

    >>> layer = LayerGradient("head", "linear", torch.ones(5, 1, 3), torch.ones(5, 1, 2))
    >>> len(layer), layer.shape, layer.positions
    (5, (3, 2), 1)
    """

    name: str
    kind: str
    inputs: Float[Tensor, "example position in"] | Int[Tensor, "example position"]
    outputs: Float[Tensor, "example position out"]
    codes: int = 0
    tied: LayerGradient | None = None

    def __len__(self) -> int:
        return int(self.outputs.shape[0])

    def __getitem__(self, examples: slice) -> LayerGradient:
        """The same of some examples."""
        tied = None if self.tied is None else self.tied[examples]
        return replace(self, inputs=self.inputs[examples], outputs=self.outputs[examples], tied=tied)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of an example's gradient."""
        return self.codes or int(self.inputs.shape[2]), int(self.outputs.shape[2])

    @property
    def parameters(self) -> int:
        """Numbers in an example's gradient."""
        return self.shape[0] * self.shape[1]

    @property
    def positions(self) -> int:
        """Positions per example."""
        return int(self.outputs.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        own = self.inputs.numel() * self.inputs.element_size() + self.outputs.numel() * self.outputs.element_size()
        return own + (0 if self.tied is None else self.tied.nbytes)

    def to(self, device: torch.device | str) -> LayerGradient:
        """The same on a device."""
        tied = None if self.tied is None else self.tied.to(device)
        return replace(self, inputs=self.inputs.to(device), outputs=self.outputs.to(device), tied=tied)


def whole(name: str, kind: str, gradient: Float[Tensor, "example parameter"]) -> LayerGradient:
    """A layer whose gradient is at hand itself."""
    return LayerGradient(name, kind, gradient.new_ones(len(gradient), 1, 1), gradient[:, None])
