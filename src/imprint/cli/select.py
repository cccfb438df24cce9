"""`imprint select`: which examples to train on, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import cell, emit, frame_lines, pairs, paragraph, say, seconds, shell, table
from imprint.cli.progress import Stages
from imprint.errors import MethodError, SourceError

if TYPE_CHECKING:
    from imprint.answers import Selection

# Classes that are shown: those whose share of the training set changes the most.
MOST_CLASSES = 10


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, or of an audit; or of a corpus that was saved.")
    ],
    budget: Annotated[
        str, typer.Option("--budget", "-b", metavar="X", help="A share (0.3, 30%) or a number of examples (500).")
    ] = "0.5",
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="imprint methods --verb select lists them.")
    ] = "random",
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="SPLIT", help="Split to be good at. Default: valid, or half of test."),
    ] = None,
    trusted: Annotated[
        str | None, typer.Option("--trusted", metavar="FILE", help="Ids that are trusted: one a line, or a column id.")
    ] = None,
    entries: Annotated[
        str | None, typer.Option("--entries", metavar="FILE", help="Entries to balance by, one a line.")
    ] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=2, metavar="N", help="Trainings of the fleet; default: the method's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the choice.")] = 0,
    top: Annotated[int, typer.Option("--top", min=0, metavar="N", help="Show the first N choices.")] = 10,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the choice: .parquet, .csv, .jsonl; comparison: .html."
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", metavar="FOLDER", help="Save the smaller corpus there, to train on.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train on what several methods choose, on random and on everything.")
    ] = False,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B", help="To compare. Default: all that serve the run.")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option("--budgets", metavar="X,Y", help="To compare at. Default: 0.1,0.3,0.5.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, metavar="N", help="Trainings of each, to compare. Default: 5.")
    ] = None,
    regimes: Annotated[
        str | None, typer.Option("--regimes", metavar="A,B", help="epochs, steps, time: what is equal. Default: all.")
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="To compare: follow the trainings, for time to accuracy.")
    ] = False,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="To compare: the recorded training counts as time of selecting.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page of a comparison in the browser.")] = False,
    engine: o.Engine = "local",
    address: o.Address = None,
    as_json: o.Json = False,
) -> None:
    """Choose the training examples of RUN that are worth training on.

    Use it when training on everything costs too much, or when a part of the data
    does harm. Nothing is changed: the choice is kept in the run as an answer;
    --corpus saves a corpus with only these training examples and all other splits.

    Start with random: it is hard to beat above a tenth of the data. A score keeps
    the hardest (el2n-top), the easiest (el2n-bottom), or some of every hardness
    (el2n-coverage); cluster-balance and k-center look at what examples look like;
    rs2 takes other examples in each epoch.

    Examples:
      imprint select runs/base --budget 0.3
      imprint select runs/base --budget 0.3 --method el2n-coverage --out chosen.csv
      imprint select runs/base --budget 500 --method k-center --corpus smaller
      imprint fit smaller --out runs/smaller
      imprint select runs/base --budget 20% --method got-d --target valid
      imprint select runs/base --compare --methods rs2,el2n-top --budgets 0.1,0.3
      imprint select runs/base --compare --seeds 3 --regimes steps --curves --open

    What the output means:
      rank    1 = the most wanted; the first half is a choice of half the size
      weight  of the example in the loss, 1 on average
      value   what was ranked by, if anything was: imprint methods NAME says what
              a high one means
      chosen  of each class, how many were chosen; a class that loses most of its
              examples is a class that the model will know less well
      took    what selecting took, evidence that had to be collected included

    --compare trains identical models on each choice, on as many random examples
    and on everything, and shows for each budget
      epochs     the test metric after as many epochs as the run: a third of the
                 examples costs a third of the computation
      steps      after as many steps as on everything: which examples are better?
      time       in the time of training on everything, less that of selecting
      lead       the metric less that of random, on the same seeds and test
                 examples; * where its 95 % interval leaves zero out
      selecting  what it took, evidence that had to be collected included
    The same command again goes on with an interrupted comparison.

    JSON: {"run", "method", "higher", "budget", "examples", "dynamic", "seed",
          "chosen": [{"id", "position", "rank", "weight", "value"}], "classes":
          [{"class", "examples", "chosen"}], "out", "corpus", "sentence",
          "cost": {"seconds", "trainings"}, "notes": [str]}
      chosen holds the --top first; --out writes all of them.
      of --compare: {"run", "metric", "level", "examples", "training",
          "full_seconds", "full_steps", "recorded", "seeds", "rows": [{"method",
          "budget", "regime", "examples", "steps", "seeds", "select_seconds",
          "recorded_seconds", "train_seconds", and METRIC, "over_random",
          "over_full", "worst_group", "ece" (each also with _low and _high),
          "nll"}], "sentence", "cost", "notes", "out", "page"}
    """
    from imprint.cli.verify import known_ids
    from imprint.methods import lookup
    from imprint.selecting import select
    from imprint.selecting.evidence import aims

    asking = {"methods": methods, "budgets": budgets, "seeds": seeds, "regimes": regimes}
    if compare:
        compared(
            run, asking, curves=curves, recorded=recorded, out=out, open_page=open_page, as_json=as_json,
            target=target, trusted=known_ids(trusted) if trusted else None, entries=lines_of(entries) if entries else None,
        )  # fmt: skip
        return
    given = [f"--{name}" for name, value in asking.items() if value is not None]
    given += [name for name, value in (("--curves", curves), ("--recorded", recorded), ("--open", open_page)) if value]
    if given:
        raise MethodError(f"{given[0]} is for a comparison.", "Add --compare, or leave it out.")
    asked = budget_of(budget)
    one = lookup("select", method)
    if target is not None and not aims(one):
        raise MethodError(
            f"--target {target}: the method '{method}' aims at no examples.", "Leave it out, or choose another method."
        )
    source = opened(run)
    with Stages() as stages:
        answer = select(
            source, asked, method, target=target, trusted=known_ids(trusted) if trusted else None,
            entries=lines_of(entries) if entries else None, seed=seed, members=members, progress=stages,
            engine=o.engine_of(engine, address),
        )  # fmt: skip
    own = source.corpus if hasattr(source, "corpus") else source
    if hasattr(source, "corpus"):
        o.keep(source, answer, [method])
    frame = answer.frame()
    written = o.write_table(frame, out) if out else None
    saved = own.apply(answer).save(Path(corpus).expanduser()) if corpus else None
    classes = by_class(answer, own)
    if as_json:
        emit({
            "run": run, "method": method, "higher": answer.higher[method], "budget": answer.budget, "examples": answer.examples,
            "dynamic": answer.dynamic, "seed": seed, "chosen": frame.head(top), "classes": classes, "out": written,
            "corpus": saved, "sentence": answer.summary(), "cost": answer.cost, "notes": answer.notes,
        })  # fmt: skip
        return
    say(*paragraph(answer.summary()))
    if top:
        shown = frame.head(top)
        ranked = "" if shown["value"].null_count() else f" (value: higher = {answer.higher[method]})"
        say("", f"First {len(shown):,} of {len(frame):,}{ranked}:")
        say(*frame_lines(shown.select(name for name in shown.columns if shown[name].null_count() < len(shown))))
    if classes:
        first = sorted(
            classes, key=lambda one: abs(one["chosen"] / one["examples"] - len(frame) / answer.examples), reverse=True
        )
        rows = [
            [cell(one["class"]), one["examples"], one["chosen"], f"{one['chosen'] / one['examples']:.0%}"]
            for one in first
        ]
        more = f" ({MOST_CLASSES} of {len(rows)}, the most changed first)" if len(rows) > MOST_CLASSES else ""
        say("", f"By class{more}:", *table(["class", "examples", "chosen", "share"], rows[:MOST_CLASSES], indent=2))
    took = f"{seconds(answer.seconds)}, {answer.cost['trainings']:.0f} trainings"
    say("", *pairs([("took", took), *(("note", one) for one in answer.notes)]), "")
    say(
        f"All of it: {written}" if written else f"All of it to a file: imprint select {shell(run)} ... --out chosen.csv"
    )
    say(after(run, saved, answer))


def compared(
    run: str,
    asking: dict[str, Any],
    *,
    curves: bool,
    recorded: bool,
    out: str | None,
    open_page: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Compare what several methods choose, and show it."""
    from imprint.cli.compare_selection import show
    from imprint.recording import load
    from imprint.verifying import compare

    folder = o.run_folder(run)
    settings: dict[str, Any] = {name: value for name, value in asking.items() if value is not None}
    for name in ("methods", "budgets", "regimes"):
        if name in settings:
            settings[name] = o.names(settings[name], f"--{name}")
    if "budgets" in settings:
        settings["budgets"] = [budget_of(one) for one in settings["budgets"]]
    loaded = load(folder)
    with Stages() as stages:
        found = compare(loaded, curves=curves, recorded=recorded, progress=stages, **settings, **more)
    show(found, loaded, run, [], out=out, open_page=open_page, as_json=as_json)


def after(run: str, saved: Path | None, answer: Selection) -> str:
    """How to train on the choice."""
    if answer.dynamic:
        return "Train with it, in Python: imprint.Learner(sampler=selection.sampler())"
    if saved is None:
        return f"A corpus to train on: imprint select {shell(run)} ... --corpus smaller"
    return f"Train on it: imprint fit {shell(saved)} --out RUN"


def budget_of(text: str) -> float:
    """A share, a percentage or a number of examples.

    Raises:
        MethodError: It is none of these.

    >>> budget_of("0.3"), budget_of("30%"), budget_of("500")
    (0.3, 0.3, 500)
    """
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise MethodError(
            f"--budget {text} is neither a share nor a number of examples.", "Such as 0.3, 30% or 500."
        ) from None


def opened(text: str) -> Any:
    """The run in a folder, or the corpus that was saved there; neither is a `RunError`."""
    from imprint.corpus import Corpus
    from imprint.recording import load

    folder = Path(text).expanduser()
    if (folder / "corpus.json").is_file() and not (folder / "manifest.json").is_file():
        return Corpus.load(folder)
    return load(o.run_folder(text))


def lines_of(path: str) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        SourceError: There is no such file, or nothing in it.
    """
    found = [line.strip() for line in Path(o.source_of(path)).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise SourceError(f"'{path}' holds no entries.", "Write one a line.")
    return found


def by_class(answer: Selection, corpus: Any) -> list[dict[str, Any]]:
    """How many training examples of each class there are, and how many were chosen; nothing where the target is no class."""
    import polars as pl

    from imprint.tasks import infer

    if corpus.roles.target is None or infer(corpus.target) != "classification":
        return []
    rows = corpus.rows_of(answer.table["id"])
    held = answer.table.select(pl.col("rank").is_not_null().alias("chosen")).with_columns(
        corpus.target.gather(rows).alias("class")
    )
    counts = held.group_by("class").agg(pl.len().alias("examples"), pl.col("chosen").sum())
    return counts.sort("class").to_dicts()
