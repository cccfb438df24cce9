"""Folds: stratified by target (by its quantiles for regression), with the examples of one group together."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import derive
from imprint.recording.needs import OutOfFold

# As many as methods ask for where they do not say.
FOLDS = OutOfFold.folds


def assign(target: Tensor, folds: int, seed: int = 0, groups: np.ndarray | None = None) -> Int[np.ndarray, " example"]:
    """Fold (0..folds-1) of each example.

    Args:
        target: Encoded targets; one value per example is stratified by, several labels are not.
        folds: How many; at least 2.
        seed: Of the assignment.
        groups: Examples with the same value share a fold.

    Raises:
        EvidenceError: There are fewer examples or groups than folds.

    >>> import torch
    >>> fold = assign(torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    >>> [sorted(fold[:3].tolist()), sorted(fold[3:].tolist())]
    [[0, 1, 2], [0, 1, 2]]
    """
    random = np.random.default_rng(derive(seed, "folds"))
    strata = target.numpy() if target.dim() == 1 else np.zeros(len(target))
    member = np.arange(len(strata))
    if groups is not None:
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        # A group stands in the stratum of its median example.
        order = np.lexsort((strata, member))
        starts = np.flatnonzero(np.diff(member[order], prepend=-1))
        sizes = np.diff(np.append(starts, len(member)))
        strata = strata[order][starts + sizes // 2]
    if folds < 2 or len(strata) < folds:
        raise EvidenceError(
            f"{len(strata)} {'examples' if groups is None else 'groups'} cannot be divided into {folds} folds.",
            "Ask for fewer folds (at least 2), or use methods that need no out-of-fold predictions.",
        )
    # In order of the stratum, ties in random order, folds are dealt out in turn: each stratum is spread as evenly as it can be.
    order = np.lexsort((random.random(len(strata)), strata))
    dealt = np.arange(len(strata)) % folds
    if np.issubdtype(
        strata.dtype, np.floating
    ):  # in the same turn each round, the first fold would always get the least value
        rounds = random.random((-(-len(strata) // folds), folds)).argsort(1)
        dealt = rounds.reshape(-1)[: len(strata)]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = dealt
    return fold[member]
