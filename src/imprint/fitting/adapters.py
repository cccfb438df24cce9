"""Low-rank changes of a module whose weights stay frozen (LoRA, arXiv:2106.09685): what a stage of a sequenced training trains.

A change of a weight matrix is `sqrt(rank) * up @ down`, with `up` zero and `down` random at first (scaled as in rank-stabilised LoRA,
arXiv:2312.03732). What has few entries anyway, biases and the last linear layer, changes freely. So a change is a few tensors of its
own, and weights are the frozen ones plus the changes that are switched on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

UP, DOWN = ":up", ":down"


class Adapted(nn.Module):
    """A module whose weights are frozen, and whose low-rank changes are trained.

    Args:
        module: Its parameters are frozen in place.
        rank: Of the changes.
        random: Draws `down`.

    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    >>> adapted = Adapted(net, 3, torch.Generator().manual_seed(0))
    >>> torch.equal(adapted(torch.ones(4, 20)), net(torch.ones(4, 20)))
    True
    >>> sum(one.numel() for one in adapted.parameters() if one.requires_grad) == 3 * (20 + 30) + 30 + 30 * 2 + 2
    True
    """

    def __init__(self, module: nn.Module, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.changed = nn.ParameterDict()
        last = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:]
        for name, weight in module.named_parameters():
            out, rest = len(weight), weight[0].numel()
            free = weight.dim() < 2 or name.rpartition(".")[0] in last or rank * (out + rest) >= out * rest
            if free:
                self.changed[_key(name)] = nn.Parameter(torch.zeros_like(weight))
                continue
            down = (2 * torch.rand(rank, rest, generator=random) - 1) / math.sqrt(rest)
            self.changed[_key(name + UP)] = nn.Parameter(torch.zeros(out, rank))
            self.changed[_key(name + DOWN)] = nn.Parameter(down)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the module gives with its weights changed."""
        weights = dict(self.module.named_parameters())
        return functional_call(self.module, added(weights, _named(self.changed)), (inputs,))

    def changes(self) -> dict[str, Tensor]:
        """The changes: `NAME` of a parameter, or `NAME:up` and `NAME:down`."""
        return {name: change.detach().cpu().contiguous() for name, change in _named(self.changed).items()}


def added(weights: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with a change added.

    Args:
        weights: By name of parameter.
        changes: As of `Adapted.changes`.

    >>> added({"w": torch.zeros(2, 2)}, {"w:up": torch.ones(2, 1), "w:down": torch.tensor([[1.0, 2.0]])})["w"].tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    found = {}
    for name, weight in weights.items():
        if name in changes:
            found[name] = weight + changes[name]
        elif name + UP in changes:
            up, down = changes[name + UP], changes[name + DOWN]
            found[name] = weight + (math.sqrt(len(down)) * (up @ down)).view_as(weight)
        else:
            found[name] = weight
    return found


def added_all(weights: Mapping[str, Tensor], changes: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights with several changes added, one after the other."""
    found = dict(weights)
    for one in changes:
        found = added(found, one)
    return found


def _key(name: str) -> str:
    """A parameter's name where no dot may be."""
    return name.replace(".", "/")


def _named(changed: nn.ParameterDict) -> dict[str, Tensor]:
    return {name.replace("/", "."): change for name, change in changed.items()}
