"""What goes wrong, one type per kind of mistake.

Every error says what was wrong, where, and what to do. The command line prints the message without a traceback and exits
with status 2; in Python they are ordinary exceptions that share the base `ImprintError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ImprintError(Exception):
    """Base of all errors that a user can mend.

    Args:
        problem: What was wrong, with the value that was wrong and where it stands.
        remedy: What to do about it, as an imperative sentence.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem if not remedy else f"{problem}\n  {remedy}")
        self.problem = problem
        self.remedy = remedy


class SourceError(ImprintError):
    """The source cannot be read as a data set: missing, empty, wrong encoding, wrong format."""


class ColumnError(ImprintError):
    """A column that was asked for is missing, or cannot play the role that it was given."""


class TargetError(ImprintError):
    """The target cannot be learned as asked: one class, not numeric, nothing but missing values."""


class IdError(ImprintError):
    """Ids are missing, repeated, or not of this corpus."""


class LearnerError(ImprintError):
    """A learner's setting is impossible, or does not fit the corpus."""


class RunError(ImprintError):
    """A run's folder is missing, incomplete, damaged, or of another corpus."""


class RunLocked(RunError):
    """Another process is writing this run."""


class EvidenceError(ImprintError):
    """Evidence is missing and cannot be collected, or belongs to another corpus."""


class MethodError(ImprintError):
    """No such method, or it does not serve this task."""


class PlanError(ImprintError):
    """A plan of a fleet is impossible, or does not fit the corpus."""


class ResourceError(ImprintError):
    """Not enough memory or disk for the job."""


class RecipeError(ImprintError):
    """A recipe file is malformed, or asks for something that does not exist."""


class MissingExtra(ImprintError):
    """An optional part is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the extra '{extra}'.", f"Install it: pip install 'imprint[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy line that names the closest known word, and then all of them.

    >>> nearest("el2m", ["aum", "el2n"])
    "Did you mean 'el2n'? Known: aum, el2n."
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
