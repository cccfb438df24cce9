"""`imprint clean RUN --report`: conflicts, noise_transition, annotators and stability, as a user types them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.cli.conftest import Imprint, separable


@pytest.fixture
def run(imprint: Imprint, table_csv: Path, tmp_path: Path) -> Path:
    """A fitted run on a table with twelve wrong labels."""
    folder = tmp_path / "run"
    words = ("--target", "label", "--id", "key", "--split", "split", "--model", "mlp", "--epochs", 4, "--out", folder)
    assert imprint("fit", table_csv, *words).status == 0
    return folder


def test_reports_about_labels(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    said = imprint("clean", run, "--report", "conflicts", "--top", 2, "--out", tmp_path / "all.csv")
    assert said.status == 0, said.err
    assert "Greatest disagreement" in " ".join(said.out.split())
    assert len(pl.read_csv(tmp_path / "all.csv")) == 180
    found = imprint("clean", run, "--report", "noise_transition", "--json").json
    assert found["count"] == 4
    assert {"true", "given", "rate", "low", "high", "examples"} == set(found["rows"][0])

    table = separable().filter(pl.col("split") == "train")
    votes = pl.concat(
        [
            table.select(pl.col("key").alias("id"), pl.lit(f"worker {who}").alias("annotator"), "label")
            for who in range(2)
        ]
    )
    votes.write_csv(tmp_path / "votes.csv")
    found = imprint(
        "clean", run, "--report", "annotators", "--votes", tmp_path / "votes.csv", "--top", 1, "--json"
    ).json
    assert found["count"] == 180
    assert found["rows"][0]["votes"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--report", "annotators"), "--votes FILE"),
        (("--report", "conflicts", "--votes", "votes.csv"), "reads no votes"),
        (("--votes", "votes.csv"), "--report annotators"),
        (("--report", "annotators", "--votes", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_votes_go_with_annotators(imprint: Imprint, run: Path, words: tuple[str, ...], says: str) -> None:
    said = imprint("clean", run, *words)
    assert said.status != 0
    assert says in said.err


@pytest.fixture
def corrections(tmp_path: Path) -> Path:
    """Right labels of four test examples, one of which nobody knows."""
    test = separable().filter(pl.col("split") == "test")["key"]
    labels = separable().filter(pl.col("split") == "test")["label"].replace_strict({"high": "low", "low": "high"})
    frame = pl.DataFrame({"id": test[:4], "label": [*labels[:3], None]})
    frame.write_csv(tmp_path / "right.csv")
    return tmp_path / "right.csv"


def test_stability_of_a_ranking(
    imprint: Imprint, run: Path, table_csv: Path, corrections: Path, tmp_path: Path
) -> None:
    """A run against one of the same folder name, and against a file of answers that are always as the given label."""
    other = tmp_path / "other" / "run"
    words = ("--target", "label", "--id", "key", "--split", "split", "--model", "logistic", "--out", other)
    assert imprint("fit", table_csv, *words).status == 0
    test = separable().filter(pl.col("split") == "test")
    test.select(pl.col("key").alias("id"), "label").write_csv(tmp_path / "echo.csv")
    against = ("--against", other, "--against", tmp_path / "echo.csv")
    words = ("clean", run, "--report", "stability", *against, "--corrections", corrections)
    found = imprint(*words, "--json").json
    assert found["count"] == 6  # three pairs by two kinds of labels
    assert found["summary"].startswith("3 mislabelled and 56 other test examples")
    names = {row[which] for row in found["rows"] for which in ("leader", "other")}
    folder = tmp_path.name
    assert names == {f"{folder}/run", "other/run", f"{folder}/echo"}
    echo = [
        row for row in found["rows"] if row["labels"] == "given" and f"{folder}/echo" in (row["leader"], row["other"])
    ]
    assert all(row["leader"] == f"{folder}/echo" and row["lead"] >= 0 for row in echo)
    assert "mislabelled" in imprint(*words).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--report", "stability"), "--against RUN"),
        (("--report", "stability", "--against", "RUN"), "--corrections FILE"),
        (("--report", "conflicts", "--against", "RUN", "--corrections", "right.csv"), "compares no models"),
        (("--against", "RUN", "--corrections", "right.csv"), "--report stability"),
        (("--report", "stability", "--against", "nowhere", "--corrections", "right.csv"), "No run at"),
        (("--report", "stability", "--against", "RUN", "--corrections", "right.csv"), "names of their own"),
    ],
)
def test_other_models_and_corrections_go_with_stability(
    imprint: Imprint, run: Path, corrections: Path, words: tuple[str, ...], says: str
) -> None:
    said = imprint("clean", run, *({"RUN": run, "right.csv": corrections}.get(word, word) for word in words))
    assert said.status != 0
    assert says in " ".join(said.err.split())


def test_more_like_the_known_ones_can_be_forgotten(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    table = separable().with_row_index()
    wrong = table.filter((pl.col("x") > 0) != (pl.col("label") == "high"), pl.col("split") == "train")["key"].to_list()
    pl.DataFrame({"id": wrong[:6]}).write_csv(tmp_path / "known.csv")
    out = tmp_path / "bad.csv"
    said = imprint("clean", run, "--like", tmp_path / "known.csv", "--out", out)
    assert said.status == 0, said.err
    assert "6 were named" in said.out
    assert f"--findings {out} --known" in said.out
    found = pl.read_csv(out)
    assert set(wrong[:6]) <= set(found["id"])
    assert "--like" in imprint("clean", run, "--like", tmp_path / "known.csv").out  # in the command that writes a file
    told = imprint("clean", run, "--like", ",".join(wrong[:6]), "--json").json
    assert told["count"] == len(found)
    assert told["kinds"][0]["kind"] == "alike"
    assert told["notes"]
    assert all(one["evidence"] != "named as bad" for one in told["findings"])
    wider = imprint("clean", run, "--like", tmp_path / "known.csv", "--recall", 0.8, "--json").json
    assert wider["count"] >= 6
    child = imprint("forget", run, "--findings", out, "--known", "--method", "nothing", "--out", tmp_path / "child")
    assert child.status == 0, child.err
    assert f"{len(found)} training examples forgotten" in child.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--like", "r001,nobody"), "'nobody'"),
        (("--like", "r001,r002"), "2 of 180 training examples"),
        (("trajectory", "--like", "r001"), "a search of its own"),
        (("--report", "conflicts", "--like", "r001"), "of the whole set"),
        (("--recall", "0.9"), "Add --like"),
        (("--like", "r001,r002,r003,r005,r006", "--recall", "0.9"), "Give recall=0.83 or less, or name 9"),
    ],
)
def test_what_is_like_nothing_says_why(imprint: Imprint, run: Path, words: tuple[str, ...], says: str) -> None:
    said = imprint("clean", run, *words)
    assert said.status != 0
    assert says in said.err
