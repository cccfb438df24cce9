"""Many copies of one module as one program: every parameter gets a leading axis [member].

A layer of all members is then one batched matrix product instead of as many small ones, which is what a processor is good at. Common
layers have a rule of their own (`RULES`); any other module goes through `torch.func.vmap`. `Stack.problem` tries the stack on two
members and says in words why a module cannot be stacked, so that nothing is trained that would come out differently.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprint.models.modules import Normalise, Residual, Wrapped
from imprint.models.transformer import Block, Transformer

# Gives a mask of ones (with this probability) and zeros of a shape [member, example, ...]: what dropout keeps.
Draw = Callable[[torch.Size, float], Tensor]


class Stack:
    """Copies of a module with stacked parameters.

    Args:
        template: A module of the architecture that all members have; it is used as a description, its weights are left alone.
        members: How many.
        device: Where the parameters are.

    Attributes:
        parameters: Name -> `[member, ...]`, leaves that need gradients where the template's do. Weights of linear layers are kept as
            `[member, in, out]`: then neither the product nor its gradient is transposed.
    """

    def __init__(self, template: nn.Module, members: int, device: torch.device | str = "cpu") -> None:
        self.template, self.members = template.to(device), members
        self.names = {id(parameter): name for name, parameter in template.named_parameters()}
        self.turned = _linear_weights(template)
        self.parameters: dict[str, Tensor] = {}
        for name, parameter in template.named_parameters():
            shape = parameter.T.shape if id(parameter) in self.turned else parameter.shape
            self.parameters[name] = torch.empty(members, *shape, device=device, dtype=parameter.dtype)
            self.parameters[name].requires_grad_(parameter.requires_grad)
        self.draw: Draw | None = None

    @torch.no_grad()
    def put(self, member: int, module: nn.Module) -> None:
        """Give a member the weights of a module.

        Raises:
            ValueError: Its buffers differ from the template's: buffers are shared by all members.
        """
        for name, parameter in module.named_parameters():
            value = parameter.T if self._is_turned(name) else parameter
            self.parameters[name][member] = value
        shared = dict(self.template.named_buffers())
        for name, value in module.named_buffers():
            if not torch.equal(value.to(shared[name].device), shared[name]):
                raise ValueError(f"its buffer '{name}' is not the same in all members")

    def weights(self, member: int) -> dict[str, Tensor]:
        """State dict of one member, on the CPU."""
        found = {name: value.cpu() for name, value in self.template.state_dict().items()}
        for name, parameter in self.template.named_parameters(
            remove_duplicate=False
        ):  # tied weights have several names
            own = self.names[id(parameter)]
            one = self.parameters[own][member].detach()
            found[name] = (one.T if self._is_turned(own) else one).cpu().clone(memory_format=torch.contiguous_format)
        return found

    def __call__(self, inputs: Shaped[Tensor, "member example ..."]) -> Float[Tensor, "member example ..."]:
        """Outputs of every member on its own examples; in the template's mode (training or evaluation)."""
        return self._apply(self.template, inputs)

    def problem(self, modules: Sequence[nn.Module], inputs: Shaped[Tensor, "example ..."]) -> str | None:
        """Why these modules cannot be trained as a stack: None if the stack says the same as they do, with the same gradients.

        Args:
            modules: One per member of the stack.
            inputs: A few examples.
        """
        for one in self.template.modules():
            if isinstance(one, nn.modules.batchnorm._BatchNorm):
                return "batch normalisation mixes the examples of a batch and keeps running statistics; use GroupNorm or LayerNorm"
        try:
            self.template.eval()
            for member, module in enumerate(modules):
                self.put(member, module)
            said = self(inputs.expand(self.members, *inputs.shape))
            said.square().sum().backward()  # type: ignore[no-untyped-call]
            for member, module in enumerate(modules):
                module.eval()
                expected = module(inputs)
                module.zero_grad()
                expected.square().sum().backward()
                if not torch.allclose(said[member], expected, rtol=1e-3, atol=1e-4):
                    return "its layers say something else when they are stacked"
                for name, parameter in module.named_parameters():
                    mine = self.parameters[name].grad
                    if (parameter.grad is None) != (mine is None):
                        return f"the gradient of '{name}' is lost when it is stacked"
            # Modules that draw random numbers of their own cannot be repeated member by member.
            self.template.train()
            self.draw = lambda shape, kept: torch.ones(shape, device=inputs.device)
            self(inputs.expand(self.members, *inputs.shape))
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'it cannot be stacked'}"
        finally:
            self.draw = None
            for tensor in self.parameters.values():
                tensor.grad = None
        return None

    # ------------------------------------------------------------------------------------------------------------------ layers

    def of(self, parameter: Tensor | None) -> Tensor | None:
        """The stacked tensor of a parameter of the template."""
        return None if parameter is None else self.parameters[self.names[id(parameter)]]

    def linear_weight(self, module: nn.Linear) -> Float[Tensor, "member in out"]:
        """Weights of a linear layer."""
        weight = self.parameters[self.names[id(module.weight)]]
        return weight if id(module.weight) in self.turned else weight.transpose(1, 2)

    def _is_turned(self, name: str) -> bool:
        return id(self.template.get_parameter(name)) in self.turned

    def _apply(self, module: nn.Module, x: Tensor) -> Tensor:
        rule = RULES.get(type(module))
        return self._vmapped(module, x) if rule is None else rule(self, module, x)

    def _vmapped(self, module: nn.Module, x: Tensor) -> Tensor:
        parameters = {name: self.parameters[self.names[id(value)]] for name, value in module.named_parameters()}
        buffers = dict(module.named_buffers())

        def call(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return torch.func.functional_call(module, (own, buffers), (inputs,))

        return torch.func.vmap(call, in_dims=(0, 0), randomness="error")(parameters, x)


def _linear_weights(template: nn.Module) -> set[int]:
    """Weights that only linear layers with a rule of their own read."""
    linear: list[int] = []
    other: list[int] = []
    for module in _leaves(template):
        if type(module) is nn.Linear:
            linear.append(id(module.weight))
        else:
            other += [id(parameter) for parameter in module.parameters()]
    return set(linear) - set(other)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that a rule or `vmap` is applied to as a whole."""
    if type(module) in CONTAINERS:
        for child in module.children():
            yield from _leaves(child)
    else:
        yield module


def _sequential(stack: Stack, module: nn.Module, x: Tensor) -> Tensor:
    for child in module.children():
        x = stack._apply(child, x)
    return x


def _residual(stack: Stack, module: Residual, x: Tensor) -> Tensor:
    return F.relu(stack._apply(module.body, x) + stack._apply(module.shortcut, x))


def _transformer(stack: Stack, module: Transformer, x: Tensor) -> Tensor:
    """The module's own lines, with the layers of all members."""
    return module(x, stack._apply)


def _linear(stack: Stack, module: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = stack.linear_weight(module), stack.of(module.bias)
    flat = x.flatten(1, -2) if x.dim() > 3 else x
    said = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return said.view(*x.shape[:-1], said.shape[-1])


def _flatten(stack: Stack, module: nn.Flatten, x: Tensor) -> Tensor:
    first, last = (axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim))
    return x.flatten(first, last)


def _elementwise(stack: Stack, module: nn.Module, x: Tensor) -> Tensor:
    if getattr(module, "inplace", False):  # what it would write into may be the inputs, which members share
        module = copy.copy(module)
        module.inplace = False  # type: ignore[assignment]
    return module(x)


def _dropout(stack: Stack, module: nn.Dropout, x: Tensor) -> Tensor:
    if not module.training or module.p == 0:
        return x
    if stack.draw is None:
        raise RuntimeError("dropout in training mode needs a source of masks")
    kept = 1 - module.p
    return x * stack.draw(x.shape, kept).div_(kept)


def _by_example(stack: Stack, module: nn.Module, x: Tensor) -> Tensor:
    """Modules without parameters that look at one example at a time."""
    return torch.unflatten(module(x.flatten(0, 1)), 0, x.shape[:2])


def _layer_norm(stack: Stack, module: nn.LayerNorm, x: Tensor) -> Tensor:
    return _affine(stack, module, F.layer_norm(x, module.normalized_shape, eps=module.eps))


def _group_norm(stack: Stack, module: nn.GroupNorm, x: Tensor) -> Tensor:
    normal = F.group_norm(x.flatten(0, 1), module.num_groups, eps=module.eps).unflatten(0, x.shape[:2])  # type: ignore[no-untyped-call]
    return _affine(stack, module, normal, trailing=x.dim() - 3)


def _affine(stack: Stack, module: nn.LayerNorm | nn.GroupNorm, normal: Tensor, trailing: int = 0) -> Tensor:
    """Scale and shift by the members' own weights, which stand before `trailing` axes."""
    for parameter, combine in ((module.weight, torch.mul), (module.bias, torch.add)):
        stacked = stack.of(parameter)
        if stacked is not None:
            between = normal.dim() - stacked.dim() - trailing
            shape = (stacked.shape[0], *[1] * between, *stacked.shape[1:], *[1] * trailing)
            normal = combine(normal, stacked.view(shape))
    return normal


def _convolution(stack: Stack, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """One convolution with a group of channels per member."""
    if module.padding_mode != "zeros":
        return stack._vmapped(module, x)
    weight, bias = stack.of(module.weight), stack.of(module.bias)
    assert weight is not None
    members = len(x)
    call = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
    said = call(
        x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), None if bias is None else bias.flatten(),
        module.stride, module.padding, module.dilation, members * module.groups,
    )  # fmt: skip
    return said.unflatten(1, (members, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]


def _embedding(stack: Stack, module: nn.Embedding, x: Tensor) -> Tensor:
    """One table with the members' tables below each other."""
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        return stack._vmapped(module, x)
    weight = stack.of(module.weight)
    assert weight is not None
    size = weight.shape[1]
    begin = torch.arange(len(weight), device=x.device).view(-1, *[1] * (x.dim() - 1)) * size
    if module.padding_idx is not None:  # its row gets no gradient
        keep = torch.ones(size, 1, device=weight.device)
        keep[module.padding_idx] = 0
        weight = weight * keep + (weight * (1 - keep)).detach()
    return F.embedding(x + begin, weight.flatten(0, 1))


CONTAINERS = (nn.Sequential, nn.ModuleList, Wrapped, Residual, Transformer, Block)
ELEMENTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.ReLU6, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Identity,
)  # fmt: skip
BY_EXAMPLE = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.PixelUnshuffle, nn.PixelShuffle, nn.ZeroPad2d, nn.Upsample, Normalise,
)  # fmt: skip
RULES: dict[type[nn.Module], Callable[[Stack, nn.Module, Tensor], Tensor]] = {
    nn.Sequential: _sequential,
    Wrapped: _sequential,
    Residual: _residual,  # type: ignore[dict-item]
    Transformer: _transformer,  # type: ignore[dict-item]
    nn.Linear: _linear,  # type: ignore[dict-item]
    nn.Flatten: _flatten,  # type: ignore[dict-item]
    nn.Dropout: _dropout,  # type: ignore[dict-item]
    nn.LayerNorm: _layer_norm,  # type: ignore[dict-item]
    nn.GroupNorm: _group_norm,  # type: ignore[dict-item]
    nn.Conv1d: _convolution,  # type: ignore[dict-item]
    nn.Conv2d: _convolution,  # type: ignore[dict-item]
    nn.Embedding: _embedding,  # type: ignore[dict-item]
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(BY_EXAMPLE, _by_example),
}
