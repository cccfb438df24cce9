"""Is a choice of training examples worth what it cost? Identical models, trained on each choice, beside random and beside everything.

All trainings share the encoder, the settings, the seeds and the test examples; what differs is the choice and how long it is trained on.
Three regimes say how long, each an answer to another question:

    epochs    as many epochs as the run: does a share of the computation buy more with these examples than with random ones?
    steps     as many optimizer steps as on everything: at equal computation, which examples make the better model?
    time      as many steps as fit in the time of training on everything less the time of selecting: is it worth doing at all?

The last two are the regimes of Paul et al. 2021 (arXiv:2107.07075: as many steps for a subset as for all) and, with their wall-clock, of
Okanovic et al. 2024 (arXiv:2305.18424). A random choice is drawn anew for each seed; another method's choice is the same for each seed
unless it draws at random.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.answers import REGIMES, Comparison, Selection
from imprint.errors import ImprintError, MethodError, nearest
from imprint.fitting import Progress, reporter
from imprint.fitting.build import has_epochs
from imprint.fitting.loop import batch_bounds
from imprint.fleets import Shared, share
from imprint.methods import Method, asked, check_serves, lookup, named, registered
from imprint.recording import Run, load
from imprint.verifying.choices import Choice, Chooser, draws, everything, of_selection, recorded_share, targeted
from imprint.verifying.interval import crossed_interval
from imprint.verifying.judging import judged
from imprint.verifying.kept import Kept, Training
from imprint.verifying.measures import calibration_error, groups_of, worst_group

# An epoch that would end this much of its own length after the time is up is still trained: random selections take a millisecond.
LATE = 0.05
MEASURES = ("worst_group", "nll", "ece")


def compare(
    run: Run,
    methods: str | Sequence[str | Selection] = "auto",
    budgets: Sequence[float] = (0.1, 0.3, 0.5),
    seeds: int | Sequence[int] = 5,
    regimes: Sequence[str] = ("epochs", "steps", "time"),
    path: str | Path | None = None,
    progress: Progress | Literal[False] | None = None,
    *,
    curves: bool = False,
    recorded: bool = False,
    target: Any = None,
    trusted: Sequence[str] | None = None,
    entries: Sequence[str] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Train identical models on what several methods select, on random selections of the same size, and on everything.

    Args:
        run: A recorded run with a test split.
        methods: Names of select methods, selections that were made, or "auto": every method that serves the run and needs no trainings of
            its own. Random is always among them.
        budgets: Shares of the training examples, or (whole numbers) numbers of them.
        seeds: How many trainings of each, or their seeds.
        regimes: Of "epochs", "steps" and "time"; see `imprint.verifying.selection`.
        path: Where choices and finished trainings are kept, so that what was interrupted goes on; None for `fleets/compare` in the run.
        progress: Told the trainings done; None shows a bar if standard error is a terminal, False nothing.
        curves: Follow each training, for `Comparison.curves` and `Comparison.time_to`: trainings are done one after the other, and the
            test examples are predicted after their epochs.
        recorded: Whether the part of the recorded training that a method's evidence comes from counts as time of selecting. It does not
            by default: the run is there. To select for a first training, count it.
        target: Examples to be good at, for methods that ask; see `imprint.select`. Those of the test split are not measured on.
        trusted: Ids of trusted examples, for methods that ask.
        entries: Metadata entries, for methods that ask.
        level: Level of the confidence intervals.

    Raises:
        MethodError: A method is unknown or does not serve the run, a regime or budget makes no sense, or there are too few test examples.
    """
    began = time.perf_counter()
    wanted = _regimes(regimes)
    given = [one for one in _listed(methods) if isinstance(one, Selection)]
    names = _methods(methods, run)
    seeded = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeded or not (budgets or given):
        raise MethodError(
            f"{len(seeded)} seeds and {len(budgets)} budgets are no comparison.", "Give one of each or more."
        )
    folder = Path(path) if path is not None else run.path / "fleets" / "compare"
    with reporter(progress) as told:
        shared = share(run)
        shared = replace(shared, learner=replace(shared.learner, sampler=None))
        aims = [one.asked.get("target") for one in given if any(targeted(method) for method in _methods_of([one]))]
        basis = judged(run, shared, names, target, aims)
        test = basis.test
        kept = Kept(folder / "trained", shared, test, run.fingerprint, curves=curves)
        whole = everything(run)
        full = kept.alone(whole.member(shared, seeded[0], int(shared.learner.epochs or 1)))
        clock = Clock(shared, len(whole.rows), full.seconds, recorded)
        more = {"target": basis.target, "trusted": trusted, "entries": entries}
        chooser = Chooser(run, folder / "chosen", full.seconds, more, told)
        choices, left_out = _chosen(chooser, names, given, budgets, seeded, bool(clock.epochs))
        notes = [*basis.notes, *left_out, *_of_choices(choices.values())]
        if not clock.epochs:
            notes.append(f"{shared.learner.model} is fitted at once: there are no epochs or steps to make equal.")
            wanted = ["epochs"]
        trials = [
            Trial(regime, seed, choice, clock.epochs_of(regime, choice))
            for regime in wanted
            for seed in seeded
            for choice in [whole, *(one for (*_, own), one in choices.items() if own == seed)]
        ]
        measured = _measured(run, shared, kept, trials, test, told)
    notes += clock.untrained(trials)
    if not curves and any(trial.choice.sampler is None for trial in trials):
        notes.append("train_seconds of models that were trained together are each one's share of the time.")
    worst = groups_of(run, test)[0]
    table, intervals, points = _tables(run, trials, measured, clock, worst, level)
    return Comparison(
        verb="verify",
        methods=tuple(dict.fromkeys(name for name, *_ in choices)),
        source={one.name: one.source for one in names}
        | {name: text for one in given for name, text in one.source.items()},
        higher={run.task.headline: "better"},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": float(len({id(one) for one in measured.values()}))},
        table=table,
        notes=tuple(notes),
        metric=run.task.headline,
        level=level,
        examples=len(test),
        training=len(whole.rows),
        worst=worst,
        full_seconds=full.seconds,
        full_steps=clock.full_steps,
        recorded=recorded,
        intervals=intervals,
        points=points,
    )


def verify_selection(selection: Selection, run: Run | None = None, **settings: Any) -> Comparison:
    """Hold one selection against random ones of the same size and against all of the data; settings are those of `compare`.

    Raises:
        MethodError: The selection is not of the run's corpus, or as of `compare`.
    """
    if run is None and not selection.run.get("path"):
        raise MethodError(
            "The selection was made from a corpus, and there is no run whose training could be repeated on it.",
            "Give one: imprint.verify(selection, imprint.fit(imprint.Learner(), corpus, path)).",
        )
    run = run or load(selection.run["path"])
    if selection.run["corpus"] != run.fingerprint:
        raise MethodError(
            f"The selection is of the corpus {selection.run['corpus']}, and the run {run.path} is of {run.fingerprint}.",
            "Give a run of the corpus that was selected from, or select again.",
        )
    settings.setdefault("path", run.path / "fleets" / "compare")
    return compare(run, [selection], (), **settings)


# ------------------------------------------------------------------------------------------------------------------- what is asked


def _listed(methods: str | Sequence[str | Selection]) -> list[str | Selection]:
    return [methods] if isinstance(methods, str) else list(methods)


def _methods(methods: str | Sequence[str | Selection], run: Run) -> list[Method]:
    """The methods that were named, random first."""
    if methods == "auto":
        found = asked("select", "auto", run)
    else:
        names = [one for one in _listed(methods) if isinstance(one, str)]
        if not names:
            return []
        found = named("select", names)
    found = [lookup("select", "random"), *(one for one in found if one.name != "random")]
    check_serves(found, run)
    return found


def _methods_of(selections: Sequence[Selection]) -> list[Method]:
    """The methods that selections were made by, as far as they are known here: one of the user's own may not be."""
    known = {one.name: one for one in registered("select")}
    return [known[one.method] for one in selections if one.method in known]


def _regimes(regimes: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys([regimes] if isinstance(regimes, str) else regimes))
    for one in wanted:
        if one not in REGIMES:
            raise MethodError(f"No regime '{one}'.", nearest(one, REGIMES))
    if not wanted:
        raise MethodError("No regime was named.", f"Name some of {', '.join(REGIMES)}.")
    return wanted


Choices = dict[tuple[str, float, int], Choice]  # method, budget, seed -> what it chose


def _chosen(
    chooser: Chooser,
    methods: Sequence[Method],
    given: Sequence[Selection],
    budgets: Sequence[float],
    seeds: Sequence[int],
    moving: bool,
) -> tuple[Choices, list[str]]:
    """What methods choose, selections that were made, and random choices at the budgets of all of them; and who was left out, and why.

    Args:
        chooser: Asks methods.
        methods: The methods, random first.
        given: Selections that were made.
        budgets: Of the methods.
        seeds: Of the trainings.
        moving: Whether a policy that chooses as the training goes can be trained with.
    """
    choices: Choices = {}
    notes = []
    for one in methods:
        try:
            found = _by_seed(chooser, one, budgets, seeds)
        except ImprintError as error:
            if one.name == "random":
                raise
            notes.append(f"{one.name} was left out: {error.problem}")
            continue
        if not moving and any(choice.sampler is not None for choice in found.values()):
            notes.append(f"{one.name} was left out: it chooses as the training goes, and this one has no epochs.")
            continue
        choices |= found
    for selection in given:
        choice = of_selection(chooser.run, selection)
        for method in _methods_of([selection]):
            choice = replace(choice, recorded=recorded_share(method, chooser.run))
        label = choice.method
        while label in ("random", "full") or any(label == name for name, *_ in choices):
            label += " (given)"
        choices |= {(label, choice.budget, seed): replace(choice, method=label) for seed in seeds}
        choices |= _by_seed(chooser, lookup("select", "random"), [choice.examples], seeds)
    return choices, notes


def _by_seed(chooser: Chooser, one: Method, budgets: Sequence[float], seeds: Sequence[int]) -> Choices:
    """What a method chooses for each budget and seed: anew for each seed if it draws at random."""
    found: Choices = {}
    for number, budget in enumerate(budgets):
        for seed in seeds if draws(one) else seeds[:1]:
            chooser.progress("select", number, len(budgets), {"method": one.name})
            choice = chooser.choose(one, budget, seed)
            for other in [seed] if draws(one) else seeds:
                found[one.name, choice.budget, other] = choice
    return found


def _of_choices(choices: Iterable[Choice]) -> list[str]:
    """What selections have to say, each once, after the methods that say it."""
    said: dict[str, dict[str, None]] = {}
    for one in choices:
        for note in one.notes:
            said.setdefault(note, {})[one.method] = None
    return [f"{', '.join(names)}: {note}" for note, names in sorted(said.items(), key=lambda item: list(item[1]))]


# ------------------------------------------------------------------------------------------------------------------- how long it is trained


@dataclass(frozen=True)
class Trial:
    """A choice, and how long it is trained on.

    Attributes:
        regime: One of `REGIMES`.
        seed: Of the training.
        choice: What it is trained on.
        epochs: How many; None where selecting left no time for one.
    """

    regime: str
    seed: int
    choice: Choice
    epochs: int | None


@dataclass(frozen=True)
class Clock:
    """How long a training on everything is, in all three currencies.

    Attributes:
        shared: What all trainings share.
        examples: Training examples.
        seconds: Of one training on all of them.
        recorded: Whether the recorded training counts as time of selecting.
    """

    shared: Shared
    examples: int
    seconds: float
    recorded: bool = False

    @property
    def epochs(self) -> int:
        """Epochs of a training on everything; 0 of a model that is fitted at once."""
        return int(self.shared.learner.epochs or 1) if has_epochs(self.shared.learner.model) else 0

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return int(self.shared.learner.batch_size or 1)

    @property
    def full_steps(self) -> int:
        """Steps of a training on everything."""
        return self.epochs * (len(batch_bounds(self.examples, self.batch_size)) - 1)

    def spent(self, choice: Choice) -> float:
        """Seconds that went by before the training on a choice can begin."""
        return choice.seconds + (choice.recorded * self.seconds if self.recorded else 0.0)

    def epochs_of(self, regime: str, choice: Choice) -> int | None:
        """How many epochs a choice is trained for."""
        if regime == "epochs" or choice.method == "full" or not self.epochs:
            return self.epochs or 1
        each = choice.steps(self.batch_size)
        if regime == "steps":
            return max(1, round(self.full_steps / each))
        left = self.full_steps * max(0.0, 1 - self.spent(choice) / self.seconds)
        return math.floor(left / each + LATE) or None

    def steps_of(self, trial: Trial, training: Training) -> int:
        """How many steps were taken: counted where a sampler chose, else as many as there are batches."""
        if not self.epochs:
            return 0
        return (
            training.steps if training.steps is not None else (trial.epochs or 0) * trial.choice.steps(self.batch_size)
        )

    def untrained(self, trials: Sequence[Trial]) -> list[str]:
        """Who has no model because selecting left no time for one, in a sentence; nothing if all have one."""
        late: dict[str, dict[float, float]] = {}
        for one in trials:
            if one.epochs is None:
                late.setdefault(one.choice.method, {})[one.choice.budget] = self.spent(one.choice)
        if not late:
            return []
        told = (
            f"{name} at {', '.join(f'{100 * budget:.3g} %' for budget in spent)} ({max(spent.values()):.3g} s)"
            for name, spent in late.items()
        )
        return [
            f"Selecting left no time for a model at equal time (training on everything takes {self.seconds:.3g} s): {'; '.join(told)}."
        ]


# ------------------------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Measured:
    """What a trained model is worth.

    Attributes:
        credit: What each test example adds to the headline metric.
        values: The measures by name.
        training: What became of the training.
    """

    credit: Float[Tensor, " example"]
    values: Mapping[str, float | None]
    training: Training


def _measured(
    run: Run, shared: Shared, kept: Kept, trials: Sequence[Trial], test: Tensor, told: Progress
) -> dict[int, Measured]:
    """Train all that have a model, and measure each; the number is the place of the trial."""
    able = [number for number, trial in enumerate(trials) if trial.epochs is not None]
    members = [
        trials[number].choice.member(shared, trials[number].seed, int(trials[number].epochs or 1)) for number in able
    ]
    wanted = shared.data.target[test]
    codes = groups_of(run, test)[1]
    found: dict[int, Measured] = {}
    last: Training | None = None
    for place, training in kept.stream(members, told):
        if training is not last:  # equal trainings come one after the other
            last = training
            credit = run.task.credit(training.outputs, wanted).float()
            metrics = run.task.metrics(training.outputs, wanted)
            values = {
                run.task.headline: metrics[run.task.headline],
                "worst_group": None if codes is None else worst_group(credit, codes),
                "nll": metrics.get("nll"),
                "ece": calibration_error(run.task.probabilities(training.outputs), wanted)
                if run.task.name == "classification"
                else None,
            }
            one = Measured(credit, values, replace(training, outputs=training.outputs[:0]))
        found[able[place]] = one
    return found


def _tables(
    run: Run, trials: Sequence[Trial], measured: Mapping[int, Measured], clock: Clock, worst: str, level: float
) -> tuple[pl.DataFrame, dict[str, list[Any]], dict[str, list[Any]]]:
    """The rows, the intervals and the points of a comparison."""
    metric = run.task.headline
    schema: dict[str, Any] = {
        "method": pl.String, "budget": pl.Float64, "regime": pl.String, "seed": pl.Int64, "examples": pl.Int64, "steps": pl.Int64,
        "select_seconds": pl.Float64, "recorded_seconds": pl.Float64, "train_seconds": pl.Float64, metric: pl.Float64,
        **dict.fromkeys(MEASURES, pl.Float64),
    }  # fmt: skip
    rows, points = [], []
    cells: dict[tuple[str, float, str], dict[int, int]] = {}
    for number, trial in enumerate(trials):
        choice, one = trial.choice, measured.get(number)
        about = {"method": choice.method, "budget": choice.budget, "regime": trial.regime, "seed": trial.seed}
        cells.setdefault((choice.method, choice.budget, trial.regime), {})[trial.seed] = number
        row = {
            **about, "examples": choice.examples, "select_seconds": choice.seconds,
            "recorded_seconds": choice.recorded * clock.seconds, "steps": 0, "train_seconds": None,
        }  # fmt: skip
        if one is not None:
            row |= {"steps": clock.steps_of(trial, one.training), "train_seconds": one.training.seconds, **one.values}
            if one.training.curve is not None:
                points += [
                    {
                        **about,
                        "epoch": int(epoch),
                        "step": int(step),
                        "seconds": clock.spent(choice) + seconds,
                        metric: value,
                    }
                    for epoch, step, seconds, value in one.training.curve.tolist()
                ]
        rows.append({name: row.get(name) for name in schema})
    table = pl.DataFrame(rows, schema=schema)
    random = table.filter(pl.col("method") == "random").select(
        "budget", "regime", "seed", pl.col(metric).alias("random")
    )
    table = table.join(random, on=["budget", "regime", "seed"], how="left", maintain_order="left")
    table = table.with_columns((pl.col(metric) - pl.col("random")).alias("beyond_random")).drop("random")
    table = table.with_columns(pl.when(pl.col("method") != "random").then(pl.col("beyond_random")))
    moving = {trial.choice.method for trial in trials if trial.choice.sampler is not None}
    found = [
        _summary(cell, by_seed, cells, table, measured, metric, level, cell[0] in moving)
        for cell, by_seed in cells.items()
    ]
    return table, _columns(found), _columns(points)


def _summary(
    cell: tuple[str, float, str],
    by_seed: Mapping[int, int],
    cells: Mapping[tuple[str, float, str], Mapping[int, int]],
    table: pl.DataFrame,
    measured: Mapping[int, Measured],
    metric: str,
    level: float,
    anew: bool,
) -> dict[str, Any]:
    """Means, intervals and leads of one method at one budget in one regime."""
    method, budget, regime = cell
    rows = table[list(by_seed.values())]
    found: dict[str, Any] = {
        "method": method,
        "budget": budget,
        "regime": regime,
        "anew": anew,
        "examples": rows["examples"][0],
    }
    found |= {"steps": rows["steps"].mean(), "seeds": len(by_seed)}
    found |= {name: rows[name].mean() for name in ("select_seconds", "recorded_seconds", "train_seconds")}
    trained = all(number in measured for number in by_seed.values())
    credit = torch.stack([measured[number].credit for number in by_seed.values()]) if trained else None
    found |= _interval(metric, credit, level)
    for name, other in (("over_random", ("random", budget, regime)), ("over_full", ("full", 1.0, regime))):
        against = cells.get(other)
        difference = None
        if (
            credit is not None
            and against is not None
            and other != cell
            and all(number in measured for number in against.values())
        ):
            difference = credit.double() - torch.stack([measured[against[seed]].credit for seed in by_seed]).double()
        found |= _interval(name, difference, level)
    for name in ("worst_group", "ece"):
        values = rows[name]
        found |= _interval(name, None if values.null_count() else values.to_torch()[:, None], level)
    return found | {"nll": rows["nll"].mean()}


def _interval(name: str, values: Float[Tensor, "seed example"] | None, level: float) -> dict[str, float | None]:
    """Mean of values with its interval; nulls where there are none."""
    ends = (name, f"{name}_low", f"{name}_high")
    if values is None:
        return dict.fromkeys(ends)
    mean, (low, high) = crossed_interval(values, level)
    return dict(zip(ends, (mean, low, high), strict=True))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
