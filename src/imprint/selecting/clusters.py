"""Selecting evenly over clusters: as many examples of a rare kind as of a common one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.clusters import equal, kmeans
from imprint.methods import method
from imprint.recording.needs import Features
from imprint.selecting.evidence import Budget, Random
from imprint.selecting.picks import Picks, drawn

# More clusters than this cost more than they part.
MOST = 1000


@method(
    "select", "cluster-balance", higher="drawn earlier", needs=[Features(), Budget(), Random()],
    source="Vo et al. 2024, arXiv:2405.15613 (one level)",
)  # fmt: skip
def cluster_balance(features: Float[Tensor, "example d"], budget: int, generator: torch.Generator) -> Picks:
    """Equal shares of the clusters of the features (k-means), drawn at random within each.

    There are as many clusters as the square root of half the examples, at most one per chosen example. A cluster with fewer examples
    than its share gives them all. The paper clusters again and again over levels; this is its first level.

    >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [20.0], [30.0]])
    >>> len(cluster_balance(features, 4, torch.Generator().manual_seed(0)).order)
    4
    """
    count = max(1, min(MOST, budget, round(math.sqrt(len(features) / 2))))
    groups, _ = kmeans(features, count, generator)
    return Picks(drawn(groups, equal(torch.bincount(groups, minlength=count), budget), generator))
