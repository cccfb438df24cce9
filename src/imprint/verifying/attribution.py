"""How far can an attribution be believed? The linear datamodeling score on models that it has not seen, beside controls; and, where
asked for, what becomes of a prediction without the examples that the attribution names (`removal`), and whether it finds labels that are
known to be wrong.

The truth is a fleet of models trained on random halves of the training set, whose subsets and seeds are others than those that a
datamodel is estimated from. The controls know nothing of the model's training: random scores, the similarity of features (with and
without regard to labels), and that of the inputs themselves (BM25 of texts, distances of images and rows).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from imprint.answers import Attribution, Trust
from imprint.errors import EvidenceError, MethodError
from imprint.fitting import Progress, reporter
from imprint.methods import lookup
from imprint.recording import Run, load
from imprint.tracing import chosen as method_of
from imprint.tracing import factors_of, query_rows, restored
from imprint.tracing.datamodeling import percentiles, resampled, spearman
from imprint.tracing.evidence import bytes_read
from imprint.tracing.judges import MEMBERS, held_out
from imprint.verifying.removal import detection, harm, intervals, places_of, remove

CONTROLS = ("random", "embedding", "embedding-class", "bm25", "pixels", "columns")
# What a removal is held against beside random examples: the first of these that serves the run.
STRONGEST = ("embedding-class", "embedding", "bm25", "columns", "pixels")
# With fewer models a rank correlation says little of a query, and their resamples little of the spread.
FEWEST_MEMBERS = 8
# The spread over queries is known well before this many; more would only cost.
MOST_QUERIES = 2000


def verify_attribution(
    attribution: Attribution,
    run: Run | None = None,
    *,
    members: int = MEMBERS,
    removal: int | float | None = None,
    queries: int = 30,
    seeds: int = 3,
    known: Iterable[str] | None = None,
    level: float = 0.95,
    path: str | Path | None = None,
    progress: Progress | Literal[False] | None = None,
) -> Trust:
    """Measure how far an attribution can be trusted.

    Args:
        attribution: What `trace` found.
        run: The run that it is about; None loads it from where the attribution says it is.
        members: Models trained on random halves to measure on; they are kept, and taken again by the next verification.
        removal: Also retrain without so many of the examples that help a query the most (below 1: a share of the training set), beside
            removing as many at random and as many by the strongest control; None leaves that out.
        queries: For how many queries examples are removed.
        seeds: Trainings for each removal.
        known: Ids of training examples whose labels are known to be wrong: how well the attribution finds them, by the harm that an
            example does to the queries on average.
        level: Level of the confidence intervals.
        path: Where the models' outcomes are kept; None for a folder in the run.
        progress: Told the trainings done; None shows a bar if standard error is a terminal, False nothing.

    Returns:
        The score of the attribution, of each control, and of the attribution less each control, with intervals; and as much of the rest
        as was asked for.

    Raises:
        MethodError: Too few members, or nothing to remove or to find.
        RunError: The run is not at hand, or is of another corpus.
    """
    began = time.perf_counter()
    if members < FEWEST_MEMBERS:
        raise MethodError(
            f"{members} subset models cannot tell good scores from bad ones.",
            f"Ask for {FEWEST_MEMBERS} or more; 64 is usual.",
        )
    run = run or load(attribution.run["path"])
    own, notes = attribution.method, []
    wrong = None if known is None else places_of(run, known)
    scores = {own: restored(attribution, run)}
    rows = query_rows(run, attribution.queries)
    chosen = np.arange(len(rows))
    if len(rows) > MOST_QUERIES:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), MOST_QUERIES, replace=False))
        notes.append(f"Measured on {MOST_QUERIES:,} of {len(rows):,} queries, drawn at random.")
    spent = {own: float(attribution.cost["seconds"])}
    with reporter(progress) as told:
        truth = held_out(run, members, path, told)
        seen = truth.weights.included()
        predicted = {own: scores[own].predict(seen)[torch.from_numpy(chosen)]}
        for name in CONTROLS:
            one = lookup("trace", name)
            if one.serves(run) and name not in scores:
                start = time.perf_counter()
                try:
                    scores[name] = factors_of(run, rows, one, told)
                except EvidenceError as error:
                    notes.append(f"{name} was left out: {error.problem}")
                    continue
                predicted[name] = scores[name].predict(seen)[torch.from_numpy(chosen)]
                spent[name] = time.perf_counter() - start
        margin = truth.outcomes("margin", rows=rows[chosen]).T.double()
        by_query = {name: spearman(values, margin) for name, values in predicted.items()}
        drawn = resampled(predicted, margin)
        ids = run.examples["id"].gather(rows)
        table = pl.concat(
            pl.DataFrame({"method": name, "query": ids.gather(chosen), "lds": by_query[name].numpy()})
            for name in predicted
        )
        more: dict[str, Any] = {}
        trainings = members
        if removal is not None:
            control = next((name for name in STRONGEST if name in scores and name != own), None)
            arms = {name: scores[name] for name in (own, control) if name is not None}
            removed = remove(
                run,
                rows,
                arms,
                removal,
                queries=queries,
                seeds=seeds,
                path=path and Path(path) / "removal",
                progress=told,
            )
            trainings += removed.trainings
            notes += removed.notes
            for field, lead, values in (
                ("drops", "drop_leads", removed.drops),
                ("flips", "flip_leads", removed.flips),
            ):
                more[field], more[lead] = intervals(values, own, level)
            more["removed"] = removed.removed
            table = table.join(
                by_removal(ids.gather(removed.queries), removed.drops, removed.flips),
                on=["method", "query"],
                how="full",
                coalesce=True,
                maintain_order="left_right",
            )
        if wrong is not None:
            more["detection"], more["detection_leads"] = detection(
                {name: harm(one) for name, one in scores.items()}, wrong, own, level
            )
    mean = {name: float(values.mean()) for name, values in by_query.items()}
    controls = [name for name in predicted if name != own]
    return Trust(
        verb="verify",
        methods=attribution.methods,
        source={"linear datamodeling score": "Ilyas et al. 2022, arXiv:2202.00622; Park et al. 2023, arXiv:2303.14186"},
        higher={"lds": "predicts retrained models better"},
        run=attribution.run,
        cost={"seconds": time.perf_counter() - began, "trainings": float(trainings)},
        table=table,
        notes=tuple(notes),
        lds=mean[own],
        interval=percentiles(drawn[own], level),
        level=level,
        controls={name: (mean[name], *percentiles(drawn[name], level)) for name in controls},
        leads={name: (mean[own] - mean[name], *percentiles(drawn[own] - drawn[name], level)) for name in controls},
        members=members,
        seconds=spent,
        evidence_bytes={name: size for name in predicted if (size := evidence_of(run, name, attribution)) is not None},
        **more,
    )


def by_removal(ids: pl.Series, drops: dict[str, torch.Tensor], flips: dict[str, torch.Tensor]) -> pl.DataFrame:
    """method, query, drop, flip."""
    return pl.concat(
        pl.DataFrame({"method": name, "query": ids, "drop": drops[name].numpy(), "flip": flips[name].numpy()})
        for name in drops
    )


def evidence_of(run: Run, name: str, attribution: Attribution) -> int | None:
    """Bytes of the evidence that a method reads; None for scores that are of no method."""
    try:
        return bytes_read(run, method_of(name, attribution.members if name == attribution.method else None).needs)
    except MethodError:
        return None
