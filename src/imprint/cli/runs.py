"""`imprint runs`: which runs are there? Reads manifests alone, so it answers at once."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from imprint.cli.options import Json
from imprint.cli.output import emit, folder_size, say, size, table
from imprint.errors import SourceError

# Task -> the metric that its verdicts are made on (`Task.headline`, which cannot be read without importing torch).
HEADLINES = {"classification": "accuracy", "regression": "r2", "multilabel": "f1"}
# Folders below a run, and folders that are never searched.
WITHIN = {"evidence", "checkpoints", "answers", "encoder", "corpus", "node_modules", "__pycache__"}


def command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look, with all folders below.")] = ".",
    as_json: Json = False,
) -> None:
    """List the runs under a folder.

    Use it to find a run again, or to compare several. A run is one recorded
    training: the folder that imprint fit writes, and AUDIT/run of an audit.

    Examples:
      imprint runs
      imprint runs ~/experiments
      imprint runs --json | jq -r '.runs[] | select(.status != "complete").path'

    What the columns mean:
      status  complete, running, or interrupted (the same command again resumes it)
      metric  accuracy, r2 or f1 after the last epoch, higher = better; on the test
              split (at most 5000 rows of it) where there is one
      when    start of the training, in local time

    JSON: {"runs": [{"path", "corpus", "rows", "task", "model", "status",
          "metric", "value", "split", "started", "seconds", "bytes"}]}
      corpus is the fingerprint of the data; seconds is the training time.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SourceError(f"No folder '{folder}'.", f"You are in {Path.cwd()}.")
    found = [describe(path) for path in search(root)]
    found.sort(key=lambda one: one["started"] or "", reverse=True)
    if as_json:
        emit({"runs": found})
    elif not found:
        say(f"No runs under {root}. Make one: imprint fit DATA --target COLUMN --out RUN")
    else:
        rows = [
            [
                one["path"], one["model"], one["status"],
                f"{one['metric']} {one['value']:.4f}" if one["value"] is not None else None, local(one["started"]), size(one["bytes"]),
            ]
            for one in found
        ]  # fmt: skip
        names = ["path", "model", "status", "metric", "when", "size"]
        say(*table(names, rows, whole=[name for name in names if name != "model"]))


def search(root: Path) -> list[Path]:
    """Folders that hold a run's manifest, not looking inside runs or hidden folders."""
    found = []
    for folder, below, files in os.walk(root):
        if "manifest.json" in files and is_run(Path(folder)):
            found.append(Path(folder))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".") and name not in WITHIN]
    return found


def is_run(folder: Path) -> bool:
    """Web applications have a manifest.json too: a run's says what was trained."""
    return any((folder / name).exists() for name in ("examples.lance", "evidence", "checkpoints", "lock"))


def describe(path: Path) -> dict[str, Any]:
    """One run in a few facts, from its manifest and curves; damaged ones say so."""
    facts: dict[str, Any] = dict.fromkeys(
        ("path", "corpus", "rows", "task", "model", "status", "metric", "value", "split", "started", "seconds", "bytes")
    )
    facts |= {"path": str(path), "bytes": folder_size(path)}
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        facts["status"] = manifest.get("status")
    except (OSError, ValueError):
        return facts | {"status": "damaged"}
    corpus, learner, task = (manifest.get(key) or {} for key in ("corpus", "learner", "task"))
    facts["corpus"] = corpus.get("fingerprint") if isinstance(corpus, dict) else corpus
    facts["rows"] = corpus.get("rows") if isinstance(corpus, dict) else None
    facts["task"] = task.get("name") if isinstance(task, dict) else task
    facts["model"] = learner.get("model") if isinstance(learner, dict) else None
    facts["started"] = manifest.get("started") or manifest.get("created")
    facts["seconds"] = manifest.get("seconds")
    return facts | headline(path, facts["task"])


def headline(path: Path, task: str | None) -> dict[str, Any]:
    """The last value of the task's first metric: on the test split, or another one, or the training pass."""
    last = (curves(path) or [{}])[-1]
    splits = sorted(
        (name for name, value in last.items() if isinstance(value, dict)), key=lambda s: (s != "test", s == "train", s)
    )
    metric = HEADLINES.get(task or "")
    for split in splits:
        if last[split].get(metric) is not None:
            return {"metric": metric, "value": last[split][metric], "split": split}
    return {}


def curves(path: Path) -> list[dict[str, Any]]:
    """The curves of a run: one entry per epoch, metrics of a split under its name. Empty where there are none (yet)."""
    try:
        found = json.loads((path / "evidence" / "curves.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def local(started: str | None) -> str:
    """An ISO time in UTC as local time without year and seconds."""
    if not started:
        return ""
    moment = datetime.fromisoformat(started)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%b %d %H:%M")
