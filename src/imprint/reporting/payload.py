"""The page's data: the part of the material that is embedded, as JSON-ready columns.

A report must open at once and be small enough to mail, whatever the size of the corpus. So it holds the most severe findings
of each kind, a sample of the data map that keeps every flagged point it can, and previews of the examples that are looked at first.
What is left out is counted in `shown`, and the page says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from imprint.reporting import measures
from imprint.reporting.material import Material
from imprint.reporting.previews import previews
from imprint.reporting.words import KINDS, evidence, texts, word

FINDINGS = 5_000
FINDING_PREVIEWS = 2_000
PREVIEWS = 4_000  # with the members of duplicate groups and points of the data map
POINTS = 10_000
LEAST_BELIEVED = 200
SAMPLING = 0x696D7072696E74  # a seed of its own, so that the sample shares no random numbers with the data
GROUPS = 200
GROUP_MEMBERS = 12
CLASSES = 200  # of the confusion matrix; beyond it only the most confused pairs
PAIRS = 12


def payload(material: Material) -> dict[str, Any]:
    """Everything that the page's scripts read."""
    findings = embedded_findings(material.findings)
    groups = embedded_groups(material)
    points = data_map(material)
    known = material.examples.select("id")
    in_findings = findings.join(known, on="id", how="semi")["id"].unique(maintain_order=True)
    # In the order in which previews are given out: the page lists the least believed points before any box is drawn.
    least_believed = points.sort("confidence")["id"].head(LEAST_BELIEVED)
    ids = pl.concat([in_findings.head(FINDING_PREVIEWS), groups["id"], least_believed, points["id"], in_findings])
    ids = ids.unique(maintain_order=True)
    examples = pl.DataFrame({"id": ids}).join(material.examples, on="id", how="left", maintain_order="left")
    index = {one: i for i, one in enumerate(ids)}
    predicted = examples["predicted"] if "predicted" in examples.columns else pl.Series("predicted", [None] * len(ids))
    return {
        "task": material.task,
        "modality": material.modality,
        "fingerprint": material.fingerprint,
        "name": material.name,
        "kinds": {kind: one for kind, (one, _) in KINDS.items()},
        "examples": {
            "id": ids.to_list(),
            "position": [
                None if str(position) == id else position for position, id in examples.select("position", "id").rows()
            ],
            "split": coded(examples["split"]),
            "label": coded(examples["label"]),
            "predicted": coded(predicted) if predicted.null_count() < len(predicted) else None,
        },
        "previews": previews(material, ids.head(PREVIEWS).to_list()),
        "findings": {
            "example": [index.get(id, -1) for id in findings["id"]],
            "id": [None if id in index else id for id in findings["id"]],
            "severity": rounded(findings["severity"]),
            "kind": coded(findings["kind"]),
            "suggestion": coded(findings["suggestion"]),
            "value": coded(findings["suggested_value"]),
            "method": coded(findings["method"]),
            "evidence": [evidence(value) for value in findings["evidence"].to_list()],
        },
        "groups": [
            {
                "example": [index[id] for id in group["id"]],
                "similarity": rounded(group["similarity"]),
                "size": group["size"][0],
            }
            for group in groups.partition_by("group", maintain_order=True)
        ],
        "map": {
            "example": [index[id] for id in points["id"]],
            "confidence": rounded(points["confidence"]),
            "variability": rounded(points["variability"]),
            "correctness": rounded(points["correctness"]),
            "flagged": points["flagged"].cast(pl.Int8).to_list(),
        },
        "curves": curves(material.curves, material.examples["split"].unique().drop_nulls().to_list()),
        "balance": class_balance(material),
        "target": target_histogram(material),
        "confusion": confused(material),
        "reliability": calibration(material),
        "verdict": trial(material),
        "seconds": [[stage, seconds] for stage, seconds in material.seconds.items()],
        "shown": {
            "findings": [len(findings), len(material.findings)],
            "groups": [groups["group"].n_unique(), group_count(material)],
            "points": [len(points), points_in_all(material)],
            "previews": min(len(ids), PREVIEWS),
        },
    }


def embedded_findings(findings: pl.DataFrame) -> pl.DataFrame:
    """At most `FINDINGS` of them, the most severe of each kind in turn, so that a frequent kind does not crowd out a rare one."""
    turn = pl.col("severity").rank("ordinal", descending=True).over("kind")
    return (
        findings.with_columns(turn=turn)
        .sort("turn", -pl.col("severity"), maintain_order=True)
        .head(FINDINGS)
        .drop("turn")
    )


def embedded_groups(material: Material) -> pl.DataFrame:
    """`group, id, similarity, size` of the duplicate groups; groups that cross splits or differ in label come first."""
    schema = {"group": pl.Int64, "id": pl.String, "similarity": pl.Float64, "size": pl.UInt32}
    if material.duplicates is None or material.duplicates.is_empty():
        return pl.DataFrame(schema=schema)
    frame = material.duplicates
    if "similarity" not in frame.columns:
        frame = frame.with_columns(similarity=pl.lit(None, pl.Float64))
    frame = frame.join(material.examples.select("id", "split", "label"), on="id", how="inner", maintain_order="left")
    differ = pl.sum_horizontal((pl.col(name).n_unique() > 1).cast(pl.Int8) for name in ("split", "label")).over("group")
    frame = frame.with_columns(size=pl.len().over("group"), differ=differ, place=pl.int_range(pl.len()).over("group"))
    order = frame.unique("group", keep="first", maintain_order=True).filter(pl.col("size") > 1)
    order = (
        order.sort("differ", "size", descending=True, maintain_order=True)
        .head(GROUPS)
        .select("group")
        .with_row_index("rank")
    )
    frame = frame.filter(pl.col("place") < GROUP_MEMBERS).join(order, on="group", how="inner")
    return frame.sort("rank", "place").select(pl.col("rank").alias("group"), "id", "similarity", "size")


def group_count(material: Material) -> int:
    return 0 if material.duplicates is None else material.duplicates["group"].n_unique()


def points_in_all(material: Material) -> int:
    if "confidence" not in material.examples.columns:
        return 0
    return material.examples["confidence"].count()


def data_map(material: Material) -> pl.DataFrame:
    """`id, confidence, variability, correctness, flagged` of at most `POINTS` examples: flagged ones first, then a seeded sample."""
    names = ("confidence", "variability", "correctness")
    if not set(names[:2]) <= set(material.examples.columns):
        return pl.DataFrame(schema={"id": pl.String} | dict.fromkeys(names, pl.Float64) | {"flagged": pl.Boolean})
    frame = material.examples.select(
        "id",
        *names[:2],
        "correctness" if "correctness" in material.examples.columns else pl.lit(None, pl.Float64).alias("correctness"),
    )
    severity = material.findings.group_by("id").agg(pl.col("severity").max())
    frame = frame.drop_nulls(["confidence", "variability"]).join(severity, on="id", how="left", maintain_order="left")
    lot = pl.Series("lot", np.random.default_rng(SAMPLING).random(len(frame)))
    frame = frame.with_columns(flagged=pl.col("severity").is_not_null(), lot=lot)
    kept = frame.sort("severity", "lot", descending=True, nulls_last=True).head(POINTS)
    return kept.sort("lot").select("id", *names, "flagged")


def curves(frame: pl.DataFrame | None, splits: list[str]) -> dict[str, Any]:
    """`epoch` and, per measure, the lines of the splits.

    >>> curves(pl.DataFrame({"epoch": [1], "step": [30], "loss": [0.7], "test_loss": [0.9]}), ["train", "test"])["charts"]
    [{'measure': 'loss', 'lines': [{'name': 'train', 'values': [0.7]}, {'name': 'test', 'values': [0.9]}]}]
    """
    if frame is None or frame.is_empty():
        return {"epoch": [], "charts": []}
    charts: dict[str, list[dict[str, Any]]] = {}
    for column in frame.columns:
        split = next((name for name in splits if column.startswith(f"{name}_")), None)
        if column == "loss":  # the loss that training itself saw
            split, measure = "train", "loss"
        elif split:
            measure = column.removeprefix(f"{split}_")
        else:
            continue
        if frame[column].dtype.is_numeric() and frame[column].count():
            name = split if all(line["name"] != split for line in charts.get(measure, [])) else f"{split}, at its end"
            charts.setdefault(measure, []).append({"name": name, "values": rounded(frame[column], 5)})
    return {
        "epoch": frame["epoch"].to_list(),
        "charts": [{"measure": measure.replace("_", " "), "lines": lines} for measure, lines in charts.items()],
    }


def class_balance(material: Material) -> dict[str, Any] | None:
    """Rows per class and split, and how many training labels of each class are suspect; None for regression."""
    if material.task == "regression":
        return None
    table = measures.balance(material.examples["split"], material.examples["label"])
    splits = sorted(table.columns[1:], key=split_order)
    suspects = material.findings.filter(pl.col("kind") == "label").select("id").unique()
    flagged = measures.balance(
        *material.examples.join(suspects, on="id", how="semi").select("split", "label").get_columns()
    )
    flagged = table.select("label").join(flagged, on="label", how="left", maintain_order="left").fill_null(0)
    return {
        "label": table["label"].to_list(),
        "splits": splits,
        "count": [table[name].to_list() for name in splits],
        "suspect": [flagged[name].to_list() if name in flagged.columns else [0] * len(table) for name in splits],
    }


def target_histogram(material: Material) -> list[dict[str, Any]]:
    """For regression: the target's distribution in each split."""
    if material.task != "regression":
        return []
    return [
        {"split": split, **measures.histogram(part["label"].cast(pl.Float64).drop_nulls().to_numpy())}
        for (split,), part in sorted(
            material.examples.group_by("split", maintain_order=True), key=lambda p: split_order(p[0][0])
        )
    ]


def confused(material: Material) -> dict[str, Any] | None:
    """The confusion matrix of the test split (where it is small enough to draw) and its most frequent confusions."""
    frame = material.predictions
    if frame is None or frame.is_empty() or material.task != "classification":
        return None
    target, predicted = texts(frame["target"]), texts(frame["predicted"])
    seen = pl.concat([target, predicted]).drop_nulls().unique().sort().to_list()
    classes = [str(word(value)) for value in material.classes] or seen
    table = pl.DataFrame({"target": target, "predicted": predicted})
    pairs = table.filter(pl.col("target") != pl.col("predicted")).group_by("target", "predicted").len()
    totals = table.group_by("target").agg(total=pl.len())
    pairs = (
        pairs.join(totals, on="target")
        .sort(["len", "target", "predicted"], descending=[True, False, False])
        .head(PAIRS)
    )
    matrix = measures.confusion(target, predicted, classes).tolist() if len(classes) <= CLASSES else None
    return {
        "classes": classes if matrix else [],
        "matrix": matrix,
        "pairs": pairs.select("target", "predicted", "len", "total").rows(),
        "accuracy": int((table["target"] == table["predicted"]).sum()) / len(table),
        "rows": len(frame),
        "class_count": len(classes),
    }


def calibration(material: Material) -> dict[str, Any] | None:
    """The reliability diagram of the test split."""
    frame = material.predictions
    if frame is None or frame.is_empty() or material.task != "classification":
        return None
    frame = frame.drop_nulls()
    correct = (texts(frame["target"]) == texts(frame["predicted"])).to_numpy()
    confidence = frame["confidence"].to_numpy()
    table, gap = measures.reliability(confidence, correct)
    bins = {name: rounded(table[name], 4) if name != "count" else table[name].to_list() for name in table.columns}
    return {"bins": bins, "ece": gap, "confidence": float(confidence.mean()), "accuracy": float(correct.mean())}


def split_order(name: str) -> int:
    """Training first, test last, whatever else in between.

    >>> sorted(["test", "fold 2", "train"], key=split_order)
    ['train', 'fold 2', 'test']
    """
    return {"train": 0, "test": 2}.get(name, 1)


def trial(material: Material) -> dict[str, Any] | None:
    """The verdict's figures per seed."""
    verdict = material.verdict
    if verdict is None:
        return None
    return {
        "metric": verdict.metric,
        "effect": verdict.effect,
        "interval": list(verdict.interval),
        "level": verdict.level,
        "seeds": list(verdict.seeds) or list(range(len(verdict.before))),
        "before": list(map(float, verdict.before)),
        "after": list(map(float, verdict.after)),
        "controls": {name: list(map(float, values)) for name, values in verdict.controls.items()},
    }


def coded(series: pl.Series) -> dict[str, Any]:
    """A column as its distinct values, as text, and for each row the place of its value; -1 = none.

    >>> coded(pl.Series(["b", "a", "b", None]))
    {'values': ['b', 'a'], 'code': [0, 1, 0, -1]}
    """
    texts = [word(value) for value in series.to_list()]
    places: dict[str, int] = {}
    code = [-1 if text is None else places.setdefault(text, len(places)) for text in texts]
    return {"values": list(places), "code": code}


def rounded(series: pl.Series, digits: int = 3) -> list[float | None]:
    """Numbers short enough to embed; not-a-number becomes None."""
    return series.cast(pl.Float64).fill_nan(None).round(digits).to_list()
