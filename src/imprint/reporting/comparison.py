"""What the page of a comparison of selections shows: per regime one panel, one row of leads and one row of measures per method.

Methods are ordered by their mean lead over random, so that the same method stands at the same place in every figure of a regime. Random
and everything are no rows: they are what every panel is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from imprint.answers import REGIMES, Comparison

# What every method is held against.
RANDOM, FULL = "random", "full"
# Times are asked for until these shares of the metric on everything.
TARGETS = (0.9, 0.95, 0.99)
QUESTIONS = {
    "epochs": "Every model takes as many epochs as one on everything, so a share of the examples costs that share of the computation.",
    "steps": "Every model takes as many optimizer steps as one on everything, so all cost the same to train.",
    "time": "Every model is trained for as long as one on everything, less the time that selecting took.",
}
# Tints of budgets in one panel; more are drawn alike.
MOST_BUDGETS = 5


@dataclass(frozen=True)
class Measured:
    """A value with the ends of its interval; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> int:
        """1 where the interval is above zero, -1 where it is below, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Cell:
    """A method at one budget.

    Attributes:
        budget: Share of the training examples.
        examples: Their number.
        steps: Optimizer steps; 0: no model.
        metric: The headline metric.
        lead: Over random.
        loss: Difference to everything.
        worst: Of the weakest group.
        ece: Calibration error.
        nll: Mean negative log-likelihood.
        select_seconds: What selecting took.
        recorded_seconds: The part of the recorded training that its evidence comes from.
        train_seconds: What training took.
    """

    budget: float
    examples: int
    steps: float
    metric: Measured
    lead: Measured
    loss: Measured
    worst: Measured
    ece: Measured
    nll: float | None
    select_seconds: float
    recorded_seconds: float
    train_seconds: float | None


@dataclass(frozen=True)
class Line:
    """How good the models of one method at one budget were as they were trained: means over the seeds, and their extremes."""

    budget: float
    seconds: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A method: its cells by budget, its curves, and the seconds that it takes to each target (None: not every seed gets there)."""

    method: str
    cells: tuple[Cell, ...]
    lines: tuple[Line, ...] = ()
    times: tuple[tuple[float | None, ...], ...] = ()  # [budget][target]


@dataclass(frozen=True)
class Section:
    """One regime.

    Attributes:
        regime: Its name.
        title: What it makes equal.
        question: What it answers, in a sentence.
        rows: The methods, the best lead first.
        random: The control; None where nothing else was compared.
        full: Everything.
        targets: Values of the metric that times were asked for.
    """

    regime: str
    title: str
    question: str
    rows: tuple[Row, ...]
    random: Row | None
    full: Row
    targets: tuple[float, ...] = ()

    @property
    def all(self) -> tuple[Row, ...]:
        """All methods, the control and everything."""
        return (*self.rows, *([self.random] if self.random else []), self.full)


def laid_out(comparison: Comparison) -> tuple[Section, ...]:
    """A comparison as the sections of a page."""
    table = comparison.summary_frame()
    times = _times(comparison)
    found = []
    for regime in comparison.regimes:
        own = table.filter(pl.col("regime") == regime)
        rows = {
            str(method): _row(comparison, str(method), own.filter(pl.col("method") == method).sort("budget"), times)
            for method in own["method"].unique(maintain_order=True)
        }
        random = rows.get(RANDOM)
        others = [row for name, row in rows.items() if name not in (RANDOM, FULL)]
        if not others and random is not None:
            others, random = [random], None
        found.append(
            Section(
                regime,
                REGIMES[regime].capitalize(),
                QUESTIONS[regime],
                tuple(sorted(others, key=lambda row: -_mean([cell.lead.value for cell in row.cells]))),
                random,
                rows[FULL],
                targets_of(comparison) if times is not None else (),
            )
        )
    return tuple(found)


def targets_of(comparison: Comparison) -> tuple[float, ...]:
    """Values of the metric that times are asked for."""
    full = comparison.summary_frame().filter(pl.col("method") == FULL)[comparison.metric]
    return tuple(share * float(full[0]) for share in TARGETS)


def _times(comparison: Comparison) -> list[pl.DataFrame] | None:
    return [comparison.time_to(value) for value in targets_of(comparison)] if comparison.points else None


def _row(comparison: Comparison, method: str, own: pl.DataFrame, times: Sequence[pl.DataFrame] | None) -> Row:
    cells = []
    for one in own.iter_rows(named=True):

        def interval(name: str, one: dict[str, float | None] = one) -> Measured:
            return Measured(one[name], one[f"{name}_low"], one[f"{name}_high"])

        cells.append(
            Cell(
                one["budget"], one["examples"], one["steps"], interval(comparison.metric), interval("over_random"),
                interval("over_full"), interval("worst_group"), interval("ece"), one["nll"], one["select_seconds"],
                one["recorded_seconds"], one["train_seconds"],
            )
        )  # fmt: skip
    if times is None:
        return Row(method, tuple(cells))
    regime = str(own["regime"][0])
    asked = [
        tuple(
            one.filter((pl.col("method") == method) & (pl.col("regime") == regime) & (pl.col("budget") == cell.budget))[
                "seconds"
            ].to_list()
            for one in times
        )
        for cell in cells
    ]
    by_budget = tuple(tuple(seconds[0] if seconds else None for seconds in each) for each in asked)
    return Row(method, tuple(cells), tuple(_lines(comparison, method, regime)), by_budget)


def _lines(comparison: Comparison, method: str, regime: str) -> list[Line]:
    metric = pl.col(comparison.metric)
    curves = comparison.curves.filter((pl.col("method") == method) & (pl.col("regime") == regime))
    # The seeds of a cell take as many epochs, save at equal time, where they may differ by one.
    means = (
        curves.group_by("budget", "epoch")
        .agg(
            pl.col("seconds").mean(),
            metric.mean().alias("value"),
            metric.min().alias("low"),
            metric.max().alias("high"),
        )
        .sort("budget", "epoch")
    )
    return [
        Line(budget, *(tuple(part[name].to_list()) for name in ("seconds", "value", "low", "high")))
        for (budget,), part in means.group_by("budget", maintain_order=True)
    ]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("-inf")
