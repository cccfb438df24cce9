"""Models to judge attributions by: trained on random halves of the training set, with other subsets and seeds than any fleet that a
method reads. They are trained once per run and kept in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imprint.engine import LOCAL, Engine
from imprint.fitting import Progress, derive
from imprint.fleets import Fleet, fleet, subsets
from imprint.fleets.executing import executor_on
from imprint.recording import Run

FRACTION = 0.5
# How many, where nobody says.
MEMBERS = 64


def held_out(
    run: Run,
    members: int = MEMBERS,
    path: str | Path | None = None,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> Fleet:
    """The models, trained now or earlier.

    All subsets have the same size, as in the papers: of subsets of different sizes, any score that is positive for most examples would
    predict that larger ones are better.

    Args:
        run: What they are about.
        members: How many.
        path: Where their outcomes are kept; None for a folder in the run.
        progress: Told the trainings done.
        engine: Where they are trained.
    """
    other = replace(run.learner, seed=derive(run.learner.seed, "held-out"))
    view = Run(run.path, run.corpus, other, run.data)
    where = folder(run, members) if path is None else Path(path)
    return fleet(view, plan=subsets(members, FRACTION), path=where, executor=executor_on(engine), progress=progress)


def folder(run: Run, members: int = MEMBERS) -> Path:
    """Where the models of a run are kept."""
    return run.path / "fleets" / f"held-out-{members}-{FRACTION:g}"
