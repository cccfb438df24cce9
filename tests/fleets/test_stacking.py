"""A stack says what its members say, and has their gradients, for every layer that it has a rule for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imprint.fleets.stacking import Stack
from imprint.models import module_for

MEMBERS = 3


class Tied(nn.Module):
    """An embedding whose weights are also those of the last layer, and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.embed(inputs.long()).mean(1).tanh())


class Attention(nn.Module):
    """Known to no rule: it goes through vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)
        self.out = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.mix(inputs.view(len(inputs), -1, 4)).chunk(3, dim=-1)
        return self.out((query @ key.transpose(1, 2)).softmax(-1) @ value).mean(1)


def vector() -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def image() -> Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def tokens() -> Tensor:
    return torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(1))


def named(model: str, shape: tuple[int, ...]) -> Callable[[int], nn.Module]:
    return lambda seed: module_for(model, shape, 4, seed)


def own(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def seeded(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return seeded


def layers(*parts: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    return own(lambda: nn.Sequential(*(part() for part in parts)))


def channels() -> nn.Module:
    return nn.Unflatten(1, (2, 4))


CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[], Tensor]]] = {
    "linear": (named("linear", (8,)), vector),
    "mlp": (named("mlp", (8,)), vector),
    "cnn": (named("cnn", (3, 16, 16)), image),
    "resnet": (named("resnet", (3, 16, 16)), image),
    "layer norm": (
        layers(lambda: nn.Linear(8, 5), lambda: nn.LayerNorm(5), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(5, 2)),
        vector,
    ),
    "no bias": (layers(lambda: nn.Linear(8, 5, bias=False), nn.Tanh, lambda: nn.Linear(5, 2)), vector),
    "relu on the inputs": (layers(lambda: nn.ReLU(inplace=True), lambda: nn.Linear(8, 2)), vector),
    "embedding": (layers(lambda: nn.Embedding(7, 5, padding_idx=0), nn.Flatten, lambda: nn.Linear(20, 2)), tokens),
    "linear on tokens": (
        layers(lambda: nn.Embedding(7, 5), lambda: nn.Linear(5, 3), nn.Flatten, lambda: nn.Linear(12, 2)),
        tokens,
    ),
    "conv1d": (
        layers(
            channels, lambda: nn.Conv1d(2, 4, 3, padding=1, groups=2), lambda: nn.GroupNorm(2, 4), nn.Flatten,
            lambda: nn.Linear(16, 2),
        ),
        vector,
    ),
    "circular padding": (
        layers(
            channels, lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten, lambda: nn.Linear(12, 2)
        ),
        vector,
    ),
    "tied": (own(Tied), tokens),
    "attention": (own(Attention), vector),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_members(case: str) -> None:
    make, inputs_of = CASES[case]
    inputs = inputs_of()
    modules = [make(seed).eval() for seed in range(MEMBERS)]
    stack = Stack(make(99).eval(), MEMBERS)
    for member, module in enumerate(modules):
        stack.put(member, module)
    # Every member has inputs of its own.
    own_inputs = torch.stack([inputs.roll(member, 0) for member in range(MEMBERS)])
    before = own_inputs.clone()
    said = stack(own_inputs)
    assert torch.equal(own_inputs, before)
    said.square().sum().backward()
    for member, module in enumerate(modules):
        expected = module(own_inputs[member])
        torch.testing.assert_close(said[member], expected, rtol=1e-4, atol=1e-5)
        expected.square().sum().backward()
    gradients = {name: tensor.grad for name, tensor in stack.parameters.items()}
    for member, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            mine = gradients[name][member]
            mine = mine.T if stack._is_turned(name) else mine
            assert parameter.grad is not None
            scale = float(parameter.grad.abs().max()) + 1e-6
            assert float((mine - parameter.grad).abs().max()) < 1e-4 * scale + 1e-6


@pytest.mark.parametrize("case", CASES)
def test_a_module_that_can_be_stacked_has_no_problem(case: str) -> None:
    make, inputs_of = CASES[case]
    assert Stack(make(0), 2).problem([make(1), make(2)], inputs_of()[:2]) is None


@pytest.mark.parametrize("case", ["mlp", "resnet", "tied"])
def test_weights_come_out_as_they_went_in(case: str) -> None:
    make, _ = CASES[case]
    stack = Stack(make(0), 2)
    stack.put(1, make(5))
    found = stack.weights(1)
    expected = make(5).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert found[name].is_contiguous()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(nn.functional.dropout(inputs, 0.5, self.training))


class Looks(nn.Module):
    """Its path depends on the values of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(inputs) if bool(inputs.sum() > 0) else -self.out(inputs)


class Hooked(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "batch normalisation"),
        (Noisy, "random"),
        (Looks, "data-dependent|vmap"),
    ],
)
def test_what_cannot_be_stacked_is_said(make: Callable[[], nn.Module], says: str) -> None:
    import re

    reason = Stack(make(), 2).problem([make(), make()], vector()[:2])
    assert reason is not None
    assert re.search(says, reason)


def test_a_subclass_is_called_by_its_own_forward() -> None:
    modules = [own(lambda: Hooked(8, 2))(seed) for seed in range(2)]
    stack = Stack(modules[0], 2)
    for member, module in enumerate(modules):
        stack.put(member, module)
    torch.testing.assert_close(stack(vector().expand(2, -1, -1))[1], modules[1](vector()))


def test_buffers_that_differ_between_members_are_refused() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("random", torch.randn(8, 3))
            self.out = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(inputs @ self.random)

    reason = Stack(Projected(), 2).problem([Projected(), Projected()], vector()[:2])
    assert reason is not None
    assert "random" in reason
