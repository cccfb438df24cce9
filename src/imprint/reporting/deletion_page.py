"""Write a deletion report: one self-contained HTML file without any script, and the same facts as JSON beside it.

Text is escaped by Jinja; what is drawn is SVG made of numbers; a content security policy allows nothing that is fetched or run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from imprint.errors import ImprintError
from imprint.methods import lookup
from imprint.recording import Run
from imprint.reporting import svg, words
from imprint.reporting.deletion import FORMAT, Deletion, Step, facts
from imprint.reporting.report import environment, part

# Name of the report in the folder of a child.
NAME = "deletion.html"
# Hashes that the page shows; the JSON file has all.
SHOWN = 40
NONE = "\u2013"
SETS = {"forget": "forgotten", "retain": "retained", "held-out": "held-out"}
ARMS = {"nothing": "nothing done", "oracle": "never saw them"}
# What the figure shows, if it was measured: measure -> (title, hint).
PANELS = {
    "klom": ("KLoM", "distance of margins from models that never saw them; lower is nearer"),
    "distance": ("Distance", "of outputs from the model that never saw them; lower is nearer"),
    "lira-auroc": (
        "Attack, likelihood ratio",
        "how often it tells a forgotten example from an unseen one; 0.5 is chance",
    ),
    "rmia-auroc": ("Attack, RMIA", "how often it tells a forgotten example from an unseen one; 0.5 is chance"),
    "lira-tpr-1": ("Attack at 1 % false alarms", "share of forgotten examples that it is sure of; 0.01 is chance"),
    "rmia-tpr-1": ("RMIA at 1 % false alarms", "share of forgotten examples that it is sure of; 0.01 is chance"),
}
# Figures in units of their view boxes: of the verdict (a row for each arm), and of the stream.
WIDE, LEFT, RIGHT, ROW, FOOT = 320, 104, 308, 24, 26
STREAM_WIDE, STREAM_HIGH, STREAM_LEFT, STREAM_BOTTOM = 720, 170, 52, 144
MOST_BAR = 40


def write_deletion(child: Run, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the deletion report of a child of `imprint.forget`, for a reader who was not there.

    Args:
        child: The child.
        path: The HTML file to write; its folder is made if need be, and a file that exists is replaced at once, never half. None:
            `deletion.html` in the child's folder. The same facts as JSON go beside it, with the ending `.json`.

    Returns:
        The path of the HTML file.

    Raises:
        RunError: The run has forgotten nothing, or is not complete.
    """
    path = child.path / NAME if path is None else Path(path)
    beside = path.with_suffix(".json")
    found = facts(child, beside.name)
    document = json.dumps(_finite(found.document()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((beside, document), (path, render_deletion(found, beside.name))):
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(file)
    return path


def render_deletion(found: Deletion, file: str = "deletion.json") -> str:
    """The report as HTML text.

    Args:
        found: The facts.
        file: Name of the JSON file beside it.
    """
    style = "".join(part(f"{name}.css") for name in ("report", "explanation", "comparison", "deletion"))
    arms = _arms(found.verdict["rows"]) if found.verdict else []
    return (
        environment()
        .get_template("deletion.html")
        .render(
            found=found, own=found.own, title=title(found), sub=sub(found), states=states(found), promise=promise(found),
            method=_method(found.own), trials=trials(found.own.search), total=sum(one.count for one in found.steps),
            chart=stream(found.steps), panels=panels(found.verdict), arms=arms, table=table(found.verdict, arms), words=words,
            drawing=Drawing(), file=file, shown=SHOWN, format=FORMAT, style=Markup(style),
        )
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------- words


def title(found: Deletion) -> str:
    """What happened, in a few words."""
    examples = words.count(found.own.count, "training example")
    how = {
        "exact": "forgotten exactly",
        "certified": "forgotten within a certified bound",
        "approximate": "forgotten approximately",
        "control": "taken off the record, and still known to the model",
    }
    return f"{examples} {how[found.own.kind]}"


def sub(found: Deletion) -> str:
    """By what, from what."""
    return (
        f"By the method {found.own.method}, from the run {found.parent['path']}; the result is {found.child['path']}."
    )


def promise(found: Deletion) -> dict[str, str]:
    """What is promised: of this request, and of the stream where an earlier request weakens it."""
    own = found.own
    heads = {
        "exact": "Exact: the model is what a training without these examples gives, in the sense below.",
        "certified": f"Certified: by a proof, the weights are within {own.bound or 0:.3g} of the only minimum without these examples.",
        "approximate": "Approximate: nothing is proved. What the model still knows has to be measured.",
        "control": "None: the model was left as it was.",
    }
    stream = ""
    weak = [one for one in found.steps[:-1] if not one.exact]
    if own.exact and not found.stream_exact:
        stream = (
            f"Exact is this request alone. {words.count(len(weak), 'earlier request')} of the stream "
            f"({', '.join(dict.fromkeys(one.method for one in weak))}) left the model that it began from without that promise."
        )
    same = ""
    if own.kind != "control" and found.child["weights"] == found.parent["weights"]:
        same = "The weights are the parent's, to the last bit: the method has changed nothing."
    return {"head": heads[own.kind], "same": same, "stream": stream}


def states(found: Deletion) -> list[dict[str, str]]:
    """The four facts at the top: what was promised, of how many requests, whether the record was erased, and what verifying says."""
    own = found.own
    kind = {
        "exact": ("Exact", "as a training without them", "good"),
        "certified": ("Certified bound", f"{own.bound or 0:.3g} between the weights", "good"),
        "approximate": ("Approximate", "nothing is proved", ""),
        "control": ("No promise", "the weights are the parent's", "bad"),
    }[own.kind]
    last = found.erasures[-1] if found.erasures else None
    if last is None:
        erased = ("Not erased", "the record is as it was", "bad")
    elif last["found"]:
        erased = ("Erased, not all", f"{words.count(len(last['found']), 'trace')} left", "bad")
    elif not last.get("searched"):
        erased = ("Erased, not searched", "the parent was not at hand", "")
    else:
        erased = ("Erased", f"{words.count(last['searched']['files'], 'file')} searched, nothing found", "good")
    judged = found.verdict
    if judged is None:
        verified = ("Not verified", "nobody has looked", "")
    else:
        against = f"from {words.count(judged['oracles'], 'model')} that never saw them"
        by = list(dict.fromkeys(one for arm in judged["methods"] for one in judged["apart"][arm]))
        if by:
            verified = ("Told apart", f"{against}, by {', '.join(by)}", "bad")
        elif judged["apart"]["nothing"]:
            verified = ("Not told apart", f"{against}, as models that still know them are", "good")
        else:
            verified = ("Not told apart", f"{against}; but nor are models that still know them", "")
    several = f"request {own.number} of a stream" if own.number > 1 else "the first request"
    request = (f"{own.count:,} of {own.count + own.retained:,}", f"training examples; {several}", "")
    named = zip(("Request", "Promise", "Record", "Model"), (request, kind, erased, verified), strict=True)
    return [{"name": name, "said": said, "more": more, "mood": mood} for name, (said, more, mood) in named]


def trials(search: Any) -> list[dict[str, str]]:
    """What was tried in order to choose the settings, as cells."""
    rows = []
    for one in (search or {}).get("trials", []):
        settings = one.get("settings") or {}
        said = ", ".join(f"{name}={Drawing.value(value)}" for name, value in settings.items()) or "defaults"
        value, seconds = one.get("value"), one.get("seconds")
        rows.append({
            "settings": said, "value": NONE if value is None else f"{value:.4g}",
            "seconds": NONE if seconds is None else words.duration(seconds),
        })  # fmt: skip
    return rows


def _method(own: Step) -> dict[str, str]:
    """What the registry says of a method; nothing of one that this version does not know."""
    try:
        one = lookup("forget", own.method)
    except ImprintError:
        return {"says": "", "source": ""}
    first = (one.function.__doc__ or "").strip().split("\n\n")[0]
    source = one.source if one.source not in ("control", "reference") else ""
    return {"says": " ".join(first.split()).rstrip("."), "source": source}


class Drawing:
    """How the template writes facts."""

    @staticmethod
    def day(when: str) -> str:
        """A time as a person writes it.

        >>> Drawing.day("2026-11-20T15:39:17+00:00")
        '20 November 2026, 15:39 UTC'
        """
        at = datetime.fromisoformat(when)
        return f"{at.day} {at:%B %Y, %H:%M} {at.tzname() or ''}".rstrip()

    @staticmethod
    def short(when: str) -> str:
        """A time in a table; a dash where it is not known.

        >>> Drawing.short("2026-11-20T15:39:17+00:00")
        '2026-11-20 15:39'
        """
        return f"{datetime.fromisoformat(when):%Y-%m-%d %H:%M}" if when else NONE

    @staticmethod
    def value(value: Any) -> str:
        """A setting."""
        return "default" if value is None else value if isinstance(value, str) else json.dumps(value)

    @staticmethod
    def kind(one: Step) -> str:
        """What a method promises."""
        return {"control": "none", "certified": f"certified, {one.bound or 0:.2g}"}.get(one.kind, one.kind)

    @staticmethod
    def tuned(one: Step) -> str:
        """How the settings were chosen."""
        if not one.search:
            return "no: the settings above were given, or are the defaults"
        tried = one.search.get("trials", [])
        if not tried:
            return f"no: {one.search.get('on', 'nothing was tried')}"
        return (
            f"yes: the best of {words.count(len(tried), 'trial')} on {words.count(one.search['count'], 'other example')} "
            f"({one.search['on']}), by mean KLoM against models that never saw those"
        )

    @staticmethod
    def moved(drift: dict[str, float] | None) -> str:
        """A drift; a dash where it was not measured."""
        return NONE if drift is None else f"{drift['outputs']:.3g}"

    @staticmethod
    def agreed(drift: dict[str, float] | None) -> str:
        """How many predictions are as before."""
        return NONE if drift is None or "agreement" not in drift else words.percent(drift["agreement"])

    @staticmethod
    def arm(name: str) -> str:
        """An arm of the verdict."""
        return ARMS.get(name, name)

    @staticmethod
    def searched(one: dict[str, Any]) -> str:
        """What a search looked at and found."""
        done = one.get("searched")
        if not done:
            return str(one.get("note") or "The folder was not searched.")
        size = f" ({words.storage(done['bytes'])})" if "bytes" in done else ""
        took = f" It took {words.duration(done['seconds'])}." if "seconds" in done else ""
        unread = done.get("unread") or []
        missed = f" {words.count(len(unread), 'file')} could not be read: {', '.join(unread)}." if unread else ""
        found = (
            f"Left is what follows, {words.count(len(one['found']), 'trace')}:"
            if one["found"]
            else "Nothing was found."
        )
        return (
            f"Then {words.count(done['files'], 'file')}{size} were searched, in their bytes and decoded, for "
            f"{words.count(done['values'], 'value')} of {words.count(done['rows'], 'forgotten row')}: ids, texts, contents, numbers "
            f"and recorded evidence.{took}{missed} {found}"
        )


# --------------------------------------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class Panel:
    """One measure on one set, drawn."""

    title: str
    hint: str
    drawn: Markup


def _arms(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Arms in the order in which they are shown: methods first, the oracle last."""
    named = list(dict.fromkeys(row["arm"] for row in rows))
    return [one for one in named if one not in ARMS] + [one for one in ARMS if one in named]


def panels(verdict: dict[str, Any] | None) -> list[Panel]:
    """The measures that tell most: distance from the oracles on each set, and the attacks."""
    if verdict is None:
        return []
    rows, arms = verdict["rows"], _arms(verdict["rows"])
    found = []
    for measure, (name, hint) in PANELS.items():
        for one in dict.fromkeys(row["set"] for row in rows if row["measure"] == measure):
            own = {row["arm"]: row for row in rows if row["measure"] == measure and row["set"] == one}
            on = f", {SETS.get(one, one)}" if one and measure == verdict["main"] else ""
            if any(_known(row["value"]) for row in own.values()):
                found.append(Panel(f"{name}{on}", hint, whiskers(f"{name}{on}", own, arms)))
    return found


def whiskers(label: str, rows: dict[str, dict[str, Any]], arms: Sequence[str]) -> Markup:
    """A value with its interval for each arm, on one scale; the oracle's interval as a band behind all."""
    numbers = [row[end] for row in rows.values() for end in ("value", "low", "high") if _known(row[end])]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    bottom = ROW * len(arms) + 4

    def x(value: float) -> float:
        return svg.scaled(value, low, high, LEFT, RIGHT)

    marks = svg.ticks(low, high)
    parts = [svg.line("grid", x(one), x(one), 2, bottom) for one in marks]
    parts += [svg.text(x(one), bottom + 16, f"{one:g}".replace("-", words.MINUS), "middle") for one in marks]
    floor = rows.get("oracle")
    if floor is not None and _known(floor["low"]) and _known(floor["high"]):
        parts.append(
            Markup('<rect class="floor" x="{:.1f}" y="2" width="{:.1f}" height="{:.1f}"/>').format(
                x(floor["low"]), max(1.0, x(floor["high"]) - x(floor["low"])), bottom - 2
            )
        )
    for number, arm in enumerate(arms):
        y = ROW * (number + 0.5) + 2
        name = ARMS.get(arm, arm)
        parts.append(svg.text(LEFT - 8, y + 4, name if len(name) <= 16 else f"{name[:15]}\u2026", "end", "strong"))
        row = rows.get(arm)
        if row is None or not _known(row["value"]):
            continue
        kind = arm if arm in ARMS else "own"
        if _known(row["low"]) and _known(row["high"]):
            parts.append(svg.line(f"{kind} whisker", x(row["low"]), x(row["high"]), y, y))
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(kind, x(row["value"]), y))
    return svg.panel(label, parts, WIDE, bottom + FOOT)


def table(verdict: dict[str, Any] | None, arms: Sequence[str]) -> list[dict[str, Any]]:
    """All measures: a row for each measure and set, a cell for each arm."""
    if verdict is None:
        return []
    measures = list(dict.fromkeys(row["measure"] for row in verdict["rows"]))
    keys = dict.fromkeys((row["measure"], row["set"]) for row in verdict["rows"])
    keys = dict.fromkeys(sorted(keys, key=lambda one: measures.index(one[0])))
    cells = {(row["measure"], row["set"], row["arm"]): row for row in verdict["rows"]}
    found, before = [], None
    for measure, one in keys:
        of = [cells.get((measure, one, arm)) for arm in arms]
        better = next(row["better"] for row in of if row is not None)
        found.append({
            "measure": measure, "set": SETS.get(one, one), "first": measure != before,
            "better": "as never seen" if better == "oracle" else better,
            "cells": [{"value": _number(row, "value"), "between": _between(row)} for row in of],
        })  # fmt: skip
        before = measure
    return found


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(row: dict[str, Any] | None, end: str) -> str:
    if row is None or not _known(row[end]):
        return NONE
    return f"{row[end]:.3g}".replace("-", words.MINUS)


def _between(row: dict[str, Any] | None) -> str:
    low, high = _number(row, "low"), _number(row, "high")
    return "" if NONE in (low, high) or low == high else f"{low} to {high}"


# ---------------------------------------------------------------------------------------------------------------------- stream


def stream(steps: Sequence[Step]) -> Markup | None:
    """Drift by request: bars from the model before, a line from the first; None where there is nothing to compare."""
    before = [math.nan if one.drift is None else one.drift["outputs"] for one in steps]
    first = [math.nan if one.drift_from_first is None else one.drift_from_first["outputs"] for one in steps]
    known = [value for value in (*before, *first) if math.isfinite(value)]
    if len(steps) < 2 or not known:
        return None
    high = 1.08 * max(known) or 1.0
    width = (STREAM_WIDE - STREAM_LEFT) / len(steps)

    def y(value: float) -> float:
        return svg.scaled(value, 0.0, high, STREAM_BOTTOM, 8)

    parts = []
    for value in svg.ticks(0.0, high):
        parts.append(svg.line("grid", STREAM_LEFT, STREAM_WIDE, y(value), y(value)))
        parts.append(svg.text(STREAM_LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    places = [STREAM_LEFT + width * (number + 0.5) for number in range(len(steps))]
    every = max(1, math.ceil(len(steps) / 20))
    for number, (place, value) in enumerate(zip(places, before, strict=True)):
        if not number % every:
            parts.append(svg.text(place, STREAM_BOTTOM + 18, str(number + 1), "middle"))
        if math.isfinite(value):
            wide = min(MOST_BAR, 0.6 * width)
            parts.append(
                Markup('<rect class="step" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>').format(
                    place - wide / 2, y(value), wide, STREAM_BOTTOM - y(value)
                )
            )
    points = [(place, y(value)) for place, value in zip(places, first, strict=True) if math.isfinite(value)]
    parts.append(Markup('<polyline class="own" points="{}"/>').format(" ".join(f"{a:.1f},{b:.1f}" for a, b in points)))
    parts += [Markup('<circle class="own" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(a, b) for a, b in points]
    return svg.panel("Drift by request", parts, STREAM_WIDE, STREAM_HIGH)


def _finite(value: Any) -> Any:
    """A value as JSON: what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
