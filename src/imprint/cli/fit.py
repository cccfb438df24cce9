"""`imprint fit`: train and record."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import cell, emit, pairs, say, seconds, shell, size
from imprint.cli.progress import Stages


def command(
    source: o.Source,
    out: Annotated[str, typer.Option("--out", "-o", metavar="RUN", help="Folder for the run.")],
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
    optimizer: Annotated[str, typer.Option("--optimizer", metavar="NAME", help="adamw, sgd.")] = "adamw",
    learning_rate: o.LearningRate = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", metavar="X", help="Default: by optimizer.")
    ] = None,
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="NAME", help="onecycle, cosine, constant.")
    ] = "onecycle",
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME",
            help="dice, adaptive-dice, focal; of labels also positive-unlabelled, weak-negatives; auto: cross-entropy or squared error.",
        ),
    ] = "auto",
    augment: Annotated[
        str, typer.Option("--augment", metavar="NAME", help="none, flip-crop; auto: for colour photographs.")
    ] = "auto",
    ema: Annotated[
        float | None, typer.Option("--ema", metavar="X", help="Decay of averaged weights, such as 0.999.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="float32, bfloat16, float16; auto: by device.")
    ] = "auto",
    device: o.Device = "auto",
    seed: o.Seed = 0,
    deletable: Annotated[
        str | None,
        typer.Option(
            "--deletable",
            metavar="TEXT",
            help="sisa(shards=5, slices=4) or s3t(shards=2, slices=4, orders=4): examples can be forgotten exactly.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over in RUN, or go on where it stopped.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Train a model on SOURCE and record the training in the folder RUN.

    Use it when you want to ask about a model yourself, step by step: fit, then
    score, clean, verify. To have all of that at once, use imprint audit.

    Roles (target, inputs, id, split) are inferred where there is only one way to
    read them; what was inferred is said, and every option overrides it. The same
    command again resumes an interrupted training and ends with the same weights.

    Examples:
      imprint fit data.csv --target label --out runs/base
      imprint fit reviews.jsonl --target stars --split part --out runs/reviews
      imprint fit photos/ --model cnn --epochs 20 --out runs/photos
      imprint fit flats.parquet --target price --task regression --out runs/flats
      imprint fit spam.csv --target spam --loss adaptive-dice --out runs/spam

    What comes out:
      RUN/manifest.json   what was trained, on what, with which versions
      RUN/checkpoints/    weights (safetensors)
      RUN/evidence/       what the model said of each example in each epoch, the
                          order in which examples were seen, learning curves
      Metrics are those after the last epoch (train: of the training pass itself):
      accuracy and f1 (0 to 1), r2 (at most 1): higher = better; nll in nats, rmse
      and mae in the target's unit: lower = better.

    JSON: {"run", "corpus", "task", "model", "epochs", "status", "seconds",
          "metrics": {split: {name: value}}, "notes": [str]}
    """
    from imprint.corpus import open as open_corpus
    from imprint.recording import fit

    path = o.source_of(source)
    learner = o.learner_of(
        model=model, task=task, epochs=epochs, batch_size=batch_size, optimizer=optimizer, learning_rate=learning_rate,
        weight_decay=weight_decay, schedule=schedule, loss=loss, augment=augment, ema=ema, precision=precision, device=device, seed=seed,
        deletable=deletable,
    )  # fmt: skip
    with o.making(out, "store") as folder, Stages() as stages:
        corpus = open_corpus(
            path,
            **o.roles(target, inputs, id, split, group, weight),
            task=task,
            store=folder / "store",
            seed=seed,
            progress=stages,
        )
        run = fit(learner, corpus, folder, resume=not fresh, progress=stages)
    document = summary(run)
    if as_json:
        emit(document)
        return
    say(*trained(document))
    say("", "Next:", f"  imprint score {shell(folder)}", f"  imprint clean {shell(folder)}")


def summary(run: Any) -> dict[str, Any]:
    """What was trained, in a few facts."""
    from imprint.cli.runs import describe

    facts = describe(run.path)
    return {
        "run": str(run.path), "corpus": run.corpus.fingerprint, "task": run.task.name, "model": facts["model"],
        "epochs": run.learner.epochs, "status": facts["status"], "seconds": facts["seconds"], "bytes": facts["bytes"],
        "metrics": metrics(run), "notes": list(run.corpus.notes),
    }  # fmt: skip


def metrics(run: Any) -> dict[str, dict[str, float]]:
    """The metrics after the last epoch, by split."""
    from imprint.cli.runs import curves

    last = (curves(run.path) or [{}])[-1]
    return {name: value for name, value in last.items() if isinstance(value, dict)}


def trained(document: dict[str, Any]) -> list[str]:
    facts = [
        ("run", document["run"]), ("task", document["task"]), ("model", document["model"]), ("epochs", document["epochs"]),
        ("status", document["status"]), ("took", seconds(document["seconds"])), ("on disk", size(document["bytes"])),
    ]  # fmt: skip
    for split, values in document["metrics"].items():
        facts.append((split, ", ".join(f"{name} {cell(value)}" for name, value in values.items())))
    facts += [("note", note) for note in document["notes"]]
    return pairs(facts)
