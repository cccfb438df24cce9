"""`imprint trace`: which training examples made the model say this?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.example import content, drawing, predicted
from imprint.cli.output import bold, cell, clip, emit, note, pairs, paragraph, say, seconds, shell, table
from imprint.cli.progress import Stages

if TYPE_CHECKING:
    from imprint.answers import Attribution
    from imprint.recording import Run
    from imprint.reporting import Explanation
    from imprint.reporting.explanation import Shown

MINUS = "\u2212"
LONGEST = 300  # characters of a query's text that are shown
PAGE = "explanation.html"


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
        typer.Option(
            "--method", "-m", metavar="NAME", help="Trace method; imprint methods --verb trace lists them; or auto."
        ),
    ] = "datamodel",
    k: Annotated[int, typer.Option("--k", "-k", min=1, metavar="N", help="Examples at either end.")] = 10,
    members: Annotated[
        int | None, typer.Option("--members", min=2, metavar="N", help="Trainings of the fleet; default: the method's.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", help="For auto: what the method may take. Default: 600."),
    ] = None,
    engine: o.Engine = "local",
    address: o.Address = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="Show the first N queries.")] = 3,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write all rows: .parquet, .csv, .jsonl; or a page: .html."),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open a page with the queries that are shown in the browser.")
    ] = False,
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
      imprint trace runs/base --query u-1832 --method auto --budget 60
      imprint trace runs/base --query u-1832 --open
      imprint trace runs/base --method trak --engine ray --address HOST:6379
      imprint verify runs/base --answer attribution-datamodel

    What the output means:
      rank   1 = raises the query's margin the most, -1 = lowers it the most; the
             margin is the logit of the query's label less the largest other
      score  for a datamodel: logits that the example's presence adds to the
             margin; for similarities: see imprint methods NAME
      With few members scores are noisy: imprint verify measures how far to trust
      them, beside random and similarity.
      words    of a model that reads words (transformer): those that count the
               most, + for the query and − against it. Of the query: for its
               margin; of an example: for gradient-dot, what training on it does
      shares   words of a text that the query has too, the rarest first: it
               compares the texts, and is not what the model looked at
      differs  columns of a row that differ from the query's, numbers by more than
               half a standard deviation

    auto measures every method that serves the run on models that no method has
    seen, once, and takes the one that predicts them best within the budget; of
    those not clearly worse, the cheapest. The notes say what was measured.

    JSON: {"run", "method", "higher", "k", "count", "queries": [{"id", "position",
          "split", "target", "predicted": {"value", "probability"}, "content",
          "examples": [{"rank", "id", "position", "score", "target", "predicted",
          "words": [{"word", "score"}] or "shares" or "differs": [str],
          "content"}]}], "out", "page",
          "cost": {"seconds", "trainings"}, "notes": [str]}
    """
    from imprint.methods import lookup
    from imprint.recording import load
    from imprint.reporting import explain
    from imprint.tracing import trace

    folder = o.run_folder(run)
    if method != "auto":
        lookup("trace", method)
    where = o.engine_of(engine, address)
    loaded = load(folder)
    with Stages() as stages:
        answer = trace(
            loaded, query or queries, method, k=k, members=members, progress=stages, budget=budget, engine=where
        )
    method = answer.method
    o.keep(loaded, answer, [method])
    as_page = out is not None and Path(out).suffix == ".html"
    rows = o.write_table(answer.frame(), out) if out and not as_page else None
    names = answer.queries
    looked = names if query else names[:show]
    if open_page or as_page:
        found = explain(loaded, answer, looked or names[:1])
        page = write_page(
            found, Path(out).expanduser() if out and as_page else folder / "answers" / found.answer / PAGE
        )
    else:
        found, page = explain(loaded, answer, looked), None
    if open_page and page:
        opened(page)
    shown = [described(loaded, answer, found, name) for name in looked]
    if as_json:
        emit({
            "run": str(folder), "method": method, "higher": answer.higher[method], "k": k, "count": len(names),
            "queries": shown, "out": rows, "page": page, "cost": answer.cost, "notes": list(answer.notes),
        })  # fmt: skip
        return
    say(*paragraph(answer.summary()), "")
    for one in shown:
        say(*lines(one, loaded, found.ends), "")
    if len(shown) < len(names):
        say(f"and {len(names) - len(shown):,} more queries (--show N, or all rows with --out FILE)", "")
    say(
        *pairs(
            [
                ("cost", f"{seconds(answer.cost['seconds'])}, {answer.cost['trainings']:.0f} trainings"),
                *(("note", one) for one in answer.notes),
                ("all rows", rows),
                ("page", page),
                ("trust", f"imprint verify {shell(run)} --answer attribution-{method}"),
            ]
        )
    )


def write_page(found: Explanation, path: Path) -> Path:
    """Write the page of an explanation.

    Raises:
        ResourceError: It cannot be written there.
    """
    from imprint.reporting import write_explanation

    o.writable(path.parent)
    return write_explanation(path, found)


def opened(page: Path) -> None:
    """Show a local file in the browser; where there is none, say so."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        note(f"note: no browser could be opened; the page is {page}")


def described(run: Run, answer: Attribution, found: Explanation, query: str) -> dict[str, Any]:
    """A query and its examples, with what they hold, how they are labelled, and how they compare."""
    import polars as pl

    own = answer.frame().filter(pl.col("query") == query)
    rows = run.corpus.rows_of([query, *own["id"]])
    frame = run.corpus.frame(rows).to_dicts()
    targets = run.corpus.target.gather(rows).to_list()
    contents = [content(run.corpus, row) for row in frame]
    explained = next(one for one in found.queries if one.query.id == query)
    examples = [
        {**row, "target": target, **compared(shown, found.marked), "content": held}
        for row, target, shown, held in zip(
            own.drop("query").to_dicts(), targets[1:], explained.helpful + explained.harmful, contents[1:], strict=True
        )
    ]
    own_words = {"words": scored(explained.query)} if found.marked == "scores" else {}
    return {
        "id": query, "position": frame[0]["position"], "split": frame[0]["split"], "target": targets[0],
        "predicted": predicted(run, int(rows[0])), "content": contents[0], **own_words, "examples": examples,
    }  # fmt: skip


def compared(shown: Shown, marked: str) -> dict[str, Any]:
    """What the model says of an example, and how it compares with the query."""
    if marked == "scores":
        return {"predicted": shown.predicted, "words": scored(shown)}
    marks = {"words": "shares", "columns": "differs"}.get(marked)
    return {"predicted": shown.predicted, **({marks: list(shown.marks)} if marks else {})}


def scored(shown: Shown) -> list[dict[str, Any]]:
    """The words with the largest scores."""
    return [{"word": name, "score": score} for name, score in shown.words]


def lines(query: dict[str, Any], run: Run, ends: tuple[str, str]) -> list[str]:
    """A query beside its most helpful and most harmful examples, as text."""
    said = query["predicted"]
    sure = f" (probability {said['probability']:.3f})" if said.get("probability") is not None else ""
    out = [bold(f"Query {query['id']} ({query['split']})")]
    facts = [("target", query["target"]), ("predicted", f"{cell(said['value'])}{sure}")]
    if "words" in query:
        facts.append(("words", spoken(query["words"])))
    out += pairs([*facts, *((name, clip(cell(value), LONGEST)) for name, value in query["content"].items())], indent=2)
    pictures = [name for name, kind in run.corpus.kinds.items() if kind == "image"]
    if pictures:
        row = run.corpus.read(run.corpus.rows_of([query["id"]]), pictures).to_dicts()[0]
        out += [f"  {line}" for name in pictures if row[name] for line in drawing(row[name])]
    marks = next(
        (name for name in ("words", "shares", "differs") if query["examples"] and name in query["examples"][0]), None
    )
    head = [
        "rank",
        "id",
        "score",
        "target",
        *{"words": ["words", "content"], "shares": ["shares", "content"], "differs": ["differs"]}.get(
            str(marks), ["content"]
        ),
    ]
    for title, sign in zip(ends, (1, -1), strict=True):
        rows = [
            [one["rank"], one["id"], one["score"], labelled(one), *told(one, marks)]
            for one in query["examples"] if one["rank"] * sign > 0
        ]  # fmt: skip
        out += ["", f"  {title}:", *table(head, rows, indent=4, whole=["id"])]
    return out


def labelled(example: dict[str, Any]) -> str:
    """The label of an example, and what the model says where that is something else."""
    label, says = cell(example["target"]), example["predicted"]
    return label if says is None or says == label else f"{label} (says {says})"


def told(example: dict[str, Any], marks: str | None) -> list[str]:
    """What an example holds, beside what it shares with the query; of a row, where it differs."""
    if marks == "words":
        return [spoken(example["words"]), held(example["content"])]
    if marks == "shares":
        return [" ".join(example["shares"]) or "none", held(example["content"])]
    if marks == "differs":
        return [held({name: example["content"][name] for name in example["differs"]}, named=True) or "nowhere"]
    return [held(example["content"])]


def spoken(words: list[dict[str, Any]]) -> str:
    """Words with the sign of their scores, those that count the most first.

    >>> spoken([{"word": "good", "score": 0.5}, {"word": "not", "score": -0.2}])
    '+good −not'
    """
    return " ".join(f"{'+' if one['score'] > 0 else MINUS}{one['word']}" for one in words) or "none"


def held(content: dict[str, Any], named: bool = False) -> str:
    """What an example holds, in one line: the only column alone, several with their names."""
    values = {name: clip(cell(value), LONGEST) for name, value in content.items()}
    if len(values) == 1 and not named:
        return next(iter(values.values()))
    return ", ".join(f"{name} {value}" for name, value in values.items())
