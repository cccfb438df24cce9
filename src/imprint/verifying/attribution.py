"""How far can an attribution be believed? The linear datamodeling score on models that it has not seen, beside controls.

The truth is a fleet of models trained on random halves of the training set, whose subsets and seeds are others than those that a
datamodel is estimated from. The controls know nothing of the model's training: random scores, the similarity of features (with and
without regard to labels), and that of the inputs themselves (BM25 of texts, distances of images and rows).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch

from imprint.answers import Attribution, Trust
from imprint.errors import EvidenceError, MethodError
from imprint.fitting import Progress, derive, reporter
from imprint.fleets import Fleet, fleet, subsets
from imprint.methods import lookup
from imprint.recording import Run, load
from imprint.tracing import factors_of, query_rows, restored
from imprint.verifying.datamodeling import percentiles, resampled, spearman

CONTROLS = ("random", "embedding", "embedding-class", "bm25", "pixels", "columns")
FRACTION = 0.5
# With fewer models a rank correlation says little of a query, and their resamples little of the spread.
FEWEST_MEMBERS = 8
# The spread over queries is known well before this many; more would only cost.
MOST_QUERIES = 2000


def verify_attribution(
    attribution: Attribution,
    run: Run | None = None,
    *,
    members: int = 64,
    level: float = 0.95,
    path: str | Path | None = None,
    progress: Progress | Literal[False] | None = None,
) -> Trust:
    """Measure an attribution's linear datamodeling score.

    Args:
        attribution: What `trace` found.
        run: The run that it is about; None loads it from where the attribution says it is.
        members: Models trained on random halves to measure on; they are kept, and taken again by the next verification.
        level: Level of the confidence intervals.
        path: Where the models' outcomes are kept; None for a folder in the run.
        progress: Told the trainings done; None shows a bar if standard error is a terminal, False nothing.

    Returns:
        The score of the attribution, of each control, and of the attribution less each control, with intervals.

    Raises:
        MethodError: Too few members.
        RunError: The run is not at hand, or is of another corpus.
    """
    began = time.perf_counter()
    if members < FEWEST_MEMBERS:
        raise MethodError(
            f"{members} subset models cannot tell good scores from bad ones.",
            f"Ask for {FEWEST_MEMBERS} or more; 64 is usual.",
        )
    run = run or load(attribution.run["path"])
    notes = []
    scores = {attribution.method: restored(attribution, run)}
    rows = query_rows(run, attribution.queries)
    chosen = np.arange(len(rows))
    if len(rows) > MOST_QUERIES:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), MOST_QUERIES, replace=False))
        notes.append(f"Measured on {MOST_QUERIES:,} of {len(rows):,} queries, drawn at random.")
    with reporter(progress) as told:
        truth = held_out(run, members, path, told)
        for name in CONTROLS:
            one = lookup("trace", name)
            if one.serves(run) and name not in scores:
                try:
                    scores[name] = factors_of(run, rows, one, told)
                except EvidenceError as error:
                    notes.append(f"{name} was left out: {error.problem}")
    margin = truth.outcomes("margin", rows=rows[chosen]).T.double()
    seen = truth.weights.included()
    predicted = {name: one.predict(seen)[torch.from_numpy(chosen)] for name, one in scores.items()}
    by_query = {name: spearman(values, margin) for name, values in predicted.items()}
    drawn = resampled(predicted, margin)
    mean = {name: float(values.mean()) for name, values in by_query.items()}
    own, controls = attribution.method, [name for name in predicted if name != attribution.method]
    ids = run.examples["id"].gather(rows[chosen])
    return Trust(
        verb="verify",
        methods=attribution.methods,
        source={"linear datamodeling score": "Ilyas et al. 2022, arXiv:2202.00622; Park et al. 2023, arXiv:2303.14186"},
        higher={"lds": "predicts retrained models better"},
        run=attribution.run,
        cost={"seconds": time.perf_counter() - began, "trainings": float(members)},
        table=pl.concat(
            pl.DataFrame({"method": name, "query": ids, "lds": by_query[name].numpy()}) for name in predicted
        ),
        notes=tuple(notes),
        lds=mean[own],
        interval=percentiles(drawn[own], level),
        level=level,
        controls={name: (mean[name], *percentiles(drawn[name], level)) for name in controls},
        leads={name: (mean[own] - mean[name], *percentiles(drawn[own] - drawn[name], level)) for name in controls},
        members=members,
    )


def held_out(run: Run, members: int, path: str | Path | None = None, progress: Progress | None = None) -> Fleet:
    """Models trained on random halves, with other subsets and seeds than the fleets that methods read.

    All subsets have the same size, as in the papers: of subsets of different sizes, any score that is positive for most examples would
    predict that larger ones are better.
    """
    other = replace(run.learner, seed=derive(run.learner.seed, "held-out"))
    view = Run(run.path, run.corpus, other, run.data)
    where = run.path / "fleets" / f"held-out-{members}-{FRACTION:g}" if path is None else Path(path)
    return fleet(view, plan=subsets(members, FRACTION), path=where, progress=progress)
