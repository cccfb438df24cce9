"""method="auto": the trace method that this run itself shows to be worth its price.

Which method can be trusted differs from model to model, so it is measured and not assumed. Every method that serves the run scores a
small sample of held-out queries; its linear datamodeling score is taken on models that no method has seen (`judges`, the ones that
`imprint.verify` judges by), and its price with a clock. The rule:

    of the methods that take no longer than the budget, the one with the highest score;
    of those that are not clearly worse (the 95 % interval of the difference holds zero), the cheapest.

Similarities are candidates like the others. What was measured is kept in `RUN/evidence/trace-methods.json`: the next choice is free, and
only methods that were left out as too dear are looked at again when more may be spent.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.engine import LOCAL, Engine
from imprint.engine.connection import held
from imprint.errors import EvidenceError, ImprintError, MethodError
from imprint.fitting import Progress, silent
from imprint.fleets import Fleet, share, subsets
from imprint.fleets.choosing import priced, steady
from imprint.methods import Method, registered
from imprint.recording import Run
from imprint.recording.files import read_json, write_json
from imprint.recording.held_out import held_out as held_out_rows
from imprint.recording.lock import writing
from imprint.recording.needs import FleetNeed
from imprint.tracing import judges
from imprint.tracing.datamodeling import percentiles, resampled, spearman
from imprint.tracing.evidence import gather

# Seconds that a method may take where nobody says.
BUDGET = 600.0
# Queries that methods are measured on. The spread of an LDS over queries is about 0.2, so that of the mean 0.035.
SAMPLE = 32
LEVEL = 0.95
FORMAT = 1
# Seconds that the price of the judges is measured for.
PROBE = 0.2


@dataclass(frozen=True)
class Measured:
    """What a method was measured to be worth on a run, and to cost.

    Attributes:
        lds: Linear datamodeling score.
        resampled: The same in bootstrap resamples, which all methods share.
        once: Seconds that it takes whatever is asked, evidence that it had to collect included.
        each: Seconds per query.
        trainings: How many trainings its evidence takes.
    """

    lds: float
    resampled: Float[Tensor, " resample"]
    once: float
    each: float
    trainings: int

    def seconds(self, queries: int) -> float:
        """What it takes for so many queries."""
        return self.once + self.each * queries

    @property
    def interval(self) -> tuple[float, float]:
        """Of the score, over queries and models."""
        return percentiles(self.resampled, LEVEL)

    def clearly_better(self, other: Measured) -> bool:
        """Whether the interval of the difference of both scores is above zero."""
        return percentiles(self.resampled - other.resampled, LEVEL)[0] > 0


class _TooLong(Exception):
    """A candidate has taken longer than the budget."""


def choose(
    run: Run,
    queries: int,
    budget: float | None = None,
    members: int | None = None,
    progress: Progress = silent,
    engine: Engine = LOCAL,
) -> tuple[Method, tuple[str, ...]]:
    """The method for this run and this many queries, and why, in words.

    Args:
        run: The run.
        queries: How many queries will be asked about.
        budget: Seconds that the method may take for them, evidence that it lacks included; None for ten minutes. Models to judge by
            are trained beside that, once per run; they must fit the budget by themselves.
        members: Trainings of a fleet, for methods that read one; None as they declare.
        progress: Told what is collected and trained.
        engine: Where what takes long is done, the measurement included.

    Raises:
        MethodError: No method fits the budget, or the models to judge by do not.
    """
    began = time.perf_counter()
    budget = BUDGET if budget is None else float(budget)
    if not budget > 0:
        raise MethodError(f"A budget of {budget:g} seconds buys nothing.", "Give seconds above 0, or None.")
    methods = {_key(one, members): one for one in candidates(run, members)}
    rows = sample(run)
    kept, too_long = _read(run, rows)
    fresh = [name for name in methods if name not in kept and too_long.get(name, 0.0) < budget]
    reasons: dict[str, str] = {}
    if fresh:
        _check_price(run, budget)
        some = {name: methods[name] for name in fresh}
        with held(engine, _input_bytes(run)):
            truth = judges.held_out(run, judges.MEMBERS, progress=progress, engine=engine)
            found, over, reasons = measure(run, some, rows, truth, budget, progress, engine)
        kept, too_long = {**kept, **found}, {**too_long, **over}
        _write(run, rows, kept, too_long)
    measured = {name: kept[name] for name in methods if name in kept}
    name = best(measured, queries, budget)
    reasons = {**{one: "takes too long" for one in methods if one not in measured}, **reasons}
    spent = time.perf_counter() - began if fresh else 0.0
    return methods[name], said(name, measured, queries, budget, reasons, len(rows), spent)


def best(measured: Mapping[str, Measured], queries: int, budget: float) -> str:
    """The name that the rule picks.

    Raises:
        MethodError: None fits the budget.

    >>> good, same, bad = (torch.tensor([0.50, 0.60]), torch.tensor([0.49, 0.61]), torch.tensor([0.1, 0.2]))
    >>> known = {"dear": Measured(0.55, good, 60.0, 0.1, 64), "cheap": Measured(0.54, same, 2.0, 0.1, 0)}
    >>> known["free"] = Measured(0.15, bad, 0.0, 0.0, 0)
    >>> best(known, queries=10, budget=100.0), best(known, queries=10, budget=1.0)
    ('cheap', 'free')
    """
    fits = {name: one for name, one in measured.items() if one.seconds(queries) <= budget}
    if not fits:
        cheapest = min(measured, key=lambda name: measured[name].seconds(queries), default=None)
        about = (
            "No method could be measured."
            if cheapest is None
            else f"The cheapest, '{cheapest}', takes about {measured[cheapest].seconds(queries):.3g}."
        )
        raise MethodError(
            f"No trace method answers {queries:,} queries of this run within {budget:g} seconds. {about}",
            "Give a larger budget, or name a method.",
        )
    first = max(fits.values(), key=lambda one: one.lds)
    equal = [name for name, one in fits.items() if not first.clearly_better(one)]
    return min(equal, key=lambda name: (fits[name].seconds(queries), -fits[name].lds))


def said(
    name: str,
    measured: Mapping[str, Measured],
    queries: int,
    budget: float,
    reasons: Mapping[str, str],
    asked: int,
    spent: float,
) -> tuple[str, ...]:
    """Why it is this one: what was measured, the best first."""
    ordered = sorted(measured, key=lambda one: -measured[one].lds)
    table = "; ".join(
        f"{one} {measured[one].lds:+.3f} ({measured[one].interval[0]:+.3f} to {measured[one].interval[1]:+.3f}), "
        f"{measured[one].seconds(queries):.3g} s"
        for one in ordered
    )
    first = max((one for one in ordered if measured[one].seconds(queries) <= budget), key=lambda one: measured[one].lds)
    why = (
        "has the highest score"
        if name == first
        else f"is not clearly worse than {first}, which scores highest, and takes less"
    )
    notes = [
        f"auto: {name} {why}, of the methods that take no more than {budget:g} s for {queries:,} queries.",
        f"auto: linear datamodeling score on {asked} held-out queries and {judges.MEMBERS} models, {LEVEL:.0%} interval, seconds: {table}.",
    ]
    if measured[name].interval[0] <= 0:
        notes.append(
            f"auto: {name} is not clearly better than random scores; more models or more data may show a difference."
        )
    if reasons:
        notes.append("auto: left out: " + "; ".join(f"{one}: {reason}" for one, reason in reasons.items()) + ".")
    if spent:
        notes.append(f"auto: measuring took {spent:.3g} s, once for this run.")
    return tuple(notes)


def candidates(run: Run, members: int | None = None) -> list[Method]:
    """Methods that serve the run, but for random scores."""
    serving = [one for one in registered("trace") if one.serves(run) and one.name != "random"]
    return serving if members is None else [one.with_members(members) for one in serving]


def sample(run: Run) -> Int[np.ndarray, " query"]:
    """Rows that methods are measured on: the same for each call, held out where anything is."""
    try:
        rows = held_out_rows(run)[1]
    except EvidenceError:
        rows = run.rows()
    return np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False))


def measure(
    run: Run,
    methods: Mapping[str, Method],
    rows: Int[np.ndarray, " query"],
    truth: Fleet,
    budget: float,
    progress: Progress,
    engine: Engine = LOCAL,
) -> tuple[dict[str, Measured], dict[str, float], dict[str, str]]:
    """Score and time methods.

    Returns:
        What they are worth; name -> seconds after which a method was stopped; name -> why it could not be measured.
    """
    margin, seen = truth.outcomes("margin", rows=rows).T.double(), truth.weights.included()
    one_training = float(truth.metrics()["seconds"].mean() or 0.0)  # type: ignore[arg-type]
    predicted: dict[str, Tensor] = {}
    clock: dict[str, tuple[float, float]] = {}
    over: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, one in sorted(methods.items(), key=lambda item: item[1].trainings):
        lacking = run.missing(need for need in one.needs if isinstance(need, FleetNeed))
        ahead = one_training * sum(need.trainings for need in lacking)
        if ahead > budget:
            over[name], reasons[name] = ahead, f"{one.trainings} trainings would take about {ahead:.3g} s"
            continue
        try:
            with warnings.catch_warnings():  # what a method has to say of itself, the measurement says better
                warnings.simplefilter("ignore")
                predicted[name], *times = timed(run, one, rows, seen, budget, progress, engine)
        except _TooLong:
            over[name], reasons[name] = budget, f"took longer than {budget:g} s"
        except ImprintError as error:
            reasons[name] = error.problem.rstrip(".")
        else:
            clock[name] = (times[0], times[1])
    spread = resampled(predicted, margin)
    found = {
        name: Measured(float(spearman(values, margin).mean()), spread[name], *clock[name], methods[name].trainings)
        for name, values in predicted.items()
    }
    return found, over, reasons


def timed(
    run: Run,
    one: Method,
    rows: Int[np.ndarray, " query"],
    seen: Tensor,
    budget: float,
    progress: Progress,
    engine: Engine = LOCAL,
) -> tuple[Float[Tensor, "query member"], float, float]:
    """What a method predicts of the judges, and the seconds that it takes once and per query.

    A quarter of the queries is scored first: the difference to all of them is what a query costs.

    Raises:
        _TooLong: It has taken longer than the budget.
    """
    began = time.perf_counter()

    def told(label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
        watch()
        progress(label, done, total, facts)

    def watch() -> float:
        passed = time.perf_counter() - began
        if passed > budget:
            raise _TooLong
        return passed

    few = rows[: max(1, len(rows) // 4)]
    evidence = gather(run, one.needs, few, told, engine)
    collected = watch()
    one.function(**evidence).predict(seen)
    first = watch() - collected
    start = time.perf_counter()
    found = one.function(**gather(run, one.needs, rows, told, engine)).predict(seen)
    second = time.perf_counter() - start
    each = max(0.0, second - first) / max(1, len(rows) - len(few))
    return found, collected + max(0.0, first - each * len(few)), each


def _check_price(run: Run, budget: float) -> None:
    """Raise where the judges are not there yet and would take longer than the budget."""
    if (judges.folder(run, judges.MEMBERS) / "manifest.json").exists():
        return
    shared = share(run)
    plan = subsets(judges.MEMBERS, judges.FRACTION).bind(shared, run.corpus)
    seconds = priced(steady(shared), shared, plan, range(len(plan)), len(shared.data.target), PROBE)
    if seconds > budget:
        raise MethodError(
            f"To measure which method to trust takes {judges.MEMBERS} trainings, about {seconds:.3g} s, and the budget is {budget:g} s.",
            f"Give a budget of {seconds * 1.5:.2g} s or more, or name a method.",
        )


def _input_bytes(run: Run) -> int:
    """Bytes of the encoded inputs of all rows, which members of a fleet share."""
    return 0 if run.encoder is None else 4 * len(run.examples) * math.prod(run.encoder.shape)


def _key(one: Method, members: int | None) -> str:
    """A method with its number of members, where that was asked for and matters."""
    return f"{one.name} with {members} members" if members is not None and one.members else one.name


def _read(run: Run, rows: Sequence[int] | np.ndarray) -> tuple[dict[str, Measured], dict[str, float]]:
    """What was measured earlier, on the same queries and as many judges; and after how many seconds methods were stopped."""
    file = _file(run)
    if not file.is_file():
        return {}, {}
    known = read_json(file)
    if known.get("about") != _about(run, rows):
        return {}, {}
    measured = {
        name: Measured(**{**one, "resampled": torch.tensor(one["resampled"], dtype=torch.float64)})
        for name, one in known["measured"].items()
    }
    return measured, known["stopped"]


def _write(run: Run, rows: np.ndarray, measured: Mapping[str, Measured], stopped: Mapping[str, float]) -> None:
    described = {
        name: {**vars(one), "resampled": [round(value, 6) for value in one.resampled.tolist()]}
        for name, one in measured.items()
    }
    with writing(run.path):
        write_json(_file(run), {"about": _about(run, rows), "measured": described, "stopped": dict(stopped)})


def _about(run: Run, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What a measurement is about: another corpus, training, sample or number of judges makes it void."""
    return {
        "format": FORMAT,
        "corpus": run.fingerprint,
        "epochs": run.curves().height,
        "judges": judges.MEMBERS,
        "queries": [int(row) for row in rows],
    }


def _file(run: Run) -> Any:
    return run.path / "evidence" / "trace-methods.json"
