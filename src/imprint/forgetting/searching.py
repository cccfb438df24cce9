"""Settings of a method, tried on other examples than those that are to be forgotten.

A method has to be tuned to be judged fairly, and must not be tuned on the request: what it forgets there is not known without the oracles
that judge it. So a few settings of the method's own grid are tried on a disjoint forget set, of the same size and classes: applied to a
few models that were trained on everything, and held against a few that never saw that set, by their mean KLoM on the set, on retained
examples and on held-out ones. Every method gets the same number of trials; models and oracles are shared by all of them.

What a setting does to the rest of the model may be worse on the request itself, where it is no secret: one that loses much more of the
retained examples there than where it was tried is no choice.

The grid is walked along one setting after the other, each from the best that was found so far.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from imprint.errors import EvidenceError, IdError, ImprintError, LearnerError, MethodError
from imprint.fitting import Data, Learner, Progress, generator, silent
from imprint.forgetting.job import Forgetting, Part, prepare
from imprint.forgetting.klom import klom
from imprint.forgetting.many import Applied, apply, performed
from imprint.forgetting.oracles import Models, margins, oracles, references
from imprint.forgetting.request import by_ids
from imprint.forgetting.stepping import Share, some
from imprint.methods import Method
from imprint.tasks import Classification, Multilabel, Task

if TYPE_CHECKING:
    from imprint.recording import Run

# Models that a setting is applied to, and those that they are held against.
MODELS, ORACLES = 4, 8
# Bins of the histograms: of a dozen margins 20 would be empty nearly all, and say of any two models the same.
BINS = 5
# Retained and held-out rows that are looked at, at most.
ROWS = 2000
# What a setting may lose on retained examples beyond what it loses where it is tried, in the headline metric (accuracy, F1, R2).
LOST = 0.05


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        settings: Those that are searched.
        value: Mean KLoM over the sets, in nats; lower = nearer to models that never saw the examples. None where the method failed.
        sets: Mean KLoM on each of them.
        lost: What retained examples lose by it when it serves the request itself, in the task's headline metric.
        expected: What they lose where it was tried, which is a part of the KLoM.
        seconds: What the method took on all models.
        failed: What it said where it failed.
    """

    settings: dict[str, Any]
    value: float | None
    sets: dict[str, float]
    lost: float | None
    expected: float | None
    seconds: float
    failed: str | None = None

    @property
    def breaks(self) -> bool:
        """Whether it loses much more on the request than where it was tried."""
        return (self.lost or 0.0) - max(0.0, self.expected or 0.0) > LOST

    def spec(self) -> dict[str, Any]:
        """As JSON."""
        return {name: value for name, value in vars(self).items() if not (name == "failed" and value is None)}


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        trials: In the order in which they were tried; the first one has the defaults.
        chosen: The settings that are searched, of the best trial; none where the method has none worth trying.
        count: Examples of the disjoint forget set.
        how: How these were chosen, in words.
        seconds: What it took, with the models and oracles that were not kept already.
    """

    trials: tuple[Trial, ...]
    chosen: dict[str, Any]
    count: int
    how: str
    seconds: float

    @property
    def words(self) -> str:
        """What was done, in a sentence or two."""
        if not self.trials:
            return f"No settings were tried: {self.how}."
        first, best = self.trials[0], next(one for one in self.trials if one.settings == self.chosen)
        said = f"{len(self.trials)} settings were tried on {self.count:,} other examples ({self.how}): the defaults {_klom(first)}"
        said += ", and are kept." if best is first else f", the best {_klom(best).replace('have', 'has')}."
        if best.breaks:
            said += f" Each of them loses {LOST:g} more on retained examples of the request than on those others."
        return said

    def spec(self) -> dict[str, Any]:
        """As JSON, for the manifest; it names no example."""
        about = {"models": MODELS, "oracles": ORACLES, "bins": BINS}
        return {
            "on": self.how,
            "count": self.count,
            "seconds": round(self.seconds, 3),
            **about,
            "chosen": self.chosen,
            "trials": [one.spec() for one in self.trials],
        }


def search_settings(
    run: Run,
    places: Int64[np.ndarray, " example"],
    one: Method,
    given: Mapping[str, Any],
    budget: int,
    *,
    ids: Sequence[str] | pl.Series | None = None,
    seed: int = 0,
    corrective: bool = False,
    data: Data | None = None,
    kept: Path | None = None,
    progress: Progress = silent,
) -> Searched:
    """Try settings of a method on other examples, and say which is the best.

    Args:
        run: The parent.
        places: The request, which is not looked at but to find others.
        one: The method.
        given: Settings that are fixed.
        budget: How many settings are tried at most, the defaults among them.
        ids: Training examples to try them on; None for as many retained ones of the same classes, or another class.
        seed: Of the method, and of the choice of examples.
        corrective: Whether the request is only the known part of the bad data.
        data: The corpus encoded by the run's encoder, if at hand.
        kept: File to note each trial in as it ends, a line of JSON each; what an earlier call of the same request noted there is not
            tried again. It names no example. None to keep nothing.
        progress: Told the settings tried.

    Raises:
        IdError: An id is asked to be forgotten, or of no training example; or no other examples are left.
        MethodError: Every setting failed.
    """
    began = time.perf_counter()
    grid = {
        name: candidates
        for name, candidates in grid_of(one, run.learner).items()
        if name not in given and len(candidates) > 1
    }
    if not grid:
        why = "all settings worth trying are given" if one.search else f"'{one.name}' has no settings worth trying"
        return Searched((), {}, 0, why, 0.0)
    other, how = (
        disjoint(run.task, run.target(), places, seed) if ids is None else (other_places(run, places, ids), "given")
    )
    models = references(run, MODELS, data=data, progress=progress)
    held = Held.of(run, places, other, models, seed, progress)
    trials: list[Trial] = []
    errors: list[ImprintError] = []

    own = prepare(run, places, seed=seed, data=models.shared.data, corrective=corrective)
    retained = some(own.retain, ROWS, generator(seed, "forget", "retained"))
    before = headline(own, own.module, retained)
    memories: list[dict[Any, Any]] = [{} for _ in range(len(models))]
    before_a_kill = noted(kept)

    def worth(trial: Trial) -> float:
        trials.append(trial)
        if trial.value is None:
            return math.inf
        # No KLoM is as large: what breaks the model comes after all that does not, the less broken first.
        return 1e6 + (trial.lost or 0.0) if trial.breaks else trial.value

    def tried(settings: dict[str, Any]) -> float:
        if (known := next((one for one in before_a_kill if one.settings == settings), None)) is not None:
            progress("search", len(trials) + 1, budget)
            return worth(known)
        start = time.perf_counter()
        every = {**given, **settings}
        try:
            done = apply(
                run, other, one.name, every, models, MODELS, seed=seed, corrective=corrective, data=own.data,
                memories=memories,
            )  # fmt: skip
            here = performed(one, replace(own, module=copy.deepcopy(own.module)), every)
        except (MethodError, LearnerError, EvidenceError) as error:
            errors.append(error)
            return worth(Trial(settings, None, {}, None, None, round(time.perf_counter() - start, 3), error.problem))
        finally:
            progress("search", len(trials) + 1, budget)
        sets, lost = held.against(done), before - headline(own, here.module, retained)
        value, expected = sum(sets.values()) / len(sets), held.retained - held.known(done.outputs)
        trial = Trial(settings, value, sets, lost, expected, round(sum(done.seconds), 3))
        if kept is not None:
            with kept.open("a") as file:
                file.write(f"\n{json.dumps(trial.spec())}\n")  # on a line of its own, whatever a kill left
        return worth(trial)

    best = walked(grid, budget, tried)
    if len(errors) == len(trials):
        raise errors[0]
    return Searched(tuple(trials), best, len(other), how, time.perf_counter() - began)


def noted(kept: Path | None) -> list[Trial]:
    """The trials that a file has noted; a line that was cut short by a kill is none."""
    found = []
    for line in kept.read_text().splitlines() if kept is not None and kept.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(Trial(**json.loads(line)))
    return found


def headline(job: Forgetting, module: nn.Module, part: Part) -> float:
    """The task's headline metric of a module on a part."""
    outputs = job.outputs(part, module)
    return float(job.task.metrics(outputs, part.target)[job.task.headline])


def grid_of(one: Method, learner: Learner) -> dict[str, tuple[Any, ...]]:
    """The candidates of each setting of a method, each once, in numbers for this learner."""
    own = {"learning_rate": float(learner.learning_rate or 1e-3), "epochs": int(learner.epochs or 1)}
    return {
        name: tuple(dict.fromkeys(one.times(own[name]) if isinstance(one, Share) else one for one in candidates))
        for name, candidates in one.search.items()
    }


def walked(grid: Mapping[str, Sequence[Any]], budget: int, value: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The best point of a grid that was found with so many evaluations; the first candidates are evaluated first.

    Args:
        grid: Setting -> candidates.
        budget: How many points are evaluated at most.
        value: Of a point; lower = better. Of equals the one that was evaluated first is the better.

    >>> walked({"a": (1, 2, 3), "b": (0, 5)}, 8, lambda at: (at["a"] - 3) ** 2 + (at["b"] - 5) ** 2)
    {'a': 3, 'b': 5}
    """
    best = {name: candidates[0] for name, candidates in grid.items()}
    found: dict[tuple[Any, ...], float] = {tuple(best.values()): value(best)}
    before = 0
    while len(found) > before:
        before = len(found)
        for name, candidates in grid.items():
            for candidate in candidates:
                point = {**best, name: candidate}
                if tuple(point.values()) not in found and len(found) < budget:
                    found[tuple(point.values())] = value(point)
            nearest, _ = min(found.items(), key=lambda item: item[1])
            best = dict(zip(grid, nearest, strict=True))
    return best


# --------------------------------------------------------------------------------------------------------- the disjoint forget set


def other_places(
    run: Run, places: Int64[np.ndarray, " example"], ids: Sequence[str] | pl.Series
) -> Int64[np.ndarray, " example"]:
    """Places of the examples that a user names to try settings on.

    Raises:
        IdError: One is to be forgotten, or of no training example; or nothing would be retained.
    """
    found = np.unique(by_ids(run, ids))
    both = np.intersect1d(found, places)
    if len(both) or not len(found) or len(found) == len(run):
        raise IdError(
            f"{len(both):,} of the {len(found):,} examples to search on are themselves to be forgotten."
            if len(both)
            else f"{len(found):,} of {len(run):,} training examples are given to search on.",
            "Settings are tuned on other examples than those of the request: give some that stay, or leave search_ids out.",
        )
    return found


def disjoint(
    task: Task, target: Tensor, places: Int64[np.ndarray, " example"], seed: int
) -> tuple[Int64[np.ndarray, " example"], str]:
    """Examples like those of a request, and how they were chosen: another class for whole classes, else as many of each class.

    Args:
        task: What targets mean.
        target: Of the training examples.
        places: The request.
        seed: Of the choice.

    Raises:
        IdError: There are none.

    >>> target = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    >>> disjoint(Classification((0, 1, 2)), target, np.array([0, 1, 5]), 0)[1]
    'as many of each class'
    >>> disjoint(Classification((0, 1, 2)), target, np.array([5, 6, 7]), 0)
    (array([ 8,  9, 10, 11]), 'another class')
    """
    group, how = groups(task, target)
    gone = torch.zeros(len(target), dtype=torch.bool)
    gone[torch.from_numpy(places)] = True
    kinds = int(group.max()) + 1
    asked, left = (torch.bincount(group[one], minlength=kinds) for one in (gone, ~gone))
    others = (left > 0).nonzero()[:, 0]
    whole = isinstance(task, Classification) and not bool((left[asked > 0] > 0).any())
    if whole and len(others) > 1:
        size = asked[asked > 0].float().mean()
        nearest = others[(left[others] - size).abs().argmin()]
        return (group == nearest).nonzero()[:, 0].numpy(), "another class"
    if whole:
        asked = left  # of the only class that is left, some
    random = generator(seed, "forget", "search")
    # At most half of what is left of each, so that the other half is retained.
    order = torch.randperm(len(target), generator=random)
    order = order[~gone[order]]
    order = order[group[order].argsort(stable=True)]
    rank = torch.arange(len(order)) - (left.cumsum(0) - left)[group[order]]
    found = order[rank < torch.minimum(asked, left // 2)[group[order]]].sort().values
    if not len(found):
        raise IdError(
            "There are no other examples of the classes to be forgotten that settings could be tried on.",
            "Give some: search_ids=[...], or leave the search out.",
        )
    return found.numpy(), how


def groups(task: Task, target: Tensor) -> tuple[Int[Tensor, " example"], str]:
    """Which group each example is of, from 0, and what groups are: classes; thirds of the targets of a regression; else one."""
    if isinstance(task, Classification):
        return target.long(), "as many of each class"
    if isinstance(task, Multilabel):
        return torch.zeros(len(target), dtype=torch.int64), "as many at random"
    cuts = torch.quantile(target.double(), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    return torch.searchsorted(cuts, target.double()), "as many of each third of the target's values"


# ------------------------------------------------------------------------------------------------------------------ the judgement


@dataclass(frozen=True)
class Held:
    """What models that never saw the disjoint set say, and on which rows they are compared.

    Attributes:
        task: What outputs mean.
        target: Of all rows.
        rows: Set -> rows of the corpus.
        judges: Set -> their margins.
        retained: Headline metric on the retained rows of the models that a setting is applied to.
    """

    task: Task
    target: Tensor
    rows: dict[str, Int[Tensor, " row"]]
    judges: dict[str, Tensor]
    retained: float = 0.0

    @classmethod
    def of(
        cls,
        run: Run,
        places: Int64[np.ndarray, " example"],
        other: Int64[np.ndarray, " example"],
        models: Models,
        seed: int,
        progress: Progress = silent,
    ) -> Held:
        """Train the judges, and draw the rows; held-out ones from the validation split, if there is one: the test split stays unseen."""
        data = models.shared.data
        retained = np.delete(np.arange(len(data.rows)), np.union1d(places, other))
        rows = {"forget": data.rows[torch.from_numpy(other)], "retain": data.rows[torch.from_numpy(retained)]}
        names = sorted((name for name, held in data.splits.items() if name != "train" and len(held)), key=_validation)
        if names:
            rows["held-out"] = data.splits[names[0]]
        random = generator(seed, "forget", "judged on")
        rows = {
            name: one if name == "forget" else one[torch.randperm(len(one), generator=random)[:ROWS]]
            for name, one in rows.items()
            if len(one)
        }
        judged = oracles(run, other, ORACLES, data=data, progress=progress).outputs
        judges = {name: margins(run.task, judged[:, one], data.target[one]) for name, one in rows.items()}
        held = cls(run.task, data.target, rows, judges)
        return replace(held, retained=held.known(models.outputs[:MODELS]))

    def known(self, outputs: Float[Tensor, "model row ..."]) -> float:
        """Mean headline metric of models on the retained rows."""
        rows = self.rows["retain"]
        each = [self.task.metrics(one, self.target[rows])[self.task.headline] for one in outputs[:, rows]]
        return sum(each) / len(each)

    def against(self, done: Applied) -> dict[str, float]:
        """Mean KLoM of models that forgot, on each set."""
        return {
            name: float(
                klom(margins(self.task, done.outputs[:, one], self.target[one]), self.judges[name], bins=BINS).mean()
            )
            for name, one in self.rows.items()
        }


def _klom(one: Trial) -> str:
    if one.value is None:
        return "failed"
    broken = " and break the model" if one.breaks else ""
    return f"have {one.value:.2f} nats of mean KLoM{broken}"


def _validation(name: str) -> tuple[bool, str]:
    return not name.startswith("val"), name
