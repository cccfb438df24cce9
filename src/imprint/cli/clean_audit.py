"""`imprint clean RUN --report NAME`: an audit of the whole set instead of findings about examples."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from imprint.cli import options as o
from imprint.cli.output import emit, say, table, width
from imprint.errors import MethodError, SourceError


def report(
    run: str,
    name: str,
    by: str | None,
    votes: str | None,
    fleet: str | None,
    against: list[str] | None,
    corrections: str | None,
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
        against: Folders of other runs, or files of what other models said, for an audit of a ranking.
        corrections: File of right labels, for an audit of a ranking.
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
    ranks = "against" in inspect.signature(audit).parameters
    if ranks != bool(against) or ranks != (corrections is not None):
        raise MethodError(
            f"The audit '{name}' {'compares models on corrected test labels' if ranks else 'compares no models'}.",
            "Give --against RUN (or FILE: id, label) and --corrections FILE (id, label; no label: not known)."
            if ranks
            else "Leave out --against and --corrections.",
        )
    if against and corrections is not None:
        settings |= ranking(folder, against, corrections)
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


def ranking(folder: Path, against: list[str], corrections: str) -> dict[str, Any]:
    """What the audit of a ranking is given: the other models, the right labels, and what each model is called.

    Raises:
        SourceError: A file cannot be read, or lacks a column.
        RunError: A folder is no run.
    """
    from imprint.cli.clean import read_rows
    from imprint.recording import load

    others = [Path(one).expanduser() for one in against]
    folders = [None if one.is_file() else o.run_folder(str(one)) for one in others]
    called = apart([folder, *(run or path.with_suffix("") for run, path in zip(folders, others, strict=True))])
    models = [
        read_rows(str(path), "labels") if run is None else load(run) for run, path in zip(folders, others, strict=True)
    ]
    right = read_rows(corrections, "corrections")
    missing = [column for column in ("id", "label") if column not in right.columns]
    if missing:
        raise SourceError(
            f"'{corrections}' has no column {' and no column '.join(map(repr, missing))}.",
            "Give a row for each known error: its id, and the right label (empty: not known).",
        )
    return {
        "name": called[0],
        "against": dict(zip(called[1:], models, strict=True)),
        "corrections": dict(right.select("id", "label").iter_rows()),
    }


def apart(paths: list[Path]) -> list[str]:
    """Names of folders and files that tell them apart: as many of their last parts as it takes.

    >>> apart([Path("small/run"), Path("large/run")])
    ['small/run', 'large/run']
    """
    deepest = max(len(path.parts) for path in paths)
    names = [["/".join(path.parts[-depth:]) for path in paths] for depth in range(1, deepest + 1)]
    return next((one for one in names if len(set(one)) == len(paths)), names[-1])
