"""Parts of figures that pages draw: SVG made of numbers, its text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers between two ends.

    >>> ticks(0.62, 0.91)
    [0.7, 0.8, 0.9]
    >>> ticks(0.9, 0.93)
    [0.9, 0.91, 0.92, 0.93]
    """
    width = high - low
    step = 10.0 ** math.floor(math.log10(width)) if width > 0 else 1.0
    step = next((step * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if width / (step * factor) <= most), step)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    """A value on an axis, at its end where it lies beyond."""
    share = (value - low) / ((high - low) or 1.0)
    return start + (end - start) * min(1.0, max(0.0, share))


def text(x: float, y: float, said: str, anchor: str, kind: str = "") -> Markup:
    """A text that begins ("start"), has its middle or ends at a place."""
    of = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(of, x, y, anchor, said)


def line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(kind, x1, x2, y1, y2)


def panel(label: str, parts: Iterable[Markup], wide: float, high: float) -> Markup:
    """A figure that is scaled to its place."""
    return Markup('<svg class="panel" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        wide, high, label, Markup("").join(parts)
    )
