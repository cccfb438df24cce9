"""The commands on a real small table, as a new user would type them: fit, then ask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from imprint.cli import main

from .conftest import Imprint, separable

WRONG = 12


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("my data") / "a table.csv"
    separable(wrong=WRONG).write_csv(path)
    return path


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, made by the command line."""
    path = tmp_path_factory.mktemp("runs") / "base run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        status = main(
            ["fit", str(table), "--target", "label", "--id", "key", "--epochs", "8", "--out", str(path), "--json"]
        )
    assert status == 0
    return path


@pytest.fixture(scope="module")
def flipped() -> set[str]:
    """Ids of the training rows whose label was flipped."""
    frame = separable(wrong=WRONG)
    truth = pl.when(pl.col("x") > 0).then(pl.lit("high")).otherwise(pl.lit("low"))
    return set(frame.filter((pl.col("label") != truth) & (pl.col("split") == "train"))["key"])


def test_fit_says_what_was_trained(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    said = imprint("fit", table, "--target", "label", "--epochs", 2, "--out", tmp_path / "r", "--json")
    document = said.json
    assert document["task"] == "classification"
    assert document["status"] == "complete"
    assert document["epochs"] == 2
    assert 0 <= document["metrics"]["test"]["accuracy"] <= 1
    assert any("split" in note for note in document["notes"])


def test_fit_again_returns_the_run_and_another_learner_is_refused(
    imprint: Imprint, table: Path, tmp_path: Path
) -> None:
    words = ("fit", table, "--target", "label", "--out", tmp_path / "r", "--epochs")
    assert imprint(*words, 2).status == 0
    assert imprint(*words, 2).status == 0
    other = imprint(*words, 3)
    assert other.status == 2
    assert "epochs" in other.err
    assert imprint(*words, 3, "--fresh").status == 0


def test_score_lists_the_hardest_first(imprint: Imprint, run: Path, flipped: set[str], tmp_path: Path) -> None:
    said = imprint("score", run, "aum", "loss", "--top", len(flipped), "--out", tmp_path / "s.parquet", "--json")
    assert said.status == 0, said.err
    document = said.json
    assert [one["name"] for one in document["methods"]] == ["aum", "loss"]
    # Flipped labels of clear cases are what a linear model gets most wrong.
    assert len(flipped & {one["id"] for one in document["examples"]}) >= 0.8 * len(flipped)
    margins = [one["aum"] for one in document["examples"]]
    assert margins == sorted(margins)  # aum: low = hard
    assert len(pl.read_parquet(tmp_path / "s.parquet")) == document["count"] == 180


def test_score_trains_a_fleet_once(imprint: Imprint, run: Path) -> None:
    said = imprint("score", run, "memorisation", "banzhaf", "--members", 4, "--json")
    assert said.status == 0, said.err
    assert said.json["cost"]["trainings"] == 4
    assert said.json["notes"][0].startswith("subsets-4-0.5: 4 models")
    begun = (run / "fleets" / "subsets-4-0.5" / "manifest.json").stat().st_mtime_ns
    text = imprint("score", run, "banzhaf", "--members", 4, "--top", 3).out
    assert "Least valuable 3 of 180 by banzhaf" in text
    assert (run / "fleets" / "subsets-4-0.5" / "manifest.json").stat().st_mtime_ns == begun
    said = imprint("score", run, "aum", "--members", 4)
    assert said.status == 2
    assert "none of aum asks a fleet" in said.err


def test_clean_finds_the_wrong_labels(imprint: Imprint, run: Path, flipped: set[str], tmp_path: Path) -> None:
    said = imprint("clean", run, "--kind", "label", "--out", tmp_path / "f.csv", "--json")
    assert said.status == 0, said.err
    found = set(pl.read_csv(tmp_path / "f.csv", infer_schema=False)["id"])
    assert len(found & flipped) >= 0.8 * len(flipped)
    assert said.json["kinds"][0]["kind"] == "label"
    assert said.json["count"] == len(found)


def test_show_run(imprint: Imprint, run: Path) -> None:
    said = imprint("show", run)
    assert "test accuracy" in said.out
    assert "complete" in said.out
    assert len(imprint("show", run, "--json").json["curves"]) == 8


def test_show_example(imprint: Imprint, run: Path, flipped: set[str]) -> None:
    imprint("score", run)
    imprint("clean", run)
    name = sorted(flipped)[0]
    document = imprint("show", run, "--id", name, "--json").json
    assert document["id"] == name
    assert len(document["trajectory"]["loss"]) == 8
    assert [visit["epoch"] for visit in document["seen"]] == list(range(1, 9))
    assert document["predicted"]["value"] != document["target"]
    assert document["scores"]["aum"] == pytest.approx(sum(document["trajectory"]["margin"]) / 8, rel=1e-4)
    assert "label" in {one["kind"] for one in document["findings"]}
    text = imprint("show", run, "--id", name).out
    for word in ("Over 8 epochs", "seen 8 times", "Findings:", "predicted"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_show_test_example(imprint: Imprint, run: Path) -> None:
    document = imprint("show", run, "--id", "r000", "--json").json
    assert document["split"] == "test"
    assert document["trajectory"] is None


def test_show_answer(imprint: Imprint, run: Path) -> None:
    imprint("score", run)
    said = imprint("show", run / "answers" / "scores", "--json")
    assert said.status == 0, said.err
    assert said.json["count"] == 180


def test_unknown_id_names_itself(imprint: Imprint, run: Path) -> None:
    said = imprint("show", run, "--id", "r999")
    assert said.status == 2
    assert "r999" in said.err


def test_unknown_method_names_the_nearest(imprint: Imprint, run: Path) -> None:
    said = imprint("score", run, "el2m")
    assert said.status == 2
    assert "'el2n'" in said.err


def test_show_corpus(imprint: Imprint, table: Path) -> None:
    said = imprint("show", table, "--target", "label", "--id-column", "key", "--json")
    assert said.status == 0, said.err
    document = said.json
    assert document["what"] == "corpus"
    assert document["rows"] == 240
    assert document["splits"] == {"train": 180, "test": 60}
    assert document["kinds"] == {"x": "numeric", "noise": "numeric"}
    assert sum(one["count"] for one in document["values"]) == 240
    assert len(document["head"]) == 5
    assert max(map(len, imprint("show", table, "--target", "label").out.splitlines())) <= 80


def test_missing_column_names_the_nearest(imprint: Imprint, table: Path) -> None:
    said = imprint("show", table, "--target", "labl")
    assert said.status == 2
    assert "label" in said.err


def test_runs(imprint: Imprint, run: Path) -> None:
    (one,) = imprint("runs", run.parent, "--json").json["runs"]
    assert one["path"] == str(run)
    assert (one["status"], one["task"], one["metric"], one["split"]) == (
        "complete",
        "classification",
        "accuracy",
        "test",
    )
    assert one["bytes"] > 0
    assert one["rows"] == 240
    assert "base run" in imprint("runs", run.parent).out


def test_verify_measures_the_edits(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    imprint("clean", run, "--kind", "label", "--out", tmp_path / "f.csv")
    said = imprint("verify", run, "--findings", tmp_path / "f.csv", "--seeds", 2, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert len(document["before"]) == len(document["after"]) == 2
    assert document["interval"][0] <= document["effect"] <= document["interval"][1]
    assert document["edits"]["relabel"] + document["edits"]["drop"] > 0


def test_price(imprint: Imprint, table: Path) -> None:
    document = imprint("price", "audit", table, "--target", "label", "--json").json
    assert document["seconds"] > 0
    assert document["trainings"] >= 1
    assert imprint("price", "fit", table, "--target", "label", "--json").json["seconds"] < document["seconds"]


def test_audit_from_source_to_report(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit of table"
    said = imprint(
        "audit", table, "--target", "label", "--id", "key", "--epochs", 4, "--seeds", 2, "--out", out, "--json"
    )
    assert said.status == 0, said.err
    document = said.json
    assert json.loads(json.dumps(document)) == document
    for name in ("report.html", "findings.parquet", "recipe.yaml", "corpus", "run"):
        assert (out / name).exists(), name
        assert document["paths"][name] == str(out / name)
    assert document["findings"]["count"] == len(pl.read_parquet(out / "findings.parquet"))
    assert len(document["verdict"]["before"]) == 2
    assert imprint("show", out).status == 0
    assert imprint("show", out, "--id", "r001").status == 0
    again = imprint("run", out / "recipe.yaml", "--json")
    assert again.status == 0, again.err
    assert again.json["findings"] == document["findings"]
    shutil.rmtree(out)


def test_a_run_may_be_moved_and_the_cache_emptied(
    imprint: Imprint, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `fit` was given lies with the run, so neither the source nor a cache is needed to ask it more."""
    source = tmp_path / "copy.csv"
    shutil.copy(table, source)
    imprint("fit", source, "--target", "label", "--epochs", 2, "--out", tmp_path / "here")
    source.unlink()
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "run")
    monkeypatch.setenv("IMPRINT_HOME", str(tmp_path / "empty"))
    said = imprint("clean", tmp_path / "there" / "run", "--json")
    assert said.status == 0


def test_what_was_rejected_in_the_report_is_left_out(tmp_path: Path) -> None:
    from imprint.cli.clean import read_findings

    file = tmp_path / "decisions.csv"
    file.write_text("id,suggestion,decision\n001,drop,accept\n002,drop,reject\n003,drop,\n")
    assert read_findings(str(file))["id"].to_list() == ["001", "003"]
