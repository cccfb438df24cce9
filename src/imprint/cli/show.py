"""`imprint show`: what is there? A corpus, a run, an answer, an audit, or everything known of one example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from imprint.cli import example as one
from imprint.cli import options as o
from imprint.cli.output import bold, cell, emit, frame_lines, pairs, say, seconds, shell, size, sparkline, table
from imprint.cli.progress import Stages
from imprint.cli.runs import curves, describe, search
from imprint.errors import RunError

MOST_VALUES = 10


def command(
    thing: Annotated[
        str, typer.Argument(metavar="THING", help="A run, an answer, a corpus, an audit's folder, or a data file.")
    ],
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Show everything known of this example.")] = None,
    head: Annotated[
        int, typer.Option("--head", min=0, metavar="N", help="Show the first N rows of a corpus or an answer.")
    ] = 5,
    target: o.Target = None,
    inputs: o.Inputs = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", metavar="COL", help="For a data file: the column of ids.")
    ] = None,
    split: o.Split = None,
    group: o.Group = None,
    weight: o.Weight = None,
    task: o.TaskName = "auto",
    as_json: o.Json = False,
) -> None:
    """Look into a corpus, a run, an answer, an audit, or one example.

    Use it on a data file to see how Imprint reads it, before any training: roles,
    kinds of columns, splits, classes, rows that cannot be read.
    Use it on a run to see its settings and curves, and with --id to see all that
    is known of one example.

    Examples:
      imprint show data.csv --target label
      imprint show runs/base
      imprint show runs/base --id u-1832
      imprint show runs/base/answers/clean --head 20
      imprint show audit/corpus

    What the output means:
      Curves are drawn from their lowest to their highest value, one block per
      epoch; the numbers beside are the first and the last value.
      position is the row number in the source (from 0), or the file's path.
      For one example: "agrees" is the share of epochs in which the model
      predicted its label; margin is the label's logit less the largest other
      one, below 0 = the model disagrees.

    JSON: {"what": "corpus" | "run" | "answer" | "audit" | "example", ...}
      corpus:  rows, modality, roles, kinds, splits, task, values, fingerprint,
               parent, edits, notes, set_aside, head
      run:     path, manifest, curves, answers
      answer:  path, answer, count, head
      audit:   path, files, recipe, findings, run
      example: id, position, split, target, content, predicted, trajectory,
               scores, findings, seen
    """
    path = Path(thing).expanduser()
    if id is not None:
        folder = o.run_folder(thing)
        document, lines = one.describe(folder, id)
    elif (path / "manifest.json").is_file() and not (path / "corpus.json").is_file():
        document, lines = show_run(path)
    elif (path / "answer.json").is_file():
        document, lines = show_answer(path, head)
    elif (path / "recipe.yaml").is_file():
        document, lines = show_audit(path)
    else:
        if path.is_dir() and not (path / "corpus.json").is_file() and (runs := search(path)):
            raise RunError(
                f"'{thing}' is neither a run nor data, but a folder with {len(runs)} runs below.",
                f"List them: imprint runs {shell(thing)}",
            )
        source, roles = o.source_of(thing), o.roles(target, inputs, id_column, split, group, weight)
        from imprint.corpus import open as open_corpus

        with Stages() as stages:
            corpus = open_corpus(source, **roles, task=task, progress=stages)
        document, lines = show_corpus(corpus, head, task)
    if as_json:
        emit(document)
    else:
        say(*lines)


def show_corpus(corpus: Any, head: int, task: str = "auto") -> tuple[dict[str, Any], list[str]]:
    """Roles, kinds, splits, values of the target, notes, and the first rows."""
    from imprint import tasks

    has_target = corpus.roles.target is not None
    inferred = (tasks.infer(corpus.target) if task == "auto" else task) if has_target else None
    document: dict[str, Any] = {
        "what": "corpus", "rows": len(corpus), "modality": corpus.modality, "roles": vars_of(corpus.roles),
        "kinds": corpus.kinds, "splits": corpus.splits, "task": inferred,
        "values": values(corpus.target, inferred) if has_target else None,
        "fingerprint": corpus.fingerprint, "parent": corpus.parent, "edits": [str(edit) for edit in corpus.edits],
        "notes": list(corpus.notes), "set_aside": {"count": len(corpus.set_aside), "first": corpus.set_aside.head(MOST_VALUES)},
        "head": corpus.frame(corpus.rows()[:head]) if head else [],
    }  # fmt: skip
    roles = {name: value for name, value in document["roles"].items() if name != "inputs" and value}
    kinds: dict[str, list[str]] = {}
    for column, kind in corpus.kinds.items():
        kinds.setdefault(kind, []).append(column)
    lines = [bold(f"Corpus of {len(corpus):,} examples ({corpus.modality})"), ""]
    lines += pairs(
        [
            *roles.items(),
            *((f"{kind} inputs", f"{len(columns)}: {', '.join(columns)}") for kind, columns in kinds.items()),
            ("splits", ", ".join(f"{name} {count:,}" for name, count in corpus.splits.items())),
            ("task", inferred),
            ("fingerprint", corpus.fingerprint),
            ("made from", corpus.parent),
            *(("edit", edit) for edit in document["edits"]),
            *(("note", note) for note in corpus.notes if not note.startswith("inputs: ")),
        ]
    )
    if document["values"]:
        lines += ["", *value_lines(document["values"])]
    if len(corpus.set_aside):
        lines += ["", f"Set aside, unreadable: {len(corpus.set_aside):,}"]
        lines += table(
            ["position", "reason"], [list(row) for row in corpus.set_aside.head(MOST_VALUES).rows()], indent=2
        )
    if head:
        lines += [
            "",
            f"First {min(head, len(corpus))}:",
            *frame_lines(target_first(document["head"], corpus.roles.target)),
        ]
    return document, lines


def values(target: Any, task: str | None) -> list[dict[str, Any]]:
    """The most frequent values of a target with their counts; five quantiles for a regression target."""
    import polars as pl

    if task == "regression":
        numbers = target.cast(pl.Float64)
        return [{"quantile": q, "value": numbers.quantile(q)} for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    flat = target.explode() if target.dtype == pl.List else target
    counts = flat.rename("value").value_counts(sort=True, name="count")
    return counts.sort(["count", "value"], descending=[True, False]).to_dicts()


def value_lines(found: list[dict[str, Any]]) -> list[str]:
    if "quantile" in found[0]:
        return pairs([("target", ", ".join(f"{q['quantile']:.0%} {cell(q['value'])}" for q in found))])
    total = sum(row["count"] for row in found)
    most = max(row["count"] for row in found)
    rows = [
        [cell(row["value"]), row["count"], f"{row['count'] / total:.1%}", "█" * max(1, round(20 * row["count"] / most))]
        for row in found[:MOST_VALUES]
    ]
    more = [f"and {len(found) - MOST_VALUES} more values"] if len(found) > MOST_VALUES else []
    return [*table(["target", "count", "share", ""], rows), *more]


def target_first(frame: Any, target: str | None) -> Any:
    """The frame with the target before the inputs, so that it is seen where not all columns fit."""
    names = [name for name in frame.columns if name != target]
    place = 3 if names[:3] == ["id", "position", "split"] else 0
    return frame.select([*names[:place], target, *names[place:]] if target in frame.columns else names)


def setting(value: Any) -> str:
    """A setting of a learner in few words; a sampler by its name and its numbers.

    >>> setting({"sampler": "fixed", "order": [4, 1, 7], "weights": None})
    'fixed (order: 3 values)'
    """
    if not isinstance(value, dict):
        return cell(value)
    parts = [
        f"{name}: {len(one)} values" if isinstance(one, list) else f"{name} {cell(one)}"
        for name, one in value.items()
        if name != "sampler" and one is not None
    ]
    return f"{value.get('sampler')} ({', '.join(parts)})" if parts else str(value.get("sampler"))


def show_run(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings, curves and answers of a run, from its manifest and small files alone."""
    manifest = read_json(path / "manifest.json")
    facts = describe(path)
    epochs = curves(path)
    answers = sorted(one.parent.name for one in path.glob("answers/*/answer.json"))
    document = {"what": "run", "path": str(path), "manifest": manifest, "curves": epochs, "answers": answers}
    learner = manifest.get("learner") or {}
    settings = ", ".join(
        f"{name} {setting(value)}"
        for name, value in learner.items()
        if name not in ("model", "task") and value is not None
    )
    lines = [bold(f"Run {path}"), ""]
    lines += pairs(
        [
            ("status", facts["status"]), ("corpus", facts["corpus"]), ("rows", facts["rows"]), ("task", facts["task"]),
            ("model", facts["model"]), ("settings", settings), ("took", seconds(facts["seconds"]) if facts["seconds"] else None),
            ("on disk", size(facts["bytes"])),
            ("answers", answers or "none yet: imprint score, imprint clean"),
        ]
    )  # fmt: skip
    if epochs:
        lines += ["", f"Curves over {len(epochs)} epochs:", *curve_lines(epochs)]
    return document, lines


def curve_lines(epochs: list[dict[str, Any]]) -> list[str]:
    """Each numeric curve as a sparkline with its first and last value."""
    flat_epochs = [flatten(epoch) for epoch in epochs]
    rows = []
    for name in (name for name in flat_epochs[-1] if name not in ("epoch", "step", "seconds")):
        curve = [epoch.get(name) for epoch in flat_epochs]
        step = max(1, -(-len(curve) // 30))
        rows.append([name, sparkline(curve[::step]), cell(curve[0]), cell(curve[-1])])
    return table(["", "", "first", "last"], rows, indent=2)


def flatten(epoch: dict[str, Any]) -> dict[str, float]:
    """One epoch of the curves with "test accuracy" for the accuracy under "test"."""
    found: dict[str, float] = {}
    for name, value in epoch.items():
        if isinstance(value, dict):
            found |= {f"{name} {metric}": number for metric, number in value.items()}
        elif isinstance(value, int | float):
            found[name] = value
    return found


def show_answer(path: Path, head: int) -> tuple[dict[str, Any], list[str]]:
    """What an answer says of itself, and its first rows."""
    import lance
    import polars as pl

    about = read_json(path / "answer.json")
    data = lance.dataset(str(path / "table.lance"))
    count = data.count_rows()
    frame = pl.from_arrow(data.to_table(limit=head)) if head else pl.DataFrame()
    document = {"what": "answer", "path": str(path), "answer": about, "count": count, "head": frame}
    lines = [bold(f"Answer {path} ({count:,} rows)"), "", *pairs(about_answer(about))]
    if head:
        lines += ["", f"First {min(head, count)}:", *frame_lines(frame)]
    return document, lines


def show_audit(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The parts of an audit's folder."""
    import polars as pl

    from imprint.auditing.recipe import Recipe
    from imprint.cli.clean import by_kind, overview

    recipe = Recipe.load(path / "recipe.yaml")
    files = sorted(one.name + ("/" if one.is_dir() else "") for one in path.iterdir() if not one.name.startswith("."))
    kinds, count = [], 0
    if (path / "findings.parquet").is_file():
        findings = pl.read_parquet(path / "findings.parquet")
        kinds, count = by_kind(findings), len(findings)
    run, run_lines = show_run(path / "run") if (path / "run" / "manifest.json").is_file() else (None, [])
    document = {
        "what": "audit", "path": str(path), "files": files, "recipe": recipe.model_dump(mode="json"),
        "findings": {"count": count, "kinds": kinds}, "run": run,
    }  # fmt: skip
    lines = [
        bold(f"Audit {path}"),
        "",
        *pairs([("source", recipe.source), ("target", recipe.target), ("files", files)]),
        "",
    ]
    if (path / "findings.parquet").is_file():
        lines += [*overview(kinds, count), ""]
    else:
        lines += [f"Not finished. The same command again resumes it: imprint run {shell(path / 'recipe.yaml')}", ""]
    return document, [*lines, *run_lines]


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}.", "Restore it, or train again.") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} holds no mapping.", "Restore it, or train again.")
    return found


def about_answer(about: dict[str, Any]) -> list[tuple[str, Any]]:
    """What an answer says of itself; what it says of each method stands with the method."""
    by_method = ("methods", "source", "higher")
    facts: list[tuple[str, Any]] = []
    for name, value in about.items():
        if name not in by_method:
            said = ", ".join(f"{key} {cell(item)}" for key, item in value.items()) if isinstance(value, dict) else value
            facts.append((name, said))
    for method in about.get("methods", []):
        higher, source = (about.get(name, {}).get(method) for name in ("higher", "source"))
        facts.append((method, "; ".join(filter(None, [f"higher = {higher}" if higher else "", source]))))
    return facts


def vars_of(roles: Any) -> dict[str, Any]:
    """The fields of a dataclass, inputs as a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(roles).items()}
