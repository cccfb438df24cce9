"""`imprint select`, as a user would type it on a small table."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import imprint as api
from imprint.cli import main
from imprint.cli.select import budget_of

from .conftest import Imprint, separable


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


def test_a_choice_is_shown_written_kept_and_trained_on(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    out, smaller = tmp_path / "chosen.csv", tmp_path / "a smaller one"
    words = ("select", run, "--budget", "30%", "--method", "el2n-top", "--out", out, "--corpus", smaller)
    said = imprint(*words, "--top", 4, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert (document["budget"], document["examples"], document["dynamic"]) == (27, 90, False)
    assert [one["rank"] for one in document["chosen"]] == [1, 2, 3, 4]
    assert sum(one["chosen"] for one in document["classes"]) == 27
    assert sum(one["examples"] for one in document["classes"]) == 90
    frame = pl.read_csv(out)
    assert frame["id"][:4].to_list() == [one["id"] for one in document["chosen"]]
    assert api.load(run).answer("selection-el2n-top").frame()["id"].to_list() == frame["id"].to_list()
    saved = api.Corpus.load(smaller)
    assert saved.splits == {"train": 27, "test": 30}
    assert set(saved.split("train").ids) == set(frame["id"])
    assert imprint("fit", smaller, "--epochs", 1, "--out", tmp_path / "again").status == 0

    text = imprint(*words).out
    for word in ("27 of 90 training examples (30%) by el2n-top", "higher = harder", "By class", f"fit '{smaller}'"):
        assert word in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80


def test_a_saved_corpus_serves_what_needs_no_training(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    api.load(run).corpus.save(tmp_path / "corpus")
    said = imprint("select", tmp_path / "corpus", "--budget", 9, "--method", "stratified", "--json")
    assert said.status == 0, said.err
    assert len(said.json["chosen"]) == 9
    refused = imprint("select", tmp_path / "corpus", "--method", "loss-top")
    assert refused.status == 2
    assert "reads what a training recorded" in refused.err


def test_a_policy_is_no_corpus(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    said = imprint("select", run, "--method", "rs2", "--corpus", tmp_path / "none")
    assert said.status == 2
    assert "chooses anew in each epoch" in said.err
    assert not (tmp_path / "none").exists()
    assert "sampler" in imprint("select", run, "--method", "rs2").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--budget", "half"), "neither a share nor a number of examples"),
        (("--budget", "0"), "neither a share nor a number of examples"),
        (("--budget", "91"), "more than the 90"),
        (("--method", "randm"), "Did you mean 'random'"),
        (("--target", "test"), "aims at no examples"),
        (("--trusted", "nowhere.txt"), "No file or folder 'nowhere.txt'"),
    ],
)
def test_mistakes_are_told(imprint: Imprint, run: Path, words: tuple[str, ...], says: str) -> None:
    said = imprint("select", run, *words)
    assert said.status == 2
    assert says in said.err


def test_what_is_no_run_is_told(imprint: Imprint, tmp_path: Path) -> None:
    said = imprint("select", tmp_path / "nowhere")
    assert said.status == 2
    assert "No run at" in said.err


@pytest.mark.parametrize(("text", "budget"), [("0.25", 0.25), ("25%", 0.25), ("25", 25), ("1", 1), ("1.0", 1.0)])
def test_budgets_as_they_are_typed(text: str, budget: float) -> None:
    assert budget_of(text) == budget
    assert type(budget_of(text)) is type(budget)
