"""forget: a model as if it had never seen these examples.

`forget(run, ids=...)` makes a child run; the parent is untouched. Methods are functions of a `Forgetting` (`imprint.forgetting.job`); the
child answers every verb.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from imprint.errors import EvidenceError, IdError, LearnerError, MethodError, RunError
from imprint.fitting import Progress, reporter
from imprint.fitting.deletable import scheme
from imprint.fitting.learner import qualified_name
from imprint.fitting.sequenced import Sequencing
from imprint.forgetting import child
from imprint.forgetting.analytic import add, analytic, downdate
from imprint.forgetting.controls import nothing, retrain
from imprint.forgetting.dampening import ssd
from imprint.forgetting.descent import fine_tuned, gradient_ascent, gradient_difference, npo, random_labels
from imprint.forgetting.distilling import blindspot, gaussian, scrub
from imprint.forgetting.erasing import erase
from imprint.forgetting.influence import influence
from imprint.forgetting.job import Forgetting, Forgotten, Part, prepare
from imprint.forgetting.laf import laf
from imprint.forgetting.lineage import weights_of
from imprint.forgetting.many import checked, performed
from imprint.forgetting.matching import datamodel_matching
from imprint.forgetting.newton import newton
from imprint.forgetting.poisoning import concept_poison
from imprint.forgetting.request import wanted
from imprint.forgetting.s3t import s3t
from imprint.forgetting.searching import other_places, search_settings
from imprint.forgetting.sisa import sisa
from imprint.forgetting.sparse import l1_sparse, prune_fine_tune
from imprint.forgetting.telling import told
from imprint.methods import check_serves, lookup
from imprint.models import solver_of
from imprint.recording.lock import writing

if TYPE_CHECKING:
    from imprint.answers import Answer
    from imprint.recording import Run

__all__ = [
    "Forgetting", "Forgotten", "Part", "add", "analytic", "blindspot", "concept_poison", "datamodel_matching", "downdate", "erase",
    "fine_tuned", "forget", "gaussian", "gradient_ascent", "gradient_difference", "influence", "l1_sparse", "laf", "newton", "nothing",
    "npo", "prepare", "prune_fine_tune", "random_labels", "retrain", "s3t", "scrub", "sisa", "ssd", "wanted",
]  # fmt: skip


def forget(
    run: Run,
    ids: Sequence[str] | pl.Series | None = None,
    *,
    where: pl.Expr | str | None = None,
    classes: Sequence[Any] | str | None = None,
    findings: Answer | pl.DataFrame | str | Path | None = None,
    method: str = "auto",
    path: str | Path | None = None,
    seed: int = 0,
    known: bool | None = None,
    search: int = 0,
    search_ids: Sequence[str] | pl.Series | None = None,
    resume: bool = True,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Run:
    """A child of a run whose model has forgotten some training examples; the parent is untouched.

    Say what to forget with exactly one of `ids`, `where`, `classes` and `findings`.

    Args:
        run: The parent, complete.
        ids: Ids of training examples.
        where: A Polars expression or SQL text over `id, position, split`, the inputs, the target and `weight`:
            `"source = 'forum' AND split = 'train'"`.
        classes: Values of the target; of labels, all examples that have one of them.
        findings: What `imprint.clean` found, or where it is saved; the training examples that it suggests to drop.
        method: Name of a forget method (`imprint methods --verb forget` lists them); "auto" takes the exact one that the run affords
            without training ("analytic" for a ridge head, "newton" for a logistic one, "sisa" or "s3t" where it was trained for it), else
            "retrain".
        path: Folder of the child; None puts it beside the parent, named after the method.
        seed: Of the method's randomness.
        known: Corrective mode: the examples are only the known part of the bad data.
        search: How many settings of the method are tried first, on other examples than these; the best are used for these. What is given
            in `settings` is fixed. The models that it takes are kept with the parent and shared by all methods and requests; 0 for none.
        search_ids: Training examples that settings are tried on; None for another class where whole classes are to be forgotten, else for
            as many retained examples of the same classes. Where the request is unlike other examples (mislabelled ones), give such.
        resume: Go on with a request that was interrupted, and return a child that is complete. False starts over.
        progress: Told how far the method is; None shows a bar if standard error is a terminal, False nothing.
        **settings: Of the method.

    Returns:
        The child, complete; `child.manifest["forgot"]` says what was done and what is promised.

    Raises:
        IdError: An id is not of a training example, nothing or everything would be forgotten, or `search_ids` are among the forgotten.
        TargetError: There is no such class.
        MethodError: The method is unknown, does not serve the run, or has no such setting.
        RunError: The parent is not complete, or the folder holds something else.
    """
    one = lookup("forget", automatic(run) if method == "auto" else method)
    check_serves([one], run)
    chosen = checked(one, settings)
    check_search(search, search_ids)
    if run.status != "complete":
        raise RunError(f"The run {run.path} is {run.status}.", "Let the training end: imprint.fit(..., resume=True).")
    places = wanted(run, ids, where, classes, findings)
    if search_ids is not None:
        other_places(run, places, search_ids)
    path = _beside(run, one.name) if path is None else Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file.", "Give a folder for the child.")
    inside = run.path.resolve()
    if path.resolve() == inside or inside in path.resolve().parents:
        raise RunError(
            f"{path} is the parent's own folder, which stays as it is.", "Give another folder for the child."
        )
    gone = run.ids.gather(places)
    asked: dict[str, Any] = {
        "parent": {"path": str(run.path.resolve()), "weights": weights_of(run), "corpus": run.fingerprint},
        "method": one.name,
        "settings": {name: _plain(value) for name, value in chosen.items()},
        "seed": seed,
        "corrective": bool(known),
        "search": _plan(search, search_ids),
    }
    try:
        with writing(path), reporter(progress) as report:  # type: ignore[arg-type]
            found = child.begin(path, asked, gone, resume, told(run, places, ids, where, classes, findings))
            if found is not None:
                return found
            corpus = run.corpus.drop(gone)
            job = prepare(run, places, seed=seed, corrective=bool(known), corpus=corpus, folder=path, progress=report)
            if search:
                searched = search_settings(
                    run, places, one, settings, search, ids=search_ids, seed=seed, corrective=bool(known), data=job.data,
                    kept=path / child.TRIALS, progress=report,
                )  # fmt: skip
                settings |= searched.chosen
                used = {name: _plain(value) for name, value in checked(one, settings).items()}
                asked = {**asked, "settings": used, "searched": searched.spec()}
            began = time.perf_counter()
            done = performed(one, job, settings)
            took = time.perf_counter() - began
            if search:
                done = replace(done, notes=(*done.notes, searched.words))
            return child.write(job, done, asked, took)
    except (
        MethodError,
        LearnerError,
        EvidenceError,
        IdError,
    ):  # it cannot be served so; another request may take the folder
        child.abandon(path)
        raise


def automatic(run: Run) -> str:
    """The exact method that a run affords without training on all of it, else "retrain"."""
    deletable = run.manifest.get("deletable")
    if deletable:
        return "s3t" if isinstance(scheme(deletable), Sequencing) else "sisa"
    return {"ridge": "analytic", "logistic": "newton"}.get(solver_of(run.learner.model) or "", "retrain")


def check_search(search: int, ids: Sequence[str] | pl.Series | None) -> None:
    """Raise `MethodError` unless a search is so many trials, and examples to search on are given to a search."""
    if isinstance(search, bool) or not isinstance(search, int) or search < 0:
        raise MethodError(f"search={search!r} is not a number of trials.", "Give 8, or 0 for none.")
    if ids is not None and not search:
        raise MethodError("search_ids are given, and nothing is searched for.", "Give search=8 as well.")


def _plan(search: int, ids: Sequence[str] | pl.Series | None) -> dict[str, Any] | None:
    """What a search is told apart by; it names no example."""
    if not search:
        return None
    on = None if ids is None else hashlib.blake2b("\0".join(sorted(map(str, ids))).encode(), digest_size=16).hexdigest()
    return {"trials": search, "on": on}


def _beside(run: Run, method: str) -> Path:
    """A folder beside the parent's that nothing else has taken, or that the same method began."""
    return run.path.with_name(f"{run.path.name}-{method}")


def _plain(value: Any) -> Any:
    """A setting as JSON."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return qualified_name(value)
