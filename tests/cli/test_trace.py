"""`imprint trace` and `imprint verify --answer`, as a user would type them on a small table."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from imprint.cli import main
from imprint.cli.trace import MINUS

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


def test_a_page_is_written_and_opened_only_when_asked(
    imprint: Imprint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    words = ("trace", run, "--query", "r000", "--method", "columns", "--k", 2)
    said = imprint(*words, "--out", tmp_path / "why.html", "--json")
    assert said.status == 0, said.err
    assert opened == []
    assert said.json["page"] == str(tmp_path / "why.html")
    assert said.json["out"] is None
    assert "Query r000" in (tmp_path / "why.html").read_text()

    said = imprint(*words, "--open", "--out", tmp_path / "t.csv")
    assert said.status == 0, said.err
    page = run / "answers" / "attribution-columns" / "explanation.html"
    assert opened == [page.resolve().as_uri()]
    assert opened[0].startswith("file://")
    assert page.is_file()
    assert len(pl.read_csv(tmp_path / "t.csv")) == 4
    assert imprint("show", page.parent).status == 0  # the answer beside it is still one

    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert "no browser could be opened" in imprint(*words, "--open").err


def test_a_row_is_compared_with_the_query(imprint: Imprint, run: Path) -> None:
    said = imprint("trace", run, "--query", "r000", "--method", "columns", "--k", 3, "--json")
    (query,) = said.json["queries"]
    spread = separable(120, wrong=4).filter(pl.col("split") == "train").select("x", "noise").std().row(0, named=True)
    for one in query["examples"]:
        far = [name for name in ("x", "noise") if abs(one["content"][name] - query["content"][name]) > spread[name] / 2]
        assert one["differs"] == far
        assert one["predicted"] in ("low", "high")
    assert any(one["differs"] for one in query["examples"])
    text = imprint("trace", run, "--query", "r000", "--method", "columns", "--k", 3).out
    assert "differs" in text
    assert "Highest scores" in text


def test_auto_says_what_it_measured(imprint: Imprint, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imprint.methods import lookup
    from imprint.tracing import choosing, judges

    monkeypatch.setattr(judges, "MEMBERS", 8)
    monkeypatch.setattr(
        choosing, "registered", lambda verb: [lookup(verb, name) for name in ("columns", "embedding-class")]
    )
    said = imprint("trace", run, "--method", "auto", "--budget", 60, "--k", 1, "--show", 0, "--json")
    assert said.status == 0, said.err
    method = said.json["method"]
    assert method in ("columns", "embedding-class")
    assert said.json["notes"][0].startswith(f"auto: {method} ")
    assert (run / "answers" / f"attribution-{method}" / "answer.json").is_file()
    said = imprint("trace", run, "--method", "columns", "--budget", 60)
    assert said.status == 2
    assert "auto" in said.err


def test_verify_removes_examples_and_looks_for_known_wrong_labels(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    assert imprint("trace", run, "--method", "embedding-class", "--k", 1).status == 0
    # The flipped labels of `separable` are the first four of its clear cases.
    table = separable(120, wrong=4)
    wrong = table.filter(pl.col("x").abs() > 2)["key"].head(4)
    trained = table.filter(pl.col("key").is_in(wrong.to_list()) & (pl.col("split") == "train"))["key"]
    (tmp_path / "known.txt").write_text("\n".join(trained))
    trained.to_frame("id").write_csv(tmp_path / "known.csv")
    words = ("verify", run, "--answer", "attribution-embedding-class", "--members", 8)
    words = (*words, "--removal", 5, "--removal-queries", 6, "--seeds", 1)
    said = imprint(*words, "--known", tmp_path / "known.txt", "--json")
    assert said.status == 0, said.err
    document = said.json
    assert document["removed"] == 5
    assert set(document["drops"]) == {"embedding-class", "random", "embedding"} == set(document["flips"])
    assert (
        set(document["detection"]) == {"embedding-class", "random", "embedding", "columns"} == set(document["seconds"])
    )
    again = imprint(*words, "--known", tmp_path / "known.csv", "--json").json
    assert again["detection"] == document["detection"]
    text = imprint(*words, "--known", tmp_path / "known.txt").out
    for word in ("without 5 by", "fall", "flips", "auroc", "evidence"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_verify_steps_on_what_helps_and_trains_nothing(imprint: Imprint, run: Path) -> None:
    assert imprint("trace", run, "--method", "embedding-class", "--k", 1).status == 0
    words = ("verify", run, "--answer", "attribution-embedding-class", "--members", 0, "--tail-patch", 5)
    said = imprint(*words, "--json")
    assert said.status == 0, said.err
    document = said.json
    assert (document["patched"], document["members"], document["cost"]["trainings"]) == (5, 0, 0)
    assert set(document["gains"]) == {"embedding-class", "embedding", "random", "same-class"}
    assert set(document["gain_leads"]) == {"embedding", "random", "same-class"}
    text = imprint(*words).out
    for word in ("step on 5 by", "gain", "lead", "same-class"):
        assert word in text
    assert "lds" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert imprint(*words[:-2]).status == 2  # no models, and no step


def test_what_is_wrong_is_said(imprint: Imprint, run: Path) -> None:
    for words, word in (
        (("trace", run, "--query", "nobody", "--method", "random"), "nobody"),
        (("trace", run, "--method", "datamodle"), "datamodel"),
        (("trace", run, "--queries", "tset", "--method", "random"), "tset"),
        (("verify", run, "--answer", "nothing"), "nothing"),
        (("verify", run, "--removal", 5), "--answer"),
        (("verify", run, "--tail-patch", 5), "--answer"),
        (("trace", run, "--method", "columns", "--out", run / "manifest.json" / "a.html"), "manifest.json"),
    ):
        said = imprint(*words)
        assert said.status == 2
        assert word in said.err


def test_other_answers_are_not_verified(imprint: Imprint, run: Path) -> None:
    imprint("score", run, "loss")
    said = imprint("verify", run, "--answer", "scores-loss")
    assert said.status == 2
    assert "scores" in said.err


def test_words_of_a_model_that_reads_them_are_shown(imprint: Imprint, tmp_path: Path) -> None:
    texts = [f"{('good', 'bad')[row % 2]} film number {row}" for row in range(24)]
    split = ["test" if row % 4 == 0 else "train" for row in range(24)]
    labels = [("up", "down")[row % 2] for row in range(24)]
    frame = pl.DataFrame({"key": [f"k{row}" for row in range(24)], "text": texts, "label": labels, "split": split})
    frame.write_csv(tmp_path / "texts.csv")
    words = ("--target", "label", "--id", "key", "--model", "transformer", "--epochs", 1, "--out", tmp_path / "run")
    assert imprint("fit", tmp_path / "texts.csv", *words).status == 0
    asked = ("trace", tmp_path / "run", "--query", "k0", "--method", "embedding", "--k", 2)
    said = imprint(*asked, "--json")
    assert said.status == 0, said.err
    (query,) = said.json["queries"]
    assert {one["word"] for one in query["words"]} == {"good", "film", "number", "0"}
    for one in query["examples"]:
        assert {word["word"] for word in one["words"]} == set(texts[int(one["id"][1:])].split())
    strongest = query["words"][0]
    assert f"{'+' if strongest['score'] > 0 else MINUS}{strongest['word']}" in imprint(*asked).out
