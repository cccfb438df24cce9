"""`--engine ray`, from the command line to the answer: the same as of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imprint.cli import main
from imprint.engine.connection import connected
from imprint.fleets import Fleet

from .conftest import Imprint, separable

ray = pytest.importorskip("ray")
DATA = ("--target", "label", "--id", "key", "--split", "split", "--model", "linear", "--epochs", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same run twice, made by the command line."""
    folder = tmp_path_factory.mktemp("engine runs")
    separable(120, wrong=4).write_csv(folder / "table.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_HOME", str(tmp_path_factory.getbasetemp() / "imprint-home"))
        for name in ("here", "there"):
            words = ("fit", folder / "table.csv", *DATA, "--out", folder / name)
            assert main([str(word) for word in words]) == 0
    return [folder / "here", folder / "there"]


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster that runs."""
    with connected(None, 2**26, cpus=1):
        yield ray.get_runtime_context().gcs_address


def test_a_fleet_is_trained_on_a_cluster_of_its_own(imprint: Imprint, runs: list[Path], tmp_path: Path) -> None:
    assert not ray.is_initialized()
    words = ("fleet", runs[0], "--plan", "seeds(3)", "--out", tmp_path / "fleet", "--engine", "ray", "--json")
    said = imprint(*words)
    assert said.status == 0, said.err
    assert said.json["executor"] == {"name": "cluster", "why": "asked for"}
    assert (said.json["done"], said.json["trained"]) == (3, 3)
    assert not ray.is_initialized()
    here = imprint(
        "fleet", runs[0], "--plan", "seeds(3)", "--out", tmp_path / "here", "--executor", "sequential", "--json"
    )
    assert here.status == 0, here.err
    margins = [Fleet.load(tmp_path / name).outcomes("margin") for name in ("fleet", "here")]
    assert float((margins[0] - margins[1]).abs().max()) < 1e-4


def test_scores_and_traces_are_those_of_this_process(imprint: Imprint, runs: list[Path], address: str) -> None:
    there = ("--engine", "ray", "--address", address)
    for words in (("score", "grand", "gradient-norm", "--top", 5), ("trace", "--method", "trak", "--k", 3)):
        answers = []
        for run, engine in zip(runs, ((), there), strict=True):
            said = imprint(words[0], run, *words[1:], *engine, "--json")
            assert said.status == 0, said.err
            answers.append(said.json)
        key = "examples" if words[0] == "score" else "queries"
        assert answers[0][key] == answers[1][key]  # to the last digit
    said = imprint("trace", runs[1], "--members", 4, *there, "--json")
    assert said.status == 0, said.err
    (fleet,) = (Fleet.load(path.parent) for path in runs[1].glob("fleets/*/manifest.json"))
    assert fleet.manifest["executor"]["name"] == "cluster"
    assert said.json["cost"]["trainings"] == 4


@pytest.mark.parametrize("command", ["score", "trace"])
def test_an_address_without_the_engine_is_refused(imprint: Imprint, runs: list[Path], command: str) -> None:
    said = imprint(command, runs[0], "--address", "127.0.0.1:6379")
    assert said.status == 2
    assert "--engine ray" in said.err
