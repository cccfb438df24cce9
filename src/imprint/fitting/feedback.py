"""What a training tells its sampler: the last loss and gradient-norm bound of each training example.

A batch costs a copy of its losses into a buffer in the order of the visits; nothing is read back from the device within an epoch. At the
epoch's end the last visit of each example is kept, so that an example that was drawn twice has one value, always the same one. For
a sampler that reads nothing, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from imprint.fitting.samplers import SamplerState, reads
from imprint.fitting.seeds import generator

KEPT = ("loss", "bound")


@dataclass
class Feedback:
    """The memory of a training for its sampler.

    Attributes:
        size: How many training examples there are.
        reads: What the sampler reads.
        values: Of "loss" and "bound", those that it reads: `[example]`, nan where an example was not seen yet; as of the last whole epoch.
        seen: The same of the visits of the unfinished epoch, `[visit]`, on the device.
        memory: What the sampler itself keeps.
    """

    size: int
    reads: frozenset[str] = frozenset()
    values: dict[str, Float[Tensor, " example"]] = field(default_factory=dict)
    seen: dict[str, Float[Tensor, " visit"]] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, sampler: object, size: int) -> Feedback:
        """The empty memory of a training with this sampler."""
        wanted = reads(sampler)
        return cls(size, wanted, {name: torch.full((size,), torch.nan) for name in KEPT if name in wanted})

    def asked(self, epoch: int, epochs: int, seed: int, features: Callable[[], Tensor] | None = None) -> SamplerState:
        """The state in which a sampler draws an epoch. `features` reaches it only if it reads them."""
        return SamplerState(
            epoch, epochs, self.size, generator(seed, "shuffle", epoch), self.values.get("loss"), self.values.get("bound"),
            features if "features" in self.reads else None, seed, self.memory,
        )  # fmt: skip

    def tell(
        self, begin: int, visits: int, losses: Float[Tensor, " batch"], bound: Callable[[], Float[Tensor, " batch"]]
    ) -> None:
        """Visits `begin` and on, of so many in this epoch, had these losses; `bound` is called only if the sampler reads it."""
        for name in self.values:
            said = losses if name == "loss" else bound()
            if name not in self.seen:
                self.seen[name] = torch.full((visits,), torch.nan, device=said.device)
            self.seen[name][begin : begin + len(said)] = said

    def end(self, indices: Int[Tensor, " visit"]) -> None:
        """The epoch that visited these examples is over."""
        for name, said in self.seen.items():
            self.values[name] = latest(self.values[name], indices, said.float().cpu())
        self.seen = {}

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint has to keep."""
        return {
            f"{kind}/{name}": value
            for kind in ("values", "seen", "memory")
            for name, value in getattr(self, kind).items()
        }

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Put back what `state` gave."""
        self.seen, self.memory = {}, {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            getattr(self, kind)[name] = value.to(device) if kind == "seen" else value


def latest(
    values: Float[Tensor, " example"], indices: Int[Tensor, " visit"], said: Float[Tensor, " visit"]
) -> Float[Tensor, " example"]:
    """Values of the examples after these visits: what was said at the last visit of each, else what was there.

    >>> latest(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 2]), torch.tensor([5.0, 6.0, 7.0]))
    tensor([6., 2., 7.])
    """
    last = torch.full((len(values),), -1).scatter_reduce(0, indices, torch.arange(len(indices)), "amax")
    return torch.where(last >= 0, said[last], values)


def gradient_bound(
    loss: Callable[[Tensor], Float[Tensor, " example"]], outputs: Shaped[Tensor, "example ..."]
) -> Float[Tensor, " example"]:
    """Norm of the gradient of each example's loss with respect to its outputs: `||p - y||` for a cross entropy.

    Args:
        loss: Gives the losses of outputs.
        outputs: The model's.

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> gradient_bound(lambda outputs: torch.nn.functional.cross_entropy(outputs, torch.tensor([0]), reduction="none"), logits)
    tensor([0.7071])
    """
    with torch.enable_grad():
        leaf = outputs.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient.flatten(1).norm(dim=1)
