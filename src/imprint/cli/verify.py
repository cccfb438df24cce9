"""`imprint verify`: does fixing it help, can a trace be believed, is it gone? Retrains, and says how sure that makes us."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli import options as o
from imprint.cli.clean import kinds_of, read_findings
from imprint.cli.output import emit, pairs, paragraph, say, seconds, size, table
from imprint.cli.progress import Stages
from imprint.errors import ColumnError, MethodError

if TYPE_CHECKING:
    import polars as pl

    from imprint.answers import Attribution, Findings, Selection, Verdict
    from imprint.recording import Run

# Fields of a trust beside its linear datamodeling score.
MORE = (
    "removed", "drops", "drop_leads", "flips", "flip_leads", "patched", "rate", "gains", "gain_leads", "detection", "detection_leads",
    "seconds", "evidence_bytes",
)  # fmt: skip
# Trainings of each arm, and for each removal: of these there are as many as queries.
SEEDS, TRAININGS = 5, 3


def command(
    run: o.RunPath,
    findings: Annotated[
        str | None,
        typer.Option("--findings", "-f", metavar="FILE", help="Edits to judge; default: those of imprint clean."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="A,B", help="Only the edits of these kinds: label,leak,...")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="Trainings before and after (per removal). Default: 5 (3)."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="NAME", help="Judge this answer: findings, a trace, a selection."),
    ] = None,
    members: Annotated[
        int,
        typer.Option(
            "--members",
            min=0,
            metavar="N",
            help="For a trace: models on random halves to judge by; 0: none (--tail-patch).",
        ),
    ] = 64,
    removal: Annotated[
        float | None,
        typer.Option(
            "--removal", metavar="K", help="For a trace: retrain without the K examples that help most; < 1: a share."
        ),
    ] = None,
    queries: Annotated[
        int,
        typer.Option(
            "--removal-queries", min=5, metavar="N", help="For how many queries examples are removed, or stepped on."
        ),
    ] = 30,
    tail_patch: Annotated[
        int | None,
        typer.Option(
            "--tail-patch", min=1, metavar="K", help="For a trace: take one more step on the K examples that help most."
        ),
    ] = None,
    known: Annotated[
        str | None,
        typer.Option(
            "--known", metavar="FILE", help="For a trace: ids of known wrong labels, one a line, or a column id."
        ),
    ] = None,
    oracles: o.Oracles = None,
    models: o.Models = None,
    shadows: o.Shadows = None,
    no_attacks: o.NoAttacks = False,
    report: Annotated[
        bool, typer.Option("--report", help="For a child of forget: write its deletion report into it.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Retrain before and after the suggested edits: do they help, and how surely?

    Use it before you change your data. Models are trained on the data as it is,
    on the edited data, and on data with as many edits at random, over the same
    seeds; all are measured on the same test examples.
    Use it on a trace before you believe it: do its scores predict what models
    say that were trained on random halves of the training set?
    Use it on a selection before you train on it for good: models are trained on
    it, on as many random examples and on everything (imprint select --compare).
    Use it on a child of imprint forget before you say that something is gone: is
    it told apart from models that were trained without what it forgot?

    Examples:
      imprint verify runs/base
      imprint verify runs/base --seeds 10
      imprint clean runs/base --out findings.csv      then delete lines you reject
      imprint verify runs/base --findings findings.csv
      imprint verify audit/run --findings decisions.csv   as decided in the report
      imprint verify runs/base --kind label
      imprint verify runs/base --answer attribution-datamodel --members 128
      imprint verify runs/base --answer attribution-trak --removal 20
      imprint verify runs/base --answer selection-el2n-top
      imprint verify runs/base --answer attribution-trak --tail-patch 10 --members 0
      imprint verify runs/base-ssd                       a child of imprint forget
      imprint verify runs/base-ssd --report              and what an auditor reads

    What the output means:
      effect    mean change of the test metric, after less before, over the seeds;
                accuracy, f1 and r2: higher = better
      interval  95 % confidence interval of the effect; where it holds 0, these
                seeds do not show that the edits matter (more seeds narrow it)
      random    the same number of edits at random: what the effect has to beat
      lds       of a trace, the linear datamodeling score: rank correlation of
                predicted and true margins of held-out models, mean over queries;
                1 = it knows exactly which examples matter, 0 = nothing
      lead      lds of the trace less that of a control: to be above 0
      fall      with --removal: by how much the margin of a query falls when the K
                examples that help it the most are gone and the model is trained
                again (3 seeds), beside K at random and K by similarity
      flips     share of right predictions that are then wrong
      gain      with --tail-patch: by how much the margin of a query rises after one
                step of gradient descent on the K examples that help it the most,
                beside K at random, K of its class, and K by similarity; with
                --members 0 nothing is trained
      auroc     with --known: how well the harm that an example does to the
                queries tells the known wrong labels from the others; 0.5 = chance
      seconds, evidence   what the scores took, and the size of what they read
      of a child: forgotten, retained and held-out examples, each arm beside doing
      nothing and beside models that never saw the forgotten ones (oracle);
      * = told from the oracle's
      klom      divergence of the margins from the oracles', in nats (mean, 95th and
                99th percentile over examples); the oracle's own is the floor
      lira, rmia   membership attacks: auroc 0.5 = chance; tpr-1: share of the
                forgotten that is found at 1 % false alarms
      relearn   epochs until they are known again; of the oracles as long as of
                anything new
      cka, probe   do features resemble the oracles', and what are they good for?

    The same command again goes on with an interrupted verification.

    JSON: {"run", "metric", "effect", "interval": [low, high], "level", "seeds",
          "before": [..], "after": [..], "controls": {name: [..]}, "examples",
          "edits": {"drop", "relabel"}, "sentence", "cost": {"seconds",
          "trainings"}, "notes": [str]}
      of a trace: {"run", "method", "lds", "interval", "level", "members",
          "queries", "controls": {name: [lds, low, high]}, "leads": {name:
          [lead, low, high]}, "removed", "drops", "drop_leads", "flips",
          "flip_leads", "patched", "rate", "gains", "gain_leads", "detection",
          "detection_leads" (each {name: [value, low, high]}), "seconds":
          {name: s}, "evidence_bytes": {name: n},
          "sentence", "cost", "notes"}
      of a child: {"run", "methods", "count", "oracles", "models", "shadows",
          "level", "examples": {set: n}, "rows": [{"measure", "set", "arm",
          "value", "low", "high", "better", "change", "change_low",
          "change_high", "gap", "gap_low", "gap_high"}], "told_apart": {arm:
          [measure]}, "beats_nothing": {arm: bool}, "seconds": {arm: s},
          "conclusions": [str], "sentence", "cost", "notes", "report"}
    """
    from imprint.answers import Attribution, Selection
    from imprint.cleaning import clean
    from imprint.recording import load
    from imprint.verifying import verify

    folder = o.run_folder(run)
    kinds = kinds_of(kind)
    frame = read_findings(findings) if findings else None
    loaded = load(folder)
    fleet = {"oracles": oracles, "models": models, "shadows": shadows}
    fleet = {name: value for name, value in fleet.items() if value is not None}
    if "forgot" in loaded.manifest and findings is None and answer is None:
        from imprint.cli.verify_forgotten import show as show_forgotten

        show_forgotten(loaded, {**fleet, "attacks": not no_attacks}, as_json, report)
        return
    if fleet or no_attacks or report:
        given = [
            *(f"--{name}" for name in fleet),
            *(["--no-attacks"] if no_attacks else []),
            *(["--report"] if report else []),
        ]
        raise MethodError(
            f"{', '.join(given)}: '{run}' has forgotten nothing, or findings or an answer were named.",
            "These are about a child of imprint forget; name its folder.",
        )
    judged = judged_answer(loaded, answer) if answer else None
    if isinstance(judged, Attribution):
        asked = {
            "removal": removal, "queries": queries, "seeds": seeds or TRAININGS, "tail_patch": tail_patch,
            "known": known_ids(known) if known else None,
        }  # fmt: skip
        trust_in(judged, loaded, members, asked, as_json)
        return
    if removal is not None or tail_patch is not None or known is not None:
        raise MethodError(
            "--removal, --tail-patch and --known are about a trace.",
            "Name one of the run's: --answer attribution-datamodel",
        )
    if isinstance(judged, Selection):
        from imprint.cli.compare_selection import show

        with Stages() as stages:
            worth = verify(judged, loaded, seeds=seeds or SEEDS, progress=stages)
        show(worth, loaded, run, [judged.method], out=None, open_page=False, as_json=as_json)
        return
    with Stages() as stages:
        found = judged or (clean(loaded) if frame is None else as_findings(frame, loaded))
        verdict = verify(found, loaded, seeds=seeds or SEEDS, kinds=kinds, path=kept(folder), progress=stages)
    o.keep(loaded, verdict, [*(["file"] if findings else []), *(kinds or [])])
    if as_json:
        emit({"run": str(folder), **document(verdict), "cost": verdict.cost, "notes": list(verdict.notes)})
        return
    arms = {"before": verdict.before, "after": verdict.after, **verdict.controls}
    rows = [
        [name, f"{sum(arm) / len(arm):.4f}", " ".join(f"{value:.4f}" for value in arm)] for name, arm in arms.items()
    ]
    edits = ", ".join(f"{count} to {name}" for name, count in verdict.edits.items() if count)
    say(*paragraph(verdict.summary()), "", *table([f"test {verdict.metric}", "mean", "per seed"], rows), "")
    say(
        *pairs(
            [
                ("edits", edits),
                ("cost", f"{seconds(verdict.cost['seconds'])}, {verdict.cost['trainings']:.0f} trainings"),
                *(("note", one) for one in verdict.notes),
            ]
        )
    )


def judged_answer(run: Run, name: str) -> Findings | Attribution | Selection:
    """The saved answer of this name.

    Raises:
        MethodError: It is of a kind that cannot be verified.
    """
    from imprint.answers import Attribution, Findings, Selection

    found = run.answer(name)
    if not isinstance(found, Findings | Attribution | Selection):
        raise MethodError(
            f"The answer '{name}' is of the kind '{found.name}'.", "Judge what imprint clean, trace or select found."
        )
    return found


def known_ids(path: str) -> list[str]:
    """Ids from a file: one a line, or the column `id` of a table.

    Raises:
        SourceError: There is no such file.
        ColumnError: The table has no such column.
    """
    import polars as pl

    file = Path(o.source_of(path))
    match file.suffix:
        case ".csv":
            frame = pl.read_csv(file, infer_schema=False)  # an id of 001 stays 001
        case ".parquet":
            frame = pl.read_parquet(file)
        case ".jsonl":
            frame = pl.read_ndjson(file)
        case _:
            return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if "id" not in frame.columns:
        raise ColumnError(f"{path} has no column 'id'.", f"It has {', '.join(frame.columns)}.")
    return frame["id"].cast(pl.String).drop_nulls().to_list()


def trust_in(attribution: Attribution, run: Run, members: int, asked: dict[str, Any], as_json: bool) -> None:
    """Measure and show how far a trace can be believed."""
    from imprint.verifying import verify

    with Stages() as stages:
        trust = verify(attribution, run, members=members, **asked, progress=stages)
    o.keep(run, trust, [trust.method, *([] if trust.members else ["tail-patch"])])
    if as_json:
        emit({
            "run": str(run.path), "method": trust.method, "lds": trust.lds, "interval": trust.interval, "level": trust.level,
            "members": trust.members, "queries": trust.queries, "controls": trust.controls, "leads": trust.leads,
            **{name: getattr(trust, name) for name in MORE},
            "sentence": trust.summary(), "cost": trust.cost, "notes": trust.notes,
        })  # fmt: skip
        return
    rows = [[trust.method, trust.lds, between(trust.interval), "", ""]]
    rows += [
        [name, lds, between(ends), trust.leads[name][0], between(trust.leads[name][1:])]
        for name, (lds, *ends) in trust.controls.items()
    ]
    head = ["method", "lds", f"{trust.level:.0%} interval", "lead", f"{trust.level:.0%} interval"]
    say(*paragraph(trust.summary()), "")
    if trust.members:
        say(*table(head, rows), "")
    if trust.drops:
        removed = [
            [
                name,
                trust.drops[name][0],
                between(trust.drops[name][1:]),
                f"{trust.flips[name][0]:.1%}",
                shares(trust.flips[name][1:]),
            ]
            for name in sorted(trust.drops, key=lambda name: name != trust.method)
        ]
        say(*table([f"without {trust.removed} by", "fall", "interval", "flips", "interval"], removed), "")
    if trust.gains:
        gained = [
            [name, f"{value:+.3g}", between(ends, "+.3g"), *lead_over(trust.gain_leads.get(name))]
            for name, (value, *ends) in sorted(trust.gains.items(), key=lambda one: one[0] != trust.method)
        ]
        say(*table([f"step on {trust.patched} by", "gain", "interval", "lead", "interval"], gained), "")
    if trust.detection:
        found = [[name, value, between(ends)] for name, (value, *ends) in trust.detection.items()]
        say(*table(["known wrong labels", "auroc", "interval"], found), "")
    costs = [[name, seconds(took), size(trust.evidence_bytes.get(name))] for name, took in trust.seconds.items()]
    say(*table(["scores", "seconds", "evidence"], costs), "")
    cost = f"{seconds(trust.cost['seconds'])}, {trust.cost['trainings']:.0f} trainings"
    say(*pairs([("cost", cost), *(("note", one) for one in trust.notes)]))


def shares(ends: Sequence[float]) -> str:
    """An interval of shares in words.

    >>> shares([0.1, 0.25])
    '10.0% to 25.0%'
    """
    low, high = ends
    return f"{low:.1%} to {high:.1%}"


def lead_over(lead: Sequence[float] | None) -> list[Any]:
    """A lead and its interval as cells; empty for the method itself."""
    return ["", ""] if lead is None else [f"{lead[0]:+.3g}", between(lead[1:], "+.3g")]


def between(ends: Sequence[float], digits: str = "+.3f") -> str:
    """An interval in words.

    >>> between([0.1, 0.25])
    '+0.100 to +0.250'
    """
    low, high = ends
    return f"{low:{digits}} to {high:{digits}}"


def document(verdict: Verdict) -> dict[str, Any]:
    """A verdict with stable keys for JSON."""
    return {
        "metric": verdict.metric, "effect": verdict.effect, "interval": list(verdict.interval), "level": verdict.level,
        "seeds": list(verdict.seeds), "before": list(verdict.before), "after": list(verdict.after),
        "controls": {name: list(values) for name, values in verdict.controls.items()}, "examples": verdict.examples,
        "edits": verdict.edits, "sentence": verdict.summary(),
    }  # fmt: skip


def kept(run: Path) -> Path:
    """Where finished trainings are kept, so that an interrupted verification goes on: beside the run of an audit, else in it."""
    return run.parent / "verify" if (run.parent / "recipe.yaml").is_file() else run / "verify"


def as_findings(frame: pl.DataFrame, run: Run) -> Findings:
    """A table of edits, perhaps made by hand, as findings about a run. Missing columns are filled.

    Raises:
        IdError: An id is not of the run's corpus.
    """
    import polars as pl

    from imprint.answers import Findings

    run.corpus.rows_of(frame["id"].drop_nulls())
    text = {
        "position": None,
        "kind": "label",
        "suggested_value": None,
        "method": "file",
        "evidence": "",
        "related": None,
    }
    defaults = [pl.lit(value, pl.String).alias(name) for name, value in text.items()] + [pl.lit(1.0).alias("severity")]
    frame = frame.with_columns(one for one in defaults if one.meta.output_name() not in frame.columns)
    return Findings(
        verb="clean", methods=tuple(frame["method"].drop_nulls().unique().sort()), source={}, higher={},
        run={"path": str(run.path), "corpus": run.fingerprint}, cost={"seconds": 0.0, "trainings": 0.0}, table=frame,
    )  # fmt: skip
