"""`imprint forget RUN ... --compare A,B`: what several methods do to the same examples, held against the same oracles; no child is "
"written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imprint.cli import options as o
from imprint.cli.output import emit, pairs, paragraph, say, seconds, shell, table
from imprint.cli.progress import Stages
from imprint.cli.verify_forgotten import APART, cell, cost, document, number

if TYPE_CHECKING:
    import numpy as np

    from imprint.answers import Forgetfulness
    from imprint.recording import Run

ALL = "all"


def show(run: Run, folder: str, places: np.ndarray, methods: str, settings: dict[str, Any], as_json: bool) -> None:
    """Judge methods, keep the answer in the run, and say what was found.

    Args:
        run: The run.
        folder: The run as the user named it.
        places: Of the examples to forget, among the training examples.
        methods: Names with commas between, or "all".
        settings: Of `imprint.verifying.judge`.
        as_json: Whether to write JSON.
    """
    from imprint.verifying import judge

    names = methods if methods == ALL else o.names(methods, "--compare")
    with Stages() as stages:
        found = judge(run, places, names or ALL, progress=stages, **settings)
    o.keep(run, found, ["compare"])
    if as_json:
        emit({"run": str(run.path), **document(found)})
        return
    head, rows = summary_table(found)
    say(*paragraph(found.summary()), "", *table(head, rows, whole=["method"]), "", *legend(found), "")
    said = next(iter(found.conclusions), None)
    say(*pairs([("cost", cost(found)), ("first", said), *(("note", one) for one in found.notes)]))
    say("", "Next:", f"  imprint forget {shell(folder)} ... --method {ranked(found)[0]}")


def ranked(found: Forgetfulness) -> list[str]:
    """The methods, first those that fewest measures tell apart, of these the nearest to the oracles."""

    def order(arm: str) -> tuple[int, float]:
        row = found.row(arm, found.main)
        return len(found.told_apart(arm)), row["value"] if row else float("inf")

    return sorted(found.methods, key=order)


def summary_table(found: Forgetfulness) -> tuple[list[str], list[list[Any]]]:
    """A row per arm: distance on the forgotten examples, whether it is nearer than doing nothing, how many measures tell it apart, what is
    left of the headline metric, what an attack finds, and what it takes."""
    headline = next((name for name in ("accuracy", "r2", "f1") if found.row("oracle", name, "retain")), None)
    where = "held-out" if "held-out" in found.examples else "retain"
    attack = next((name for name in ("lira-auroc", "rmia-auroc") if found.row("oracle", name)), None)
    head = ["method", f"{found.main} forgotten", "nearer", "apart"]
    head += [f"{headline}" for _ in (1,) if headline] + (["attack"] if attack else []) + ["seconds"]
    rows: list[list[Any]] = []
    for arm in [*ranked(found), "nothing", "oracle"]:
        row: list[Any] = [arm, cell(found, arm, found.main, "forget")]
        row.append("-" if arm in ("nothing", "oracle") else "yes" if found.beats_nothing(arm) else "no")
        row.append("-" if arm == "oracle" else f"{len(found.told_apart(arm))}/{len(found.telling())}")
        row += [cell_of(found, arm, headline, where)] if headline else []
        row += [cell_of(found, arm, attack, "forget")] if attack else []
        rows.append([*row, seconds(found.seconds[arm]) if arm in found.seconds else "-"])
    return head, rows


def cell_of(found: Forgetfulness, arm: str, measure: str, name: str) -> str:
    """A value without its interval, and a mark if it is told from the oracle's."""
    row = found.row(arm, measure, name)
    if row is None:
        return "-"
    return f"{number(row['value'])}{'' if arm == 'oracle' or found.near(arm, measure, name) else APART}"


def legend(found: Forgetfulness) -> list[str]:
    """What the columns mean."""
    attack = "; attack: area under the curve of a membership attack" if found.shadows else ""
    return paragraph(
        f"{APART} told from the oracle's; [{found.level:.0%} interval]; nearer: clearly nearer to the oracles than doing nothing; apart: "
        "by how "
        f"many measures it is told apart on the forgotten examples; accuracy, r2 and f1 are those on held-out examples{attack}."
    )
