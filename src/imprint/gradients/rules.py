"""What hooks see of the layers that they know: from a layer's input and the gradient of its output to the factors of its gradient.

A rule serves the class whose `forward` it knows; a subclass with a forward of its own is not served. Inputs and outputs come with the
example first and the calls' other leading axes (positions) second: `[example, position, *shape of one]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

Pieces = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rule:
    """How the layers of one class are read.

    Attributes:
        kind: Of the `LayerGradient`.
        leading: How many axes of an input stand before the shape of one position.
        pieces: (module, inputs `[example, position, ...]`, output gradients `[example, position, ...]`) -> the two factors.
    """

    kind: str
    leading: Callable[[nn.Module, Tensor], int]
    pieces: Callable[[nn.Module, Tensor, Tensor], Pieces]


def rule_of(module: nn.Module) -> Rule | None:
    """The rule that serves a module, or None."""
    if not {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}:
        return None  # weight norm and the like: the layer's weights are made of other parameters
    if type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D":
        return Rule("linear", lambda _, inputs: inputs.dim() - 1, _linear)
    for known, rule in _RULES.items():
        if isinstance(module, known) and type(module).forward is known.forward:
            if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
                return None  # its forward changes its weights; its gradient counts how often a code is in the batch
            if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1:
                return Rule("other", rule.leading, rule.pieces)
            return rule
    return SCALE if _may_scale(module) else None


def confirmed(rule: Rule, module: nn.Module, inputs: Tensor) -> bool:
    """Whether a rule that was guessed holds: a norm of a model's own scales and shifts its output number by number."""
    if rule is not SCALE:
        return True
    weight = module.get_parameter("weight")
    tried = torch.linspace(0.5, 1.5, len(weight), dtype=weight.dtype, device=weight.device)
    try:
        shift = {"bias": tried.flip(0)} if "bias" in dict(module.named_parameters()) else {}
        found = functional_call(module, {"weight": tried, **shift}, (inputs,))
        expected = _with(module, 0, inputs) + tried * _slope(module, inputs) + shift.get("bias", 0)
        return found.shape[-1:] == weight.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    except (RuntimeError, TypeError):
        return False


def _may_scale(module: nn.Module) -> bool:
    """Whether a module has nothing but a vector of scales, and perhaps one of shifts: the norms that models bring along."""
    parameters = dict(module.named_parameters())
    return "weight" in parameters and all(one.dim() == 1 for one in parameters.values()) and not [*module.children()]


def _with(module: nn.Module, scale: int, inputs: Tensor) -> Tensor:
    """Output with all scales the same and no shift."""
    replaced = {name: torch.full_like(one, scale if name == "weight" else 0) for name, one in module.named_parameters()}
    return functional_call(module, replaced, (inputs,))


def _slope(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the scales multiply."""
    return _with(module, 1, inputs) - _with(module, 0, inputs)


def _scaled(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    return _affine(module, _slope(module, inputs), outputs, channel=False)


def with_ones(
    module: nn.Module, inputs: Float[Tensor, "example position in"]
) -> Float[Tensor, "example position more"]:
    """Inputs with a column of ones where the layer trains a bias."""
    bias = getattr(module, "bias", None)
    if bias is None or not bias.requires_grad:
        return inputs
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], 2)


def bias_alone(outputs: Float[Tensor, "example position out"]) -> Pieces:
    """The gradient of a bias whose weight does not train, or is counted elsewhere."""
    return _itself(outputs.sum(1))


def _itself(gradient: Float[Tensor, "example parameter"]) -> Pieces:
    return gradient.new_ones(len(gradient), 1, 1), gradient[:, None]


def _linear(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    return inputs, outputs


def _embedding(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    assert isinstance(module, nn.Embedding)
    codes = inputs.long()
    if module.padding_idx is not None:  # it never trains
        outputs = outputs * (codes != module.padding_idx)[..., None]
    return codes, outputs


def _conv(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    """Unfolded patches `[example, places, channel x kernel]`, and the gradients at these places.

    With groups the gradient itself, whose blocks are small: `[example, 1, group x in x out]`.
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    examples, times = inputs.shape[:2]
    flat = inputs.flatten(0, 1)
    # Padding as the layer's own forward does it, "same" and reflection among it.
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(module._reversed_padding_repeated_twice):
        flat = F.pad(flat, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):
        flat = flat[:, :, None]
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    patches = F.unfold(flat, kernel, dilation, 0, stride)  # [example x time, channel x kernel, place]
    gradients = outputs.flatten(0, 1).flatten(2)  # [example x time, out, place]

    def arranged(values: Tensor) -> Tensor:
        return torch.unflatten(values, 0, (examples, times)).transpose(2, 3).flatten(1, 2)

    if module.groups == 1:
        return arranged(patches), arranged(gradients)
    groups = module.groups
    left = torch.unflatten(arranged(patches), 2, (groups, -1))
    right = torch.unflatten(arranged(gradients), 2, (groups, -1))
    parts = [torch.einsum("etgi,etgo->egoi", left, right).flatten(1)] if module.weight.requires_grad else []
    if module.bias is not None and module.bias.requires_grad:
        parts.append(right.flatten(2).sum(1))
    return _itself(torch.cat(parts, 1))


def _affine(module: nn.Module, normalised: Tensor, outputs: Tensor, channel: bool) -> Pieces:
    """Scale and shift: the gradient itself, scale first. `channel`: they are per channel, the first axis of one position."""
    weight, bias = module.weight, getattr(module, "bias", None)

    def summed(values: Tensor) -> Tensor:
        return values.sum((1, *range(3, values.dim()))) if channel else values.sum(1).flatten(1)

    parts = [summed(normalised * outputs)] if isinstance(weight, Tensor) and weight.requires_grad else []
    if isinstance(bias, Tensor) and bias.requires_grad:
        parts.append(summed(outputs))
    return _itself(torch.cat(parts, 1))


def _layer_norm(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    assert isinstance(module, nn.LayerNorm)
    return _affine(module, F.layer_norm(inputs, module.normalized_shape, eps=module.eps), outputs, channel=False)


def _rms_norm(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    assert isinstance(module, nn.RMSNorm)
    return _affine(module, F.rms_norm(inputs, module.normalized_shape, eps=module.eps), outputs, channel=False)


def _group_norm(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    assert isinstance(module, nn.GroupNorm)
    flat = F.group_norm(inputs.flatten(0, 1), module.num_groups, eps=module.eps)
    return _affine(module, torch.unflatten(flat, 0, inputs.shape[:2]), outputs, channel=True)


def _batch_norm(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Pieces:
    """In evaluation mode: recorded statistics, so that examples do not mix."""
    assert isinstance(module, _BatchNorm)
    flat = F.batch_norm(inputs.flatten(0, 1), module.running_mean, module.running_var, eps=module.eps)
    return _affine(module, torch.unflatten(flat, 0, inputs.shape[:2]), outputs, channel=True)


def _one(_: nn.Module, inputs: Shaped[Tensor, "..."]) -> int:
    return 1


def _before_norm(module: nn.Module, inputs: Tensor) -> int:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return inputs.dim() - len(module.normalized_shape)


# A guess, to be confirmed.
SCALE = Rule("affine", lambda _, inputs: inputs.dim() - 1, _scaled)
_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule("linear", lambda _, inputs: inputs.dim() - 1, _linear),
    nn.Conv1d: Rule("conv", _one, _conv),
    nn.Conv2d: Rule("conv", _one, _conv),
    nn.Embedding: Rule("embedding", lambda _, inputs: inputs.dim(), _embedding),
    nn.LayerNorm: Rule("affine", _before_norm, _layer_norm),
    nn.RMSNorm: Rule("affine", _before_norm, _rms_norm),
    nn.GroupNorm: Rule("affine", _one, _group_norm),
    _BatchNorm: Rule("affine", _one, _batch_norm),
}
