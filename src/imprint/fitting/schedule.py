"""Learning-rate schedules as pure functions of progress, so that a resumed training needs no scheduler state."""

from __future__ import annotations

import math

SCHEDULES = ("onecycle", "cosine", "constant")
# Smith & Topin (arXiv:1708.07120) warm up for about a third; PyTorch's OneCycleLR takes 0.3 as well.
WARMUP = 0.3
# Share of the peak at the start of a one-cycle warm-up; PyTorch's `div_factor` of 25.
START = 1 / 25


def factor(schedule: str, progress: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1] of all steps.

    "onecycle" rises by a half cosine from 1/25 to 1 over the first 30 % and falls to 0 by another; "cosine" falls from 1 to 0.

    >>> [round(factor("onecycle", p), 3) for p in (0.0, 0.3, 1.0)]
    [0.04, 1.0, 0.0]
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < WARMUP:
        return START + (1 - START) * 0.5 * (1 - math.cos(math.pi * progress / WARMUP))
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
