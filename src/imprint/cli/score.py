"""`imprint score`: one number per example and method."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import emit, frame_lines, say, shell, table
from imprint.errors import MethodError, nearest

# What the most remarkable examples of a method are, by what its high values mean; else the hardest.
FIRST = {"more valuable": "Least valuable", "more memorised": "Most memorised"}


def command(
    run: o.RunPath,
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD...]", help="Names; default: all that cost no training.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, metavar="N", help="Show the N most remarkable examples.")] = 10,
    by: Annotated[
        str | None, typer.Option("--by", metavar="METHOD", help="Order by this method. Default: the first.")
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(
            "--members", min=2, metavar="N", help="Models (shapley: random orders) of a fleet. Default: 64 (32)."
        ),
    ] = None,
    engine: o.Engine = "local",
    address: o.Address = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write all scores: .parquet, .csv, .jsonl.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Score each training example of RUN.

    Use it to find out which examples are hard, ambiguous, learned late, forgotten,
    or at odds with their label. Scores from recorded dynamics take no training.
    Those that compare models which saw an example with models which did not
    (memorisation, banzhaf, data-oob, shapley) train a fleet once and keep it in
    RUN/fleets; interrupted, it goes on with the models that are missing.

    Examples:
      imprint score runs/base
      imprint score runs/base el2n aum --top 20 --by aum
      imprint score runs/base forgetting --out scores.parquet
      imprint score runs/base memorisation banzhaf --members 256
      imprint score runs/base grand --engine ray --address HOST:6379
      imprint score runs/base --json --top 100 | jq -r '.examples[].id'

    What the output means:
      Each method's line says what a high value means: "harder" or "easier".
      Below, the most remarkable examples first: the hardest ones, that is, high
      values of a "harder" method and low values of an "easier" one, and the
      least valuable ones by a method whose high values are "more valuable".
      Units: loss in nats (regression: squared standard deviations of the target),
      margins in logits, confidence and el2n without unit. See: imprint methods NAME

    JSON: {"run", "methods": [{"name", "higher", "source", "min", "median", "max"}],
          "by", "examples": [{"id", "position", "split", METHOD: value}],
          "count", "out", "cost": {"seconds", "trainings"}, "notes": [str]}
    """
    from imprint.cli.progress import Stages
    from imprint.methods import lookup
    from imprint.recording import load
    from imprint.scoring import score

    folder = o.run_folder(run)
    chosen = [lookup("score", name) for name in methods or []]
    where = o.engine_of(engine, address)
    loaded = load(folder)
    with Stages() as stages:
        scores = score(loaded, [one.name for one in chosen] or "auto", members, progress=stages, engine=where)
    o.keep(loaded, scores, [one.name for one in chosen])
    frame = scores.frame()
    names = list(scores.methods)
    by = by or names[0]
    if by not in names:
        raise MethodError(f"'{by}' is not among the methods that were asked.", nearest(by, names))
    table_of = [column_facts(frame, lookup("score", name)) for name in names]
    ordered = most_remarkable(frame, lookup("score", by), top)
    path = o.write_table(frame, out) if out else None
    if as_json:
        emit({
            "run": str(folder), "methods": table_of, "by": by, "examples": ordered, "count": len(frame),
            "out": path, "cost": scores.cost, "notes": list(scores.notes),
        })  # fmt: skip
        return
    say(
        *table(
            ["method", "higher =", "min", "median", "max"],
            [[m["name"], m["higher"], m["min"], m["median"], m["max"]] for m in table_of],
        )
    )
    if top:
        first = FIRST.get(scores.higher[by], "Hardest")
        say("", f"{first} {len(ordered)} of {len(frame)} by {by}:")
        shown = ["id", "position", by]
        say(*frame_lines(ordered.select(*shown, *(name for name in names if name != by))))
    if scores.notes:
        say("", *scores.notes)
    say("", f"All scores: {path}" if path else f"All scores to a file: imprint score {shell(run)} --out scores.parquet")
    say(f"One example: imprint show {shell(run)} --id ID")


def column_facts(frame: Any, method: Any) -> dict[str, Any]:
    """Sign, source and spread of one method's column."""
    values = frame[method.name]
    return {
        "name": method.name, "higher": method.higher, "source": method.source,
        "min": values.min(), "median": values.median(), "max": values.max(),
    }  # fmt: skip


def most_remarkable(frame: Any, method: Any, top: int) -> Any:
    """The `top` examples at the hard (or worthless) end of a method, with every method's column."""
    ascending = method.higher.startswith(("easier", "more valuable"))
    return frame.sort(method.name, descending=not ascending, nulls_last=True).head(top)
