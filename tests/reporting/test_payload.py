"""What is embedded: which findings, points and groups, and that they point at the right example."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from materials import tiny

from imprint.errors import ColumnError
from imprint.reporting import payload as page
from imprint.reporting.payload import payload


def many(kind: str, count: int, severity: float) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"e{k}" for k in range(count)], "position": range(count), "kind": kind, "severity": severity,
            "suggestion": "review", "suggested_value": None, "method": "m", "evidence": None,
        },
        schema_overrides={"suggested_value": pl.String, "evidence": pl.String},
    )  # fmt: skip


def corpus(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "id": [f"e{k}" for k in range(count)], "position": range(count), "split": "train", "label": "a",
            "confidence": rng.random(count), "variability": rng.random(count) / 2,
        }
    )  # fmt: skip


def bare(**more: object) -> page.Material:
    none = {"duplicates": None, "predictions": None, "verdict": None, "curves": None, "kinds": {}}
    return tiny(**(none | more))


def test_a_rare_kind_is_not_crowded_out() -> None:
    findings = pl.concat([many("label", 9000, 0.99), many("column", 3, 0.1)])
    data = payload(bare(examples=corpus(9000), findings=findings))
    kinds = [data["findings"]["kind"]["values"][code] for code in data["findings"]["kind"]["code"]]
    assert kinds.count("column") == 3
    assert len(kinds) == page.FINDINGS
    assert data["shown"]["findings"] == [page.FINDINGS, 9003]


def test_the_most_severe_of_a_kind_are_kept() -> None:
    findings = many("label", 6000, 0.0).with_columns(severity=pl.int_range(6000) / 6000)
    kept = page.embedded_findings(findings)
    assert kept["severity"].min() == pytest.approx(1000 / 6000)


def test_a_large_map_keeps_every_flagged_point_and_samples_the_rest() -> None:
    findings = many("label", 40, 0.5)
    points = page.data_map(bare(examples=corpus(25_000), findings=findings))
    assert len(points) == page.POINTS
    assert set(findings["id"]) <= set(points["id"])
    assert points["flagged"].sum() == 40
    # A fair sample: its mean is that of the whole within 5 standard errors.
    assert points["confidence"].mean() == pytest.approx(0.5, abs=5 * 0.289 / page.POINTS**0.5)


def test_every_reference_leads_to_its_example() -> None:
    material = tiny()
    data = payload(material)
    ids = data["examples"]["id"]
    assert len(set(ids)) == len(ids)
    known = dict(material.examples.select("id", "label").rows())
    label = data["examples"]["label"]
    assert [known[one] for one in ids] == [label["values"][code] for code in label["code"]]
    for row, (one, evidence) in enumerate(page.embedded_findings(material.findings).select("id", "evidence").rows()):
        at = data["findings"]["example"][row]
        assert (ids[at] if at >= 0 else data["findings"]["id"][row]) == one
        assert (data["findings"]["evidence"][row] is None) == (evidence is None)
    for at, confidence in zip(data["map"]["example"], data["map"]["confidence"], strict=True):
        assert material.examples.row(by_predicate=pl.col("id") == ids[at], named=True)["confidence"] == pytest.approx(
            confidence, abs=5e-4
        )


def test_findings_about_no_example_stand_alone() -> None:
    findings = many("imbalance", 2, 0.5).with_columns(id=pl.Series([None, "no such id"]))
    data = payload(bare(findings=findings))
    assert data["findings"]["example"] == [-1, -1]
    assert data["findings"]["id"] == [None, "no such id"]


def test_groups_that_cross_splits_and_contradict_come_first() -> None:
    examples = pl.DataFrame(
        {
            "id": list("abcdef"), "position": range(6), "label": ["x", "x", "x", "y", "x", "y"],
            "split": ["train", "train", "train", "train", "train", "test"],
        }
    )  # fmt: skip
    duplicates = pl.DataFrame(
        {"group": ["same", "same", "label", "label", "both", "both", "lone"], "id": [*"abcdef", "a"]}
    )
    data = payload(bare(examples=examples, findings=tiny().findings.clear(), duplicates=duplicates))
    ids = data["examples"]["id"]
    assert [[ids[k] for k in group["example"]] for group in data["groups"]] == [["e", "f"], ["c", "d"], ["a", "b"]]


def test_regression_and_multilabel_have_what_fits_them() -> None:
    numeric = tiny().examples.with_columns(label=pl.int_range(pl.len()) * 0.5)
    data = payload(bare(task="regression", examples=numeric))
    assert data["balance"] is None
    assert sum(sum(part["count"]) for part in data["target"]) == numeric.height
    several = tiny().examples.with_columns(label=pl.concat_list(pl.lit("a"), pl.lit("b")))
    data = payload(bare(task="multilabel", examples=several))
    assert sorted(data["balance"]["label"]) == ["a", "b"]
    assert data["examples"]["label"]["values"] == ["a, b"]


def test_the_frame_of_run_curves_is_understood() -> None:
    frame = pl.DataFrame(
        {
            "epoch": [1],
            "step": [9],
            "loss": [0.5],
            "learning_rate": [0.1],
            "seconds": [2.0],
            "train_loss": [0.4],
            "test_accuracy": [0.8],
        }
    )
    charts = page.curves(frame, ["train", "test"])["charts"]
    assert {chart["measure"]: [line["name"] for line in chart["lines"]] for chart in charts} == {
        "loss": ["train", "train, at its end"],
        "accuracy": ["test"],
    }


def test_not_a_number_does_not_reach_the_page() -> None:
    examples = tiny().examples.with_columns(confidence=pl.lit(float("nan")))
    text = json.dumps(payload(tiny(examples=examples)), allow_nan=False)
    assert "NaN" not in text


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ColumnError, match="findings lacks the column 'severity'"):
        tiny(findings=tiny().findings.drop("severity"))
