"""Audits: what concerns a whole set and not single rows, each one table with a plot and a summary.

A clean method points at examples; an audit says something of the set that no single row shows. It is a plain function of a run that
returns a small frozen dataclass, reachable as `imprint.cleaning.NAME(run)` and as `imprint clean RUN --report NAME`. This is the list of
them; a module is imported when its audit is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from imprint.errors import MethodError, nearest

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl


class Audit(Protocol):
    """What an audit returns."""

    def frame(self) -> pl.DataFrame:
        """The table."""

    def plot(self) -> go.Figure:
        """A figure of it."""

    def summary(self) -> str:
        """What it says, in a few sentences."""


# Name -> module and function, in the order in which they are listed.
AUDITS: dict[str, tuple[str, str]] = {
    "overlap": ("imprint.cleaning.overlap", "overlap"),
    "subpopulations": ("imprint.cleaning.subpopulations", "subpopulations"),
    "macro": ("imprint.cleaning.macro", "macro"),
    "tokens": ("imprint.cleaning.tokens", "tokens"),
    "conflicts": ("imprint.cleaning.conflicts", "conflicts"),
    "noise_transition": ("imprint.cleaning.transition", "noise_transition"),
    "annotators": ("imprint.cleaning.annotators", "annotators"),
    "stability": ("imprint.cleaning.stability", "stability"),
}


def audit_of(name: str) -> Callable[..., Audit]:
    """The audit of this name, a function of a run.

    Raises:
        MethodError: No such audit; says the nearest name.

    >>> audit_of("overlap").__name__
    'overlap'
    """
    if name not in AUDITS:
        raise MethodError(f"No audit '{name}'.", nearest(name, AUDITS))
    module, function = AUDITS[name]
    found: Any = getattr(importlib.import_module(module), function)
    return found
