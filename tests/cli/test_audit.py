"""`imprint audit` and `imprint run`: what is passed on, what is said, and which folders are touched.

The audit itself is replaced by a stand-in that records how it was called; `test_commands.py` runs the real one.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import imprint.auditing
from imprint.answers import Verdict
from imprint.auditing.recipe import Recipe

from .conftest import Imprint


class Frame(pl.DataFrame):
    def frame(self) -> pl.DataFrame:
        return self


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of `imprint.auditing.audit`, which answers with a small result."""
    found: list[dict[str, Any]] = []

    def audit(source: str, *, out: Path, progress: Any, **options: Any) -> Any:
        found.append({"source": source, "out": out, **options})
        progress("fit", 5, 10, {"epoch": "1/2"})
        progress("fit", 10, 10)
        (Path(out) / "report.html").write_text("<html>")
        (Path(out) / "run").mkdir(exist_ok=True)
        (Path(out) / "run" / "manifest.json").write_text("{}")
        findings = Frame(
            {
                "id": ["a", "b", None], "position": [0, 1, None], "kind": ["label", "label", "column"], "severity": [0.9, 0.5, 1.0],
                "suggestion": ["relabel", "drop", "review"], "suggested_value": ["x", None, None],
                "method": ["m"] * 3, "evidence": [""] * 3,
            }
        )  # fmt: skip
        arms = {"before": [0.8, 0.8], "after": [0.81, 0.83], "random": [0.79, 0.79]}
        table = pl.DataFrame(
            [
                {"arm": arm, "seed": seed, "accuracy": value}
                for arm, values in arms.items()
                for seed, value in enumerate(values)
            ]
        )
        verdict = Verdict(
            "verify", ("m",), {}, {}, {}, {"seconds": 61.0, "trainings": 6.0}, table, metric="accuracy", effect=0.02,
            interval=(-0.01, 0.05), examples=100, edits={"drop": 1, "relabel": 1},
        )  # fmt: skip

        class Corpus(list):
            fingerprint = "f" * 16
            notes = ("target: 'label' (named so)",)

        return types.SimpleNamespace(
            findings=findings, verdict=verdict if options["verify"] else None, corpus=Corpus(range(10)), edited=Corpus(range(9)),
            report=Path(out) / "report.html", cost=pl.DataFrame({"stage": ["fit", "verify"], "seconds": [1.5, 61.0]}), notes=(),
        )  # fmt: skip

    monkeypatch.setattr(imprint.auditing, "audit", audit, raising=False)
    return found


def test_options_reach_the_audit(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    said = imprint(
        "audit", table_csv, "-t", "label", "--inputs", "x,noise", "--id", "key", "--split", "0.7/0.1/0.2", "--epochs", 3, "--seeds", 2,
        "--folds", 5, "--methods", "el2n,aum", "--task", "classification", "--out", tmp_path / "out put", "--no-verify", "--seed", 7,
    )  # fmt: skip
    assert said.status == 0, said.err
    (call,) = calls
    learner = call.pop("learner")
    assert (learner.epochs, learner.seed, learner.task, learner.model) == (3, 7, "classification", "auto")
    assert call == {
        "source": str(table_csv), "target": "label", "inputs": ["x", "noise"], "id": "key",
        "split": {"train": 0.7, "valid": 0.1, "test": 0.2}, "group": None, "weight": None, "task": "classification",
        "out": tmp_path / "out put", "seeds": 2, "folds": 5, "methods": ["el2n", "aum"], "verify": False,
    }  # fmt: skip
    assert "nothing was retrained" in said.out


def test_quick_means_two_seeds(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    imprint("audit", table_csv, "--quick", "--out", tmp_path / "a")
    imprint("audit", table_csv, "--quick", "--seeds", 4, "--out", tmp_path / "b")
    imprint("audit", table_csv, "--out", tmp_path / "c")
    assert [call["seeds"] for call in calls] == [2, 4, 5]


def test_the_text_at_the_end(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    said = imprint("audit", table_csv, "--out", tmp_path / "a")
    words = " ".join(said.out.split())
    assert "label 2 0.7 1 1 0" in words  # kind, count, median severity, drop, relabel, review
    assert "No clear change of test accuracy (0.8000 before, 0.8200 after): +0.0200" in words
    assert "random edits of the same size: -0.0100" in words
    assert "1 min 2 s (fit 1.5 s, verify 1 min 1 s)" in words
    assert str(tmp_path / "a" / "report.html") in said.out.replace("\n", "").replace(" ", "")


def test_json_keys_are_those_of_the_help(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    said = imprint("audit", table_csv, "--out", tmp_path / "a", "--json")
    document = said.json
    assert set(document) == {"out", "report", "findings", "verdict", "cost", "corpus", "notes", "paths"}
    documented = imprint("audit", "--help").out.split("JSON:")[1]
    keys = [
        *document,
        *document["verdict"],
        *document["findings"],
        *document["findings"]["kinds"][0],
        *document["corpus"],
    ]
    for key in keys:
        assert f'"{key}"' in documented, key


def test_the_same_audit_goes_on_and_another_is_refused(
    imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    assert imprint("audit", table_csv, "--out", out).status == 0
    again = imprint("audit", table_csv, "--seeds", 9, "--out", out)
    assert again.status == 0
    assert "used again" in again.err
    other = imprint("audit", table_csv, "--target", "noise", "--out", out)
    assert other.status == 2
    assert "target differs" in other.err
    assert "--fresh" in other.err
    assert len(calls) == 2


def test_fresh_removes_the_old_audit_and_nothing_else(
    imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    imprint("audit", table_csv, "--out", out)
    (out / "my notes.txt").write_text("keep")
    (out / "run" / "old").write_text("")
    assert imprint("audit", table_csv, "--target", "noise", "--out", out, "--fresh").status == 0
    assert not (out / "run" / "old").exists()
    assert (out / "my notes.txt").read_text() == "keep"
    assert Recipe.load(out / "recipe.yaml").target == "noise"


@pytest.mark.parametrize("option", ["--fresh", "--resume"])
def test_a_folder_of_something_else_is_left_alone(
    imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run").write_text("precious")
    said = imprint("audit", table_csv, "--out", tmp_path / "mine", option)
    assert said.status == 2
    assert "holds no audit" in said.err
    assert (tmp_path / "mine" / "run").read_text() == "precious"
    assert calls == []


def test_the_recipe_repeats_the_audit(
    imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table_csv.parent)
    imprint("audit", table_csv.name, "--target", "label", "--epochs", 3, "--out", "out")
    monkeypatch.chdir("/")
    said = imprint("run", table_csv.parent / "out" / "recipe.yaml", "--out", tmp_path / "again", "--set", "seeds=3")
    assert said.status == 0, said.err
    first, second = calls
    assert Path(second.pop("source")).samefile(table_csv)
    assert (second.pop("out"), second.pop("seeds")) == (tmp_path / "again", 3)
    assert second == {key: first[key] for key in second}


def test_a_note_when_the_data_has_changed(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    recipe = Recipe(source=str(table_csv), fingerprint="0" * 16, out=str(tmp_path / "a")).save(tmp_path / "r.yaml")
    assert "data has changed" in imprint("run", recipe).err


def test_recipes_that_cannot_run(imprint: Imprint, calls: list, tmp_path: Path) -> None:
    recipe = Recipe(out=str(tmp_path / "a")).save(tmp_path / "r.yaml")
    said = imprint("run", recipe)
    assert said.status == 2
    assert "--set source=PATH" in said.err
    assert imprint("run", recipe, "--set", "sorce=a.csv").status == 2
    assert imprint("run", recipe, "--set", f"source={tmp_path / 'gone.csv'}").status == 2
    assert calls == []


def test_impossible_settings_leave_no_folder(imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path) -> None:
    for words in (
        ["--task", "guess"],
        ["--learning-rate", "-1"],
        ["--folds", "1"],
        ["--device", "tpu9"],
        ["--split", "1/2"],
    ):
        said = imprint("audit", table_csv, "--out", tmp_path / "a", *words)
        assert said.status == 2, words
        assert said.err.startswith("error: ")
    assert not (tmp_path / "a").exists()
    assert calls == []


def test_progress_off_a_terminal_is_quiet_about_quick_jobs(
    imprint: Imprint, calls: list, table_csv: Path, tmp_path: Path
) -> None:
    assert imprint("audit", table_csv, "--out", tmp_path / "a").err == ""
