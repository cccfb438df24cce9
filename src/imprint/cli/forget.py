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
    search: Annotated[
        int, typer.Option("--search", min=0, metavar="N", help="Try N settings of the method first, on other examples.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the method.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or go on where an earlier call stopped.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write a deletion report, deletion.html and .json, into the child.")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="A,B|all", help="Write no child: hold these methods against retrained models."
        ),
    ] = None,
    oracles: o.Oracles = None,
    models: o.Models = None,
    shadows: o.Shadows = None,
    no_attacks: o.NoAttacks = False,
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
      s3t       exact, without any training, as long as the capacity of the run
                lasts: --deletable "s3t(shards=2, slices=4, orders=4)";
                afterwards --set renew=true
      nothing   the control: what a model knows that has forgotten nothing
    The others change weights and promise nothing: hold them against retrained
    models before you believe them. --search 8 first tries 8 settings of theirs on
    other examples than these; it trains 12 models, which are kept with RUN for all
    methods. auto takes analytic, newton, sisa or s3t where RUN serves them, else
    retrain.

    Examples:
      imprint forget runs/base --ids u-1832,u-2210
      imprint forget runs/base --ids leavers.csv --out runs/without-leavers
      imprint forget runs/base --where "source = 'forum'" --method retrain
      imprint forget runs/base --class spam --method nothing
      imprint forget runs/base --class spam --method ssd --search 8
      imprint forget runs/base --findings findings --json
      imprint clean runs/base --like some-bad.csv --out bad.csv   know only some?
      imprint forget runs/base --findings bad.csv --known
      imprint forget runs/base --ids leavers.csv --report   what an auditor reads
      imprint forget runs/base --ids leavers.csv --compare ssd,scrub   which method?
      imprint verify runs/base-retrain                                 is it gone?
      imprint erase runs/base-retrain

    What the output means:
      exact      whether the child is what a training without them gives
      guarantee  what is promised, and what is not
      drift      root mean square distance of the child's outputs from RUN's on
                 retained examples (logits; regression: standard deviations of the
                 target); small is not good or bad in itself
      with --compare, a row per method, beside doing nothing and beside models that
      never saw the examples (oracle): imprint verify --help says what is measured

    JSON: {"run", "parent", "method", "settings", "count", "retained", "exact",
          "guarantee", "measured", "drift", "trained", "seconds", "notes": [str],
          "search", "report"}
      with --compare: as imprint verify says of a child
    """
    from imprint.forgetting import forget
    from imprint.recording import load

    folder = o.run_folder(run)
    fleet = {"oracles": oracles, "models": models, "shadows": shadows}
    fleet = {name: value for name, value in fleet.items() if value is not None}
    if compare is not None:
        from imprint.cli.compare_forgetting import show
        from imprint.forgetting import wanted

        given = {"--set": settings, "--out": out, "--report": report, "--search": search}
        if spare := [name for name, value in given.items() if value]:
            raise MethodError(
                f"--compare writes no child and takes methods as they are: {', '.join(spare)} has no place there.",
                "Leave it out, and give it to the method that you choose.",
            )
        loaded = load(folder)
        places = wanted(loaded, ids_of(ids) if ids else None, where, o.names(classes, "--class"), findings)
        how = {**fleet, "attacks": not no_attacks, "seed": seed, "corrective": known}
        show(loaded, run, places, compare, how, as_json)
        return
    if fleet or no_attacks:
        raise MethodError(
            f"{', '.join(f'--{name}' for name in fleet) or '--no-attacks'} is about retrained models, and none are asked for.",
            "Add --compare METHODS; or forget first, and hold the child against them: imprint verify CHILD",
        )
    with Stages() as stages:
        child = forget(
            load(folder), ids_of(ids) if ids else None, where=where, classes=o.names(classes, "--class"),
            findings=findings, method=method, path=Path(out).expanduser() if out else None, seed=seed, known=known,
            search=search, resume=not fresh, progress=stages, **settings_of(settings or []),
        )  # fmt: skip
    document = {**summary(child), "report": str(deletion_report(child)) if report else None}
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
                ("report", document["report"]),
            ]
        )
    )  # fmt: skip
    say("", *paragraph(document["guarantee"]))
    for one in document["notes"]:
        say("", *paragraph(one))
    others = [f"  imprint clean {shell(run)} --like {shell(ids)}    others of their kind"] if known and ids else []
    steps = [f"  imprint verify {shell(document['run'])}", f"  imprint erase {shell(document['run'])}"]
    say("", "Next:", *others, *steps)


def deletion_report(child: Run) -> Path:
    """Write the deletion report of a child into its folder, replacing the one that is there."""
    from imprint.recording import load
    from imprint.reporting import write_deletion

    return write_deletion(load(child.path))


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
    return {
        "run": str(child.path),
        "parent": child.manifest["parent"]["path"],
        **{name: done[name] for name in names},
        "search": done.get("search"),
    }
