"""trace: which training examples made the model say this?

`trace(run, queries)` asks a recorded run for the most helpful and the most harmful training examples of each query; the functions
exported beside it are the bare methods on tensors.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch

from imprint.answers import Attribution
from imprint.engine import LOCAL, Engine, engine_of
from imprint.errors import MethodError, RunError
from imprint.evidence import Named, named_rows
from imprint.fitting import Progress, reporter
from imprint.gradients.examples import notes as gradient_notes
from imprint.methods import Method, check_serves, lookup
from imprint.recording import load
from imprint.recording.collect import spent
from imprint.tracing.choosing import choose
from imprint.tracing.controls import columns, embedding, embedding_class, pixels, random
from imprint.tracing.datamodels import datamodel, subset_influence
from imprint.tracing.evidence import gather
from imprint.tracing.factors import Factors
from imprint.tracing.gradients import (
    gradient_cosine,
    gradient_dot,
    logra,
    tracin,
    tracin_projected,
    trak,
    trak_checkpoints,
)
from imprint.tracing.influence import (
    Influence,
    influence_arnoldi,
    influence_cg,
    influence_diagonal,
    influence_ekfac,
    influence_exact,
    influence_kfac,
)
from imprint.tracing.neighbours import knn, knn_shapley
from imprint.tracing.products import Products, Streamed
from imprint.tracing.representer import representer
from imprint.tracing.tokens import tokens
from imprint.tracing.words import bm25

if TYPE_CHECKING:
    from imprint.recording import Run

Queries = Named

__all__ = [
    "Factors", "Influence", "Products", "Streamed", "bm25", "columns", "datamodel", "embedding", "embedding_class", "factors_of",
    "gradient_cosine", "gradient_dot", "influence_arnoldi", "influence_cg", "influence_diagonal", "influence_ekfac",
    "influence_exact", "influence_kfac", "knn", "knn_shapley", "logra", "pixels", "query_rows", "random", "representer", "restored",
    "subset_influence", "tokens", "trace", "tracin", "tracin_projected", "trak", "trak_checkpoints",
]  # fmt: skip


def trace(
    run: Run,
    queries: Queries = "test",
    method: str = "datamodel",
    k: int = 10,
    members: int | None = None,
    progress: Progress | Literal[False] | None = None,
    *,
    budget: float | None = None,
    engine: str | Engine = LOCAL,
) -> Attribution:
    """The training examples that help and that harm each query the most.

    What the method reads is collected first: for a datamodel, a fleet of trainings on random halves, which is kept in the run and
    resumes where it was interrupted.

    Args:
        run: A recorded run.
        queries: Predictions to explain: a split's name, a part of the run's corpus (`corpus.split("test")`), ids, or rows. A query
            is judged by its own label: to help is to raise its margin.
        method: Name of a trace method (`imprint methods` lists them), or "auto": the one that retrained models of this run show to be worth
            its price (`imprint.tracing.choosing`); the notes say what was measured.
        k: How many examples at either end.
        members: Trainings of the fleet, for methods that read one; None as the method declares. More are more precise.
        progress: Told the trainings done; None shows a bar if standard error is a terminal, False nothing.
        budget: With "auto": seconds that the method may take for these queries; None for ten minutes.
        engine: Where gradients are projected and fleets are trained: "local", "ray" (a cluster of our own on this machine), or
            `imprint.engine.Engine("ray", address)`.

    Returns:
        `frame()`: query, id, position, rank (1 = the most helpful, -1 = the most harmful), score. `imprint.verify` says how far
        it can be trusted.

    Raises:
        MethodError: The method is unknown or does not serve the run's task or data, none fits the budget, or k is no number of examples.
        IdError: A query is not of the run's corpus.
        RunError: The run has no such split.
    """
    began = time.perf_counter()
    if k < 1:
        raise MethodError(f"k={k} examples are none.", "Ask for 1 or more.")
    rows = query_rows(run, queries)
    why: tuple[str, ...] = ()
    if method == "auto":
        with reporter(progress) as told:
            one, why = choose(run, len(rows), budget, members, told, engine_of(engine))
        began = time.perf_counter()  # what the method costs; the notes say what choosing it did
    elif budget is not None:
        raise MethodError(f"A budget is for method='auto', not for '{method}'.", "Leave one of the two out.")
    else:
        one = chosen(method, members)
    found = factors_of(run, rows, one, progress, engine_of(engine))
    trainings, notes = spent(run, one.needs)
    return Attribution(
        verb="trace",
        methods=(one.name,),
        source={one.name: one.source},
        higher={one.name: one.higher},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": trainings},
        table=best(run, rows, found, k),
        notes=(*why, *notes, *gradient_notes(run, one.needs)),
        k=k,
        members=members,
        examples=len(run),
        factors=found,
    )


def restored(attribution: Attribution, run: Run | None = None) -> Factors:
    """The factors of an attribution: those that it was made of, or, of one that was saved, computed again from its run.

    Raises:
        RunError: The run is not where the attribution says, or is of another corpus.
    """
    if attribution.factors is not None:
        return attribution.factors
    run = run or load(attribution.run["path"])
    if run.fingerprint != attribution.run["corpus"]:
        raise RunError(
            f"The attribution is about the corpus {attribution.run['corpus']}, and {run.path} is of {run.fingerprint}.",
            "Give the run that was traced.",
        )
    return factors_of(run, query_rows(run, attribution.queries), chosen(attribution.methods[0], attribution.members))


def factors_of(
    run: Run, rows: np.ndarray, one: Method, progress: Progress | Literal[False] | None = None, engine: Engine = LOCAL
) -> Factors:
    """What a trace method says of a run and these query rows."""
    check_serves([one], run)
    with reporter(progress) as told:
        return one.function(**gather(run, one.needs, rows, told, engine))


def chosen(method: str, members: int | None) -> Method:
    """The method of a name, with fleets of as many members."""
    one = lookup("trace", method)
    return one if members is None else one.with_members(members)


def query_rows(run: Run, queries: Queries) -> np.ndarray:
    """Rows of the run's corpus that were asked for, in their order, each once.

    Raises:
        IdError: An id or row is not of the run's corpus, or there is none.
        RunError: There is no such split.
    """
    return named_rows(run, queries)


def best(run: Run, rows: np.ndarray, found: Factors, k: int) -> pl.DataFrame:
    """The table of an attribution: for each query its k highest scores, then its k lowest."""
    helpful, harmful = found.top(k)
    kept = helpful.examples.shape[1]
    place = torch.cat([helpful.examples, harmful.examples], 1).reshape(-1).numpy()
    ranks = np.concatenate([np.arange(1, kept + 1), -np.arange(1, kept + 1)]).astype(np.int32)
    examples = run.examples.select("id", "position")[run.rows()]
    return pl.DataFrame({"query": run.examples["id"].gather(np.repeat(rows, 2 * kept))}).with_columns(
        *examples[place].get_columns(),
        pl.Series("rank", np.tile(ranks, len(rows))),
        pl.Series("score", torch.cat([helpful.scores, harmful.scores], 1).reshape(-1).numpy()),
    )
