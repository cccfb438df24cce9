"""`imprint trace`: which training examples made the model say this?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.example import content, drawing, predicted
from imprint.cli.output import bold, cell, clip, emit, pairs, paragraph, say, seconds, shell, table
from imprint.cli.progress import Stages

if TYPE_CHECKING:
    from imprint.answers import Attribution
    from imprint.recording import Run

LONGEST = 300  # characters of a query's text that are shown


def command(
    run: o.RunPath,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", metavar="ID", help="Explain this prediction; may be repeated.")
    ] = None,
    queries: Annotated[
        str, typer.Option("--queries", metavar="SPLIT", help="Explain all predictions of this split.")
    ] = "test",
    method: Annotated[
        str,
        typer.Option("--method", "-m", metavar="NAME", help="Trace method; imprint methods --verb trace lists them."),
    ] = "datamodel",
    k: Annotated[int, typer.Option("--k", "-k", min=1, metavar="N", help="Examples at either end.")] = 10,
    members: Annotated[
        int | None, typer.Option("--members", min=2, metavar="N", help="Trainings of the fleet; default: the method's.")
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="Show the first N queries.")] = 3,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write all rows: .parquet, .csv, .jsonl.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Find the training examples that help and harm a prediction the most.

    Use it when the model says something odd: what in the training set taught it
    that? A datamodel trains a fleet on random halves of the training set, once;
    the run keeps it, and the next question costs seconds.

    Examples:
      imprint trace runs/base --query u-1832
      imprint trace runs/base --queries test --k 5 --out trace.parquet
      imprint trace runs/base --query u-1832 --members 256
      imprint trace runs/base --query u-1832 --method embedding
      imprint verify runs/base --answer attribution-datamodel

    What the output means:
      rank   1 = raises the query's margin the most, -1 = lowers it the most; the
             margin is the logit of the query's label less the largest other
      score  for a datamodel: logits that the example's presence adds to the
             margin; for similarities: see imprint methods NAME
      With few members scores are noisy: imprint verify measures how far to trust
      them, beside random and similarity.

    JSON: {"run", "method", "higher", "k", "count", "queries": [{"id", "position",
          "split", "target", "predicted": {"value", "probability"}, "content",
          "examples": [{"rank", "id", "position", "score", "target", "content"}]}],
          "out", "cost": {"seconds", "trainings"}, "notes": [str]}
    """
    from imprint.methods import lookup
    from imprint.recording import load
    from imprint.tracing import trace

    folder = o.run_folder(run)
    lookup("trace", method)
    loaded = load(folder)
    with Stages() as stages:
        answer = trace(loaded, query or queries, method, k=k, members=members, progress=stages)
    o.keep(loaded, answer, [method])
    path = o.write_table(answer.frame(), out) if out else None
    names = answer.queries
    shown = [described(loaded, answer, name) for name in (names if query else names[:show])]
    if as_json:
        emit({
            "run": str(folder), "method": method, "higher": answer.higher[method], "k": k, "count": len(names),
            "queries": shown, "out": path, "cost": answer.cost, "notes": list(answer.notes),
        })  # fmt: skip
        return
    say(*paragraph(answer.summary()), "")
    for one in shown:
        say(*lines(one, loaded), "")
    if len(shown) < len(names):
        say(f"and {len(names) - len(shown):,} more queries (--show N, or all rows with --out FILE)", "")
    say(
        *pairs(
            [
                ("cost", f"{seconds(answer.cost['seconds'])}, {answer.cost['trainings']:.0f} trainings"),
                *(("note", note) for note in answer.notes),
                ("all rows", path),
                ("trust", f"imprint verify {shell(run)} --answer attribution-{method}"),
            ]
        )
    )


def described(run: Run, answer: Attribution, query: str) -> dict[str, Any]:
    """A query and its examples, with what they hold and how they are labelled."""
    import polars as pl

    own = answer.frame().filter(pl.col("query") == query)
    rows = run.corpus.rows_of([query, *own["id"]])
    frame = run.corpus.frame(rows).to_dicts()
    targets = run.corpus.target.gather(rows).to_list()
    contents = [content(run.corpus, row) for row in frame]
    examples = [
        {**row, "target": target, "content": held}
        for row, target, held in zip(own.drop("query").to_dicts(), targets[1:], contents[1:], strict=True)
    ]
    return {
        "id": query, "position": frame[0]["position"], "split": frame[0]["split"], "target": targets[0],
        "predicted": predicted(run, int(rows[0])), "content": contents[0], "examples": examples,
    }  # fmt: skip


def lines(query: dict[str, Any], run: Run) -> list[str]:
    """A query beside its most helpful and most harmful examples, as text."""
    said = query["predicted"]
    sure = f" (probability {said['probability']:.3f})" if said.get("probability") is not None else ""
    out = [bold(f"Query {query['id']} ({query['split']})")]
    facts = [("target", query["target"]), ("predicted", f"{cell(said['value'])}{sure}")]
    out += pairs([*facts, *((name, clip(cell(value), LONGEST)) for name, value in query["content"].items())], indent=2)
    pictures = [name for name, kind in run.corpus.kinds.items() if kind == "image"]
    if pictures:
        row = run.corpus.read(run.corpus.rows_of([query["id"]]), pictures).to_dicts()[0]
        out += [f"  {line}" for name in pictures if row[name] for line in drawing(row[name])]
    for title, sign in (("Most helpful", 1), ("Most harmful", -1)):
        rows = [
            [one["rank"], one["id"], one["score"], cell(one["target"]), held(one["content"])]
            for one in query["examples"] if one["rank"] * sign > 0
        ]  # fmt: skip
        out += ["", f"  {title}:", *table(["rank", "id", "score", "target", "content"], rows, indent=4, whole=["id"])]
    return out


def held(content: dict[str, Any]) -> str:
    """What an example holds, in one line: the only column alone, several with their names."""
    values = {name: clip(cell(value), LONGEST) for name, value in content.items()}
    return (
        next(iter(values.values()))
        if len(values) == 1
        else ", ".join(f"{name} {value}" for name, value in values.items())
    )
