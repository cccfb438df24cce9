"""Which test examples a comparison of selections is measured on: those that no method was told to be good at.

A method that aims at some examples would otherwise be measured on what it was given. All methods are measured on the same examples, so
that one that aims changes the test set of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from imprint import evidence
from imprint.errors import MethodError
from imprint.fitting import generator
from imprint.fleets import Shared
from imprint.methods import Method, lookup, needs_of
from imprint.recording import Run
from imprint.recording.held_out import held_out
from imprint.recording.needs import HELD_OUT
from imprint.selecting.evidence import Asked
from imprint.verifying.choices import targeted
from imprint.verifying.edits import FEWEST_TEST_EXAMPLES


@dataclass(frozen=True)
class Judged:
    """What a comparison is measured on.

    Attributes:
        test: Rows of the corpus.
        target: What methods that aim are given, where nobody named a target; None for their own rule.
        notes: What to know of both.
    """

    test: Int[Tensor, " example"]
    target: Any
    notes: list[str]


def judged(run: Run, shared: Shared, methods: Sequence[Method], target: Any = None, aims: Sequence[Any] = ()) -> Judged:
    """The examples that all are measured on.

    Args:
        run: The run.
        shared: What all trainings share; its test rows are measured on.
        methods: What is compared.
        target: What the user named for methods that aim; None for their own rule, which takes the validation split or half of the
            held-out examples. Where that would leave nothing to measure on, one half of the test examples is the target.
        aims: Targets of selections that were made before.

    Raises:
        MethodError: There are too few.
    """
    test, notes = shared.test, []
    seen = torch.zeros(len(test), dtype=torch.bool)
    aiming = [one for one in methods if targeted(one)]
    for aim in [*([target] if aiming else []), *aims]:
        seen |= torch.from_numpy(np.isin(test.numpy(), _rows(run, aim)))
    if aiming and target is None and not aims and int((~seen).sum()) < FEWEST_TEST_EXAMPLES:
        half = torch.randperm(len(test), generator=generator(0, "judged"))[: len(test) // 2]
        seen = torch.zeros_like(seen).index_fill_(0, half, True)
        target = test[seen].numpy()
    if bool(seen.any()):
        notes.append(
            f"{int(seen.sum()):,} of {len(test):,} test examples are what some methods select for; all are measured on the others."
        )
        test = test[~seen]
    peeking = [one.name for one in methods if any(evidence.split_of(need) == HELD_OUT for need in needs_of([one]))]
    if peeking and np.isin(held_out(run)[1], test.numpy()).any():
        notes.append(
            f"{', '.join(peeking)}: reads the labels of examples that all are measured on; open the corpus with a validation split for a "
            "fair figure"
        )
    if len(test) < FEWEST_TEST_EXAMPLES:
        raise MethodError(
            f"There are {len(test)} test examples to measure on; a comparison needs {FEWEST_TEST_EXAMPLES}.",
            "Open the corpus with a test split, for example split={'train': 0.7, 'validation': 0.1, 'test': 0.2}.",
        )
    return Judged(test, target, notes)


def _rows(run: Run, target: Any) -> Int[np.ndarray, " target"]:
    """Rows of the run's corpus that a target is; none of one from elsewhere, which a selection remembers by its fingerprint."""
    if isinstance(target, dict):
        return np.empty(0, dtype=np.int64)
    aim = Asked(run, lookup("select", "random"), 1, target)
    return aim.rows if aim.elsewhere is None else np.empty(0, dtype=np.int64)
