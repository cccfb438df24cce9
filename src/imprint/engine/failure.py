"""An error on its way between processes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from imprint.errors import ImprintError


@dataclass(frozen=True)
class Failure:
    """An error on its way to the process that asked. Exceptions do not travel well: many cannot be made from their message."""

    kind: type[Exception]
    problem: str
    remedy: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """An error that was just caught."""
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, ImprintError):
            return cls(type(error), error.problem, error.remedy, trace)
        return cls(RuntimeError, f"{type(error).__name__}: {error}", "", trace)

    def error(self, doing: str = "A member's training") -> Exception:
        """The error to raise here: the same for Imprint's own; a `RuntimeError` with the trace as a note for any other."""
        if issubclass(self.kind, ImprintError):
            same = self.kind.__new__(self.kind)
            ImprintError.__init__(same, self.problem, self.remedy)
            return same
        error = RuntimeError(f"{doing} failed: {self.problem}")
        error.add_note(f"In the process that did it:\n{self.trace}")
        return error
