"""Verifying: hold an answer against models that were trained as if one had acted on it."""

from __future__ import annotations

from typing import Any, overload

from imprint.answers import Answer, Attribution, Comparison, Findings, Selection, Trust, Verdict
from imprint.errors import MethodError
from imprint.recording import Run
from imprint.tracing.datamodeling import spearman
from imprint.verifying import edits
from imprint.verifying.attribution import verify_attribution
from imprint.verifying.interval import crossed_interval
from imprint.verifying.selection import compare, verify_selection

__all__ = ["compare", "crossed_interval", "spearman", "verify", "verify_attribution", "verify_selection"]


@overload
def verify(answer: Findings, run: Run | None = None, **settings: Any) -> Verdict: ...
@overload
def verify(answer: Attribution, run: Run | None = None, **settings: Any) -> Trust: ...
@overload
def verify(answer: Selection, run: Run | None = None, **settings: Any) -> Comparison: ...
def verify(answer: Answer, run: Run | None = None, **settings: Any) -> Verdict | Trust | Comparison:
    """Hold an answer against retrained models.

    Findings: does acting on them help? Models are trained before and after the suggested edits, and after as many edits at random.
    Attribution: do the scores predict what models trained on other subsets say? The linear datamodeling score, beside controls. With
    `removal=k`: do predictions fall without the k examples that it names first? With `tail_patch=k`: do they rise in one more step on
    these? With `known=ids`: does it find these wrong labels?

    Args:
        answer: What `clean`, `trace` or `select` found.
        run: The run that it is about; None loads it from where the answer says it is.
        settings: Findings: `seeds`, `kinds`, `level`, `path`, `progress` (see `imprint.verifying.edits.verify`). Attribution:
            `members`, `removal`, `queries`, `seeds`, `tail_patch`, `rate`, `known`, `level`, `path`, `progress` (see
            `imprint.verifying.verify_attribution`). Selection: `seeds`, `regimes`, `curves`, `recorded`, `level`, `path`, `progress` (see
            `imprint.verifying.compare`).

    Raises:
        MethodError: There is nothing to verify, or nothing to measure on.
        RunError: The run is not at hand.
    """
    match answer:
        case Findings():
            return edits.verify(answer, run, **settings)
        case Attribution():
            return verify_attribution(answer, run, **settings)
        case Selection():
            return verify_selection(answer, run, **settings)
    raise MethodError(
        f"An answer of the kind '{answer.name}' cannot be verified.", "Verify what `clean`, `trace` or `select` found."
    )
