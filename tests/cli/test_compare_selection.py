"""`imprint select --compare` and `imprint verify` of a selection, as a user would type them on a small table."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from imprint.answers import Comparison, load_answer
from imprint.cli import main

from .conftest import Imprint, separable

COMPARE = ("--compare", "--methods", "stratified,rs2", "--budgets", "0.2,50%", "--seeds", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run of 90 training and 30 test examples, made by the command line."""
    folder = tmp_path_factory.mktemp("my runs")
    separable(120, wrong=4).write_csv(folder / "table.csv")
    words = ["fit", folder / "table.csv", "--target", "label", "--id", "key", "--epochs", "4", "--out", folder / "base"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        assert main([str(word) for word in words]) == 0
    return folder / "base"


def test_a_comparison_is_shown_kept_and_written(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    said = imprint("select", run, *COMPARE, "--regimes", "steps,epochs", "--out", out, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert {(row["method"], row["budget"], row["regime"]) for row in document["rows"]} == {
        (method, budget, regime)
        for regime in ("steps", "epochs")
        for method, budget in [("full", 1.0), *((m, b) for m in ("random", "stratified", "rs2") for b in (0.2, 0.5))]
    }
    assert document["seeds"] == [0, 1]
    kept = load_answer(run / "answers" / "comparison")
    assert isinstance(kept, Comparison)
    assert kept.summary() == document["sentence"]
    frame = pl.read_csv(out)
    assert len(frame) == len(kept.frame()) == 2 * 2 * 7
    assert imprint("show", run / "answers" / "comparison").status == 0

    said = imprint("select", run, *COMPARE, "--regimes", "steps,epochs")
    for word in ("20 % of the training examples", "50 % of the training examples", "stratified", "random", "lead"):
        assert word in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_page_is_written_and_opened_only_when_asked(
    imprint: Imprint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    words = ("select", run, "--compare", "--methods", "random", "--budgets", "20", "--seeds", 2, "--regimes", "epochs")
    said = imprint(*words, "--out", tmp_path / "page.html", "--curves", "--json")
    assert said.status == 0, said.err
    assert (opened, said.json["page"], said.json["out"]) == ([], str(tmp_path / "page.html"), None)
    assert said.json["rows"][-1]["examples"] == 20
    assert imprint(*words, "--open").status == 0
    page = run / "answers" / "comparison" / "comparison.html"
    assert opened == [page.resolve().as_uri()]
    assert "Equal epochs" in page.read_text()


def test_verify_holds_a_selection_against_random(imprint: Imprint, run: Path) -> None:
    assert imprint("select", run, "--budget", 0.4, "--method", "el2n-top").status == 0
    said = imprint("verify", run, "--answer", "selection-el2n-top", "--seeds", 2, "--json")
    assert said.status == 0, said.err
    assert {row["method"] for row in said.json["rows"]} == {"full", "el2n-top", "random"}
    assert {row["examples"] for row in said.json["rows"]} == {90, 36}
    assert (run / "answers" / "comparison-el2n-top" / "answer.json").is_file()


def test_what_is_wrong_is_said(imprint: Imprint, run: Path) -> None:
    for words, word in (
        (("--methods", "rs2"), "--compare"),
        (("--open",), "--compare"),
        (("--seeds", 3), "--compare"),
        (("--compare", "--methods", "stratfied"), "stratified"),
        (("--compare", "--budgets", "a lot"), "a lot"),
        (("--compare", "--regimes", "epoch"), "epochs"),
    ):
        said = imprint("select", run, *words)
        assert said.status == 2
        assert word in said.err
