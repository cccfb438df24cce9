"""score: how hard, clear, ambiguous or forgotten is each training example?

`score(run, methods)` asks a recorded run; the functions exported beside it are the bare formulas on tensors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import polars as pl

from imprint.answers import Scores
from imprint.methods import asked, evaluate_all
from imprint.scoring.dynamics import (
    aum,
    confidence,
    el2n,
    entropy,
    forgetting,
    last_margin,
    learning_time,
    mean_loss,
    variability,
)  # fmt: skip

__all__ = [
    "aum", "confidence", "el2n", "entropy", "forgetting", "last_margin", "learning_time", "mean_loss", "score", "variability",
]  # fmt: skip


def score(run: Any, methods: str | Sequence[str] = "auto", members: int | None = None) -> Scores:
    """Score every training example of a run.

    What the methods need is read from the record in one pass over blocks of examples; what is missing is collected first.

    Args:
        run: A recorded run.
        methods: Names of score methods (`imprint methods` lists them), one name, or "auto": all that serve the run's task
            and need no further training.
        members: How many models are trained for the methods that ask a fleet ("memorisation", "banzhaf", "data-oob"), and how
            many random orders are walked through for "shapley"; None for as many as each method says. A fleet is trained once and
            kept in the run: another method that asks the same fleet costs nothing more.

    Returns:
        One value per training example and method, in the corpus's order. `higher` says what a high value means.

    Raises:
        MethodError: If a method is unknown or does not serve the run's task.
        EvidenceError: If evidence is missing and cannot be collected.
    """
    began = time.perf_counter()
    chosen = asked("score", methods, run)
    if members is not None:
        chosen = [one.with_members(members) for one in chosen]
    trainings = trainings_of(one for one in chosen)
    values = evaluate_all(chosen, run)
    table = run.examples.select("id", "position", "split")[run.rows("train")].with_columns(
        pl.Series(one.name, values[one.name].numpy()) for one in chosen
    )
    return Scores(
        verb="score",
        methods=tuple(one.name for one in chosen),
        source={one.name: one.source for one in chosen},
        higher={one.name: one.higher for one in chosen},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": max((one.trainings for one in chosen), default=0)},
        table=table,
    )
