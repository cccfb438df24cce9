"""`imprint audit`: the main job, in one command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from imprint.cli import options as o
from imprint.cli.clean import by_kind, overview
from imprint.cli.output import emit, note, pairs, plural, say, seconds, shell
from imprint.cli.progress import Stages
from imprint.cli.verify import document as verdict_document
from imprint.errors import ResourceError

if TYPE_CHECKING:
    from imprint.auditing.recipe import Recipe

# What an audit writes; --fresh removes these and nothing else.
PRODUCTS = ("report.html", "findings.parquet", "recipe.yaml", "summary.json", "corpus", "run", "store", "verify")
QUICK_SEEDS = 2

Out = Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")]
Fresh = Annotated[bool, typer.Option("--fresh/--resume", help="Start over in DIR, or go on where it stopped.")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in the browser at the end.")]


def command(
    source: o.Source,
    target: o.Target = None,
    inputs: o.Inputs = None,
    id: o.Id = None,
    split: o.Split = None,
    group: o.Group = None,
    weight: o.Weight = None,
    task: o.TaskName = "auto",
    model: o.Model = "auto",
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B", help="Only these; default: all that fit the data.")
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            "--folds", min=0, metavar="K", help="Also judge labels by K-fold cross-fitting; K more trainings."
        ),
    ] = 0,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="Trainings before and after the edits. Default: 5."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Retrain before and after the edits, or leave that out.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help=f"A first look: {QUICK_SEEDS} seeds instead of 5.")] = False,
    out: Out = "audit",
    fresh: Fresh = False,
    engine: Annotated[
        Literal["local"], typer.Option("--engine", help="Where trainings run: on this machine.")
    ] = "local",
    open_report: Open = False,
    as_json: o.Json = False,
) -> None:
    """Find what is wrong with a training set, and prove that fixing it helps.

    Use it first: it reads the data, trains one model and records the training,
    scores every example, lists wrong labels, duplicates, leaks, outliers and more,
    applies the suggested edits, retrains with and without them over several
    seeds, and writes a report. The source is never changed.

    Examples:
      imprint audit data.csv --target label
      imprint audit reviews.jsonl.gz --target stars --inputs text --out reviews
      imprint audit photos/ --out audit/photos --open       one folder per class
      imprint audit flats.parquet --target price --task regression --no-verify
      imprint audit big.parquet --target y --quick          a first look
      imprint price audit data.csv --target label           what would it take?

    What comes out, in DIR:
      report.html       open it in a browser; works offline
      findings.parquet  one row per finding: id, position, kind, severity (0 to 1,
                        higher = worse), suggestion (drop, relabel, review)
      corpus/           the data after the suggested edits, ids kept
      run/              the recorded training: imprint show DIR/run
      store/            the data as it was read, which the run looks up
      recipe.yaml       repeat it: imprint run DIR/recipe.yaml

    How to read the verdict: the change of the test metric from before to after the
    edits, averaged over the seeds; accuracy, f1 and r2: higher = better. Where the
    95 % interval holds 0, the seeds do not show that the edits matter.

    The same command again resumes an interrupted audit.

    JSON: {"out", "report", "findings": {"count", "kinds": [{"kind", "count",
          "median_severity", "drop", "relabel", "review"}]},
          "verdict": {"metric", "effect", "interval", "level", "seeds", "before",
                      "after", "controls", "examples", "edits", "sentence"} | null,
          "cost": [{"stage", "seconds"}], "corpus": {"rows", "fingerprint",
          "edited_rows", "edited_fingerprint", "notes"}, "notes": [str],
          "paths": {name: path}}
    """
    path, roles = o.source_of(source), o.roles(target, inputs, id, split, group, weight)
    from imprint.auditing.recipe import Recipe

    recipe = Recipe.of(
        source=path, **roles, task=task,
        learner={
            "model": model, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "device": device, "seed": seed,
        },
        methods=o.names(methods, "--methods") or "auto", seeds=seeds or (QUICK_SEEDS if quick else 5), folds=folds, verify=verify, out=out,
    )  # fmt: skip
    perform(recipe, fresh=fresh, open_report=open_report, as_json=as_json)


def perform(recipe: Recipe, *, fresh: bool, open_report: bool, as_json: bool) -> None:
    """Carry a recipe out and say what came of it."""
    from imprint.auditing import audit

    learner = o.learner_of(**recipe.learner.model_dump(), task=recipe.task)
    with o.making(recipe.out, "recipe.yaml", "store") as folder, Stages() as stages:
        prepare(recipe, folder, fresh)
        result = audit(
            recipe.source, target=recipe.target, inputs=recipe.inputs, id=recipe.id, split=recipe.split, group=recipe.group,
            weight=recipe.weight, task=recipe.task, learner=learner, out=folder, seeds=recipe.seeds, folds=recipe.folds,
            methods=recipe.methods, verify=recipe.verify, progress=stages,
        )  # fmt: skip
    if recipe.fingerprint and result.corpus.fingerprint != recipe.fingerprint:
        note(
            f"note: the data has changed since this recipe was written (fingerprint {recipe.fingerprint}, "
            f"now {result.corpus.fingerprint})."
        )
    document = summary(result, folder)
    if as_json:
        emit(document)
    else:
        say(*lines(document))
    if open_report:
        import webbrowser

        webbrowser.open(Path(result.report).resolve().as_uri())


def prepare(recipe: Recipe, folder: Path, fresh: bool) -> None:
    """Make the folder of results ready: write the recipe, go on, start over, or refuse where something else is in it.

    Raises:
        ResourceError: The folder holds something that is no audit, or the audit of something else.
    """
    from imprint.auditing.recipe import Recipe

    there = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    if not there:
        pass
    elif "recipe.yaml" not in there:
        raise ResourceError(
            f"The folder '{folder}' is not empty and holds no audit ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}).",
            f"Choose another, for example: --out {shell(folder / 'audit')}",
        )
    elif fresh:
        for name in PRODUCTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    elif (folder / "run" / "manifest.json").is_file():
        differing = recipe.training_differences(Recipe.load(folder / "recipe.yaml"))
        if differing:
            raise ResourceError(
                f"The folder '{folder}' holds another audit: {', '.join(differing)} {plural(differing, 'differs', 'differ')}.",
                "Choose another folder with --out, or replace that audit with --fresh.",
            )
        note(f"{folder} holds this audit already; what is recorded there is used again (--fresh starts over).")
    recipe.save(folder / "recipe.yaml")


def summary(result: Any, folder: Path) -> dict[str, Any]:
    """The result as one JSON-able document with stable keys."""
    frame = result.findings.frame()
    verdict = result.verdict
    parts = {name: folder / name for name in ("report.html", "findings.parquet", "corpus", "run", "recipe.yaml")}
    return {
        "out": str(folder),
        "report": str(result.report),
        "findings": {"count": len(frame), "kinds": by_kind(frame)},
        "verdict": None if verdict is None else verdict_document(verdict),
        "cost": result.cost.to_dicts(),
        "notes": list(result.notes),
        "corpus": {
            "rows": len(result.corpus), "fingerprint": result.corpus.fingerprint, "edited_rows": len(result.edited),
            "edited_fingerprint": result.edited.fingerprint, "notes": list(result.corpus.notes),
        },
        "paths": {name: str(path) for name, path in parts.items() if path.exists()},
    }  # fmt: skip


def lines(document: dict[str, Any]) -> list[str]:
    """The short table at the end."""
    corpus, findings = document["corpus"], document["findings"]
    total = sum(stage["seconds"] for stage in document["cost"])
    spent = ", ".join(
        f"{stage['stage']} {seconds(stage['seconds'])}" for stage in document["cost"] if stage["seconds"] >= 0.1
    )
    facts = [
        ("verdict", document["verdict"]["sentence"] if document["verdict"] else "none: nothing was retrained"),
        *(("note", note) for note in document["notes"]),
        ("cost", f"{seconds(total)} ({spent})" if spent else seconds(total)),
        ("report", document["report"]),
        *((name, path) for name, path in document["paths"].items() if path != document["report"]),
    ]
    return [
        "",
        *overview(findings["kinds"], findings["count"]),
        "",
        f"{corpus['rows']:,} examples before the suggested edits, {corpus['edited_rows']:,} after; the source is unchanged.",
        "",
        *pairs(facts),
        "",
        f"Look closer: imprint show {shell(document['out'] + '/run')} --id ID",
    ]
