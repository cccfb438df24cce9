"""`imprint fleet`: train the members of a plan, and keep what each says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import clip, emit, folder_size, note, pairs, say, seconds, shell, size, table
from imprint.cli.progress import Stages
from imprint.errors import ImprintError

if TYPE_CHECKING:
    from imprint.fleets import Fleet

LONGEST_PLAN = 300  # characters of a plan that are shown; one that lists ids may have millions


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE|RUN", help="Data as for fit, or a run, whose learner and data are used.")
    ],
    plan: o.PlanText,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FLEET", help="Folder for the fleet.")],
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
    executor: o.ExecutorName = "auto",
    processes: o.Processes = 1,
    engine: o.Engine = "local",
    address: o.Address = None,
    queries: o.Queries = None,
    keep: o.Keep = "auto",
    parameters: o.Parameters = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", "--no-resume", help="Start over in FLEET; else go on where it stopped.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Train many variations of one model, and keep what each says of the data.

    Use it for questions about models that were trained otherwise: without these
    examples, on half of the data, from other seeds, with other settings. The same
    command again goes on with the members that are missing.

    Plans (joined by *, every member of one with every member of the other):
      subsets(256, 0.5)         256 random halves; sizes=[100, 0.5], stratify=True,
                                independent=True
      folds(5)                  all folds but one
      bootstrap(64)             drawn with replacement
      leave_out("group")        without one "group", "target" or "example", or
                                without each list: leave_out([["a", "b"], ["c"]])
      sizes([100, 1000, 1.0])   nested random subsets: numbers, or shares
      mixtures([{"cat": 1, "dog": 0.5}])     weights by class; by="group"
      grid(learning_rate=[0.001, 0.01])      settings of the learner
      seeds(5)                  the same training from seeds 0 to 4

    Examples:
      imprint fleet runs/base --plan "subsets(256, 0.5)" --out fleets/half
      imprint fleet data.csv --target label --plan "folds(5)" --out fleets/folds
      imprint fleet runs/base --plan "sizes([100, 300, 1000]) * seeds(5)" \\
              --queries test --out fleets/curve
      imprint fleet runs/base --plan "subsets(64)" --out fleets/ray --engine ray
      imprint price fleet data.csv --target label --plan "folds(5)"

    What the output means:
      executor  batched: members stacked into one program; sequential: one after
                the other; cluster: as Ray tasks; and why this one
      metrics   mean, standard deviation and range over members, on the test rows
                (only where these are among the queries)
      In Python: imprint.Fleet.load(FLEET).outcomes("margin") is [member, query].

    JSON: {"fleet", "plan", "members", "done", "trained", "executor": {"name",
          "why"}, "seconds", "training_seconds", "queries", "keep", "parameters",
          "bytes", "metrics": [{"name", "mean", "std", "min", "max"}]}
      seconds: of this command; training_seconds: summed over all members.
    """
    run = run_of(source)
    roles = o.roles(target, inputs, id, split, group, weight)
    settings = {
        "model": None if model == "auto" else model, "task": None if task == "auto" else task, "epochs": epochs,
        "batch_size": batch_size, "learning_rate": learning_rate, "device": None if device == "auto" else device,
        "seed": seed or None,
    }  # fmt: skip
    if run is not None:
        refuse(source, {**roles, **settings})
    path = source if run is not None else o.source_of(source)
    import time

    from imprint.corpus import open as open_corpus
    from imprint.fleets import fleet
    from imprint.fleets.plan import Plan
    from imprint.recording import load

    chosen = o.executor_of(executor, processes, engine, address)
    asked = Plan.parse(plan)
    began, before = time.perf_counter(), done_in(Path(out).expanduser()) if not fresh else 0
    with o.making(out) as folder, Stages() as stages:
        try:
            if run is not None:
                learner, corpus = load(run), None
            else:
                learner = o.learner_of(**settings)
                corpus = open_corpus(path, **roles, task=task, seed=seed, progress=stages)
            made = fleet(
                learner, corpus, asked, folder, queries=queries, executor=chosen, keep=keep, parameters=parameters,
                resume=not fresh, progress=stages,
            )  # fmt: skip
        except KeyboardInterrupt:
            note(f"{done_in(folder):,} members are kept in {shell(folder)}; the same command goes on with the others.")
            raise
    document = summary(made, time.perf_counter() - began, before)
    if as_json:
        emit(document)
        return
    say(*lines(document))
    say("", "In Python:", f"  fleet = imprint.Fleet.load({str(made.path)!r})", f"  {example(made)}")


def run_of(source: str) -> Path | None:
    """The folder of the run that SOURCE is, or None where it is data."""
    path = Path(source).expanduser()
    inside = any((folder / "manifest.json").is_file() for folder in (path, path / "run"))
    return o.run_folder(source) if inside else None


def refuse(source: str, given: dict[str, Any]) -> None:
    """Raise where options describe data or a learner while SOURCE is a run, which has both."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if names:
        raise ImprintError(
            f"{source} is a run, which has its data and its learner: {', '.join(names)} cannot change them.",
            "Leave these options out, or give the data instead of the run. Settings may also vary by plan: grid(...).",
        )


def done_in(folder: Path) -> int:
    """Members that are kept in a folder; 0 where it holds no fleet."""
    from imprint.fleets import Fleet

    try:
        return int(Fleet.load(folder).done.sum())
    except ImprintError:
        return 0


def summary(fleet: Fleet, took: float, before: int) -> dict[str, Any]:
    """What was trained and what came of it, in a few facts."""
    metrics = fleet.metrics()
    named = [name for name in metrics.columns if name not in ("member", "seconds")]
    done = int(fleet.done.sum())
    return {
        "fleet": str(fleet.path), "plan": str(fleet.plan), "members": len(fleet), "done": done, "trained": done - before,
        "executor": fleet.manifest["executor"], "seconds": took, "training_seconds": metrics["seconds"].sum(),
        "queries": fleet.manifest["queries"], "keep": fleet.manifest["keep"], "parameters": fleet.manifest["parameters"],
        "bytes": folder_size(fleet.path),
        "metrics": [
            {
                "name": name, "mean": metrics[name].mean(), "std": metrics[name].std(), "min": metrics[name].min(),
                "max": metrics[name].max(),
            }
            for name in named
        ],
    }  # fmt: skip


def lines(document: dict[str, Any]) -> list[str]:
    """The facts as text."""
    chosen = document["executor"]
    kept = {"logits": "logits", "summary": "margin and loss"}[document["keep"]]
    facts = pairs([
        ("fleet", document["fleet"]), ("plan", clip(document["plan"], LONGEST_PLAN)),
        ("members", f"{document['done']:,}, {document['trained']:,} of them trained now"),
        ("executor", f"{chosen['name']} ({chosen['why']})"),
        ("took", f"{seconds(document['seconds'])}; the trainings alone {seconds(document['training_seconds'])}"),
        ("kept", f"{kept} of {document['queries']:,} queries" + (", parameters" if document["parameters"] else "")),
        ("on disk", size(document["bytes"])),
    ])  # fmt: skip
    if not document["metrics"]:
        return [*facts, "", "No metrics: the test rows are not among the queries, or there are none."]
    rows = [[one[name] for name in ("name", "mean", "std", "min", "max")] for one in document["metrics"]]
    return [*facts, "", "On the test rows, over members:", *table(["metric", "mean", "std", "min", "max"], rows, 2)]


def example(fleet: Fleet) -> str:
    """A line of Python that reads the outcomes."""
    field = "margin" if fleet.task.name == "classification" else "loss"
    return f'fleet.outcomes("{field}")  # [{len(fleet):,} members, {fleet.manifest["queries"]:,} queries]'
