"""`imprint forget` and `imprint erase`, as a user would type them on a small table."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import imprint as api
from imprint.cli import main
from imprint.cli.forget import settings_of
from imprint.errors import MethodError

from .conftest import Imprint, separable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ridge head of 90 training and 30 test examples, made by the command line."""
    folder = tmp_path_factory.mktemp("my runs")
    separable(120, wrong=4).write_csv(folder / "table.csv")
    words = [
        "fit",
        folder / "table.csv",
        "--target",
        "label",
        "--id",
        "key",
        "--model",
        "ridge",
        "--out",
        folder / "base",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        assert main([str(word) for word in words]) == 0
    return folder / "base"


def test_examples_are_forgotten_and_erased(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    child = tmp_path / "without them"
    said = imprint("forget", run, "--ids", "r001,r002", "--out", child, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert (document["method"], document["exact"], document["count"], document["retained"]) == ("analytic", True, 2, 88)
    assert document["parent"] == str(run.resolve())
    assert api.load(child).ids.to_list() == [one for one in api.load(run).ids if one not in ("r001", "r002")]

    text = imprint("forget", run, "--ids", "r001,r002", "--out", child).out
    for word in ("2 training examples forgotten, 88 retained, by analytic", "exact  yes", f"erase '{child}'"):
        assert word in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    erased = imprint("erase", child, "--json")
    assert erased.status == 0, erased.err
    assert (erased.json["found"], erased.json["searched"]["rows"]) == ([], 2)
    assert "none found" in imprint("erase", child).out

    (child / "mine.txt").write_text("x r001")  # four letters are too short to be searched for
    (child / "numbers.bin").write_bytes(api.load(run).corpus.read([2], ["x"])["x"].to_numpy().tobytes())
    refused = imprint("erase", child)
    assert refused.status == 1
    assert "numbers.bin: value of x" in refused.out


def test_the_report_follows_what_is_done(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    child = tmp_path / "gone"
    assert imprint("forget", run, "--ids", "r009", "--out", child, "--json").json["report"] is None
    assert imprint("erase", child, "--json").json["report"] is None
    # The child is complete, and only its report is written.
    said = imprint("forget", run, "--ids", "r009", "--out", child, "--report")
    assert (said.status, "report" in said.out) == (0, True)
    assert (child / "deletion.html").exists()
    facts = json.loads((child / "deletion.json").read_text())
    assert (facts["format"], facts["kind"], len(facts["erasures"])) == (1, "exact", 1)
    (child / "mine.bin").write_bytes(api.load(run).corpus.read([9], ["x"])["x"].to_numpy().tobytes())
    erased = imprint("erase", child, "--json")
    assert erased.json["report"] == str(child / "deletion.html")
    assert json.loads((child / "deletion.json").read_text())["erasures"][-1]["found"] == ["mine.bin: value of x"]
    refused = imprint("verify", run, "--report")
    assert refused.status
    assert "--report" in refused.err


def test_ids_of_a_file_and_the_default_folder(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["r005"]}).write_csv(tmp_path / "leavers.csv")
    said = imprint("forget", run, "--ids", tmp_path / "leavers.csv", "--method", "nothing", "--json")
    assert said.status == 0, said.err
    assert said.json["run"] == f"{run}-nothing"
    assert said.json["drift"]["outputs"] == 0
    (tmp_path / "ids.txt").write_text("r005\n\nr006\n")
    assert imprint("forget", run, "--ids", tmp_path / "ids.txt", "-o", tmp_path / "t", "--json").json["count"] == 2


def test_settings_are_searched_for(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    words = ("forget", run, "--ids", "r001,r002", "--method", "influence", "--search", "3", "--out", tmp_path / "child")
    said = imprint(*words, "--json")
    assert said.status == 0, said.err
    found = said.json["search"]
    assert len(found["trials"]) == 3
    assert found["chosen"].items() <= said.json["settings"].items()
    text = " ".join(imprint(*words).out.split())
    assert "3 settings were tried on 2 other examples (as many of each class)" in text


def test_a_class_a_condition_and_findings(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    frame = api.load(run).corpus.frame(api.load(run).rows())
    said = imprint("forget", run, "--class", "high", "--out", tmp_path / "c", "--json")
    assert said.json["count"] == int((frame["label"] == "high").sum())
    said = imprint("forget", run, "--where", "x > 2 AND label = 'low'", "--out", tmp_path / "w", "--json")
    assert said.json["count"] == len(frame.filter((pl.col("x") > 2) & (pl.col("label") == "low")))
    found = tmp_path / "found.csv"
    pl.DataFrame({"id": ["r001", "r002"], "suggestion": ["drop", "review"]}).write_csv(found)
    assert imprint("forget", run, "--findings", found, "--out", tmp_path / "f", "--json").json["count"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Give exactly one of ids"),
        (("--ids", "r001", "--class", "high"), "ids and classes were given"),
        (("--ids", "r001,zz"), "'zz'"),
        (("--ids", "r000"), "'r000' (test)"),
        (("--ids", "no/where.csv"), "No folder 'no'"),
        (("--class", "hihg"), "Did you mean 'high'"),
        (("--where", "y > 1"), "'y'"),
        (("--where", "x > -100"), "All 90 training examples"),
        (("--ids", "r001", "--method", "retran"), "Did you mean 'retrain'"),
        (("--ids", "r001", "--set", "steps"), "Write NAME=VALUE"),
        (("--ids", "r001", "--method", "newton", "--set", "steps=0"), "whole number above 0"),
    ],
)
def test_what_is_wrong_is_said(imprint: Imprint, run: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    said = imprint("forget", run, "--out", tmp_path / "child", *words)
    assert said.status == 2
    assert says in said.err


def test_settings_are_json_or_text() -> None:
    assert settings_of(["a=1.5", "b=true", "c=[1, 2]", "d=soft=er"]) == {
        "a": 1.5,
        "b": True,
        "c": [1, 2],
        "d": "soft=er",
    }
    with pytest.raises(MethodError, match="NAME=VALUE"):
        settings_of(["=2"])


def test_methods_say_whether_they_are_exact(imprint: Imprint) -> None:
    found = {one["name"]: one["exact"] for one in imprint("methods", "--verb", "forget", "--json").json["methods"]}
    assert {name for name, exact in found.items() if exact} >= {"retrain", "analytic", "sisa"}
    assert found["nothing"] is False
    assert found["newton"] is False
    assert "exact" in imprint("methods", "--verb", "forget").out
