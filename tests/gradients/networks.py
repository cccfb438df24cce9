"""Small networks of every kind that gradients are taken of, and the naive way to take them: one example after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.gradients import LayerGradient, full
from imprint.models.modules import module_for
from imprint.tasks import Batch, Classification, Task

EXAMPLES = 5


class Attention(nn.Module):
    """A language model in miniature: token and position embeddings, LayerNorm, attention, and a head tied to the embedding."""

    def __init__(self, words: int = 20, width: int = 8, positions: int = 6) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, words)
        self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1])[None])
        query, key, value = self.mix(self.norm(hidden)).chunk(3, -1)
        return self.head(hidden + self.out(F.scaled_dot_product_attention(query, key, value))).mean(1)


class SequenceFirst(nn.Module):
    """PyTorch's transformer layer with the sequence first, as many positions as examples; a parameter of its own; folded positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5), nn.Linear(8, 3)
        self.start = nn.Parameter(torch.randn(8))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer(inputs.transpose(0, 1)).transpose(0, 1) + self.start
        return self.out(hidden.flatten(0, 1)).view(*inputs.shape[:2], 3).mean(1)


class PositionFirst(nn.Module):
    """Positions folded in front of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        folded = inputs.transpose(0, 1).reshape(-1, 8)
        return self.out(torch.tanh(self.first(folded)).view(-1, len(inputs), 6).mean(0))


class Recurrent(nn.Module):
    """A layer that hooks cannot read and `vmap` cannot vectorise."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.cell(inputs)[0][:, -1])


class Repeated(nn.Module):
    """One layer called three times, another whose weight is also used without calling it, and one that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.borrowed, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        self.idle(inputs)
        for _ in range(3):
            inputs = torch.tanh(self.again(inputs))
        return self.out(F.linear(self.borrowed(inputs), self.borrowed.weight))


class SharedHeads(nn.Module):
    """Two linear layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.out = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.second(torch.tanh(self.first(inputs))))


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 6), nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.out = nn.Linear(6, 3).requires_grad_(False)
        self.base.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.relu(self.base(inputs) + 0.5 * self.up(self.down(inputs)))).mean(1)


class Scale(nn.Module):
    """A norm as models bring it along: not PyTorch's class, its scale counted from one, and here a shift."""

    def __init__(self, width: int, power: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias, self.power = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width)), power

    def forward(self, inputs: Tensor) -> Tensor:
        normed = inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-6)
        return normed * (1 + self.weight) ** self.power + self.bias


class Doubled(nn.Module):
    """It has the shape of a norm and is none: its weight enters squared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = Scale(8, power=2.0), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.inner(inputs)).mean(1)


@dataclass
class Case:
    """A network with examples, in float64."""

    module: nn.Module
    task: Task
    inputs: Tensor
    target: Tensor


def _images(channels: int, size: int) -> Tensor:
    return torch.randint(0, 256, (EXAMPLES, channels, size, size), dtype=torch.uint8)


def _convolutions() -> nn.Module:
    """Groups, strides, dilation, "same" and reflected padding, batch normalisation, a ReLU in place, one dimension."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, "valid", groups=2), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.Conv2d(6, 4, (3, 2), padding=1, dilation=2, padding_mode="reflect"), nn.Flatten(2),
        nn.Conv1d(4, 3, 4, padding="same"), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    ).eval()  # fmt: skip


def _frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3))
    module[0].weight.requires_grad_(False)
    module[3].bias.requires_grad_(False)
    for parameter in module[4].parameters():
        parameter.requires_grad_(False)
    return module


def _padded() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 4, padding_idx=0), nn.Flatten(), nn.Linear(24, 3))


MADE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "linear": (lambda: nn.Linear(8, 3), lambda: torch.randn(EXAMPLES, 8), 3),
    "mlp": (lambda: module_for("mlp", (8,), 3, 0), lambda: torch.randn(EXAMPLES, 8), 3),
    "cnn": (lambda: module_for("cnn", (3, 16, 16), 3, 0), lambda: _images(3, 16), 3),
    "resnet": (lambda: module_for("resnet", (1, 12, 12), 3, 0), lambda: _images(1, 12), 3),
    "convolutions": (_convolutions, lambda: torch.randn(EXAMPLES, 4, 9, 8), 3),
    "attention": (Attention, lambda: torch.randint(0, 20, (EXAMPLES, 6)), 20),
    "padded": (_padded, lambda: torch.randint(0, 4, (EXAMPLES, 6)), 3),
    "sequence first": (SequenceFirst, lambda: torch.randn(EXAMPLES, EXAMPLES, 8), 3),
    "position first": (PositionFirst, lambda: torch.randn(EXAMPLES, 4, 8), 3),
    "recurrent": (Recurrent, lambda: torch.randn(EXAMPLES, 4, 8), 3),
    "repeated": (Repeated, lambda: torch.randn(EXAMPLES, 8), 3),
    "shared heads": (SharedHeads, lambda: torch.randn(EXAMPLES, 8), 3),
    "own norm": (
        lambda: nn.Sequential(nn.Linear(8, 6), Scale(6), nn.ReLU(True), nn.Linear(6, 3)),
        lambda: torch.randn(EXAMPLES, 8),
        3,
    ),
    "no norm": (Doubled, lambda: torch.randn(EXAMPLES, 4, 8), 3),
    "adapters": (Adapted, lambda: torch.randn(EXAMPLES, 4, 8), 3),
    "frozen": (_frozen, lambda: torch.randn(EXAMPLES, 8), 3),
}


def case(name: str) -> Case:
    """The case of a name; its weights are moved from where they start, where some norms' shifts are zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, draw, classes = MADE[name]
        module, inputs = make().double(), draw()
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        target = torch.randint(0, classes, (EXAMPLES,))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return Case(module, Classification(tuple(range(classes))), inputs, target)


def naive(one: Case, of: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """`[example, parameter]`: one backward pass per example, all trained parameters in the model's order."""
    one.module.eval()
    parameters = [parameter for parameter in one.module.parameters() if parameter.requires_grad]
    rows = []
    for number in range(len(one.inputs)):
        some = slice(number, number + 1)
        batch = Batch(one.inputs[some], one.target[some])
        outputs = one.task.outputs(one.module, batch)
        value = one.task.loss(outputs, batch) if of is None else of(outputs, batch.target)
        gradients = torch.autograd.grad(value[0], parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def by_parameter(one: Case, layers: list[LayerGradient]) -> Tensor:
    """The layers' gradients written out in the order of `naive`, where each layer has a module of its name and none is tied."""
    found = {}
    for layer in layers:
        prefix = layer.name.removesuffix(".bias")
        trained = {
            name: one
            for name, one in one.module.get_submodule(prefix).named_parameters(recurse=False)
            if one.requires_grad
        }
        gradient, own = full(layer), {}
        if layer.kind in ("linear", "conv", "embedding"):
            if "weight" in trained:
                weight = gradient[:, : gradient.shape[1] - ("bias" in trained)]
                own["weight"] = (weight if layer.kind == "embedding" else weight.mT).flatten(1)
            if "bias" in trained:
                own["bias"] = gradient[:, -1]
        else:
            names = ["bias"] if prefix != layer.name else list(trained)
            sizes = [trained[name].numel() for name in names]
            own = dict(zip(names, gradient.split(sizes, 1), strict=True))
        found |= {f"{prefix}.{name}" if prefix else name: part for name, part in own.items()}
    return torch.cat(
        [
            found.get(name, torch.zeros(len(one.inputs), parameter.numel(), dtype=torch.float64))
            for name, parameter in one.module.named_parameters()
            if parameter.requires_grad
        ],
        1,
    )
