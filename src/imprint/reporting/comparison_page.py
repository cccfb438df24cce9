"""Write a comparison of selections: one self-contained HTML file without any script.

Text is escaped by Jinja; what is drawn is SVG made of numbers; a content security policy allows nothing that is fetched or run.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from imprint.answers import Comparison
from imprint.reporting import svg, words
from imprint.reporting.comparison import Cell, Measured, Row, Section, laid_out
from imprint.reporting.report import environment, part

# A panel in units of its view box: all of it, and the part that is drawn in.
WIDE, HIGH = 260, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 252, 10, 146
# Below random's worst by this share of its distance to everything a line is drawn at the edge: one bad method must not flatten the rest.
BELOW = 0.6
# What stands where nothing was measured.
NONE = "\u2013"
# Room beyond the ends of a scale, as a share of it.
MARGIN = 0.06
# Times are drawn up to this many times that of everything.
LONGEST = 1.25


def write_comparison(path: str | os.PathLike[str], comparison: Comparison) -> Path:
    """Write the page of a comparison.

    Args:
        path: The HTML file to write; its folder is made if need be. A file that exists is replaced at once, never half.
        comparison: What `imprint.compare` found.

    Returns:
        The path of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render_comparison(comparison), encoding="utf-8", errors="replace")
    draft.replace(path)
    return path


def render_comparison(comparison: Comparison) -> str:
    """The page as HTML text."""
    sections = laid_out(comparison)
    style = "".join(part(f"{name}.css") for name in ("report", "explanation", "comparison"))
    return (
        environment()
        .get_template("comparison.html")
        .render(
            found=comparison,
            sections=sections,
            title=title(next(one for one in sections if one.regime == comparison.main)),
            words=words,
            drawing=Drawing(comparison),
            metric=words.metric_name(comparison.metric),
            weakest={"group": "weakest group", "class": "weakest class"}.get(comparison.worst, ""),
            command=f"imprint select {shlex.quote(comparison.run['path'])} --compare --curves",
            style=Markup(style),
        )
    )


def title(section: Section) -> str:
    """What a regime says, in a few words."""
    if section.random is None:
        return "What random examples are worth"
    ahead = [row for row in section.rows if any(cell.lead.clear > 0 for cell in row.cells)]
    if not ahead:
        return "Nothing is clearly better than random"
    if len(ahead) == 1:
        return f"{ahead[0].method} is better than random"
    return f"{ahead[0].method} leads, {len(ahead)} of {len(section.rows)} are better than random"


class Drawing:
    """What the template draws with: scales of a section's figures, and numbers in the units of the metric.

    Args:
        comparison: What is drawn.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.metric = comparison.metric
        self.share = comparison.metric in words.SHARES

    def level(self, value: float | None) -> str:
        """A value of the metric; a dash where there is none."""
        if value is None:
            return NONE
        text = f"{100 * value:.1f}" if self.share else f"{value:.3f}"
        return text.replace("-", words.MINUS)

    def change(self, value: float | None) -> str:
        """A difference of the metric."""
        if value is None:
            return NONE
        text = f"{100 * value:+.1f}" if self.share else f"{value:+.3f}"
        return text.replace("-", words.MINUS)

    def between(self, one: Measured, signed: bool = False) -> str:
        """An interval in words."""
        if one.low is None or one.high is None:
            return ""
        number = self.change if signed else self.level
        return f"{number(one.low)} to {number(one.high)}"

    def seconds(self, value: float | None) -> str:
        """A time; a dash where there is none."""
        return NONE if value is None else words.duration(value)

    def budget(self, share: float) -> str:
        """A share of the training examples."""
        return f"{100 * share:.3g} %"

    # ---------------------------------------------------------------------------------------------------------------- budgets

    def by_budget(self, section: Section, row: Row) -> Markup:
        """The metric by budget, beside random and everything."""
        low, high = self.range(section)
        budgets = [cell.budget for cell in row.cells]

        def x(budget: float) -> float:
            place = budgets.index(budget) if budget in budgets else 0
            return LEFT + (RIGHT - LEFT) * (
                (place + 0.5) / len(budgets) if len(budgets) < 3 else place / (len(budgets) - 1)
            )

        def y(value: float) -> float:
            return svg.scaled(value, low, high, BOTTOM, TOP)

        parts = [self._frame(low, high, y)]
        parts += [
            svg.text(
                x(budget),
                HIGH - 8,
                self.budget(budget),
                "end" if len(budgets) > 2 and budget == budgets[-1] else "middle",
            )
            for budget in budgets
        ]
        full = section.full.cells[0].metric.value
        if full is not None:
            parts.append(svg.line("full", LEFT, RIGHT, y(full), y(full)))
        for kind, one in (("random", section.random), ("own", row)):
            known = (
                [cell for cell in one.cells if cell.metric.value is not None and cell.budget in budgets] if one else []
            )
            parts.append(
                _band(kind, [(x(cell.budget), y(cell.metric.low or 0.0), y(cell.metric.high or 0.0)) for cell in known])
            )
            parts.append(_path(kind, [(x(cell.budget), y(cell.metric.value or 0.0)) for cell in known]))
            parts += [_dot(kind, x(cell.budget), y(cell.metric.value or 0.0)) for cell in known]
        said = ", ".join(f"{self.budget(cell.budget)}: {self.level(cell.metric.value)}" for cell in row.cells)
        return svg.panel(f"{row.method} by budget: {said}", parts, WIDE, HIGH)

    def range(self, section: Section) -> tuple[float, float]:
        """Least and largest value of the metric that is drawn in a section."""
        values = [cell.metric for row in section.all for cell in row.cells]
        known = [one.value for one in values if one.value is not None]
        controls = [cell.metric for row in (section.random, section.full) if row for cell in row.cells]
        held = [one.value for one in controls if one.value is not None]
        # By means and the ends of half of the intervals: one wide interval must not flatten the rest.
        high = max([*known, _middle([one.high for one in values])])
        least = min([*known, _middle([one.low for one in values])])
        low = max(least, min(held) - BELOW * (high - min(held)))
        return low - MARGIN * (high - low), high + (MARGIN * (high - low) or 0.01)

    # ------------------------------------------------------------------------------------------------------------------ leads

    def extent(self, cell: Cell, of: str, section: Section) -> Markup:
        """A value with its interval, on the scale of its figure; with the value of random where it is not a difference."""
        one: Measured = getattr(cell, of)
        if one.value is None or one.low is None or one.high is None:
            return Markup("")
        least, largest = self.scale(section, of)
        a, b, c = (svg.scaled(value, least, largest, 2, 98) for value in (one.low, one.value, one.high))
        kind = {1: "ahead", -1: "behind", 0: ""}[one.clear] if of == "lead" else ""
        if of == "lead":
            mark = 0.0
        else:
            random = [
                other for other in (section.random.cells if section.random else ()) if other.budget == cell.budget
            ]
            against = getattr(random[0], of).value if random else None
            mark = math.nan if against is None else against
        tick = Markup("")
        if not math.isnan(mark):
            place = svg.scaled(mark, least, largest, 2, 98)
            tick = Markup('<line class="zero" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="18"/>').format(place, place)
        return Markup(
            '<svg class="extent {}" aria-hidden="true">{}<line x1="{:.2f}%" x2="{:.2f}%" y1="9" y2="9"/>'
            '<circle cx="{:.2f}%" cy="9" r="4"/></svg>'
        ).format(kind, tick, a, c, b)

    def scale(self, section: Section, of: str) -> tuple[float, float]:
        """Ends of the common scale of a figure; far out ends are cut, so that most of it can be seen."""
        values: list[Measured] = [getattr(cell, of) for row in section.rows for cell in row.cells]
        known = sorted(one.value for one in values if one.value is not None)
        if not known:
            return -1.0, 1.0
        least, largest = (
            min(known[0], _middle([one.low for one in values])),
            max(known[-1], _middle([one.high for one in values])),
        )
        if of == "lead":
            largest = max(largest, 0.005)
            least = max(least, -2 * max(largest, -known[len(known) // 4]))
        return least - MARGIN * (largest - least), largest + (MARGIN * (largest - least) or 0.01)

    # ------------------------------------------------------------------------------------------------------------------- time

    def by_time(self, section: Section, row: Row) -> Markup:
        """The metric by seconds, a line per budget, beside random at the same budgets and everything."""
        low, high = self.range(section)
        drawn = [one.seconds[-1] for other in section.all for one in other.lines if one.seconds]
        full = [one.seconds[-1] for one in section.full.lines if one.seconds]
        longest = max(min(max(drawn, default=1.0), LONGEST * max(full, default=1.0)), 1e-9)

        def x(seconds: float) -> float:
            return svg.scaled(seconds, 0.0, longest, LEFT, RIGHT)

        def y(value: float) -> float:
            return svg.scaled(value, low, high, BOTTOM, TOP)

        parts = [self._frame(low, high, y), svg.text(LEFT, HIGH - 8, "0 s", "start")]
        parts.append(svg.text(RIGHT, HIGH - 8, words.duration(longest), "end"))
        for kind, one in (("full", section.full), ("random", section.random), ("own", row)):
            lines = one.lines if one else ()
            for number, line in enumerate(lines):
                points = [(x(s), y(v)) for s, v in zip(line.seconds, line.value, strict=True) if s <= longest]
                fade = "" if len(lines) < 2 else f" tint{min(number, 4)}"
                if kind == "own":
                    within = [place for place, s in enumerate(line.seconds) if s <= longest]
                    parts.append(_band(kind, [(x(line.seconds[p]), y(line.low[p]), y(line.high[p])) for p in within]))
                parts.append(_path(kind + fade, points))
        late = [one for one in row.lines if not one.seconds or one.seconds[0] > longest]
        if late or not row.lines:
            parts.append(
                svg.text(
                    (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2, "not within this time" if late else "no model", "middle"
                )
            )
        return svg.panel(f"{row.method} by seconds", parts, WIDE, HIGH)

    def _frame(self, low: float, high: float, y: object) -> Markup:
        """Lines of the grid with their values."""
        assert callable(y)
        return Markup("").join(
            svg.line("grid", LEFT, RIGHT, y(value), y(value))
            + svg.text(LEFT - 6, y(value) + 4, self.level(value), "end")
            for value in svg.ticks(low, high)
        )


def _middle(values: Sequence[float | None]) -> float:
    """The median of those that are known."""
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2]


def _dot(kind: str, x: float, y: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
        kind, x, y, 3.4 if kind == "own" else 2.4
    )


def _path(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    if len(points) < 2:
        return Markup("")
    return Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _band(kind: str, ends: Sequence[tuple[float, float, float]]) -> Markup:
    """The area between two ends over x; of a single place a line."""
    if not ends:
        return Markup("")
    if len(ends) == 1:
        x, low, high = ends[0]
        return svg.line(kind, x, x, low, high)
    there = [f"{x:.1f},{low:.1f}" for x, low, _ in ends] + [f"{x:.1f},{high:.1f}" for x, _, high in reversed(ends)]
    return Markup('<polygon class="{}" points="{}"/>').format(kind, " ".join(there))
