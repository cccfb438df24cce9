"""Per-example gradients of any module: a function of its parameters, differentiated for each example by `torch.func`.

It knows nothing of layers and costs a pass of its own, so only parameters that no hook can read come here. What `vmap` cannot
vectorise (recurrent layers, control flow that depends on the data) is differentiated one example after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


class Losses(nn.Module):
    """A model and its per-example loss as one module, so that its parameters can be replaced from outside.

    Args:
        model: The model.
        of: (model, inputs, target) -> `[example]`.
    """

    def __init__(self, model: nn.Module, of: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.of, self.vectorises = model, of, True

    def forward(self, inputs: Tensor, target: Tensor) -> Float[Tensor, " example"]:
        return self.of(self.model, inputs, target)


def per_example(
    losses: Losses, names: Sequence[str], inputs: Shaped[Tensor, "example ..."], target: Shaped[Tensor, "example ..."]
) -> dict[str, Float[Tensor, "example ..."]]:
    """Gradient of each example's loss with respect to some of a model's parameters.

    Args:
        losses: The model with its loss.
        names: Of the parameters.
        inputs: Of the examples.
        target: Theirs.

    Returns:
        name -> `[example, *shape of the parameter]`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> losses = Losses(model, lambda model, inputs, target: model(inputs)[:, 0] * target)
    >>> per_example(losses, ["weight"], torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))["weight"]
    tensor([[[3., 6.]]])
    """
    named = dict(losses.model.named_parameters())
    own = {f"model.{name}": named[name].detach() for name in names}

    def one(parameters: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return functional_call(losses, parameters, (row[None], label[None]))[0]

    if not losses.vectorises:
        return _one_by_one(losses, [named[name] for name in names], names, inputs, target)
    try:
        # The other kernels of attention have no rule for vmap.
        with sdpa_kernel(SDPBackend.MATH):
            found = vmap(grad(one), in_dims=(None, 0, 0))(own, inputs, target)
    except (RuntimeError, NotImplementedError, ValueError):
        losses.vectorises = False
        return _one_by_one(losses, [named[name] for name in names], names, inputs, target)
    return {name: found[f"model.{name}"] for name in names}


def _one_by_one(
    losses: Losses, parameters: Sequence[Tensor], names: Sequence[str], inputs: Tensor, target: Tensor
) -> dict[str, Tensor]:
    found = {name: one.new_empty(len(inputs), *one.shape) for name, one in zip(names, parameters, strict=True)}
    with torch.enable_grad():
        for number in range(len(inputs)):
            value = losses(inputs[number : number + 1], target[number : number + 1])[0]
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            for name, gradient in zip(names, gradients, strict=True):
                found[name][number] = gradient
    return found
