"""`imprint price`: what will it take, before it is paid?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from imprint.cli import options as o
from imprint.cli.output import emit, note, pairs, say, seconds, size
from imprint.cli.progress import Stages
from imprint.errors import PlanError


def command(
    call: Annotated[
        Literal["audit", "fit", "clean", "verify", "fleet"],
        typer.Argument(metavar="CALL", help="audit, fit, clean, verify or fleet."),
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
    learning_rate: o.LearningRate = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Of the verification.")] = 5,
    folds: Annotated[int, typer.Option("--folds", min=0, metavar="K", help="Of the cross-fitting.")] = 0,
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="Of a fleet; see imprint fleet.")] = None,
    executor: o.ExecutorName = "auto",
    processes: o.Processes = 1,
    engine: o.Engine = "local",
    address: o.Address = None,
    queries: o.Queries = None,
    keep: o.Keep = "auto",
    parameters: o.Parameters = False,
    as_json: o.Json = False,
) -> None:
    """Say the seconds, memory and disk that a command will take.

    Use it before a large job. It opens the data (once; later commands find it in
    the store), trains for a moment, and extrapolates. A fleet is priced from a few
    steps of a few members, trained by the executor that would train them all.

    Examples:
      imprint price audit data.csv --target label
      imprint price audit data.csv --target label --seeds 10 --folds 5
      imprint price fit photos/ --epochs 50 --json
      imprint price fleet data.csv --target label --plan "subsets(256, 0.5)"

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

    learner = o.learner_of(
        model=model,
        task=task,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device,
        seed=seed,
    )
    choices: dict[str, Any] = {
        "audit": {"seeds": seeds, "folds": folds},
        "verify": {"seeds": seeds},
        "clean": {"folds": folds},
        "fit": {},
    }.get(call, {})
    if call == "fleet":
        if plan is None:
            raise PlanError("The price of a fleet needs a plan.", 'Add for example --plan "subsets(256, 0.5)".')
        choices = {
            "plan": plan, "executor": o.executor_of(executor, processes, engine, address), "queries": queries,
            "keep": keep, "parameters": parameters,
        }  # fmt: skip
    elif plan is not None:
        raise PlanError(f"--plan is for a fleet, not for {call}.", "Use imprint price fleet, or leave it out.")
    with Stages() as stages:
        corpus = open_corpus(path, **roles, task=task, seed=seed, progress=stages)
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
