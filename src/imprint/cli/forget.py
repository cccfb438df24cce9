"""`imprint forget`: a child run whose model has forgotten some training examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.output import emit, pairs, paragraph, say, seconds, shell
from imprint.cli.progress import Stages
from imprint.errors import MethodError

if TYPE_CHECKING:
    from imprint.recording import Run


def command(
    run: o.RunPath,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE|A,B", help="Ids: a file, one a line or a column id; or a list.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="A condition over id, inputs, target, weight.")
    ] = None,
    classes: Annotated[str | None, typer.Option("--class", metavar="A,B", help="All of these classes.")] = None,
    findings: Annotated[
        str | None, typer.Option("--findings", metavar="NAME|FILE", help="What clean suggests to drop.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="imprint methods --verb forget lists them.")
    ] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=X", help="A setting of the method; may be repeated.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the child. Default: RUN-METHOD.")
    ] = None,
    known: Annotated[
        bool, typer.Option("--known", help="These are only the known part of the bad data (corrective).")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the method.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or go on where an earlier call stopped.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Forget training examples of RUN: a child run as if it had never seen them.

    Use it when a person asks for deletion, a batch was poisoned, or a class must
    go. Say what with exactly one of --ids, --where, --class and --findings. RUN
    itself is untouched; the child is a run of its own, which answers every verb.

    Methods:
      retrain   trained again without them: the reference, at its full price
      analytic  exact, in no time: --model ridge (also on a frozen backbone)
      newton    --model logistic: two steps, with a proved bound on what is left
      sisa      exact, at a part of the price, for a run that was trained for it:
                imprint fit ... --deletable "sisa(shards=5, slices=4)"
      nothing   the control: what a model knows that has forgotten nothing
    The others change weights and promise nothing: hold them against retrained
    models before you believe them. auto takes analytic, newton or sisa where RUN
    serves them, else retrain.

    Examples:
      imprint forget runs/base --ids u-1832,u-2210
      imprint forget runs/base --ids leavers.csv --out runs/without-leavers
      imprint forget runs/base --where "source = 'forum'" --method retrain
      imprint forget runs/base --class spam --method nothing
      imprint forget runs/base --findings findings --json
      imprint erase runs/base-retrain

    What the output means:
      exact      whether the child is what a training without them gives
      guarantee  what is promised, and what is not
      drift      root mean square distance of the child's outputs from RUN's on
                 retained examples (logits; regression: standard deviations of the
                 target); small is not good or bad in itself

    JSON: {"run", "parent", "method", "settings", "count", "retained", "exact",
          "guarantee", "measured", "drift", "trained", "seconds", "notes": [str]}
    """
    from imprint.forgetting import forget
    from imprint.recording import load

    folder = o.run_folder(run)
    with Stages() as stages:
        child = forget(
            load(folder), ids_of(ids) if ids else None, where=where, classes=o.names(classes, "--class"),
            findings=findings, method=method, path=Path(out).expanduser() if out else None, seed=seed, known=known,
            resume=not fresh, progress=stages, **settings_of(settings or []),
        )  # fmt: skip
    document = summary(child)
    if as_json:
        emit(document)
        return
    say(
        f"{document['count']:,} training examples forgotten, {document['retained']:,} retained, "
        f"by {document['method']}.",
        "",
    )
    drift = document["drift"]
    say(
        *pairs(
            [
                ("child", document["run"]), ("exact", "yes" if document["exact"] else "no"),
                ("drift", None if drift is None else f"{drift['outputs']:.3g}"), ("took", seconds(document["seconds"])),
            ]
        )
    )  # fmt: skip
    say("", *paragraph(document["guarantee"]))
    for one in document["notes"]:
        say("", *paragraph(one))
    say("", "Next:", f"  imprint erase {shell(document['run'])}", f"  imprint clean {shell(document['run'])}")


def ids_of(text: str) -> list[str]:
    """Ids of a file, or those written out."""
    from imprint.cli.verify import known_ids

    if Path(text).expanduser().is_file() or "/" in text:
        return list(known_ids(text))
    return [one.strip() for one in text.split(",") if one.strip()]


def settings_of(texts: list[str]) -> dict[str, Any]:
    """Settings of a method from `NAME=VALUE`; a value is JSON, or text as it stands.

    Raises:
        MethodError: One has no `=`.

    >>> settings_of(["steps=2", "kind=soft"])
    {'steps': 2, 'kind': 'soft'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise MethodError(f"--set {text} is no setting.", "Write NAME=VALUE, such as --set steps=2.")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found


def summary(child: Run) -> dict[str, Any]:
    """What was done, in a few facts."""
    done = child.manifest["forgot"]
    names = (
        "method",
        "settings",
        "count",
        "retained",
        "exact",
        "guarantee",
        "measured",
        "drift",
        "trained",
        "seconds",
        "notes",
    )
    return {"run": str(child.path), "parent": child.manifest["parent"]["path"], **{name: done[name] for name in names}}
