"""Are they gone? Models that have forgotten examples, held against models that never saw them.

A single pair of models says nothing: two trainings that differ in their seed alone differ in their outputs. So distributions are compared
(Georgiev et al. 2024, arXiv:2410.23232): the method is applied to several models that were trained as the parent was, and what comes out is
held against *oracles*, trained without the examples. Two more arms show the ends of the scale, with as many models each: "nothing", the
models before the method, and "oracle", oracles that are held against the other oracles like everyone else. A method that is not told
apart from the one has forgotten; one that is not told apart from the other has done nothing.

    arm        its models                                              held against
    METHOD     the child, and the method applied to references         the oracles that are no arm
    nothing    the parent, and the same references                     the same
    oracle     the first oracles                                       the same

Where training has no randomness (a solved head) there is one model of each kind, and what is reported is the largest difference of outputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor, nn

from imprint.answers import Forgetfulness
from imprint.errors import EvidenceError, IdError, ImprintError, LearnerError, MethodError, ResourceError, RunError
from imprint.fitting import Progress, predict, reporter
from imprint.fitting.build import has_epochs
from imprint.fleets import share
from imprint.forgetting import Forgetting, prepare
from imprint.forgetting.lineage import parent_of, weights_of
from imprint.forgetting.many import apply, checked
from imprint.forgetting.oracles import Models, oracles, references, shadows
from imprint.forgetting.request import holds
from imprint.methods import check_serves, lookup, registered
from imprint.recording import Run
from imprint.verifying.arms import FEATURE_JUDGES, FEWEST_POPULATION, Arm, Bench, Rows, rows_of
from imprint.verifying.concluding import concluded
from imprint.verifying.forgetting_table import Answers, Shadows
from imprint.verifying.recovering import Cue

# With fewer models of an arm, or fewer that judge it, there is no distribution to speak of.
FEWEST_MODELS, FEWEST_JUDGES = 3, 4
FEWEST_SHADOWS = 4
SOURCES = {
    "klom": "Georgiev et al. 2024, arXiv:2410.23232", "lira": "Carlini et al. 2022, arXiv:2112.03570",
    "rmia": "Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262", "cka": "Kim, Cha, Kim 2025, arXiv:2503.06991",
}  # fmt: skip
ENCODER = (
    "All models share the parent's encoder, which was fitted with the forgotten examples among its rows: what it knows of them is not "
    "measured."
)

Methods = Mapping[str, tuple[str, Mapping[str, Any]]]


def verify_forgotten(child: Run, parent: Run | None = None, **settings: Any) -> Forgetfulness:
    """Hold a child of `imprint.forget` against models that never saw what it forgot; the answer is kept in the child.

    Args:
        child: What `imprint.forget` returned.
        parent: The run that it was made from; None for where the child says it is.
        settings: As of `judge`: `oracles`, `models`, `shadows`, `attacks`, `relearn`, `representation`, `clean`, `cue`, `level`, `path`,
            `progress`.

    Raises:
        MethodError: The run has forgotten nothing.
        RunError: The parent is not at hand, or is another one by now.
        EvidenceError: The parent recorded a loop of the user's own, and cannot be trained again from here.
    """
    about = child.manifest.get("forgot")
    if about is None:
        raise MethodError(
            f"The run {child.path} has forgotten nothing, so there is nothing to hold against models that never saw it.",
            "Verify a child: imprint.verify(imprint.forget(run, ids=...)); or what `clean`, `trace` or `select` found.",
        )
    if child.status != "complete":
        raise RunError(f"The run {child.path} is {child.status}.", "Let the forgetting end: call imprint.forget again.")
    parent = parent_at_hand(child) if parent is None else parent
    if weights_of(parent) != child.manifest["parent"]["weights"]:
        raise RunError(
            f"The run {parent.path} is not the parent of {child.path}, or has been trained again since.",
            "Give the parent with the weights that it had: imprint.verify(child, parent).",
        )
    places = np.flatnonzero(holds(about["request"], parent.ids.to_list()))
    if len(places) != about["count"]:
        raise RunError(
            f"{len(places):,} of the {about['count']:,} forgotten examples are among the training examples of {parent.path}.",
            "Give the run that they were forgotten from: imprint.verify(child, parent).",
        )
    method = about["method"]
    found = judge(
        parent, places, {method: (method, about["settings"])}, child=child, seed=about["seed"],
        corrective=bool(about.get("corrective")), **settings,
    )  # fmt: skip
    try:
        child.save_answer(found)
    except ResourceError:
        raise
    except (ImprintError, OSError):  # a child that cannot be written can be judged all the same
        pass
    return found


def judge(
    run: Run,
    places: Int[Tensor, " example"] | np.ndarray,
    methods: Methods | Sequence[str] | str,
    *,
    oracles: int = 24,
    models: int = 8,
    shadows: int = 32,
    attacks: bool = True,
    relearn: bool = True,
    representation: bool = True,
    clean: Mapping[str, Any] | None = None,
    cue: Cue | None = None,
    level: float = 0.95,
    seed: int = 0,
    corrective: bool = False,
    child: Run | None = None,
    path: str | Path | None = None,
    progress: Progress | Literal[False] | None = None,
) -> Forgetfulness:
    """Hold several methods of forgetting the same examples against the same oracles; no child is written.

    Intervals: of KLoM a jackknife over models and judges with a bootstrap over examples; of means over models and examples that of
    `imprint.verifying.crossed_interval`; of attacks a bootstrap over models and examples (`imprint.verifying.forgetting_table`).

    Args:
        run: The parent.
        places: The training examples to forget, 0..n-1 in the order of `run.ids` (`imprint.forgetting.wanted`).
        methods: Label -> name and settings of a method; or names; or "all" that serve the run.
        oracles: Models to train without the examples. `models` of them are an arm, the others judge.
        models: Models of each arm.
        shadows: Models that the attacks learn from; they saw a random half of the candidates each.
        attacks: Whether membership attacks are made.
        relearn: Whether it is measured how soon the examples are learned again.
        representation: Whether features are compared and probed.
        clean: Id -> right target, of forgotten examples with wrong ones: is what they displaced back?
        cue: A cue that the forgotten examples planted: does it still work?
        level: Of all intervals.
        seed: Of the methods.
        corrective: Whether the examples are only the known part of the bad data.
        child: A run that the (only) method made of the parent: it is one of the method's models, unless the method is exact.
        path: Where answers of arms are kept, so that what was interrupted goes on; None for `fleets/forgetting/arms` in the run. Oracles,
            references and shadow models are kept in the run in any case.
        progress: Told what is done; None shows a bar if standard error is a terminal, False nothing.

    Raises:
        MethodError: A method is unknown, or the only one cannot be applied; or there are too few models.
        EvidenceError: The run recorded a loop of the user's own, and cannot be trained again from here.
        IdError: A key of `clean` is not of a forgotten example.
    """
    began = time.perf_counter()
    methods = named(methods, run)
    _check_numbers(oracles, models, shadows, attacks)
    folder = run.path / "fleets" / "forgetting" / "arms" if path is None else Path(path)
    with reporter(progress) as told:
        data = share(run, progress=told).data
        job = prepare(run, places, data=data, corrective=corrective, progress=told)
        rows = rows_of(job)
        right = _right(job, rows, clean)
        fleet = Fleet(run, job, oracles, models, told)
        trains = has_epochs(run.learner.model)
        notes = [
            ENCODER,
            f"Intervals hold at {level:.0%} each; those that decide whether a method is told apart on the forgotten examples, all "
            "together.",
        ]
        if not trains and (relearn or representation):
            notes.append(
                f"{run.learner.model} is solved at once: how soon it relearns and what its features are is not measured."
            )
        bench = Bench(
            job, rows, fleet.feature_judges if trains and representation else [],
            run.model().module if trains and relearn else None, cue, folder,
        )  # fmt: skip
        learned, why = _shadows(job, rows, shadows, told) if attacks else (None, [])
        arms, left_out = _arms(fleet, bench, methods, child, seed, corrective)
        notes += [*why, *left_out, *_how_made(methods, arms, child, fleet)]
    answers = Answers(
        run.task,
        data.target[rows.all],
        rows,
        arms,
        fleet.judging.outputs[fleet.first :, rows.all],
        learned,
        right,
        level,
    )
    trained = fleet.trained + (0 if learned is None else len(learned.outputs))
    labels = tuple(name for name in arms if name not in ("nothing", "oracle"))
    about = run if child is None else child
    found = Forgetfulness(
        verb="verify",
        methods=labels,
        source=SOURCES | {label: lookup("forget", methods[label][0]).source for label in labels},
        higher={label: lookup("forget", methods[label][0]).higher for label in labels},
        run={"path": str(about.path), "corpus": about.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": float(trained)},
        table=answers.table(),
        notes=tuple(notes),
        count=len(job.forget),
        oracles=len(fleet.judging),
        models=fleet.models,
        shadows=0 if learned is None else len(learned.outputs),
        level=level,
        examples={name: len(some) for name, some in rows.sets.items()},
        seconds={name: float(one.seconds.mean()) for name, one in arms.items() if name != "nothing"},
    )
    return replace(found, conclusions=concluded(found))


def named(methods: Methods | Sequence[str] | str, run: Run) -> Methods:
    """Methods by label; "nothing" is an arm of its own and no method.

    Raises:
        MethodError: One is unknown, does not serve the run, or has no such setting; or there is none.
    """
    if methods == "all":
        methods = [one.name for one in registered("forget") if one.serves(run)]
    if not isinstance(methods, Mapping):
        methods = {name: (name, {}) for name in ([methods] if isinstance(methods, str) else methods)}
    found = {label: one for label, one in methods.items() if label not in ("nothing", "oracle")}
    for name, settings in found.values():
        method = lookup("forget", name)
        check_serves([method], run)
        checked(method, settings)
    if not found:
        raise MethodError("No method was named.", "Name one or more: imprint methods --verb forget lists them.")
    return found


def parent_at_hand(child: Run) -> Run:
    """The run that a child was made from.

    Raises:
        RunError: It is not where the child says.
    """
    found = parent_of(child)
    if found is None:
        kept = (
            "; the verdict that was kept is child.answer('forgetfulness')" if "forgetfulness" in child.answers() else ""
        )
        raise RunError(
            f"The parent of {child.path} is not at {child.manifest['parent']['path']}, and it alone knows what was forgotten.",
            f"Verify before you delete the parent, or say where it is: imprint.verify(child, imprint.load(path)){kept}.",
        )
    return found


class Fleet:
    """The models that a verdict needs beside those that a method makes.

    Attributes:
        judging: Oracles; the first are an arm, those from `first` on are judges.
        knowing: References.
        models: Models of each arm: 1 where training has no randomness.
    """

    def __init__(self, run: Run, job: Forgetting, many: int, models: int, progress: Progress) -> None:
        self.run, self.job, self.progress = run, job, progress
        self.judging: Models = oracles(run, job.forget.places, many, data=job.data, progress=progress)
        self.knowing: Models = references(run, models, data=job.data, progress=progress)
        self.models = min(models, len(self.judging), len(self.knowing))
        self.first = 0 if self.models == 1 else self.models

    @property
    def trained(self) -> int:
        """How many trainings it stands for."""
        return len(self.judging) + len(self.knowing)

    @property
    def feature_judges(self) -> list[nn.Module]:
        """The oracles whose features are compared with."""
        return [self.judging.module(number) for number in range(self.first, len(self.judging))[:FEATURE_JUDGES]]

    def outputs_of(self, module: nn.Module) -> Tensor:
        """What a module says of all rows: one model."""
        return predict(module, self.job.task, self.job.data.inputs, device=str(self.job.device))[None]


def _arms(
    fleet: Fleet, bench: Bench, methods: Methods, child: Run | None, seed: int, corrective: bool
) -> tuple[dict[str, Arm], list[str]]:
    """The arms, methods first; and which methods were left out, and why."""
    run, count, progress = fleet.run, fleet.models, fleet.progress
    own = None if child is None or not _is_own(child, fleet) else child
    parents = [fleet.knowing.module(number) for number in range(count - (own is not None))]
    before = fleet.knowing.outputs[: len(parents)]
    if own is not None:
        parent = run.model().module
        parents, before = [parent, *parents], torch.cat([fleet.outputs_of(parent), before])
    who = {"models": count, "references": list(fleet.knowing.seeds), "oracles": len(fleet.judging)}
    arms: dict[str, Arm] = {}
    left_out = []
    for number, (label, (name, settings)) in enumerate(methods.items()):
        progress("verify", number, len(methods) + 2, {"method": label})
        made = {
            "method": name, "settings": dict(settings), "seed": seed, "corrective": corrective,
            "child": None if own is None else weights_of(own), **who,
        }  # fmt: skip
        key = bench.key(made)
        if (kept := bench.read(key)) is not None:
            arms[label] = kept
            continue
        try:
            arms[label] = bench.keep(key, _applied(fleet, bench, name, settings, own, parents, seed, corrective))
        except (MethodError, LearnerError, EvidenceError) as error:
            if len(methods) == 1:
                raise
            left_out.append(f"{label} was left out: {error.problem}")
    if not arms:
        raise MethodError("None of the methods can be applied to this run.", " ".join(left_out))
    price = fleet.judging.seconds / len(fleet.judging)
    ends: dict[str, tuple[Tensor, list[nn.Module], float]] = {
        "nothing": (before, parents, 0.0),
        "oracle": (fleet.judging.outputs[:count], [fleet.judging.module(number) for number in range(count)], price),
    }
    for number, (label, (outputs, modules, took)) in enumerate(ends.items()):
        progress("verify", len(methods) + number, len(methods) + 2, {"arm": label})
        key = bench.key({"arm": label, "own": own is not None, **who})
        arms[label] = bench.read(key) or bench.keep(key, bench.ask(outputs, modules, parents, [took] * count))
    progress("verify", len(methods) + 2, len(methods) + 2)
    return arms, left_out


def _applied(
    fleet: Fleet,
    bench: Bench,
    name: str,
    settings: Mapping[str, Any],
    own: Run | None,
    parents: Sequence[nn.Module],
    seed: int,
    corrective: bool,
) -> Arm:
    """A method's arm: the child, if it is one of the models, and the method applied to references."""
    rest = fleet.models - (own is not None)
    outputs, modules, seconds = [], [], []
    notes: tuple[str, ...] = ()
    if own is not None:
        module = own.model().module
        outputs, modules, seconds = [fleet.outputs_of(module)], [module], [float(own.manifest["forgot"]["seconds"])]
    if rest:
        made = apply(
            fleet.run, fleet.job.forget.places, name, settings, fleet.knowing, rest, seed=seed, corrective=corrective,
            data=fleet.job.data, progress=fleet.progress,
        )  # fmt: skip
        outputs, modules, seconds = [*outputs, made.outputs], [*modules, *made.modules], [*seconds, *made.seconds]
        notes = made.notes
    return bench.ask(torch.cat(outputs), modules, parents, seconds, notes)


def _is_own(child: Run, fleet: Fleet) -> bool:
    """Whether the child is one of its arm's models: where its weights were made from the parent's, or there is one model of each kind; and
    never where it has an encoder of its own."""
    forgot = child.manifest["forgot"]
    return forgot["method"] != "retrain" and (fleet.models == 1 or not forgot["exact"])


def _shadows(job: Forgetting, rows: Rows, count: int, progress: Progress) -> tuple[Shadows | None, list[str]]:
    """What attacks learn from; and what to know of it."""
    if not len(rows.candidates):
        return None, ["No membership attack was made: no held-out example is like the forgotten ones."]
    if rows.members < 2:
        return None, ["No membership attack was made: it takes two forgotten examples with held-out ones like them."]
    try:
        learned, inside = shadows(job.run, job.forget.places, rows.candidates, count, data=job.data, progress=progress)
    except EvidenceError as error:
        return None, [f"No membership attack was made: {error.problem}"]
    notes = []
    if rows.members < len(job.forget):
        notes.append(
            f"Attacks were made on {rows.members:,} of the {len(job.forget):,} forgotten examples, for which there are held-out ones like "
            "them."
        )
    enough = len(rows.population) >= FEWEST_POPULATION
    if not enough:
        notes.append(
            f"No RMIA attack was made: {len(rows.population)} held-out examples are left to compare with, and it takes {FEWEST_POPULATION}."
        )
    population = learned.outputs[:, rows.population] if enough else None
    return Shadows(learned.outputs[:, rows.candidates], inside, population), notes


def _right(job: Forgetting, rows: Rows, clean: Mapping[str, Any] | None) -> tuple[Tensor, Tensor] | None:
    """Where forgotten examples with known right targets stand among all rows, and these targets, encoded."""
    if not clean:
        return None
    ids = job.run.ids.gather(job.forget.places.numpy())
    known = ids.is_in(list(clean)).to_numpy()
    if int(known.sum()) != len(clean):
        missing = sorted(set(clean) - set(ids.to_list()))
        raise IdError(
            f"{len(missing)} of {len(clean)} ids in `clean` are of no forgotten example: {', '.join(missing[:5])}.",
            "Give the right targets of forgotten examples alone.",
        )
    raw = job.run.corpus.target
    target = job.task.encode(pl.Series(raw.name, [clean[one] for one in ids.filter(known)], dtype=raw.dtype))
    return rows.places(job.forget.rows[torch.from_numpy(known)]), target


def _how_made(methods: Methods, arms: Mapping[str, Arm], child: Run | None, fleet: Fleet) -> list[str]:
    """How the models of an arm were made, and what methods had to say."""
    notes = []
    if child is not None and fleet.models > 1:
        rest = "made by the same method and settings from models that were trained as the parent was, by other seeds"
        if _is_own(child, fleet):
            notes.append(
                f"One of the {fleet.models} models is the child itself; the other {fleet.models - 1} were {rest}."
            )
        else:
            notes.append(f"The {fleet.models} models were {rest}: an exact method leaves nothing of the one parent.")
    if child is not None and child.manifest["forgot"]["method"] == "retrain":
        notes.append(
            "The child has an encoder of its own, fitted without the forgotten examples; its method was judged on the parent's."
        )
    if fleet.job.corrective:
        notes.append(
            "Corrective: the oracles never saw the known part of the bad data, and were trained on the rest of it."
        )
    for label in methods:
        said = arms[label].notes if label in arms else ()
        notes += [f"{label}: {note}" for note in said[:1]]  # of one model; the others say the same of themselves
    return notes


def _check_numbers(oracles: int, models: int, shadows: int, attacks: bool) -> None:
    """Raise `MethodError` where there would be too few models."""
    if models < FEWEST_MODELS or oracles < models + FEWEST_JUDGES:
        raise MethodError(
            f"{models} models of each arm and {oracles} oracles are too few: an arm has {FEWEST_MODELS} models or more, and "
            f"{FEWEST_JUDGES} oracles or more judge it beside those of its own arm.",
            f"Ask for oracles={max(models, FEWEST_MODELS) + FEWEST_JUDGES} or more; 24 with models=8 is usual.",
        )
    if attacks and shadows < FEWEST_SHADOWS:
        raise MethodError(
            f"{shadows} shadow models teach an attack nothing.", f"Ask for {FEWEST_SHADOWS} or more, or attacks=False."
        )
