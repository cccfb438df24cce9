"""A sampler outside our loop: the same visits for a plain `DataLoader`, and the way back for losses.

feed = Feed(sampler, len(dataset), epochs=10, seed=0)
loader = DataLoader(dataset, batch_size=64, sampler=feed)          # each pass over it is the next epoch
for indices, inputs, target in loader:                             # a dataset that says which example is which
    losses = F.cross_entropy(model(inputs), target, reduction="none")
    (losses * feed.weights(indices)).mean().backward()
    feed.tell(indices, losses)                                     # only a sampler that reads losses needs it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting.feedback import Feedback
from imprint.fitting.samplers import Sampler, SamplerState, checked, visits


class Feed(torch.utils.data.Sampler[int]):
    """A `DataLoader` sampler that follows an Imprint sampler; each pass over it is the next epoch.

    Visits come in the order in which `imprint.fit` would take them for the same seed (and, of a sampler that reads feedback, the same
    losses). A `DataLoader` has no place for the weights of visits: `weights` says them.

    Args:
        sampler: What chooses.
        size: How many training examples there are.
        epochs: How many passes there will be.
        seed: As `Learner.seed`.
        features: Gives features of all examples by the current model, for a sampler that reads them.

    Raises:
        LearnerError: The sampler reads features, and there are none.

    >>> from imprint.fitting import Repeated
    >>> feed = Feed(Repeated(0.5), 4, epochs=2)
    >>> len(feed), sorted([*feed, *feed])
    (2, [0, 1, 2, 3])
    """

    def __init__(
        self,
        sampler: Sampler,
        size: int,
        *,
        epochs: int,
        seed: int = 0,
        features: Callable[[], Float[Tensor, "example d"]] | None = None,
    ) -> None:
        self.sampler, self.size, self.epochs, self.seed, self.features = sampler, size, epochs, seed, features
        self.feedback = Feedback.of(sampler, size)
        if "features" in self.feedback.reads and features is None:
            raise LearnerError(
                "The sampler reads the features of the current model.",
                "Give Feed(features=...): a function without arguments.",
            )
        self.passes = 0
        self._drawn = 0  # the epoch that the next two are of
        self._indices: Tensor = torch.empty(0, dtype=torch.int64)
        self._weights: Tensor | None = None
        self._told: list[tuple[Tensor, dict[str, Tensor]]] = []

    def __iter__(self) -> Iterator[int]:
        self._close()
        self.passes += 1
        if self._drawn != self.passes:
            self._indices, weights = checked(
                self.sampler.epoch(self._state(self.passes)), self.size, visits(self.sampler, self.size)
            )
            self._weights = None if weights is None else _mean_by_example(self._indices, weights, self.size)
            self._drawn = self.passes
        return iter(self._indices.tolist())

    def __len__(self) -> int:
        """Visits of an epoch: of every one, where the sampler says so; else of the current one."""
        count = visits(self.sampler, self.size)
        if count is not None:
            return count
        if not len(self._indices):  # before the first pass: what it will draw, leaving no trace
            state = self._state(1)
            return len(self.sampler.epoch(replace(state, memory=dict(state.memory)))[0])
        return len(self._indices)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch, from 0, as the sampler of a distributed training counts."""
        self._close()
        self.passes = epoch

    @property
    def weighted(self) -> bool:
        """Whether the visits of the current epoch have weights; else all are one."""
        return self._weights is not None

    def weights(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Weights of these visits of the current epoch. An example that it visits with different weights has their mean."""
        if self._weights is None:
            return torch.ones(len(indices), device=indices.device)
        return self._weights[indices.cpu()].to(indices.device)

    def tell(
        self,
        indices: Int[Tensor, " batch"],
        losses: Float[Tensor, " batch"],
        bounds: Float[Tensor, " batch"] | None = None,
    ) -> None:
        """These examples, just visited, had these losses (not weighted).

        Args:
            indices: Which examples.
            losses: Their losses.
            bounds: Norms of the losses' gradients with respect to the outputs (`imprint.fitting.gradient_bound`), for a sampler
                that reads "bound".

        Raises:
            LearnerError: The sampler reads "bound", and there are none.
        """
        said: dict[str, Tensor] = {}
        for name in self.feedback.values:
            value = losses if name == "loss" else bounds
            if value is None:
                raise LearnerError(
                    "The sampler reads the norms of the losses' gradients.", "Give feed.tell(indices, losses, bounds)."
                )
            said[name] = value.detach().float()
        if said:
            self._told.append((indices.detach(), said))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint has to keep, also within an epoch: tensors."""
        self._close()
        state = {**self.feedback.state(), "passes": torch.tensor(self.passes), "indices": self._indices}
        return state if self._weights is None else {**state, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken: the next pass is the next epoch, or, after `set_epoch`, the same one again."""
        self.passes = self._drawn = int(state["passes"])
        self._indices, self._weights, self._told = state["indices"], state.get("weights"), []
        own = ("passes", "indices", "weights")
        self.feedback.restore({key: value for key, value in state.items() if key not in own}, torch.device("cpu"))

    def _state(self, epoch: int) -> SamplerState:
        return self.feedback.asked(epoch, self.epochs, self.seed, self.features)

    def _close(self) -> None:
        """What was told of the epoch before, put where the sampler reads it."""
        if self._told:
            self.feedback.seen = {name: torch.cat([said[name] for _, said in self._told]) for name in self._told[0][1]}
            self.feedback.end(torch.cat([indices for indices, _ in self._told]).cpu())
            self._told = []


def _mean_by_example(
    indices: Int[Tensor, " visit"], weights: Float[Tensor, " visit"], size: int
) -> Float[Tensor, " example"]:
    total = torch.zeros(size).index_add_(0, indices, weights.float())
    return total / torch.bincount(indices, minlength=size).clamp(min=1)


def as_torch_sampler(sampler: Sampler, size: int, *, epochs: int, seed: int = 0) -> torch.utils.data.Sampler[int]:
    """Use a sampler in a plain `DataLoader`: `DataLoader(dataset, sampler=as_torch_sampler(...))`; a `Feed` without feedback.

    >>> from imprint.fitting import Shuffled
    >>> sorted(as_torch_sampler(Shuffled(), 4, epochs=2))
    [0, 1, 2, 3]
    """
    return Feed(sampler, size, epochs=epochs, seed=seed)
