"""score: how hard, clear, ambiguous or forgotten is each training example?

`score(run, methods)` asks a recorded run; the functions exported beside it are the bare formulas on tensors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import polars as pl

from imprint.answers import Scores
from imprint.engine import LOCAL, Engine
from imprint.errors import MethodError
from imprint.fitting import Progress
from imprint.gradients.examples import notes as gradient_notes
from imprint.methods import Method, asked, evaluate_all, needs_of, registered, trainings_of
from imprint.recording.collect import FORWARD, RECORDED, spent
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
from imprint.scoring.gradients import gradient_norm, grand, self_influence, vog
from imprint.scoring.neighbours import knn_loo, knn_shapley
from imprint.scoring.shapley import shapley, standard_error
from imprint.scoring.subsets import banzhaf, data_oob, difference, memorisation

__all__ = [
    "aum", "banzhaf", "confidence", "data_oob", "difference", "el2n", "entropy", "forgetting", "gradient_norm", "grand", "knn_loo",
    "knn_shapley", "last_margin", "learning_time", "mean_loss", "memorisation", "score", "self_influence", "shapley", "standard_error",
    "variability", "vog",
]  # fmt: skip


def score(
    run: Any,
    methods: str | Sequence[str] = "auto",
    members: int | None = None,
    progress: Progress | bool | None = None,
    *,
    engine: str | Engine = LOCAL,
) -> Scores:
    """Score every training example of a run.

    What the methods need is read from the record in one pass over blocks of examples; what is missing is collected first.

    Args:
        run: A recorded run.
        methods: Names of score methods (`imprint methods` lists them), one name, or "auto": all that serve the run's task
            and read only what was recorded while it was trained.
        members: How many models are trained for the methods that ask a fleet ("memorisation", "banzhaf", "data-oob"), and how
            many random orders are walked through for "shapley"; None for as many as each method says. A fleet is trained once and
            kept in the run: another method that asks the same fleet costs nothing more.
        progress: Told the trainings done; None shows a bar if standard error is a terminal, False nothing.
        engine: Where gradients are taken and fleets are trained: "local", "ray" (a cluster of our own on this machine), or
            `imprint.engine.Engine("ray", address)`.

    Returns:
        One value per training example and method, in the corpus's order. `higher` says what a high value means.

    Raises:
        MethodError: If a method is unknown or does not serve the run's task, or `members` is given and no method asks a fleet.
        EvidenceError: If evidence is missing and cannot be collected.
    """
    began = time.perf_counter()
    chosen = asked("score", methods, run)
    if methods == "auto":
        recorded = [one for one in chosen if _recorded(one)]
        if _without_training(run) and run.missing(needs_of(recorded)):  # what takes a pass over its examples
            recorded = [one for one in chosen if _of_final_model(one)]
        chosen = recorded
    if members is not None:
        if not any(one.members for one in chosen):
            raise MethodError(
                f"members={members}, but none of {', '.join(one.name for one in chosen)} asks a fleet.",
                f"Leave it out, or name one of: {', '.join(one.name for one in registered('score') if one.members)}.",
            )
        chosen = [one.with_members(members) for one in chosen]
    trainings = trainings_of(one for one in chosen)
    if not all(_recorded(one) for one in chosen):
        run.collect(needs_of(chosen), progress, engine)
    values = evaluate_all(chosen, run)
    trainings, notes = spent(run, needs_of(chosen))
    table = run.examples.select("id", "position", "split")[run.rows("train")].with_columns(
        pl.Series(one.name, values[one.name].numpy()) for one in chosen
    )
    return Scores(
        verb="score",
        methods=tuple(one.name for one in chosen),
        source={one.name: one.source for one in chosen},
        higher={one.name: one.higher for one in chosen},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": trainings},
        table=table,
        notes=(*notes, *gradient_notes(run, needs_of(chosen))),
    )


def _recorded(one: Method) -> bool:
    """Whether a method reads nothing but what was recorded while training."""
    return all(need.kind in (None, *RECORDED) for need in needs_of([one]))


def _without_training(run: Any) -> bool:
    """Whether a run is a child that forgot without a training of its own, or was trained in shards."""
    manifest = getattr(run, "manifest", {})
    return bool(manifest.get("forgot") or manifest.get("deletable"))


def _of_final_model(one: Method) -> bool:
    """Whether a method reads nothing but what a pass of the examples through the final model says."""
    return all(need.kind in (None, *FORWARD, "gradient_norms") for need in needs_of([one]))
