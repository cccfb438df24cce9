"""Samplers that follow what the model says of the examples as it is trained.

`Proportional` draws examples in proportion to their last loss, or to a bound of the norm of their gradient, and weighs each visit by
the inverse of its probability, so that the expected gradient stays that of all examples. `NaiveSplit` spends most visits on examples
that the model has not learned yet; it corrects nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting.samplers import SamplerState, Specified, check_share, permutation, registered, share_of


@registered("proportional")
@dataclass(frozen=True)
class Proportional(Specified):
    """Importance sampling: the more an example still matters, the more often it is visited, and the less a visit counts.

    With values `g` (losses, or bounds of gradient norms) of `n` examples the chance of a visit to be one of example `i` is

        p[i] = trust * g[i] / sum(g) + (1 - trust) / n,          weight of the visit = 1 / (n p[i]),

    so that the mean of weight times gradient over an epoch's visits is, in expectation, the mean gradient of all examples, and no weight
    is above `1 / (1 - trust)`. The variance of that mean is least for `p` proportional to the norms of the gradients. An example not
    seen yet counts as the mean of those that were; while none was, all are alike.

    From PA&DA (Lu et al. 2023, arXiv:2302.14772), which draws training data in proportion to `||p - y||` and mixes in the uniform
    distribution in the same way. Different here: the weights (its code has none), and the draw, which is systematic: an example
    that is due 1.3 visits gets one or two and never none, so that with equal values an epoch is a plain pass over all examples.

    Attributes:
        to: "bound" or "loss".
        fraction: Visits per epoch, as a share of the examples.
        trust: Share of the values in the probabilities, from 0 to below 1; None as in PA&DA: 0 in the first epoch, and rising by
            `1 / epochs` with each one.
    """

    to: str = "bound"
    fraction: float = 1.0
    trust: float | None = None

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)
        if self.to not in ("loss", "bound"):
            raise LearnerError(f"to={self.to!r} is nothing to be proportional to.", "Use 'loss' or 'bound'.")
        if self.trust is not None and not 0 <= self.trust < 1:
            raise LearnerError(f"trust={self.trust!r} is not from 0 to below 1.", "Try 0.5, or leave it out.")

    @property
    def reads(self) -> frozenset[str]:
        """What it is proportional to."""
        return frozenset({self.to})

    def visits(self, size: int) -> int:
        """The fraction of the examples, at least one."""
        return share_of(self.fraction, size)

    def probabilities(self, state: SamplerState) -> Float[Tensor, " example"]:
        """The chance of a visit to be one of each example, float64."""
        uniform = torch.full((state.size,), 1 / state.size, dtype=torch.float64)
        values = state.loss if self.to == "loss" else state.bound
        if values is None or not bool((known := values.isfinite()).any()):
            return uniform
        values = values.double().clamp(min=0)
        values = torch.where(known, values, values[known].mean())
        if not (total := float(values.sum())) > 0:
            return uniform
        trust = (state.epoch - 1) / state.epochs if self.trust is None else self.trust
        return trust * values / total + (1 - trust) * uniform

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], Float[Tensor, " visit"]]:
        """Drawn visits, and what makes up for their odds."""
        probabilities = self.probabilities(state)
        order = permutation(
            state.size, state.generator
        )  # so that which examples are drawn together does not depend on the data's order
        start = float(torch.rand((), generator=state.generator, dtype=torch.float64))
        drawn = order[systematic(probabilities[order], self.visits(state.size), start)]
        drawn = drawn[torch.randperm(len(drawn), generator=state.generator)]
        return drawn, (1 / (state.size * probabilities[drawn])).float()


def systematic(probabilities: Float[Tensor, " example"], visits: int, start: float) -> Int[Tensor, " visit"]:
    """Examples under a comb of equally spaced teeth: over a uniform `start` in [0, 1) each is hit `visits * probability` times on average.

    >>> systematic(torch.tensor([0.5, 0.25, 0.25]), 4, 0.5)
    tensor([0, 0, 1, 2])
    """
    edges = probabilities.double().cumsum(0)
    teeth = (torch.arange(visits, dtype=torch.float64) + start) / visits * edges[-1]
    return torch.searchsorted(edges, teeth, right=True).clamp_(max=len(edges) - 1)


@registered("naive-split")
@dataclass(frozen=True)
class NaiveSplit(Specified):
    """Fewer visits to examples that are learned already: the split of SAA (Gui et al. 2023, arXiv:2309.03598) as a sampler.

    SAA calls an example naive if its historical loss is below the threshold that splits all of them best in two (Otsu's), anew in each
    epoch after a warm-up. There, naive unlabelled examples are augmented more diversely in every epoch; here they are
    visited less: `naive` of an epoch's visits go to naive examples, drawn at random, and all others to the rest. Before the end
    of the warm-up an epoch is a random subset. The history is the last loss (SAA's is 0.999 of it and 0.001 of what was before). An
    example that was not seen yet is not naive.

    Attributes:
        fraction: Visits per epoch, as a share of the examples; each is visited at most once.
        naive: Share of the visits that go to naive examples, so that one that is forgotten is noticed; more where the others are not
            enough.
        warmup: Share of the epochs before the first split (SAA's code: 400 of 1024).
    """

    fraction: float = 1.0
    naive: float = 0.2
    warmup: float = 0.4
    reads = frozenset({"loss"})

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)
        for name in ("naive", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise LearnerError(f"{name}={getattr(self, name)!r} is not a share.", "Give a number from 0 to 1.")

    def visits(self, size: int) -> int:
        """The fraction of the examples, at least one."""
        return share_of(self.fraction, size)

    def split(self, state: SamplerState) -> Bool[Tensor, " example"]:
        """Which examples are naive; none before the end of the warm-up."""
        if state.loss is None or state.epoch <= self.warmup * state.epochs or not bool(state.loss.isfinite().any()):
            return torch.zeros(state.size, dtype=torch.bool)
        return state.loss < otsu(state.loss[state.loss.isfinite()])

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], None]:
        """A subset, most of it not naive."""
        order = permutation(state.size, state.generator)
        naive, count = self.split(state)[order], self.visits(state.size)
        if not bool(naive.any()):
            return order[:count], None
        easy, rest = order[naive], order[~naive]
        spared = max(count - len(rest), min(len(easy), round(self.naive * count)))
        chosen = torch.cat([easy[:spared], rest[: count - spared]])
        return chosen[torch.randperm(count, generator=state.generator)], None


def otsu(values: Float[Tensor, " value"]) -> float:
    """The threshold that splits values into two groups of the largest variance between them (Otsu 1979), exact over all splits.

    The upper group begins at the threshold; where all values are equal, it holds them all.

    >>> otsu(torch.tensor([0.1, 0.2, 5.0, 0.0, 6.0]))
    5.0
    """
    ordered = values.double().sort().values
    below = torch.arange(1, len(ordered), dtype=torch.float64)
    sums = ordered.cumsum(0)
    total, lower = sums[-1], sums[:-1]
    above = len(ordered) - below
    between = below * above * (lower / below - (total - lower) / above) ** 2
    between[ordered[1:] == ordered[:-1]] = 0  # no split between equal values
    if not len(between) or not bool((between > 0).any()):
        return float(ordered[0])
    return float(ordered[1 + int(between.argmax())].to(values.dtype))
