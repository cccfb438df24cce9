"""Exact duplicates, within and across splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from imprint.cleaning.flags import Flags
from imprint.cleaning.groups import judge_groups
from imprint.methods import method
from imprint.recording.needs import Table

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# A table in which fewer than half of the rows are distinct holds few distinct values: its rows agree by chance, not by copying.
DISTINCT, COMMON = 0.5, 0.3


@method(
    "clean", "exact-duplicates", kind="duplicate", needs=[Table()],
    higher="leak between splits (1), contradicting targets (0.8), copy in the training split (0.5), copy elsewhere (0.3)",
    source="hash of the inputs; leaks: Elangovan et al. 2021, arXiv:2102.01818",
)  # fmt: skip
def exact_duplicates(corpus: Corpus) -> Flags:
    """Rows whose inputs are equal: copies, contradictions, and leaks between splits (what is suggested: `judge_groups`).

    Where fewer than half of the rows of a table are distinct, equal rows are what its columns' few values give by chance; that is
    one finding about the corpus then.
    """
    if corpus.modality == "table" and len(corpus):
        distinct = len(np.unique(corpus.content))
        if distinct < DISTINCT * len(corpus):
            evidence = f"only {distinct} of {len(corpus)} rows have distinct inputs: the columns hold too few values to tell rows apart"
            return Flags(np.array([-1]), np.array([COMMON], np.float32), ["review"], [evidence])
    return judge_groups(corpus, same_content(corpus.content))


def same_content(content: np.ndarray) -> Int[np.ndarray, " row"]:
    """A group number for rows that share their content hash with another row, -1 for the rest.

    >>> same_content(np.array([7, 5, 7, 9], dtype=np.uint64))
    array([ 1, -1,  1, -1])
    """
    _, group, counts = np.unique(content, return_inverse=True, return_counts=True)
    return np.where(counts[group] > 1, group, -1)
