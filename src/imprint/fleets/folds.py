"""Out-of-fold predictions: every training example is judged by a model that was trained without it.

`k` members, each trained on all folds but one. Folds are stratified by target (by its quantiles for regression), and examples of
one group stay together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import Progress, derive, silent
from imprint.fleets.member import Member
from imprint.fleets.sequential import train_member
from imprint.fleets.shared import share
from imprint.recording import tables
from imprint.recording.collect import COLLECTORS
from imprint.recording.files import replacing
from imprint.recording.needs import Need, OutOfFold

if TYPE_CHECKING:
    from imprint.recording import Run


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


def collect_out_of_fold(run: Run, need: Need, progress: Progress = silent) -> None:
    """Train the folds of a run and write `out_of_fold.lance`: row, logits, fold."""
    folds = int(getattr(need, "folds", 5))
    rows = run.rows()
    groups = None if run.corpus.groups is None else run.corpus.groups.gather(rows).to_numpy()
    fold = assign(run.target(), folds, run.learner.seed, groups)
    shared = share(run, progress=progress)
    found: Tensor | None = None
    for number in range(folds):
        held_out = np.flatnonzero(fold == number)
        member = Member(derive(run.learner.seed, "fold", number), rows[fold != number])
        said = train_member(shared, member, test=rows[:0], outputs_of=rows[held_out]).outputs
        assert said is not None
        if found is None:
            found = torch.empty(len(rows), *said.shape[1:])
        found[torch.from_numpy(held_out)] = said
        progress("folds", number + 1, folds)
    assert found is not None
    table = pa.table({"row": rows, "logits": tables.fixed(found.flatten(1)), "fold": fold.astype(np.int16)})
    with replacing(run.path / "evidence" / "out_of_fold.lance") as temporary:
        described = table.replace_schema_metadata({"folds": str(folds)})
        lance.write_dataset(described, str(temporary), max_rows_per_file=tables.ROWS_PER_FILE)


COLLECTORS["out_of_fold"] = collect_out_of_fold
