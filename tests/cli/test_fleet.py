"""`imprint fleet` and `imprint price fleet`, as a user would type them on a small table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from imprint.cli import main
from imprint.cli import options as o
from imprint.errors import EvidenceError
from imprint.fleets import Fleet, Sequential

from .conftest import Imprint, separable

DATA = ("--target", "label", "--id", "key", "--split", "split", "--epochs", 2)
PLAN = ("--plan", "folds(3) * seeds(2)", "--executor", "sequential")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("my data") / "a table.csv"
    separable(120, wrong=4).write_csv(path)
    return path


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, made by the command line."""
    path = tmp_path_factory.mktemp("runs") / "base run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        assert main([str(word) for word in ("fit", table, *DATA, "--out", path)]) == 0
    return path


def test_a_fleet_of_a_table_says_what_it_trained(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    said = imprint("fleet", table, *DATA, *PLAN, "--out", tmp_path / "fleet", "--json")
    assert said.status == 0, said.err
    document = said.json
    assert (document["members"], document["done"], document["trained"]) == (6, 6, 6)
    assert document["plan"] == "folds(3) * seeds(2)"
    assert document["executor"] == {"name": "sequential", "why": "asked for"}
    assert document["queries"] == 120
    made = Fleet.load(tmp_path / "fleet")
    metrics = made.metrics()
    (accuracy,) = (one for one in document["metrics"] if one["name"] == "accuracy")
    assert accuracy["mean"] == pytest.approx(metrics["accuracy"].mean())
    assert accuracy["std"] == pytest.approx(metrics["accuracy"].std())
    assert document["training_seconds"] == pytest.approx(metrics["seconds"].sum())
    # What is said of accuracy is what the outcomes say.
    correct = made.outcomes("correct", rows=[row for row in range(120) if row % 4 == 0]).float().mean(1)
    assert accuracy["max"] == pytest.approx(float(correct.max()))


def test_the_text_fits_and_leads_on(
    imprint: Imprint, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = imprint("fleet", table, *DATA, *PLAN, "--queries", "train", "--out", "a fleet")
    assert said.status == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    assert "No metrics: the test rows are not among the queries" in said.out
    line = next(line for line in said.out.splitlines() if "Fleet.load" in line).strip()
    namespace: dict[str, object] = {}
    exec(f"import imprint\n{line}\nmargin = fleet.outcomes('margin')", namespace)
    assert tuple(namespace["margin"].shape) == (6, 90)  # type: ignore[attr-defined]


def test_the_same_command_trains_only_what_is_missing(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    words = ("fleet", table, *DATA, *PLAN, "--out", tmp_path / "fleet", "--json")
    imprint(*words)
    assert imprint(*words).json["trained"] == 0
    before = Fleet.load(tmp_path / "fleet").outcomes()
    for number in (1, 4):
        (tmp_path / f"fleet/outcomes/{number:08d}.safetensors").unlink()
    assert imprint(*words).json["trained"] == 2
    assert Fleet.load(tmp_path / "fleet").outcomes().equal(before)
    assert imprint(*words, "--no-resume").json["trained"] == 6


def test_another_fleet_is_refused_in_words_of_the_command_line(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    words = ("fleet", table, *DATA, "--out", tmp_path / "fleet", "--executor", "sequential")
    imprint(*words, "--plan", "seeds(2)")
    said = imprint(*words, "--plan", "seeds(3)")
    assert said.status == 2
    assert "the plan is seeds(2) there, seeds(3) here" in said.err
    assert "--fresh" in said.err
    assert imprint(*words, "--plan", "seeds(3)", "--fresh").status == 0


def test_a_fleet_of_a_run_has_its_learner_and_data(imprint: Imprint, run: Path, tmp_path: Path) -> None:
    said = imprint("fleet", run, *PLAN, "--queries", "test", "--parameters", "--out", tmp_path / "fleet", "--json")
    assert said.status == 0, said.err
    assert said.json["queries"] == 30
    assert Fleet.load(tmp_path / "fleet").manifest["learner"]["epochs"] == 2
    assert Fleet.load(tmp_path / "fleet").parameters(5)
    refused = imprint("fleet", run, *PLAN, "--target", "label", "--epochs", 3, "--out", tmp_path / "other")
    assert refused.status == 2
    assert "--target, --epochs cannot change them" in refused.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--plan", "subset(3)"), "'subsets'"),
        (("--plan", "sizes([1000])"), "1000"),
        (("--plan", "seeds(2)", "--queries", "tset"), "tset"),
        (("--plan", "seeds(2)", "--address", "127.0.0.1:6379"), "--engine ray"),
        (("--plan", "seeds(2)", "--engine", "ray", "--executor", "batched"), "is the executor cluster"),
        (("--plan", "seeds(2)", "--processes", 2, "--executor", "batched"), "--processes 2"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    imprint: Imprint, table: Path, tmp_path: Path, words: tuple[object, ...], problem: str
) -> None:
    said = imprint("fleet", table, *DATA, *words, "--out", tmp_path / "fleet")
    assert said.status == 2
    assert problem in said.err
    assert not (tmp_path / "fleet").exists()


def test_options_become_executors() -> None:
    from imprint.fleets.cluster import Cluster

    assert o.executor_of("auto", 1, "local", None) == "auto"
    assert o.executor_of("batched", 1, "local", None) == "batched"
    assert o.executor_of("auto", 3, "local", None) == Sequential(3)
    assert o.executor_of("auto", 1, "ray", "10.0.0.1:6379") == Cluster("10.0.0.1:6379")
    assert o.executor_of("cluster", 1, "local", None) == Cluster()
    with pytest.raises(EvidenceError):
        o.executor_of("auto", 2, "ray", None)


def test_interrupted_it_keeps_what_it_has_and_goes_on(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "fleet"
    words = ["fleet", table, *DATA, "--plan", "seeds(400)", "--executor", "sequential", "--out", out, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imprint.cli", *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(out.glob("outcomes/[0-9]*"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    kept = int(Fleet.load(out).done.sum())
    assert 3 <= kept < 400
    assert f"{kept} members are kept" in said
    assert "run again to resume" in said
    again = imprint(*words)
    assert again.status == 0, again.err
    assert (again.json["trained"], again.json["done"]) == (400 - kept, 400)


def test_the_price_of_a_fleet(imprint: Imprint, table: Path) -> None:
    few, many = (
        imprint("price", "fleet", table, *DATA, "--plan", plan, "--executor", "batched", "--json")
        for plan in ("seeds(4)", "seeds(40)")
    )
    assert few.status == 0, few.err
    assert (few.json["trainings"], many.json["trainings"]) == (4, 40)
    # Nothing but the outcomes and the table grows with the members: 120 rows of 2 float32 logits, and some bytes of metrics.
    assert many.json["disk_bytes"] - few.json["disk_bytes"] == pytest.approx(36 * (120 * 2 * 4 + 200), rel=0.3)
    assert "executor batched: asked for" in few.json["basis"]


def test_a_price_needs_the_plan_that_belongs_to_it(imprint: Imprint, table: Path) -> None:
    assert "needs a plan" in imprint("price", "fleet", table, *DATA).err
    assert "is for a fleet" in imprint("price", "fit", table, *DATA, "--plan", "seeds(2)").err


def test_a_fleet_is_read_without_its_data(imprint: Imprint, table: Path, tmp_path: Path) -> None:
    """A fleet needs neither its data nor a cache to be read."""
    copy = tmp_path / "copy.csv"
    pl.read_csv(table).write_csv(copy)
    imprint("fleet", copy, *DATA, *PLAN, "--out", tmp_path / "fleet")
    copy.unlink()
    assert Fleet.load(tmp_path / "fleet").outcomes("loss").shape == (6, 120)
