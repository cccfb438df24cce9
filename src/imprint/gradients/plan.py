"""How the layers of a model can be read by hooks: found out once, on two small batches.

A hook sees tensors, not examples. Which axis of a layer's input is the example, whether positions are folded into it, whether the layer
saw no example at all (the embedding of positions), and whether its weights are also used without calling it, differs from model to model.
Two forward passes over 2 and over 3 examples tell: the axis that grew is the example's. What stays unclear is left to the general path,
which asks nothing of a model (`imprint.gradients.general`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from imprint.errors import EvidenceError, nearest
from imprint.gradients.rules import Rule, confirmed, rule_of


@dataclass(frozen=True)
class Layout:
    """Where the examples are in a layer's input.

    Attributes:
        axis: The axis of the examples.
        folded: Whether further positions are in that axis.
        slow: If folded: whether all positions of one example come before the next example.
        shared: The call sees no example; its output serves all of them, and is spread over them to tell their gradients apart.
    """

    axis: int = 0
    folded: bool = False
    slow: bool = True
    shared: bool = False

    def arrange(self, values: Tensor, leading: int, examples: int) -> Tensor:
        """`[example, position, *shape of one]` of a tensor with this many leading axes."""
        axis = self.axis
        if self.folded:
            values = torch.unflatten(values, axis, (examples, -1) if self.slow else (-1, examples))
            axis, leading = (axis if self.slow else axis + 1), leading + 1
        values = values.movedim(axis, 0)
        return values.flatten(1, leading - 1) if leading > 1 else values[:, None]


@dataclass
class Call:
    """One call of a layer while hooks look on."""

    inputs: Tensor
    output: Tensor
    edge: GradientEdge | None = None


@dataclass(frozen=True)
class Layer:
    """Modules whose gradients are read together: one, or several that share their weight.

    Attributes:
        name: Of the first of them.
        modules: Their names.
        rules: The rule of each; empty for the general path.
        parameters: For the general path: names of the parameters.
    """

    name: str
    modules: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass
class Plan:
    """The layers, and the layout of each module that hooks read."""

    layers: list[Layer] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)

    @property
    def hooked(self) -> list[str]:
        """Modules that hooks read."""
        return [name for layer in self.layers for name in layer.modules]

    @property
    def general(self) -> list[Layer]:
        """Layers of the general path."""
        return [layer for layer in self.layers if layer.parameters]


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters that require gradients, by their name in it."""
    return {name: one for name, one in module.named_parameters(recurse=False) if one.requires_grad}


def planned(
    model: nn.Module,
    losses: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    patterns: tuple[str, ...] | None,
) -> Plan:
    """Find out how to read the layers of a model.

    Args:
        model: In evaluation mode.
        losses: (inputs, target) -> `[example]`, through the model.
        inputs: Some examples; the first three are used, fewer are repeated.
        target: Theirs.
        patterns: Shell patterns of the layers to keep; None for all.

    Raises:
        EvidenceError: No parameter requires gradients, no layer has such a name, or an example's loss depends on the others.
    """
    modules = {name: one for name, one in model.named_modules() if trainable(one)}
    if not modules:
        raise EvidenceError(
            f"No parameter of {type(model).__name__} requires gradients.", "Call module.requires_grad_(True) first."
        )
    asked = {name for name in modules if patterns is None or any(fnmatchcase(name, one) for one in patterns)}
    if not asked:
        raise EvidenceError(
            f"No layer is called {' or '.join(patterns or ())}.", nearest((patterns or ("",))[0], modules)
        )
    rules = {name: rule for name, one in modules.items() if (rule := rule_of(one)) is not None}
    small = [_first(inputs, target, count) for count in (2, 3)]
    with torch.enable_grad():
        with listening(model, rules) as calls_of_two:
            of_two = losses(*small[0])
        with listening(model, rules) as calls:
            of_three = losses(*small[1])
    _refuse_mixing(model, of_two, of_three)
    uses = _uses(of_three.sum())
    layouts = {}
    for name, rule in rules.items():
        found = {_layout(rule, modules[name], *pair) for pair in zip(calls_of_two[name], calls[name], strict=False)}
        steady = len(calls[name]) == len(calls_of_two[name])
        with torch.no_grad():
            holds = all(confirmed(rule, modules[name], call.inputs) for call in calls[name])
        if steady and holds and len(found) == 1 and (layout := found.pop()) is not None:
            layouts[name] = layout
    if any(layout.shared for layout in layouts.values()):
        layouts = _without_failing_spread(model, losses, small[1], rules, layouts, calls)
    seen = {name: len(calls[name]) for name in layouts}
    return Plan(_grouped(modules, {name: rules[name] for name in layouts}, seen, uses, asked), layouts)


def _refuse_mixing(model: nn.Module, of_two: Tensor, of_three: Tensor) -> None:
    """One example's loss is the same beside one other and beside two: otherwise it has no gradient of its own."""
    if of_three.shape != (3,):
        raise EvidenceError(
            f"The loss of 3 examples has the shape {tuple(of_three.shape)}.", "Give one number per example: [example]."
        )
    if not torch.allclose(of_two, of_three[:2], rtol=1e-2, atol=1e-3, equal_nan=True):
        raise EvidenceError(
            f"{type(model).__name__} gives an example another loss when the other examples in its batch change.",
            "Per-example gradients need a model without batch statistics, and without chance in evaluation mode.",
        )


@contextmanager
def listening(
    model: nn.Module,
    names: Mapping[str, Any] | list[str],
    layouts: Mapping[str, Layout] | None = None,
    examples: int = 0,
) -> Iterator[dict[str, list[Call]]]:
    """Hooks on some modules: the calls of each, in their order, are in the dictionary when the block ends.

    Args:
        model: The model.
        names: Of the modules.
        layouts: Theirs; the output of a shared call is spread over the examples.
        examples: How many there are.
    """
    calls: dict[str, list[Call]] = {name: [] for name in names}
    layouts = layouts or {}

    def hook(name: str) -> Callable[..., Tensor | None]:
        def see(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
            inputs = positional[0] if positional else next(iter(named.values()))
            spread = name in layouts and layouts[name].shared
            if spread:
                inputs, output = _spread(inputs, examples), _spread(output, examples)
            # The edge of now: what changes the output in place afterwards (a ReLU) does not change what is read here.
            edge = get_gradient_edge(output) if output.requires_grad else None
            calls[name].append(Call(inputs.detach(), output.detach(), edge))
            return output if spread else None

        return see

    handles = [model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _spread(values: Tensor, examples: int) -> Tensor:
    """The same values for each example, in front."""
    if values.dim() and values.shape[0] == 1:
        values = values[0]
    return values.expand(examples, *values.shape)


def _first(inputs: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(count, device=inputs.device) % len(inputs)
    return inputs[rows], target[rows]


def _layout(rule: Rule, module: nn.Module, two: Call, three: Call) -> Layout | None:
    """Where the examples are, from the same call with 2 and with 3 of them; None where that stays unclear."""
    leading = rule.leading(module, two.inputs)
    if leading < 0 or three.inputs.dim() != two.inputs.dim() or (rule.kind != "embedding" and leading < 1):
        return None
    sizes = list(zip(two.inputs.shape[:leading], three.inputs.shape[:leading], strict=True))
    grown = [axis for axis, (small, large) in enumerate(sizes) if small != large]
    if not grown:
        return Layout(shared=True)
    small, large = sizes[grown[0]]
    if len(grown) > 1 or 3 * small != 2 * large:
        return None
    if small == 2:
        return Layout(grown[0])
    # Positions are folded into the axis: the values of the first example say in which order.
    fits = [
        layout
        for layout in (Layout(grown[0], True, True), Layout(grown[0], True, False))
        if torch.allclose(
            layout.arrange(two.inputs, leading, 2)[:2].float(), layout.arrange(three.inputs, leading, 3)[:2].float(),
            rtol=1e-4, atol=1e-6,
        )
    ]  # fmt: skip
    return fits[0] if len(fits) == 1 else None


def _without_failing_spread(
    model: nn.Module, losses: Callable[[Tensor, Tensor], Tensor], small: tuple[Tensor, Tensor], rules: Mapping[str, Rule],
    layouts: dict[str, Layout], calls: Mapping[str, list[Call]],
) -> dict[str, Layout]:  # fmt: skip
    """Layouts less the shared ones, if spreading their outputs changes what the other layers see."""
    kept = {name: one for name, one in layouts.items() if not one.shared}
    try:
        with torch.no_grad(), listening(model, rules, layouts, len(small[0])) as spread:
            losses(*small)
    except (RuntimeError, ValueError, IndexError):
        return kept
    for name in kept:
        pairs = zip(calls[name], spread[name], strict=False)
        if len(calls[name]) != len(spread[name]) or not all(
            one.inputs.shape == two.inputs.shape and torch.allclose(one.output, two.output, rtol=1e-4, atol=1e-5)
            for one, two in pairs
        ):
            return kept
    return layouts


def _uses(total: Tensor) -> Counter[int]:
    """How often each parameter enters a computation, by its id."""
    found: Counter[int] = Counter()
    if total.grad_fn is None:
        return found
    waiting, known = [total.grad_fn], {total.grad_fn}
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            if hasattr(node, "variable"):
                found[id(node.variable)] += 1
            elif node not in known:
                known.add(node)
                waiting.append(node)
    return found


def _grouped(
    modules: Mapping[str, nn.Module], rules: Mapping[str, Rule], seen: Mapping[str, int], uses: Counter[int], asked: set[str]
) -> list[Layer]:  # fmt: skip
    """Modules that share parameters put together; to the general path what hooks would read wrongly."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in modules.items():
        for own, parameter in trainable(module).items():
            owners.setdefault(id(parameter), []).append((name, own))
    readable = set(rules)
    for identity, sharing in owners.items():
        names = [name for name, _ in sharing]
        kinds = {rules[name].kind for name in names if name in rules}
        together = len(names) == 1 or (
            all(own == "weight" for _, own in sharing)
            and (kinds <= {"linear", "embedding"})
            and len({modules[name].weight.shape for name in names}) == 1
            and not any(type(modules[name]).__name__ == "Conv1D" for name in names)
        )
        # Every use must be a call that a hook has seen; a use without a call is `F.linear(x, layer.weight)` in the model's own code.
        if not together or uses[identity] != sum(seen.get(name, 0) for name in names):
            readable -= set(names)
    while changed := {
        name
        for sharing in owners.values()
        for name, _ in sharing
        if name in readable and any(other not in readable for other, _ in sharing)
    }:
        readable -= changed
    layers, done = [], set()
    for name, module in modules.items():
        trained = trainable(module)
        if name in done or not any(uses[id(one)] for one in trained.values()):
            continue  # nothing of the loss depends on it: its gradient is zero
        if name in readable:
            weight = trained.get("weight")
            group = [name] if weight is None else [one for one, _ in owners[id(weight)]]
            group.sort(key=lambda one: rules[one].kind != "embedding")
            done.update(group)
            if asked.intersection(group):
                layers.append(Layer(group[0], tuple(group), tuple(rules[one] for one in group)))
        else:
            done.add(name)
            first = [own for own, one in trained.items() if owners[id(one)][0][0] == name]
            if name in asked and first:
                layers.append(Layer(name, parameters=tuple(f"{name}.{one}" if name else one for one in first)))
    return layers
