"""Verifying: hold an answer against models that were trained as if one had acted on it."""

from __future__ import annotations

from typing import Any, overload

from imprint.answers import Answer, Attribution, Comparison, Findings, Forgetfulness, Selection, Trust, Verdict
from imprint.errors import MethodError
from imprint.recording import Run
from imprint.tracing.datamodeling import spearman
from imprint.verifying import edits
from imprint.verifying.attribution import verify_attribution
from imprint.verifying.forgetting import judge, verify_forgotten
from imprint.verifying.interval import crossed_interval
from imprint.verifying.recovering import Cue
from imprint.verifying.selection import compare, verify_selection

__all__ = [
    "Cue", "compare", "crossed_interval", "judge", "spearman", "verify", "verify_attribution", "verify_forgotten", "verify_selection",
]  # fmt: skip


@overload
def verify(answer: Findings, run: Run | None = None, **settings: Any) -> Verdict: ...
@overload
def verify(answer: Attribution, run: Run | None = None, **settings: Any) -> Trust: ...
@overload
def verify(answer: Selection, run: Run | None = None, **settings: Any) -> Comparison: ...
@overload
def verify(answer: Run, run: Run | None = None, **settings: Any) -> Forgetfulness: ...
def verify(
    answer: Answer | Run, run: Run | None = None, **settings: Any
) -> Verdict | Trust | Comparison | Forgetfulness:
    """Hold an answer, or a run that has forgotten examples, against retrained models.

    Findings: does acting on them help? Models are trained before and after the suggested edits, and after as many edits at random.
    Attribution: do the scores predict what models trained on other subsets say? The linear datamodeling score, beside controls. With
    `removal=k`: do predictions fall without the k examples that it names first? With `tail_patch=k`: do they rise in one more step on
    these? With `known=ids`: does it find these wrong labels?
    A child of `imprint.forget`: is it told apart from models that never saw what it forgot? Beside doing nothing, and beside such models
    among themselves; the answer is kept in the child.

    Args:
        answer: What `clean`, `trace` or `select` found; or the run that `forget` returned.
        run: The run that it is about (of a child: its parent); None loads it from where the answer says it is.
        settings: Findings: `seeds`, `kinds`, `level`, `path`, `progress` (see `imprint.verifying.edits.verify`). Attribution:
            `members`, `removal`, `queries`, `seeds`, `tail_patch`, `rate`, `known`, `level`, `path`, `progress` (see
            `imprint.verifying.verify_attribution`). Selection: `seeds`, `regimes`, `curves`, `recorded`, `level`, `path`, `progress` (see
            `imprint.verifying.compare`). A child: `oracles`, `models`, `shadows`, `attacks`, `relearn`, `representation`, `clean`, `cue`,
            `level`, `path`, `progress` (see `imprint.verifying.judge`).

    Raises:
        MethodError: There is nothing to verify, or nothing to measure on.
        RunError: The run is not at hand.
    """
    match answer:
        case Run():
            return verify_forgotten(answer, run, **settings)
        case Findings():
            return edits.verify(answer, run, **settings)
        case Attribution():
            return verify_attribution(answer, run, **settings)
        case Selection():
            return verify_selection(answer, run, **settings)
    raise MethodError(
        f"An answer of the kind '{answer.name}' cannot be verified.",
        "Verify what `clean`, `trace` or `select` found, or a child of `forget`.",
    )
