"""`imprint trace` and `imprint verify --answer`, as a user would type them on a small table."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from imprint.cli import main

from .conftest import Imprint, separable

TRACE = ("--members", 8, "--k", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, made by the command line."""
    folder = tmp_path_factory.mktemp("my runs")
    separable(120, wrong=4).write_csv(folder / "table.csv")
    words = ["fit", folder / "table.csv", "--target", "label", "--id", "key", "--epochs", "4", "--out", folder / "base"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        assert main([str(word) for word in words]) == 0
    return folder / "base"


def test_trace_shows_a_query_beside_its_examples(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    said = imprint("trace", run, "--query", "r000", *TRACE, "--out", tmp_path / "t.parquet", "--json")
    assert said.status == 0, said.err
    document = said.json
    (query,) = document["queries"]
    assert (query["id"], query["split"], document["count"]) == ("r000", "test", 1)
    assert [one["rank"] for one in query["examples"]] == [1, 2, 3, -1, -2, -3]
    table = separable(120, wrong=4)
    labels = dict(table.select("key", "label").iter_rows())
    for one in query["examples"]:
        assert one["target"] == labels[one["id"]]
        assert one["content"].keys() == {"x", "noise"}
    frame = pl.read_parquet(tmp_path / "t.parquet")
    assert frame["id"].to_list() == [one["id"] for one in query["examples"]]

    text = imprint("trace", run, "--query", "r000", *TRACE).out
    for word in ("Query r000 (test)", "Most helpful", "Most harmful", "predicted", "imprint verify"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_split_shows_its_first_queries(imprint: Imprint, run: Path) -> None:
    said = imprint("trace", run, "--method", "columns", "--k", 1, "--show", 2, "--json")
    assert said.json["count"] == 30
    assert len(said.json["queries"]) == 2
    assert "and 28 more queries" in imprint("trace", run, "--method", "columns", "--k", 1, "--show", 2).out


def test_verify_says_how_far_a_trace_can_be_trusted(imprint: Imprint, run: Path) -> None:
    assert imprint("trace", run, *TRACE).status == 0
    said = imprint("verify", run, "--answer", "attribution-datamodel", "--members", 8, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert set(document["controls"]) == {"random", "embedding", "embedding-class", "columns"} == set(document["leads"])
    low, high = document["interval"]
    assert low < document["lds"] < high
    text = imprint("verify", run, "--answer", "attribution-datamodel", "--members", 8).out
    assert "linear datamodeling score" in text
    assert max(map(len, text.splitlines())) <= 80
    assert imprint("show", run / "answers/trust-datamodel").status == 0


def test_what_is_wrong_is_said(imprint: Imprint, run: Path) -> None:
    for words, word in (
        (("trace", run, "--query", "nobody", "--method", "random"), "nobody"),
        (("trace", run, "--method", "datamodle"), "datamodel"),
        (("trace", run, "--queries", "tset", "--method", "random"), "tset"),
        (("verify", run, "--answer", "nothing"), "nothing"),
    ):
        said = imprint(*words)
        assert said.status == 2
        assert word in said.err


def test_other_answers_are_not_verified(imprint: Imprint, run: Path) -> None:
    imprint("score", run, "loss")
    said = imprint("verify", run, "--answer", "scores-loss")
    assert said.status == 2
    assert "scores" in said.err
