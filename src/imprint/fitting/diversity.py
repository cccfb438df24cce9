"""Diversity as training goes: every few epochs the examples are embedded by the current model, and redundant ones are left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from imprint.clusters import equal, kmeans, redundancy
from imprint.errors import LearnerError
from imprint.fitting.samplers import SamplerState, Specified, check_share, permutation, registered, share_of

# Examples whose features have at least this cosine are copies of each other: rounding apart, a model cannot tell them.
COPY = 0.9999


@registered("dynamic-diversity")
@dataclass(frozen=True)
class DynamicDiversity(Specified):
    """The most diverse and balanced share of the examples, chosen again every few epochs by the model's own features.

    Every `every` epochs the features of all examples are clustered by k-means (about as many clusters as the root of the number of
    examples), and the centres of the clusters once more, into kinds. The visits of an epoch are shared equally among the kinds, and in
    each the redundant examples are left out: those most similar (cosine) to another one of their cluster that comes before them in a
    random order. The first `every` epochs visit a fresh random subset each, so that no feature extractor is needed.

    From Kerdreux et al. 2025 (arXiv:2504.06962), who prune the training set of a self-supervised model after warm-up epochs and again at
    intervals, with hierarchical k-means. Different here: two levels, the least redundant examples and not a draw by the distance from
    a cluster's centre, and what was left out may come back.

    Attributes:
        fraction: Share of the examples that an epoch visits, each once.
        every: Epochs between two choices.
    """

    fraction: float
    every: int = 3
    reads = frozenset({"features"})

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise LearnerError(f"every={self.every!r} is not a number of epochs.", "Give 1 or more.")

    def visits(self, size: int) -> int:
        """The fraction of the examples, at least one."""
        return share_of(self.fraction, size)

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], None]:
        """The current choice in a fresh order."""
        count = self.visits(state.size)
        if state.features is not None and state.epoch > 1 and (state.epoch - 1) % self.every == 0:
            state.memory["chosen"] = diverse(state.features(), count, state.generator)
        if (chosen := state.memory.get("chosen")) is None:
            return permutation(state.size, state.generator)[:count], None
        return chosen[permutation(count, state.generator)], None


def diverse(features: Float[Tensor, "example d"], count: int, random: torch.Generator) -> Int[Tensor, " chosen"]:
    """So many examples, ascending: as equally from all kinds as they have different ones, and the least redundant of each."""
    directions = normalize(features.float(), dim=1)
    clusters, centres = kmeans(directions, max(1, min(count, round(len(features) ** 0.5))), random)
    kinds = kmeans(centres, round(len(centres) ** 0.5), random)[0][clusters]
    order = permutation(len(features), random)
    repeats = torch.empty(len(features))
    for cluster in range(len(centres)):
        members = order[clusters[order] == cluster]
        repeats[members] = redundancy(directions[members])
    sizes, different = kinds.bincount(), kinds[repeats < COPY].bincount(minlength=int(kinds.max()) + 1)
    shares = equal(different, min(count, int(different.sum())))
    shares += equal(sizes - different, count - int(shares.sum()))  # copies where nothing else is left
    chosen = []
    for kind, quota in enumerate(shares.tolist()):
        members = order[kinds[order] == kind]
        chosen.append(members[repeats[members].argsort(stable=True)[:quota]])
    return torch.cat(chosen).sort().values
