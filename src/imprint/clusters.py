"""Clusters of examples in a feature space, what is redundant in them, and how a budget is shared out among them."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Examples in a step of mini-batch k-means: at least so many, and so many for each cluster.
BATCH, BATCH_EACH = 1024, 4
# Numbers in memory while similarities are computed: 64 MiB of float32.
NUMBERS = 2**24


def kmeans(
    points: Float[Tensor, "example d"], count: int, generator: torch.Generator
) -> tuple[Int[Tensor, " example"], Float[Tensor, "cluster d"]]:
    """Mini-batch k-means from k-means++ (scikit-learn's).

    Args:
        points: Feature vectors, finite.
        count: How many clusters; there are no more of them than points.
        generator: Of the first centres and of the batches.

    Returns:
        The cluster of each point, from 0 (a cluster may be empty), and the centres.

    >>> points = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    >>> found, centres = kmeans(points, 2, torch.Generator().manual_seed(0))
    >>> bool(found[0] == found[1]), bool(found[1] == found[2])
    (True, False)
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(count, len(points))
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    # A small cluster is a rare kind and no mistake: its centre is not moved elsewhere.
    model = MiniBatchKMeans(
        count, random_state=seed, batch_size=max(BATCH, BATCH_EACH * count), n_init=1, reassignment_ratio=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer points differ than clusters were asked for
        model.fit(points.float().numpy())
    return torch.from_numpy(model.labels_).long(), torch.from_numpy(model.cluster_centers_).float()


def redundancy(directions: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
    """The largest cosine similarity of each example to one before it; the first has none (-1).

    >>> redundancy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    tensor([-1.,  0.,  1.])
    """
    total = len(directions)
    found = torch.full((total,), -1.0)
    step = max(1, NUMBERS // max(1, total))
    for begin in range(0, total, step):
        end = min(begin + step, total)
        similar = directions[begin:end] @ directions[:end].T
        before = torch.arange(end) < torch.arange(begin, end)[:, None]
        found[begin:end] = similar.masked_fill_(~before, -1.0).amax(1)
    return found


def equal(sizes: Int[Tensor, " group"], budget: int) -> Int[Tensor, " group"]:
    """How much of a budget each group gets, as equal as its size allows: small groups whole, the rest shared by the larger ones.

    >>> equal(torch.tensor([1, 10, 10]), 8)
    tensor([1, 3, 4])
    """
    quotas = torch.zeros_like(sizes)
    left = budget
    for taken, group in enumerate(sizes.argsort(stable=True).tolist()):
        quotas[group] = min(int(sizes[group]), left // (len(sizes) - taken))
        left -= int(quotas[group])
    return quotas
