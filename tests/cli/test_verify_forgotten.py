"""`imprint verify CHILD` and `imprint forget --compare`, as a user would type them."""

from __future__ import annotations

from pathlib import Path

import pytest

import imprint as api
from imprint.cli import main
from imprint.cli.verify_forgotten import number

from .conftest import Imprint, separable

FEW = ("--oracles", 7, "--models", 3, "--shadows", 8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ridge head and a small network of 90 training and 30 test examples, made by the command line."""
    folder = tmp_path_factory.mktemp("my runs")
    separable(120, wrong=4).write_csv(folder / "table.csv")
    words = ["fit", folder / "table.csv", "--target", "label", "--id", "key", "--epochs", "4", "--batch-size", "32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        for model in ("ridge", "mlp"):
            assert main([str(word) for word in [*words, "--model", model, "--out", folder / model]]) == 0
    return folder


def test_a_child_is_judged(imprint: Imprint, runs: Path, tmp_path: Path) -> None:
    child = tmp_path / "gone"
    assert imprint("forget", runs / "ridge", "--ids", "r001,r002,r003", "--out", child).status == 0
    said = imprint("verify", child, "--shadows", 8, "--json")
    assert said.status == 0, said.err
    found = said.json
    assert (found["run"], found["methods"], found["count"], found["oracles"]) == (str(child), ["analytic"], 3, 1)
    assert found["told_apart"]["analytic"] == []
    assert set(found["rows"][0]) >= {"measure", "set", "arm", "value", "low", "high", "better", "change", "gap"}
    assert found["conclusions"]
    assert api.load(child).answer("forgetfulness").summary() == found["sentence"]
    text = imprint("verify", child, "--no-attacks").out
    for words in (
        "forgotten, 3 examples",
        "distance",
        "- analytic is the refit without these examples",
        "imprint erase",
    ):
        assert words in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80


def test_methods_are_compared_without_writing_a_child(imprint: Imprint, runs: Path) -> None:
    before = {one.name for one in runs.iterdir()}
    request = ("--where", "x > 2", "--compare", "fine-tune,sisa,retrain", *FEW)
    said = imprint("forget", runs / "mlp", *request)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    table = [line.split()[0] for line in lines[lines.index("") + 1 :][:5]]
    assert table[0] == "method"
    assert set(table[1:3]) == {"fine-tune", "retrain"}
    assert table[3:] == ["nothing", "oracle"]
    assert "sisa was left out" in said.out
    assert max(len(line) for line in lines if str(runs) not in line) <= 80
    found = imprint("forget", runs / "mlp", *request, "--json").json  # all is kept from before
    assert found["methods"] == ["fine-tune", "retrain"]
    assert set(found["told_apart"]) == {"fine-tune", "retrain", "nothing"}
    assert api.load(runs / "mlp").answer("forgetfulness-compare").summary() == found["sentence"]
    assert {one.name for one in runs.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("verify", "--models", 4), "--models: '"),
        (("verify", "--no-attacks"), "has forgotten nothing"),
        (("forget", "--ids", "r001", "--oracles", 9), "Add --compare METHODS"),
        (("forget", "--ids", "r001", "--compare", "analytic", "--set", "a=1"), "--set has no place there"),
        (("forget", "--ids", "r001", "--compare", "analytic", "--out", "x"), "--out has no place there"),
        (("forget", "--ids", "r001", "--compare", "analitic"), "Did you mean 'analytic'"),
        (("forget", "--ids", "r001", "--compare", "analytic", "--oracles", 3), "Ask for oracles=12 or more"),
    ],
)
def test_what_is_wrong_is_said(imprint: Imprint, runs: Path, words: tuple[object, ...], says: str) -> None:
    command, *rest = words
    said = imprint(command, runs / "ridge", *rest)
    assert said.status == 2
    assert says in said.err


def test_numbers_are_short() -> None:
    assert [number(value) for value in (123.4, 9.999, 0.5, -0.05)] == ["123.4", "10.00", "0.50", "-0.050"]
