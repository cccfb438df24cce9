"""How far can an attribution be believed? The linear datamodeling score on models that it has not seen, beside controls; and, where
asked for, what becomes of a prediction without the examples that the attribution names (`removal`), what one more step on them does
(`tail_patch`, which trains nothing again), and whether it finds labels that are known to be wrong.

The truth is a fleet of models trained on random halves of the training set, whose subsets and seeds are others than those that a
datamodel is estimated from. The controls know nothing of the model's training: random scores, the similarity of features (with and
without regard to labels), and that of the inputs themselves (BM25 of texts, distances of images and rows).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.answers import Attribution, Trust
from imprint.errors import EvidenceError, MethodError
from imprint.fitting import Progress, reporter
from imprint.fleets import Fleet
from imprint.methods import lookup
from imprint.recording import Run, load
from imprint.tracing import chosen as method_of
from imprint.tracing import factors_of, query_rows, restored
from imprint.tracing.datamodeling import percentiles, resampled, spearman
from imprint.tracing.evidence import bytes_read
from imprint.tracing.judges import MEMBERS, held_out
from imprint.verifying.removal import detection, harm, intervals, places_of, remove
from imprint.verifying.tail_patch import SIMILAR
from imprint.verifying.tail_patch import tail_patch as step_on

CONTROLS = ("random", "embedding", "embedding-class", "bm25", "pixels", "columns")
# What a removal is held against beside random examples: the first of these that serves the run.
STRONGEST = ("embedding-class", "embedding", "bm25", "columns", "pixels")
DATAMODELING_SOURCE = "Ilyas et al. 2022, arXiv:2202.00622; Park et al. 2023, arXiv:2303.14186"
TAIL_PATCH_SOURCE = "Chang et al. 2024, arXiv:2410.17413"
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
    tail_patch: int | None = None,
    rate: float | None = None,
    known: Iterable[str] | None = None,
    level: float = 0.95,
    path: str | Path | None = None,
    progress: Progress | Literal[False] | None = None,
) -> Trust:
    """Measure how far an attribution can be trusted.

    Args:
        attribution: What `trace` found.
        run: The run that it is about; None loads it from where the attribution says it is.
        members: Models trained on random halves to measure on; they are kept, and taken again by the next verification. With
            `tail_patch` it may be 0: then nothing is trained, which is all that can be had of a recorded loop of one's own.
        removal: Also retrain without so many of the examples that help a query the most (below 1: a share of the training set), beside
            removing as many at random and as many by the strongest control; None leaves that out.
        queries: For how many queries examples are removed, and steps are taken.
        seeds: Trainings for each removal.
        tail_patch: Also take one step of gradient descent on so many of the examples that help a query the most, from the final model,
            beside steps on as many at random, of the query's class, and by similarity; see `imprint.verifying.tail_patch`.
        rate: Of these steps; None for one that moves the weights by a ten-thousandth of their length on random examples.
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
    if members < FEWEST_MEMBERS and not (members == 0 and tail_patch is not None):
        raise MethodError(
            f"{members} subset models cannot tell good scores from bad ones.",
            f"Ask for {FEWEST_MEMBERS} or more; 64 is usual. A tail-patch needs none: members=0, tail_patch=10.",
        )
    run = run or load(attribution.run["path"])
    if run.manifest.get("watched") and (members or removal is not None):
        raise MethodError(
            f"The run {run.path} recorded a loop of your own, which cannot be trained again: there are no models to judge by.",
            "Ask what needs no training: imprint.verify(attribution, run, members=0, tail_patch=10).",
        )
    own, notes = attribution.method, []
    wrong = None if known is None else places_of(run, known)
    rows = query_rows(run, attribution.queries)
    ids = run.examples["id"].gather(rows)
    scores = {own: restored(attribution, run)}
    spent = {own: float(attribution.cost["seconds"])}
    more: dict[str, Any] = {}
    parts: list[pl.DataFrame] = []
    trainings = members
    with reporter(progress) as told:
        for name in CONTROLS if members else SIMILAR:
            one = lookup("trace", name)
            if one.serves(run) and name not in scores:
                start = time.perf_counter()
                try:
                    scores[name] = factors_of(run, rows, one, told)
                except EvidenceError as error:
                    notes.append(f"{name} was left out: {error.problem}")
                    continue
                spent[name] = time.perf_counter() - start
        if members:
            truth = held_out(run, members, path, told)
            chosen = np.arange(len(rows))
            if len(rows) > MOST_QUERIES:
                chosen = np.sort(np.random.default_rng(0).choice(len(rows), MOST_QUERIES, replace=False))
                notes.append(f"Measured on {MOST_QUERIES:,} of {len(rows):,} queries, drawn at random.")
            by_query, fields = datamodeling(truth, rows, chosen, scores, own, level)
            more |= fields
            parts.append(by_method(ids.gather(chosen), lds=by_query))
        if removal is not None:
            control = next((name for name in STRONGEST if name in scores and name != own), None)
            arms = {name: scores[name] for name in (own, control) if name is not None}
            where = path and Path(path) / "removal"
            removed = remove(run, rows, arms, removal, queries=queries, seeds=seeds, path=where, progress=told)
            trainings += removed.trainings
            notes += removed.notes
            more["drops"], more["drop_leads"] = intervals(removed.drops, own, level)
            more["flips"], more["flip_leads"] = intervals(removed.flips, own, level)
            more["removed"] = removed.removed
            parts.append(by_method(ids.gather(removed.queries), drop=removed.drops, flip=removed.flips))
        if tail_patch is not None:
            arms = {name: scores[name] for name in (own, *SIMILAR) if name in scores}
            stepped = step_on(run, rows, arms, tail_patch, queries=queries, rate=rate, progress=told)
            more["gains"], more["gain_leads"] = intervals(stepped.gains, own, level)
            more["patched"], more["rate"] = stepped.patched, stepped.rate
            parts.append(by_method(ids.gather(stepped.queries), gain=stepped.gains))
        if wrong is not None:
            more["detection"], more["detection_leads"] = detection(
                {name: harm(one) for name, one in scores.items()}, wrong, own, level
            )
    sizes = {name: evidence_of(run, name, attribution) for name in scores}
    return Trust(
        verb="verify",
        methods=attribution.methods,
        source={
            **({"linear datamodeling score": DATAMODELING_SOURCE} if members else {}),
            **({} if tail_patch is None else {"tail-patch": TAIL_PATCH_SOURCE}),
        },
        higher={
            **({"lds": "predicts retrained models better"} if members else {}),
            **({} if tail_patch is None else {"gain": "a step on its examples helps the query more"}),
        },
        run=attribution.run,
        cost={"seconds": time.perf_counter() - began, "trainings": float(trainings)},
        table=joined(parts),
        notes=tuple(notes),
        level=level,
        members=members,
        seconds=spent,
        evidence_bytes={name: size for name, size in sizes.items() if size is not None},
        **more,
    )


def datamodeling(
    truth: Fleet,
    rows: Int[np.ndarray, " query"],
    chosen: Int[np.ndarray, " some"],
    scores: Mapping[str, Any],
    own: str,
    level: float,
) -> tuple[dict[str, Float[Tensor, " some"]], dict[str, Any]]:
    """The linear datamodeling score of several attributions: name -> that of each chosen query, and the fields of a `Trust`."""
    seen = truth.weights.included()
    predicted = {name: one.predict(seen)[torch.from_numpy(chosen)] for name, one in scores.items()}
    margin = truth.outcomes("margin", rows=rows[chosen]).T.double()
    by_query = {name: spearman(values, margin) for name, values in predicted.items()}
    drawn = resampled(predicted, margin)
    mean = {name: float(values.mean()) for name, values in by_query.items()}
    others = [name for name in scores if name != own]
    return by_query, {
        "lds": mean[own],
        "interval": percentiles(drawn[own], level),
        "controls": {name: (mean[name], *percentiles(drawn[name], level)) for name in others},
        "leads": {name: (mean[own] - mean[name], *percentiles(drawn[own] - drawn[name], level)) for name in others},
    }


def by_method(ids: pl.Series, **values: Mapping[str, Float[Tensor, " query"]]) -> pl.DataFrame:
    """method, query, and a column for each of the values, which are given by method."""
    names = next(iter(values.values()))
    return pl.concat(
        pl.DataFrame({"method": name, "query": ids, **{column: one[name].numpy() for column, one in values.items()}})
        for name in names
    )


def joined(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """One row per method and query of any part, and null where a part has no such row."""
    return reduce(
        lambda left, right: left.join(
            right, on=["method", "query"], how="full", coalesce=True, maintain_order="left_right"
        ),
        parts,
    )


def evidence_of(run: Run, name: str, attribution: Attribution) -> int | None:
    """Bytes of the evidence that a method reads; None for scores that are of no method."""
    try:
        return bytes_read(run, method_of(name, attribution.members if name == attribution.method else None).needs)
    except MethodError:
        return None
