"""The audit: open, fit, score, clean, verify and report in one pass, every stage timed, every stage resumable.

Nothing here finds anything by itself; it asks the verbs with good defaults and puts their answers into one folder:

    OUT/report.html       for people                      OUT/run/        the recorded training, with all answers
    OUT/findings.parquet  for machines                    OUT/corpus/     the corpus after the suggested edits
    OUT/summary.json      the figures of the report       OUT/verify/     trainings of the verification, for resuming
    OUT/recipe.yaml       repeats the audit               OUT/store/      the corpus as it was opened, which the run reads
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from imprint.answers import Findings, Scores, Verdict
from imprint.auditing.material import material_of
from imprint.auditing.recipe import Recipe
from imprint.cleaning import clean
from imprint.corpus import Corpus, open
from imprint.errors import MethodError, RecipeError
from imprint.fitting import Learner, Progress, reporter
from imprint.methods import named
from imprint.recording import Run, fit
from imprint.reporting import write_report
from imprint.scoring import score
from imprint.verifying import verify as hold_against_retraining


@dataclass(frozen=True)
class AuditResult:
    """What an audit found, and where it put it.

    Attributes:
        out: The folder.
        corpus: The corpus as it was audited.
        run: The recorded training.
        scores: All scores of the training examples.
        findings: What is wrong.
        edited: The corpus after the suggested edits.
        verdict: What retraining says of the edits; None where it was not asked for or there was nothing to verify.
        cost: Frame with `stage, seconds`.
        report: Path of the HTML report.
        notes: What to know beside the figures.
    """

    out: Path
    corpus: Corpus
    run: Run
    scores: Scores
    findings: Findings
    edited: Corpus
    verdict: Verdict | None
    cost: pl.DataFrame
    report: Path
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures as one JSON-able document."""
        verdict = self.verdict
        return {
            "corpus": {"rows": len(self.corpus), "splits": self.corpus.splits, "fingerprint": self.corpus.fingerprint},
            "edited": {"rows": len(self.edited), "fingerprint": self.edited.fingerprint},
            "findings": self.findings.by_kind().to_dicts(),
            "verdict": None
            if verdict is None
            else {
                "metric": verdict.metric,
                "effect": verdict.effect,
                "interval": list(verdict.interval),
                "level": verdict.level,
                "before": list(verdict.before),
                "after": list(verdict.after),
                "controls": {name: list(values) for name, values in verdict.controls.items()},
                "edits": verdict.edits,
                "sentence": verdict.summary(),
            },
            "cost": self.cost.to_dicts(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        said = "not verified" if self.verdict is None else self.verdict.summary()
        return f"{self.findings.summary()}\n{said}\nreport: {self.report}"


def audit(
    source: Any,
    *,
    target: str | Sequence[str] | None = None,
    inputs: str | Sequence[str] | None = None,
    id: str | None = None,
    split: str | Mapping[str, float] | None = None,
    group: str | None = None,
    weight: str | None = None,
    task: str = "auto",
    learner: Learner | None = None,
    out: str | Path = "audit",
    seeds: int = 5,
    folds: int = 0,
    methods: str | Sequence[str] = "auto",
    verify: bool = True,
    progress: Progress | None = None,
) -> AuditResult:
    """Find what is wrong with a training set, and whether fixing it helps.

    Args:
        source: What `imprint.open` takes, or a corpus.
        target, inputs, id, split, group, weight: Roles, as in `imprint.open`.
        task: "auto", "classification", "multilabel" or "regression".
        learner: What to train; None for the defaults.
        out: Folder for the results. An audit that was interrupted there goes on; one that is complete is only written anew.
        seeds: Trainings per arm of the verification.
        folds: Also judge labels by this many-fold cross-fitting, which costs as many trainings; 0 leaves it out.
        methods: "auto", or names of clean methods.
        verify: Whether to retrain before and after the suggested edits.
        progress: Told how far each stage is; None shows bars where standard error is a terminal.

    Returns:
        Everything that was found; the folder `out` holds the same on disk.

    Raises:
        ImprintError: The source, a role, a setting or a method is impossible; the message says which and what to do.
    """
    out = Path(out)
    chosen = check_methods(methods)
    learner = learner or Learner()
    if task != "auto":
        learner = replace(learner, task=task)
    clock = Clock()
    with reporter(progress) as told:
        with clock("open"):
            corpus = (
                source
                if isinstance(source, Corpus)
                else open(
                    source, target=target, inputs=inputs, id=id, split=split, group=group, weight=weight, task=task,
                    store=out / "store", seed=learner.seed, progress=told,
                )
            )  # fmt: skip
        with clock("fit"):
            run = fit(learner, corpus, out / "run", progress=told)
        with clock("score"):
            scores = score(run)
            run.save_answer(scores)
        with clock("clean"):
            findings = clean(run, chosen, folds or None)
            run.save_answer(findings)
            findings.frame().write_parquet(out / "findings.parquet")
        with clock("apply"):
            edited = corpus.apply(findings)
            edited.save(out / "corpus")
        verdict, notes = None, tuple(findings.notes)
        if verify:
            with clock("verify"):
                try:
                    verdict = hold_against_retraining(findings, run, seeds=seeds, path=out / "verify", progress=told)
                    run.save_answer(verdict)
                except MethodError as error:
                    notes += (f"Not verified: {error.problem}",)
        recipe = recipe_of(
            source=source, target=target, inputs=inputs, id=id, split=split, group=group, weight=weight, task=task,
            learner=learner, methods=methods, seeds=seeds, folds=folds, verify=verify, out=out, corpus=corpus,
        )  # fmt: skip
        with clock("report"):
            report = write_report(
                out / "report.html", material_of(run, scores, findings, verdict, clock.seconds, recipe, out, notes)
            )
    if recipe is not None:
        recipe.save(out / "recipe.yaml")
    result = AuditResult(out, corpus, run, scores, findings, edited, verdict, clock.frame(), report, notes)
    (out / "summary.json").write_text(json.dumps(result.summary(), indent=2, default=str) + "\n", "utf-8")
    return result


def check_methods(methods: str | Sequence[str]) -> str | list[str]:
    """The clean methods that were asked for; an unknown name is refused before any work."""
    if methods == "auto":
        return "auto"
    return [one.name for one in named("clean", methods)]


def recipe_of(*, source: Any, learner: Learner, out: Path, corpus: Corpus, **settings: Any) -> Recipe | None:
    """The recipe that repeats this audit; None where it holds Python code, which no recipe can."""
    try:
        return Recipe.of(source=source, learner=learner, out=str(out), fingerprint=corpus.fingerprint, **settings)
    except RecipeError:
        return None


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - began

    def frame(self) -> pl.DataFrame:
        """`stage, seconds`, in order."""
        return pl.DataFrame({"stage": list(self.seconds), "seconds": list(self.seconds.values())})
