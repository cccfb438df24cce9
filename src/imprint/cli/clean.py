"""`imprint clean`: what is wrong with which examples, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import emit, pairs, say, shell, table
from imprint.errors import MethodError, nearest

if TYPE_CHECKING:
    from imprint.answers import Findings


def command(
    run: o.RunPath,
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD...]", help="Names; default: all that fit the data.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="A,B", help="Only these kinds: label, duplicate, leak, outlier, broken, ..."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, metavar="N", help="Show the N worst findings.")] = 10,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write all findings: .parquet, .csv, .jsonl.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="FILE|A,B", help="Known bad ids instead: find the others of their kind."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option("--recall", metavar="X", help="With --like: share of them to find. Default: cautious."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="NAME", help="An audit of the whole set instead: overlap, macro, ..."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COL", help="With --report: a column, group, background or clusters.")
    ] = None,
    votes: Annotated[
        str | None, typer.Option("--votes", metavar="FILE", help="With --report annotators: id, annotator, label.")
    ] = None,
    fleet: Annotated[
        str | None, typer.Option("--fleet", metavar="FOLDER", help="With --report subpopulations: a fleet's members.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="RUN|FILE", help="With --report stability: a run, or id, label; repeatable."),
    ] = None,
    corrections: Annotated[
        str | None,
        typer.Option("--corrections", metavar="FILE", help="With --report stability: id, label of wrong test labels."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """List what is wrong with the examples that RUN was trained on.

    Use it to get candidates for correction: wrong labels, exact and near
    duplicates, leaks between splits, outliers, rare classes, useless or leaking
    columns, broken files. Nothing is changed: edits are suggestions.

    Examples:
      imprint clean runs/base
      imprint clean runs/base --kind label --top 50
      imprint clean runs/base --out findings.csv
      imprint clean runs/base --like poisoned.csv --out all-poisoned.csv
      imprint forget runs/base --findings all-poisoned.csv --known
      imprint clean runs/base --report macro --by sex      even between groups?
      imprint clean runs/base --report conflicts           where verdicts differ
      imprint clean runs/base --report stability --against runs/large \\
          --corrections corrected.csv    is the ranking safe from wrong labels?
      imprint verify runs/base --findings findings.csv     does the fix help?

    What the output means:
      severity    0 to 1, higher = worse; comparable within one kind
      suggestion  drop: leave the example out; relabel: use suggested_value;
                  review: look at it, nothing is done by itself
      A finding without id concerns a column, a class or a group of examples,
      not one example.
      with --like: --out holds the known ones, and those that the record tells from
      everything else as it does the known; severity: the share of the known
      that are less typical of their kind. As many as there are thought to be,
      which is cautious; --recall 0.95 misses one in twenty, and names more

    Audits (--report):
      overlap           how near the test is to the training examples
      subpopulations    majority against minority accuracy over checkpoints
      macro             MacroStd: how unevenly groups are treated within classes
      tokens            copies and artifact tokens in the evaluation of texts
      conflicts         all verdicts on each example, where they disagree first
      noise_transition  which classes are given which labels, and how often
      annotators        consensus of several people's votes, and whom to trust
      stability         at which share of wrong test labels a ranking of models
                        turns round, given the corrections of known ones

    JSON: {"run", "methods": [str], "count",
          "kinds": [{"kind", "count", "median_severity", "drop", "relabel",
                     "review"}],
          "findings": [{"id", "position", "kind", "severity", "suggestion",
                        "suggested_value", "method", "evidence"}],
          "out", "cost": {"seconds", "trainings"}, "notes": [str]}
      findings holds the --top worst; --out writes all of them.
    JSON of --report: {"run", "report", "summary", "count", "rows", "out"}
    """
    if report is not None:
        from imprint.cli.clean_audit import report as show

        if methods or kind or like or recall:
            raise MethodError(
                "A report is of the whole set.",
                "Leave out methods, --kind, --like and --recall, or leave out --report.",
            )
        return show(run, report, by, votes, fleet, against, corrections, top, out, as_json)
    if by is not None:
        raise MethodError("--by makes groups for a report.", "Name one: --report macro or --report subpopulations.")
    if votes is not None:
        raise MethodError("--votes are for a report.", "Add --report annotators.")
    if fleet is not None:
        raise MethodError("--fleet is for a report.", "Add --report subpopulations.")
    if against or corrections is not None:
        raise MethodError("--against and --corrections are for a report.", "Add --report stability.")
    import polars as pl

    from imprint.cleaning import alike, clean
    from imprint.cleaning.alike import NAMED
    from imprint.cli.forget import ids_of
    from imprint.cli.output import paragraph
    from imprint.methods import lookup
    from imprint.recording import load

    if recall is not None and like is None:
        raise MethodError("--recall is about examples that are like known ones.", "Add --like FILE, or leave it out.")
    if like is not None and methods:
        raise MethodError("--like is a search of its own.", "Leave out the methods, or leave out --like.")
    folder = o.run_folder(run)
    chosen = [lookup("clean", name).name for name in methods or []]
    kinds_asked = kinds_of(kind)
    loaded = load(folder)
    answer = clean(loaded, chosen or "auto") if like is None else alike(loaded, ids_of(like), recall=recall)
    o.keep(loaded, answer, ["alike"] if like else chosen)
    findings = only(answer, kinds_asked)
    frame = findings.frame()
    kinds = by_kind(frame)
    shown = frame if like is None else frame.filter(pl.col("evidence") != NAMED)  # whoever asks knows the named ones
    worst = shown.sort("severity", descending=True, nulls_last=True, maintain_order=True).head(top)
    path = o.write_table(frame, out) if out else None
    if as_json:
        emit({
            "run": str(folder), "methods": list(findings.methods), "count": len(frame), "kinds": kinds,
            "findings": worst, "out": path, "cost": findings.cost, "notes": list(findings.notes),
        })  # fmt: skip
        return
    say(*overview(kinds, len(frame)))
    if top and len(worst):
        say("", f"Worst {len(worst)}:", *listing(worst))
    say("")
    if like is not None:
        named = len(frame) - len(shown)
        say(*paragraph(f"{named:,} were named, {len(shown):,} more are like them. {' '.join(findings.notes)}"))
    again = f"imprint clean {shell(run)}{f' --like {shell(like)}' if like is not None else ''} --out findings.csv"
    say(f"All findings: {path}" if path else f"All findings to a file: {again}")
    if like is not None and path:
        say(f"Take them out of the model: imprint forget {shell(run)} --findings {shell(out or '')} --known")
    if len(frame):
        fix = f" --findings {shell(out or '')}" if like is not None and path else ""
        say(f"One example: imprint show {shell(run)} --id ID", f"Does fixing help: imprint verify {shell(run)}{fix}")


def kinds_of(text: str | None) -> list[str] | None:
    """The kinds of findings in a comma-separated list; None stays None.

    Raises:
        MethodError: No finding is ever of such a kind.
    """
    from imprint.answers import KINDS

    kinds = o.names(text, "--kind")
    for kind in kinds or []:
        if kind not in KINDS:
            raise MethodError(f"No finding is of the kind '{kind}'.", nearest(kind, KINDS))
    return kinds


def only(findings: Findings, kinds: list[str] | None) -> Findings:
    """The findings of these kinds, or all."""
    from dataclasses import replace

    import polars as pl

    if kinds is None:
        return findings
    return replace(findings, table=findings.table.filter(pl.col("kind").is_in(kinds)))


def by_kind(frame: Any) -> list[dict[str, Any]]:
    """One row per kind of finding: how many, how bad, and which edits are suggested; most findings first."""
    import polars as pl

    counts = [(pl.col("suggestion") == word).sum().alias(word) for word in ("drop", "relabel", "review")]
    table = frame.group_by("kind").agg(
        pl.len().alias("count"), pl.col("severity").median().alias("median_severity"), *counts
    )
    return table.sort(["count", "kind"], descending=[True, False]).to_dicts()


def overview(kinds: list[dict[str, Any]], count: int) -> list[str]:
    """The table of findings by kind."""
    if not count:
        return ["Nothing found."]
    rows = [
        [one["kind"], one["count"], one["median_severity"], one["drop"], one["relabel"], one["review"]] for one in kinds
    ]
    return table(["finding", "count", "median severity", "drop", "relabel", "review"], rows)


def listing(frame: Any) -> list[str]:
    """Findings as lines; those about a column or a class, which have no id, with their evidence."""
    rows = [
        [row["id"], row["position"], row["kind"], row["severity"], advice(row), row["method"]]
        for row in frame.iter_rows(named=True)
        if row["id"] is not None
    ]
    general = [(row["kind"], row["evidence"]) for row in frame.iter_rows(named=True) if row["id"] is None]
    lines = (
        table(["id", "position", "kind", "severity", "suggestion", "method"], rows, indent=2, whole=["id"])
        if rows
        else []
    )
    return lines + pairs(general, indent=2)


def advice(row: dict[str, Any]) -> str:
    value = row.get("suggested_value")
    return (
        f"{row['suggestion']} to {value}"
        if row["suggestion"] == "relabel" and value is not None
        else row["suggestion"] or ""
    )


def read_findings(path: str) -> Any:
    """A table of findings that a user may have edited: .parquet, .csv or .jsonl; or the decisions downloaded from a report, of
    which those that were rejected are left out.

    Raises:
        SourceError: No such file, not readable, or without the columns id and suggestion.
    """
    import polars as pl

    from imprint.errors import SourceError

    frame = read_rows(path, "findings")
    missing = [name for name in ("id", "suggestion") if name not in frame.columns]
    if missing:
        raise SourceError(
            f"'{path}' has no column {' and no column '.join(map(repr, missing))}.",
            "Write it with: imprint clean RUN --out FILE",
        )
    if "decision" in frame.columns:
        frame = frame.filter(pl.col("decision").fill_null("") != "reject")
    return frame


def read_rows(path: str, what: str) -> Any:
    """A table from a .parquet, .csv or .jsonl file; what is in a CSV stays text.

    Raises:
        SourceError: No such file, or not readable.
    """
    import polars as pl

    from imprint.errors import SourceError

    file = Path(o.source_of(path))
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": lambda file: pl.read_csv(file, infer_schema=False),  # an id of 001 stays 001
        ".jsonl": lambda file: pl.read_ndjson(file, infer_schema_length=None),
    }
    if file.suffix not in readers:
        raise SourceError(f"Cannot read {what} from '{path}'.", f"Use a file ending in {', '.join(readers)}.")
    remedy = "Write it with: imprint clean RUN --out FILE" if what == "findings" else "Write it again."
    try:
        return readers[file.suffix](file)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise SourceError(
            f"'{path}' cannot be read as {what}: {(str(error).splitlines() or ['empty'])[0]}.", remedy
        ) from error
