"""`imprint runs` and `imprint doctor`: what they find, and what they make of damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imprint.cli import doctor
from imprint.cli.runs import HEADLINES, headline, local, search
from imprint.tasks import TASKS, Classification, Multilabel, Regression

from .conftest import Imprint


def make_run(path: Path, **manifest: object) -> Path:
    (path / "evidence").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_headlines_are_those_of_the_tasks() -> None:
    made = {"classification": Classification(("a", "b")), "regression": Regression(), "multilabel": Multilabel(("a",))}
    assert set(made) == set(TASKS)
    assert {name: task.headline for name, task in made.items()} == HEADLINES


def test_search_finds_runs_and_nothing_else(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a" / "run one")
    make_run(one / "answers" / "inner")  # inside a run: not a run of its own
    make_run(tmp_path / ".hidden" / "run")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text("{}")  # of a web application
    two = make_run(tmp_path / "b")
    assert sorted(search(tmp_path)) == sorted([one, two])


def test_a_damaged_manifest_is_said(imprint: Imprint, tmp_path: Path) -> None:
    (make_run(tmp_path / "r") / "manifest.json").write_text('{"status": ')
    said = imprint("runs", tmp_path, "--json")
    assert said.status == 0
    assert said.json["runs"][0]["status"] == "damaged"


def test_no_runs(imprint: Imprint, tmp_path: Path) -> None:
    said = imprint("runs", tmp_path)
    assert "No runs under" in said.out
    assert imprint("runs", tmp_path, "--json").json == {"runs": []}


def test_missing_folder(imprint: Imprint, tmp_path: Path) -> None:
    said = imprint("runs", tmp_path / "nowhere")
    assert said.status == 2
    assert "nowhere" in said.err


@pytest.mark.parametrize(
    ("last", "split", "value"),
    [
        ({"train": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}, "test", 0.8),
        ({"train": {"accuracy": 0.9}, "valid": {"accuracy": 0.7}}, "valid", 0.7),
        ({"train": {"accuracy": 0.9}}, "train", 0.9),
        ({"train": {"accuracy": 0.9}, "test": {"accuracy": None}}, "train", 0.9),
    ],
)
def test_headline_is_of_the_split_that_was_not_trained_on(tmp_path: Path, last: dict, split: str, value: float) -> None:
    path = make_run(tmp_path / "r")
    (path / "evidence" / "curves.json").write_text(json.dumps([{"epoch": 1, "loss": 1.0}, {"epoch": 2, **last}]))
    assert headline(path, "classification") == {"metric": "accuracy", "value": value, "split": split}


def test_local_time() -> None:
    assert local(None) == ""
    assert local("2026-01-15T12:00:00+00:00").startswith("Jan 1")


def test_doctor_finds_this_installation_whole(imprint: Imprint) -> None:
    said = imprint("doctor", "--json")
    states = {check["name"]: check["state"] for check in said.json["checks"]}
    assert said.status == 0
    assert said.json["ok"]
    assert states["training"] == states["store format"] == states["store"] == "ok"
    assert max(map(len, imprint("doctor").out.splitlines())) <= 80


def test_doctor_exits_with_1_where_the_store_cannot_be_written(
    imprint: Imprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMPRINT_HOME", str(tmp_path / "file" / "store"))
    said = imprint("doctor")
    assert said.status == 1
    assert "IMPRINT_HOME" in said.out
    assert "1 broken: store" in said.out


def test_doctor_sees_a_missing_package(imprint: Imprint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    said = imprint("doctor", "--json")
    assert said.status == 1
    (missing,) = [check for check in said.json["checks"] if check["state"] == "broken"]
    assert missing["remedy"] == "pip install no-such-package"
