"""The curvature of the loss, layer by layer, and its damped inverse: what turns a product of gradients into an influence.

The Fisher matrix of a layer is the mean of `vec(G) vec(G)^T` over the examples' gradients `G = sum_t a[t] g[t]^T`; near the end of a
training it stands for the Hessian. It is approximated by a diagonal matrix in some orthogonal basis of the gradient, one basis of `in`
directions times one of `out` directions, which makes it cheap to hold (`in^2 + out^2 + in out` numbers) and to invert:

| kind       | directions                                          | curvature along the pair of directions (i, j)                  |
|------------|-----------------------------------------------------|----------------------------------------------------------------|
| `diagonal` | the weights themselves                              | mean squared gradient of the weight                            |
| `kfac`     | eigenvectors of the covariances of `a` and of `g`   | product of their eigenvalues                                   |
| `ekfac`    | the same                                            | mean squared gradient along the pair: the best diagonal there  |

The inverse is damped: `lambda = DAMPING * mean curvature` of the layer is added to every direction (the rule of Grosse et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import full

# Share of a layer's mean curvature that is added to every direction.
DAMPING = 0.1

# Gradients of all training examples, some at a time; called anew for each pass over them.
Stream = Callable[[], Iterable[Sequence[LayerGradient]]]


@dataclass(frozen=True, eq=False)
class LayerCurvature:
    """The curvature of one layer, diagonal in a basis of pairs of directions.

    Attributes:
        values: Curvature along each pair of directions, 0 or more.
        inputs: Mean squared size of what goes in along each `in` direction, summed over positions.
        outputs: Mean squared size of the gradient of what comes out along each `out` direction, averaged over positions.
        left: The `in` directions as columns, orthonormal; None for the axes themselves.
        right: The `out` directions.
    """

    values: Float[Tensor, "in out"]
    inputs: Float[Tensor, " in"]
    outputs: Float[Tensor, " out"]
    left: Float[Tensor, "in in"] | None = None
    right: Float[Tensor, "out out"] | None = None

    def damping(self, share: float = DAMPING) -> float:
        """What is added to every direction before the inverse is taken."""
        return share * float(self.values.double().mean())

    def inverse(self, share: float = DAMPING) -> Float[Tensor, "in out"]:
        """The damped inverse along each pair of directions; zero in a layer in which no example has a gradient."""
        damping = self.damping(share)
        return 1 / (self.values + damping) if damping > 0 else torch.zeros_like(self.values)

    def forth(self, gradient: Float[Tensor, "example in out"]) -> Float[Tensor, "example in out"]:
        """Gradients in the basis of directions."""
        gradient = gradient if self.left is None else self.left.T @ gradient
        return gradient if self.right is None else gradient @ self.right

    def back(self, gradient: Float[Tensor, "example in out"]) -> Float[Tensor, "example in out"]:
        """Gradients in the weights' own basis, from the basis of directions."""
        gradient = gradient if self.left is None else self.left @ gradient
        return gradient if self.right is None else gradient @ self.right.T

    def solve(
        self, gradient: Float[Tensor, "example in out"], share: float = DAMPING
    ) -> Float[Tensor, "example in out"]:
        """The damped inverse times gradients."""
        return self.back(self.forth(gradient) * self.inverse(share))

    def rotated(self, layer: LayerGradient) -> tuple[Tensor, Tensor]:
        """(inputs, outputs) of a layer's gradient along the directions; of an embedding, inputs stay codes."""
        inputs = layer.inputs if self.left is None else layer.inputs @ self.left
        return inputs, layer.outputs if self.right is None else layer.outputs @ self.right

    def to(self, like: Tensor) -> LayerCurvature:
        """The same where another tensor is, in its number type."""
        return LayerCurvature(**{name: one.to(like) for name, one in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name."""
        every = {
            "values": self.values,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "left": self.left,
            "right": self.right,
        }
        return {name: one.contiguous() for name, one in every.items() if one is not None}


@dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature of a model's layers; `Diagonal`, `Kfac` and `Ekfac` are fitted to gradients.

    Attributes:
        layers: By name, in the order of the gradients.
        examples: How many examples it was fitted to.
        passes: How often fitting goes over the gradients.

    Raises:
        EvidenceError: The gradients of some layer are not finite, or there are none.
    """

    kind: ClassVar[str]
    passes: ClassVar[int] = 1
    layers: dict[str, LayerCurvature]
    examples: int

    @classmethod
    def fit(cls, stream: Stream) -> Self:
        """Fit to gradients of examples.

        Args:
            stream: Called once per pass; gives the gradients of blocks of examples, each time the same.
        """
        raise NotImplementedError

    def __getitem__(self, name: str) -> LayerCurvature:
        if name not in self.layers:
            raise EvidenceError(
                f"The curvature knows no layer '{name}'; it was fitted to {', '.join(self.layers)}.",
                "Fit it to gradients of the same layers of the same model.",
            )
        return self.layers[name]

    def precondition(self, layer: LayerGradient, share: float = DAMPING) -> LayerGradient:
        """The damped inverse of the curvature times the gradient of each example, written out.

        Args:
            layer: A layer's gradients.
            share: Of the mean curvature, as damping.

        Returns:
            A layer of kind "other" with the numbers of the gradient, row by row, that `products` multiplies with gradients of `layer`.
        """
        own = self[layer.name].to(layer.outputs)
        gradient = full(layer).view(len(layer), *own.values.shape)
        solved = own.solve(gradient, share)
        return LayerGradient(layer.name, "other", solved.new_ones(len(layer), 1, 1), solved.flatten(1)[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by `layer/part`, as they are stored."""
        return {f"{name}/{part}": one for name, layer in self.layers.items() for part, one in layer.tensors().items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], examples: int) -> Self:
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, one in tensors.items():
            name, part = key.rsplit("/", 1)
            parts.setdefault(name, {})[part] = one
        return cls({name: LayerCurvature(**some) for name, some in parts.items()}, examples)
