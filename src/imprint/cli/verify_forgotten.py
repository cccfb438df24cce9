"""`imprint verify CHILD`: is it gone? What a child of `imprint forget` is beside models that never saw what it forgot, as text and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.cli.forget import deletion_report
from imprint.cli.output import bold, emit, pairs, paragraph, plural, say, seconds, shell, table
from imprint.cli.progress import Stages

if TYPE_CHECKING:
    from imprint.answers import Forgetfulness
    from imprint.recording import Run

# In a table: a value that is told from the oracles'.
APART = "*"
# Epochs after which relearning is no longer waited for (`imprint.verifying.concluding`).
CAP = 20
WORDS = {"forget": "forgotten", "retain": "retained", "held-out": "held-out"}


def show(child: Run, settings: dict[str, Any], as_json: bool, report: bool = False) -> None:
    """Hold a child against models that never saw what it forgot, and say what was found; the answer is kept in the child.

    Args:
        child: The child.
        settings: Of `imprint.verifying.judge`.
        as_json: Whether to write JSON.
        report: Whether to write the deletion report, with the verdict, into the child.
    """
    from imprint.verifying import verify

    with Stages() as stages:
        found = verify(child, progress=stages, **settings)
    page = deletion_report(child) if report else None
    if as_json:
        emit({"run": str(child.path), **document(found), "report": None if page is None else str(page)})
        return
    say(*paragraph(found.summary()))
    for name in found.examples:
        rows = lines(found, name)
        if rows:
            examples = f"{WORDS.get(name, name)}, {found.examples[name]:,} examples"
            say("", bold(examples), *table(["", *found.arms], rows, indent=2))
    say("", f"{APART} told from the oracle's; [{found.level:.0%} interval]", "")
    for one in found.conclusions:
        say(*listed(one))
    said = [("cost", cost(found)), ("report", None if page is None else str(page))]
    say("", *pairs([*said, *(("note", one) for one in found.notes)]))
    erased = child.manifest.get("erased")
    if not erased:
        say("", "Next:", f"  imprint erase {shell(Path(child.path))}")


def lines(found: Forgetfulness, name: str) -> list[list[str]]:
    """A row of cells for each measure of a set: the measure, then each arm's value with its interval."""
    own = found.table.filter(found.table["set"] == name)
    return [
        [measure, *(cell(found, arm, measure, name) for arm in found.arms)]
        for measure in own["measure"].unique(maintain_order=True)
    ]


def cell(found: Forgetfulness, arm: str, measure: str, name: str) -> str:
    """A value, its interval if it has one, and a mark if it is told from the oracle's."""
    row = found.row(arm, measure, name)
    if row is None:
        return "-"
    mark = "" if arm == "oracle" or found.near(arm, measure, name) else APART
    if measure == "relearn" and row["low"] == row["value"] == CAP:
        return f"{CAP} or more{mark}"
    ends = "" if row["low"] == row["high"] else f" [{number(row['low'])},{number(row['high'])}]"
    return f"{number(row['value'])}{ends}{mark}"


def number(value: float) -> str:
    """A value in few characters.

    >>> [number(value) for value in (10.4732, 9.52, 0.9375, 0.004, 0.0, 1.2e-9, -0.25)]
    ['10.5', '9.52', '0.94', '0.004', '0', '1e-09', '-0.25']
    """
    size = abs(value)
    if size == 0:
        return "0"
    return (
        f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3f}"
        if size >= 0.001
        else f"{value:.0e}"
    )


def listed(sentence: str) -> list[str]:
    """A sentence as an item of a list."""
    import textwrap

    from imprint.cli.output import width

    return textwrap.wrap(sentence, width(), initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def cost(found: Forgetfulness) -> str:
    """What it took, in words."""
    oracles = f"{found.oracles} {plural(found.oracles, 'oracle', 'oracles')}"
    models = f"{oracles}, {found.shadows} shadow models, {found.models} of each arm"
    return f"{seconds(found.cost['seconds'])}, {found.cost['trainings']:.0f} trainings ({models})"


def document(found: Forgetfulness) -> dict[str, Any]:
    """A verdict with stable keys for JSON."""
    return {
        "methods": found.methods, "count": found.count, "oracles": found.oracles, "models": found.models, "shadows": found.shadows,
        "level": found.level, "examples": found.examples, "rows": found.table,
        "told_apart": {arm: found.told_apart(arm) for arm in (*found.methods, "nothing")},
        "beats_nothing": {arm: found.beats_nothing(arm) for arm in found.methods}, "seconds": found.seconds,
        "conclusions": found.conclusions, "sentence": found.summary(), "cost": found.cost, "notes": found.notes,
    }  # fmt: skip
