"""`imprint select --compare` and `imprint verify --answer selection-NAME`: what choices are worth, as text, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.cli import options as o
from imprint.cli.output import bold, emit, pairs, paragraph, say, seconds, shell, table
from imprint.cli.trace import opened as shown_in_browser

if TYPE_CHECKING:
    from imprint.answers import Comparison
    from imprint.recording import Run

PAGE = "comparison.html"
# In a table: a lead whose interval leaves zero out.
CLEAR = "*"


def show(
    found: Comparison, run: Run, folder: str, name: list[str], *, out: str | None, open_page: bool, as_json: bool
) -> None:
    """Keep a comparison in its run, write what was asked for, and say what it found.

    Args:
        found: The comparison.
        run: Its run.
        folder: The run as the user named it.
        name: What is added to the answer's name.
        out: A table (.parquet, .csv, .jsonl) or a page (.html) to write; None for neither.
        open_page: Whether to open the page in the browser.
        as_json: Whether to write JSON.
    """
    o.keep(run, found, name)
    as_page = out is not None and Path(out).suffix == ".html"
    rows = o.write_table(found.frame(), out) if out and not as_page else None
    page = None
    if open_page or as_page:
        answer = "-".join([found.name, *name])
        page = write_page(found, Path(out).expanduser() if out and as_page else run.path / "answers" / answer / PAGE)
    if open_page and page:
        shown_in_browser(page)
    if as_json:
        emit({"run": folder, **document(found), "out": rows, "page": page})
        return
    say(*paragraph(found.summary()))
    for budget in found.budgets:
        say("", bold(f"{100 * budget:.3g} % of the training examples"), *lines(found, budget))
    say(
        "",
        f"lead: {found.metric} beyond random; {CLEAR} its {found.level:.0%} interval leaves zero out; -: no model",
        "",
        *pairs(
            [
                ("cost", f"{seconds(found.cost['seconds'])}, {found.cost['trainings']:.0f} trainings"),
                *(("note", one) for one in found.notes),
                ("all rows", rows),
                ("page", page or f"imprint select {shell(folder)} --compare ... --open"),
            ]
        ),
    )


def write_page(found: Comparison, path: Path) -> Path:
    """Write the page of a comparison.

    Raises:
        ResourceError: It cannot be written there.
    """
    from imprint.reporting import write_comparison

    o.writable(path.parent)
    return write_comparison(path, found)


def lines(found: Comparison, budget: float) -> list[str]:
    """One budget as a table: a row per method, the metric and the lead in each regime, and what selecting took."""
    import polars as pl

    own = found.summary_frame().filter(pl.col("budget") == budget)
    cells = {(one["method"], one["regime"]): one for one in own.iter_rows(named=True)}
    regime = found.main
    order = sorted(
        dict.fromkeys(name for name, _ in cells), key=lambda name: -(cells[name, regime][found.metric] or float("-inf"))
    )
    head = ["method", *(word for one in found.regimes for word in (one, "lead")), "selecting"]
    rows = []
    for name in order:
        row: list[Any] = [name]
        for one in found.regimes:
            cell = cells[name, one]
            value, lead = cell[found.metric], cell["over_random"]
            row += ["-" if value is None else f"{value:.4f}", "" if lead is None else f"{lead:+.4f}{mark(cell)}"]
        rows.append([*row, seconds(cells[name, regime]["select_seconds"])])
    return table(head, rows, indent=2, whole=head)


def mark(cell: dict[str, Any]) -> str:
    """The mark of a clear lead, else a space."""
    return CLEAR if cell["over_random_low"] > 0 or cell["over_random_high"] < 0 else " "


def document(found: Comparison) -> dict[str, Any]:
    """A comparison with stable keys for JSON."""
    return {
        "metric": found.metric, "level": found.level, "examples": found.examples, "training": found.training,
        "full_seconds": found.full_seconds, "full_steps": found.full_steps, "recorded": found.recorded, "seeds": found.seeds,
        "rows": found.summary_frame(), "sentence": found.summary(), "cost": found.cost, "notes": found.notes,
    }  # fmt: skip
