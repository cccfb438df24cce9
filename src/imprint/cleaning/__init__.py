"""clean: wrong labels, duplicates, leaks, outliers, rare classes, odd columns and images.

`clean(run)` asks a recorded run and gives findings; the functions of the modules are the bare methods.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import polars as pl

from imprint.answers import KINDS, Findings, Scores
from imprint.cleaning.alike import alike
from imprint.cleaning.annotators import annotators, crowdlab, dawid_skene
from imprint.cleaning.balance import imbalance
from imprint.cleaning.broken import unreadable
from imprint.cleaning.confident import (
    confidence_weighted_entropy,
    find_label_issues,
    normalized_margin,
    self_confidence,
)  # fmt: skip
from imprint.cleaning.conflicts import conflicts
from imprint.cleaning.cues import spurious_cues
from imprint.cleaning.duplicates import exact_duplicates
from imprint.cleaning.flags import Flags, findings_table
from imprint.cleaning.images import image_quality, near_duplicate_images
from imprint.cleaning.macro import macro, macro_std
from imprint.cleaning.multilabel import (
    confident_learning_multilabel,
    find_multilabel_issues,
    label_set_quality,
    trajectory_multilabel,
)  # fmt: skip
from imprint.cleaning.near import near_duplicate_arrays, near_duplicate_rows
from imprint.cleaning.outlying import outliers
from imprint.cleaning.overlap import overlap
from imprint.cleaning.rankings import rankings
from imprint.cleaning.residuals import out_of_fold_residual, residual_issues, residual_quality, trajectory_residual
from imprint.cleaning.slices import subgroups
from imprint.cleaning.stability import ranking_stability, stability
from imprint.cleaning.subpopulations import subpopulations
from imprint.cleaning.tabular import columns, leaking_columns
from imprint.cleaning.texts import near_duplicate_texts
from imprint.cleaning.tokens import tokens
from imprint.cleaning.trajectories import (
    confident_learning,
    trajectory,
    trajectory_confidence,
)  # fmt: skip
from imprint.cleaning.transition import estimate_transition, noise_transition
from imprint.errors import EvidenceError, MethodError, nearest
from imprint.methods import Method, asked, evaluate, evaluate_all

__all__ = [
    "Flags",
    "alike",
    "annotators",
    "clean",
    "columns",
    "confidence_weighted_entropy",
    "confident_learning",
    "confident_learning_multilabel",
    "conflicts",
    "crowdlab",
    "dawid_skene",
    "estimate_transition",
    "exact_duplicates",
    "find_label_issues",
    "find_multilabel_issues",
    "image_quality",
    "imbalance",
    "label_quality",
    "label_set_quality",
    "leaking_columns",
    "macro",
    "macro_std",
    "near_duplicate_arrays",
    "near_duplicate_images",
    "near_duplicate_rows",
    "near_duplicate_texts",
    "noise_transition",
    "normalized_margin",
    "out_of_fold_residual",
    "outliers",
    "overlap",
    "ranking_stability",
    "residual_issues",
    "residual_quality",
    "self_confidence",
    "spurious_cues",
    "stability",
    "subgroups",
    "subpopulations",
    "tokens",
    "trajectory",
    "trajectory_confidence",
    "trajectory_multilabel",
    "trajectory_residual",
    "unreadable",
]  # fmt: skip


def clean(run: Any, methods: str | Sequence[str] = "auto", folds: int | None = None) -> Findings:
    """Find what is wrong with the data of a run.

    Args:
        run: A recorded run.
        methods: Names of clean methods (`imprint methods` lists them), one name, or "auto": all that serve the run's task and
            data and need no further training. In "auto" a method whose evidence this run cannot give is left out, and
            `notes` says so; asked for by name it raises.
        folds: How many folds methods that read out-of-fold predictions use, each of which is one more training; with a number
            here "auto" asks these methods too. None: as the method declares.

    Returns:
        Findings, the most severe first.

    Raises:
        MethodError: If a method is unknown or does not serve the run's task or data.
        EvidenceError: If evidence of a named method is missing and cannot be collected.
    """
    began = time.perf_counter()
    auto = isinstance(methods, str) and methods == "auto"
    chosen = asked("clean", methods, run, trainings=bool(folds))
    if folds:
        chosen = [one.with_folds(folds) for one in chosen]
    flags, notes = _asked(chosen, run, auto)
    chosen = [one for one in chosen if one.name in flags]
    tables = [findings_table(flags[one.name], one.name, one.kind or "review", run) for one in chosen]
    table = pl.concat(tables) if tables else findings_table(Flags.none(), "", "", run)
    order = pl.col("kind").cast(pl.Enum(KINDS))
    return Findings(
        verb="clean",
        methods=tuple(one.name for one in chosen),
        source={one.name: one.source for one in chosen},
        higher={one.name: one.higher for one in chosen},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": max((one.trainings for one in chosen), default=0)},
        table=table.sort([-pl.col("severity"), order], maintain_order=True),
        notes=tuple(notes),
    )


def _asked(chosen: list[Method], run: Any, auto: bool) -> tuple[dict[str, Flags], list[str]]:
    """The flags of each method; in auto mode without those whose evidence cannot be had, and with a note of each."""
    try:
        return evaluate_all(chosen, run), []
    except EvidenceError:
        if not auto:
            raise
    flags, notes = {}, []
    for one in chosen:
        try:
            flags[one.name] = evaluate(one, run)
        except EvidenceError as error:
            notes.append(f"{one.name} was left out: {error.problem}")
    return flags, notes


def label_quality(run: Any, method: str = "auto") -> Scores:
    """How far to trust each training label: the value that `clean` ranks labels by, for all examples, flagged or not.

    Args:
        run: A recorded run.
        method: "trajectory", "confident-learning" (classification), "trajectory-multilabel", "confident-learning-multilabel",
            "trajectory-residual", "out-of-fold-residual" (regression), or "auto": the one of these that serves the run's task and needs
            no further training.

    Returns:
        Scores with one column, named after the method; higher = more trust.
    """
    began = time.perf_counter()
    ranks = rankings()
    if method == "auto":
        method = next(name for name, one in ranks.items() if run.task.name in one.tasks)
    if method not in ranks:
        raise MethodError(f"No method '{method}' that ranks labels.", nearest(method, ranks))
    one = ranks[method]
    value = evaluate(one, run)
    table = run.examples.select("id", "position", "split")[run.rows("train")].with_columns(
        pl.Series(one.name, value.numpy())
    )
    return Scores(
        verb="clean", methods=(one.name,), source={one.name: one.source}, higher={one.name: one.higher},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": one.trainings}, table=table,
    )  # fmt: skip
