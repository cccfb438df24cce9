"""Which out-of-fold predictions a run holds, for audits that take them where they are and train nothing otherwise."""

from __future__ import annotations

from typing import Any


def folds_of(run: Any) -> int | None:
    """With how many folds the out-of-fold predictions were made that a run holds; None where it holds none."""
    if not run.has("out_of_fold"):
        return None
    described = run.evidence("out_of_fold").table.schema.metadata or {}
    return int(described.get(b"folds", 5))
