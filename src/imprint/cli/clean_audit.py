"""`imprint clean RUN --report NAME`: an audit of the whole set instead of findings about examples."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from imprint.cli import options as o
from imprint.cli.output import emit, say, table, width
from imprint.errors import MethodError


def report(
    run: str,
    name: str,
    by: str | None,
    votes: str | None,
    fleet: str | None,
    top: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Show one audit: what it says, and the first rows of its table.

    Args:
        run: Folder of the run.
        name: The audit.
        by: What groups are made by, for an audit that compares groups.
        votes: File of votes, for an audit of annotators.
        fleet: Folder of a fleet, for an audit of many models.
        top: How many rows are shown.
        out: File for the whole table.
        as_json: One JSON document instead of text.

    Raises:
        MethodError: No such audit, or it was given what it does not read, or not what it does.
    """
    from imprint.cleaning.audits import audit_of
    from imprint.cli.clean import read_rows
    from imprint.recording import load

    folder = o.run_folder(run)
    audit = audit_of(name)
    settings: dict[str, Any] = {}
    if by is not None:
        if "by" not in inspect.signature(audit).parameters:
            raise MethodError(f"The audit '{name}' compares no groups.", "Leave out --by.")
        settings["by"] = by
    if fleet is not None:
        if "fleet" not in inspect.signature(audit).parameters:
            raise MethodError(f"The audit '{name}' reads no fleet.", "Leave out --fleet.")
        settings["fleet"] = fleet
    if (votes is not None) != ("votes" in inspect.signature(audit).parameters):
        raise MethodError(
            f"The audit '{name}' reads {'no' if votes else 'the'} votes of several annotators.",
            "Leave out --votes." if votes else "Add --votes FILE, a table with the columns id, annotator, label.",
        )
    if votes is not None:
        settings["votes"] = read_rows(votes, "votes")
    answer = audit(load(folder), **settings)
    frame = answer.frame()
    path: Path | None = o.write_table(frame, out) if out else None
    if as_json:
        emit(
            {
                "run": str(folder),
                "report": name,
                "summary": answer.summary(),
                "count": len(frame),
                "rows": frame.head(top),
                "out": path,
            }
        )
        return
    say(*textwrap.wrap(answer.summary(), width()))
    if top and len(frame):
        say("", *table(frame.columns, [list(row) for row in frame.head(top).iter_rows()]))
    if path:
        say("", f"All {len(frame):,} rows: {path}")
