"""`imprint clean RUN --report`: conflicts, noise_transition and annotators, as a user types them."""

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
