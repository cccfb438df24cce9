"""`imprint price`: what will it take, before it is paid?"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from imprint.cli import options as o
from imprint.cli.output import emit, note, pairs, say, seconds, size
from imprint.cli.progress import Stages


def command(
    call: Annotated[
        Literal["audit", "fit", "clean", "verify"], typer.Argument(metavar="CALL", help="audit, fit, clean or verify.")
    ],
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
    device: o.Device = "auto",
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Of the verification.")] = 5,
    folds: Annotated[int, typer.Option("--folds", min=0, metavar="K", help="Of the cross-fitting.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Say the seconds, memory and disk that a command will take.

    Use it before a large job. It opens the data (once; later commands find it in
    the store), trains for a moment, and extrapolates.

    Examples:
      imprint price audit data.csv --target label
      imprint price audit data.csv --target label --seeds 10 --folds 5
      imprint price fit photos/ --epochs 50 --json

    What the output means:
      time       wall-clock time on this machine, as free as it is now
      memory     peak of the process; disk: what the results take
      trainings  how many models are trained in all
      basis      what was measured, and how it was extrapolated

    JSON: {"call", "seconds", "memory_bytes", "disk_bytes", "trainings", "basis",
          "free": {"memory_bytes", "disk_bytes"}}
    """
    path, roles = o.source_of(source), o.roles(target, inputs, id, split, group, weight)
    import shutil

    import psutil

    from imprint.auditing import price
    from imprint.corpus import open as open_corpus

    learner = o.learner_of(model=model, task=task, epochs=epochs, batch_size=batch_size, device=device)
    choices = {
        "audit": {"seeds": seeds, "folds": folds},
        "verify": {"seeds": seeds},
        "clean": {"folds": folds},
        "fit": {},
    }[call]
    with Stages() as stages:
        corpus = open_corpus(path, **roles, task=task, progress=stages)
        found = price(call, learner, corpus, **choices)
    free = {"memory_bytes": psutil.virtual_memory().available, "disk_bytes": shutil.disk_usage(".").free}
    if as_json:
        emit({
            "call": call, "seconds": found.seconds, "memory_bytes": found.memory_bytes, "disk_bytes": found.disk_bytes,
            "trainings": found.trainings, "basis": found.basis, "free": free,
        })  # fmt: skip
        return
    say(*pairs([
        ("time", seconds(found.seconds)), ("memory", f"{size(found.memory_bytes)} ({size(free['memory_bytes'])} free)"),
        ("disk", f"{size(found.disk_bytes)} ({size(free['disk_bytes'])} free here)"), ("trainings", found.trainings),
        ("basis", found.basis),
    ]))  # fmt: skip
    for name, words in (("memory_bytes", "memory"), ("disk_bytes", "disk space")):
        if getattr(found, name) > free[name]:
            note(f"warning: this takes more {words} than is free.")
