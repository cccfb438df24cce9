"""A module's features: what it knows of an example just before it decides.

That is the module's own `features(x)` method if it has one, else the input of the last `nn.Linear` that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import MethodError


@torch.no_grad()
def features(
    module: nn.Module, inputs: Tensor, call: Callable[[Tensor], object] | None = None
) -> Float[Tensor, "example feature"]:
    """Features of a batch, in evaluation mode and without gradients.

    Args:
        module: The module.
        inputs: What it is called with.
        call: How it is called, as a task does; None calls it with the inputs and nothing else.

    Raises:
        MethodError: The module has neither a method `features` nor an `nn.Linear`.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> features(net, torch.zeros(4, 2)).shape
    torch.Size([4, 3])
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return _features(module, inputs, call or module).flatten(1).float()
    finally:
        for part, training in modes:
            part.training = training


def _features(module: nn.Module, inputs: Tensor, call: Callable[[Tensor], object]) -> Tensor:
    own = getattr(module, "features", None)
    # torchvision calls a submodule `features`; its output is not the last layer's input.
    if callable(own) and not isinstance(own, nn.Module):
        return own(inputs)
    return last_input(module, lambda: call(inputs))


def last_input(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """What the last `nn.Linear` of a module that a call uses is called with.

    Raises:
        MethodError: It uses none.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        caught[:] = [arguments[0]]

    hooks = [layer.register_forward_pre_hook(catch) for layer in module.modules() if isinstance(layer, nn.Linear)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    if not caught:
        raise MethodError(
            f"{type(module).__name__} has no nn.Linear, so it is not clear what its features are.",
            "Give it a method features(inputs) that returns [example, feature].",
        )
    return caught[0]
