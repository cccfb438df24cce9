"""Adapt-infinity: skills are clusters of gradients, each chooses the scorer that tells its examples apart, and copies go for good.

Examples that move a model's weights alike teach the same skill (a pseudo-task), and no one importance score is right for all of them.
Maharana et al. (2024):

1. cluster the examples' gradients (normalised) by k-means;
2. prune the pool for good: in each cluster, every example has its largest cosine to an earlier one of the cluster, by features, and
those
   with the largest are dropped (SemDeDup), the larger clusters being cut to the size of the others;
3. in each cluster, of several scores take the one whose distribution over the cluster has the highest entropy: a score that
   is the same for all but a few says nothing there;
4. share the budget equally over the clusters, and sample each share evenly over the range of its score (CCS), without the 5 % at
either end.

Scores are standardised within the cluster, and binned from -4 to 4 standard deviations. (The authors' code takes these bounds from
the score before it is standardised, which makes the entropy depend on the score's unit.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imprint import clusters as shared
from imprint.clusters import equal, kmeans
from imprint.methods import Scored, method
from imprint.recording.needs import Features, Gradients
from imprint.selecting.evidence import Budget, Random
from imprint.selecting.picks import Picks, drawn

# Of the square root of half the examples at most this many; the paper searches 5 to 50.
MOST = 50
# Share of the pool that stays, as in the authors' code; never less than the budget.
KEPT = 0.9
BINS, BOUND = 50, 4.0
# Share of a cluster at either end of its score that is sampled only where the rest does not do.
OUTLYING = 0.05
# The scores of the pool of experts: an error, a gradient, a margin, and what changes over the epochs.
EXPERTS = ("el2n", "grand", "margin", "variability")


def entropy(score: Float[Tensor, " example"]) -> float:
    """Entropy in bits of a score's distribution over 50 bins, standardised; 0 where it is the same for all.

    >>> entropy(torch.ones(10)), entropy(torch.tensor([0.0, 1.0]))
    (0.0, 1.0)
    """
    known = score[score.isfinite()].double()
    if len(known) < 2 or float(known.std(correction=0)) <= 1e-12 * float(known.abs().max()):
        return 0.0
    z = (known - known.mean()) / known.std(correction=0)
    counts = torch.bincount(((z + BOUND) / (2 * BOUND) * BINS).long().clamp(0, BINS - 1), minlength=BINS)
    share = counts[counts > 0] / len(z)
    return float(-(share * share.log2()).sum())


def redundancy(features: Float[Tensor, "example d"], clusters: Int[Tensor, " example"]) -> Float[Tensor, " example"]:
    """The largest cosine of each example to an earlier one of its cluster; -1 for the first: what makes it redundant.

    >>> redundancy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 0, 1]))
    tensor([-1.,  0.,  1., -1.])
    """
    unit = F.normalize(features.float(), dim=1)
    found = torch.full((len(unit),), -1.0)
    for cluster in torch.unique(clusters).tolist():
        members = (clusters == cluster).nonzero().squeeze(1)
        found[members] = shared.redundancy(unit[members])
    return found


def pruned(features: Float[Tensor, "example d"], clusters: Int[Tensor, " example"], keep: int) -> Int[Tensor, " kept"]:
    """Places of the examples that stay in the pool, ascending: the least redundant of each cluster, the larger clusters cut first.

    >>> pruned(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 0]), 2)
    tensor([0, 2])
    """
    repeated = redundancy(features, clusters)
    quotas = equal(torch.bincount(clusters), keep)
    return first_of(clusters, repeated, quotas)


def first_of(
    groups: Int[Tensor, " example"], value: Float[Tensor, " example"], quotas: Int[Tensor, " group"]
) -> Int[Tensor, " picked"]:
    """Places, ascending, of as many of each group as its quota says, by lowest value, then by place."""
    order = value.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups, minlength=len(quotas))
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[groups[order]]
    return order[rank < quotas[groups[order]]].sort().values


def spread(score: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Int[Tensor, " picked"]:
    """Places of a sample that is even over the range of a score: equal shares of 50 equally wide strata, random within.

    The 5 % at either end, and examples without a score, are drawn only where the rest does not do.

    >>> spread(torch.tensor([0.0] * 20 + [1.0] * 20), 4, torch.Generator()).ge(20).sum()
    tensor(2)
    """
    known = score.double()
    finite = known[known.isfinite()]
    if len(finite):
        low, high = (finite.quantile(share) for share in (OUTLYING, 1 - OUTLYING))
    else:
        low = high = torch.tensor(0.0, dtype=torch.float64)
    inside = (known >= low) & (known <= high)
    width = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    strata = torch.where(inside, (known - low) / width * BINS, 0.0).long().clamp(0, BINS - 1)
    places = inside.nonzero().squeeze(1)
    within = min(budget, len(places))
    quotas = equal(torch.bincount(strata[places], minlength=BINS), within)
    order = places[drawn(strata[places], quotas, generator)]
    others = (~inside).nonzero().squeeze(1)
    mixed = others[torch.randperm(len(others), generator=generator)]
    return torch.cat([order, mixed[: budget - within]])


@method(
    "select", "adapt-experts", higher="drawn earlier",
    needs=[Gradients(projection="paired"), Features(), *(Scored(name, method=name) for name in EXPERTS), Budget(), Random()],
    tasks=["classification"], source="Maharana et al. 2024 (Adapt-infinity), arXiv:2410.10636",
)  # fmt: skip
def adapt_experts(
    gradients: Float[Tensor, "example size"], features: Float[Tensor, "example d"], budget: int, generator: torch.Generator,
    **scores: Float[Tensor, " example"],
) -> Picks:  # fmt: skip
    """Examples of every skill (cluster of gradients), each sampled over the range of the score that tells its examples apart.

    >>> at = torch.Generator().manual_seed(0)
    >>> gradients = torch.cat([torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]])]).repeat_interleave(20, 0)
    >>> picks = adapt_experts(gradients, torch.randn(40, 3, generator=at), 10, at, hard=torch.rand(40, generator=at))
    >>> picks.order.numel(), picks.order.ge(20).sum()
    (10, tensor(5))
    """
    size = len(gradients)
    unit = F.normalize(gradients.float().nan_to_num(), dim=1)
    count = max(1, min(MOST, budget, round(math.sqrt(size / 2))))
    clusters, _ = kmeans(unit, count, generator)
    left = pruned(features, clusters, max(budget, round(KEPT * size)))
    own = clusters[left]
    quotas = equal(torch.bincount(own, minlength=count), budget)
    taken: list[Tensor] = []
    chosen_by: dict[str, int] = {}
    for cluster in range(count):
        members = left[own == cluster]
        if len(members):
            name = expert({name: values[members] for name, values in scores.items()})
            chosen_by[name] = chosen_by.get(name, 0) + 1
            taken.append(members[spread(scores[name][members], int(quotas[cluster]), generator)])
    order = torch.cat(taken)
    order = order[torch.randperm(len(order), generator=generator)]
    by = ", ".join(f"{name} in {times}" for name, times in sorted(chosen_by.items(), key=lambda one: -one[1]))
    gone, skills = size - len(left), sum(chosen_by.values())
    note = (
        f"{gone:,} examples that are redundant in their cluster were pruned; the score of {skills} clusters was {by}."
    )
    return Picks(order, note=note)


def expert(scores: Mapping[str, Float[Tensor, " example"]]) -> str:
    """The name of the score with the highest entropy; of equal ones the first.

    >>> expert({"same": torch.ones(4), "apart": torch.arange(4.0)})
    'apart'
    """
    return max(scores, key=lambda name: entropy(scores[name]))
