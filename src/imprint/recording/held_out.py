"""Which examples a run is judged on: one rule for all that measures the value of an example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imprint.errors import EvidenceError

if TYPE_CHECKING:
    from imprint.recording.run import Run


def held_out(run: Run) -> tuple[str, np.ndarray]:
    """Name and rows of the split that models are judged on: the validation split, else the test split, else any that is not training.

    Raises:
        EvidenceError: All rows are training rows.
    """
    sizes: dict[str, int] = run.manifest["corpus"]["splits"]
    others = [name for name, size in sizes.items() if size and name != "train"] if "train" in sizes else []
    others.sort(key=lambda name: (not name.startswith("val"), name != "test"))
    if not others:
        raise EvidenceError(
            f"The run {run.path} has no held-out examples, and the value of an example is measured on them.",
            "Open the corpus with a split, such as imprint.open(..., split={'train': 0.8, 'test': 0.2}), and fit again; or use "
            "score('data-oob') or score('memorisation'), which need none.",
        )
    return others[0], run.rows(others[0])
