"""One capture for all that is wanted of a checkpoint; the same answer bit for bit in shards over Ray, whatever happens to a worker."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import lance
import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import imprint
from imprint.corpus import Corpus
from imprint.engine import Engine, ordered
from imprint.engine.connection import connected
from imprint.engine.ordered import in_order
from imprint.errors import EvidenceError, ResourceError
from imprint.gradients import Examples, evidence, sharded
from imprint.gradients import examples as examples_module
from imprint.gradients.sharded import slices
from imprint.recording import Run
from imprint.recording.needs import GradientNorms, Gradients, GradientValues, Need

# Workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 120
BLOCK = 20
# Three tables of one pass, and one of another.
NEEDS = (Gradients(size=32), Gradients(size=24, projection="sparse"), GradientNorms(), Gradients(size=16, of="margin"))


class Net(nn.Module):
    """A convolution, so that positions and several kinds of layers take part."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, stride=2)
        self.head = nn.Linear(4 * ((shape[0] - 1) // 2), width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(inputs[:, None]).relu().flatten(1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    images, target = load_digits(n_class=3, return_X_y=True)
    frame = pl.DataFrame(
        {
            "x": pl.Series(images[:ROWS].astype(np.float32) / 16),
            "label": [f"d{value}" for value in target[:ROWS]],
            "split": ["test" if number % 4 == 0 else "train" for number in range(ROWS)],
        }
    )
    return imprint.open(frame, target="label", split="split", store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without any gradients."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    return imprint.fit(imprint.Learner(Net, epochs=3, batch_size=32), corpus, folder, progress=False)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of its own for each test."""
    shutil.copytree(trained.path, tmp_path / "run")
    return imprint.load(tmp_path / "run", corpus=trained.corpus, model=Net)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    pytest.importorskip("ray")
    with connected(None, 2**26, cpus=2):
        yield


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks of 20 examples, each written at once."""
    monkeypatch.setattr(Examples, "size", BLOCK)
    monkeypatch.setattr(evidence, "CHUNK_BYTES", 1)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """What was differentiated, and the first example, of each block that is captured in this process."""
    found: list[tuple[Any, int]] = []
    original = Examples.with_values

    def with_values(self: Examples, examples: slice = slice(None)) -> object:
        if examples.stop != 4:  # the first four are looked at beforehand
            found.append((self.capture.of, examples.start))
        return original(self, examples)

    monkeypatch.setattr(Examples, "with_values", with_values)
    return found


def kept(run: Run) -> dict[str, pl.DataFrame]:
    """All gradients on disk, as they are."""
    paths = sorted((run.path / "evidence").glob("gradient*.lance"))
    return {path.name: pl.from_arrow(lance.dataset(str(path)).to_table()) for path in paths}


def same(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert left
    for name, table in left.items():
        assert table["row"].to_list() == list(range(ROWS)), name
        assert table.equals(right[name]), name


@pytest.fixture(scope="module")
def alone(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """Each need collected by itself, in this process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    shutil.copytree(trained.path, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "size", BLOCK)
        separate = imprint.load(folder, corpus=trained.corpus, model=Net)
        for need in NEEDS:
            separate.collect([need])
    return kept(separate)


# ------------------------------------------------------------------------------------------------------------------ one shared pass


def test_a_block_is_captured_once_for_all_that_is_wanted_of_it(
    run: Run, alone: dict[str, pl.DataFrame], captured: list[tuple[Any, int]]
) -> None:
    run.collect(NEEDS)
    starts = list(range(0, ROWS, BLOCK))
    assert captured == [("loss", start) for start in starts] + [("margin", start) for start in starts]
    same(kept(run), alone)
    assert not list((run.path / "evidence").glob(".*"))


def test_names_of_one_checkpoint_share_its_tables(run: Run, captured: list[tuple[Any, int]]) -> None:
    several = [Gradients(size=8, checkpoint=one) for one in ("last", 3, "kept")]
    run.collect([*several, GradientValues(size=8), GradientNorms(checkpoint="early")])
    names = sorted(kept(run))
    checkpoints = len(run.checkpoints.all())
    assert len(names) == checkpoints + 1
    assert len(captured) == checkpoints * ROWS // BLOCK  # the early checkpoint is among those that are kept
    run.collect([Gradients(size=8, checkpoint="best")])  # as are all others
    assert sorted(kept(run)) == names
    assert len(captured) == checkpoints * ROWS // BLOCK


class Stop(Exception):
    """An interruption."""


def stop_at(done: int) -> Any:
    def progress(label: str, now: int, total: int, facts: Any = None) -> None:
        if now >= done:
            raise Stop

    return progress


def test_each_table_goes_on_where_it_was(
    run: Run, alone: dict[str, pl.DataFrame], captured: list[tuple[Any, int]]
) -> None:
    """One is complete, one has 60 rows and one 20 when all three are asked for: the pass begins at the least."""
    complete, most, least = NEEDS[:3]
    run.collect([complete])
    for need, rows in ((most, 60), (least, 20)):
        with pytest.raises(Stop):
            run.collect([need], stop_at(rows))
    before = {path: path.stat().st_mtime_ns for path in (run.path / "evidence").glob("gradients-32*/data/*")}
    captured.clear()
    appended: list[tuple[str, int]] = []
    original = evidence.tables.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evidence.tables,
            "append",
            lambda path, table: appended.append((path.name, len(table))) or original(path, table),
        )
        run.collect([complete, most, least])
    assert [start for _, start in captured] == [20, 40, 60, 80, 100]
    sparse = [rows for name, rows in appended if "sparse" in name]
    norms = [rows for name, rows in appended if "norms" in name]
    assert (sum(sparse), sum(norms), len(appended)) == (60, 100, 8)
    assert before
    assert before == {path: path.stat().st_mtime_ns for path in before}
    same(kept(run), {name: table for name, table in alone.items() if "margin" not in name})


def test_a_table_begun_with_other_blocks_is_begun_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    need = Gradients(size=32)
    with pytest.raises(Stop):
        run.collect([need], stop_at(40))
    monkeypatch.setattr(Examples, "size", 30)  # 40 is not the end of such a block
    seen: list[int] = []
    run.collect([need], lambda label, done, total, facts=None: seen.append(done))
    assert seen == [30, 60, 90, 120]


def test_what_waits_is_written_after_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model: an interruption loses no more than `CHUNK_SECONDS`, however little has come together."""
    monkeypatch.setattr(evidence, "CHUNK_BYTES", 2**30)
    monkeypatch.setattr(evidence, "CHUNK_SECONDS", -1.0)
    with pytest.raises(Stop):
        run.collect([Gradients(size=32)], stop_at(40))
    (partial,) = (run.path / "evidence").glob(".gradients*")
    assert lance.dataset(str(partial)).count_rows() == 40


# -------------------------------------------------------------------------------------------------------------------------- over Ray


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("shards", [1, 2, 64])
def test_the_answer_over_ray_is_the_same_bit_for_bit(
    run: Run,
    alone: dict[str, pl.DataFrame],
    captured: list[tuple[Any, int]],
    monkeypatch: pytest.MonkeyPatch,
    shards: int,
) -> None:
    """Also in shards of several blocks, and where inputs are encoded again."""
    monkeypatch.setattr(sharded, "SHARDS", shards)
    monkeypatch.setattr(examples_module, "_fits", lambda _: shards == 2)
    told: list[int] = []
    run.collect(NEEDS, lambda label, done, total, facts=None: told.append(done), engine=Engine("ray", cpus=1))
    assert captured == []  # not in this process
    assert told == 2 * list(range(BLOCK, ROWS + 1, BLOCK))
    same(kept(run), alone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("first", "second"), [("ray", "ray"), ("ray", "local"), ("local", "ray")])
def test_an_interrupted_driver_goes_on_with_the_shards_that_are_missing(
    run: Run, alone: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    sent: list[int] = []
    original = sharded._inputs

    def inputs(examples: Examples, some: slice) -> Any:
        if some.stop != 4:
            sent.append(some.start)
        return original(examples, some)

    monkeypatch.setattr(sharded, "_inputs", inputs)
    with pytest.raises(Stop):
        run.collect(NEEDS[:3], stop_at(60), engine=first)
    assert kept(run) == {}
    sent.clear()
    told: list[int] = []
    run.collect(NEEDS[:3], lambda label, done, total, facts=None: told.append(done), engine=second)
    assert sent == ([60, 80, 100] if second == "ray" else [])
    assert told == [80, 100, 120]
    same(kept(run), {name: table for name, table in alone.items() if "margin" not in name})


class Deadly(Net):
    """Kills the workers that are the first to see a block, and never the process that trained it."""

    def __init__(self, shape: tuple[int, ...], width: int, flags: Path, times: int) -> None:
        super().__init__(shape, width)
        self.home, self.flags, self.times = os.getpid(), flags, times

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.home and len(inputs) == BLOCK:
            for number in range(self.times):
                try:
                    (self.flags / str(number)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)


def deadly(corpus: Corpus, folder: Path, times: int) -> Run:
    learner = imprint.Learner(lambda shape, width: Deadly(shape, width, folder, times), epochs=1, batch_size=32)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


@pytest.mark.usefixtures("cluster")
def test_a_shard_whose_worker_is_killed_is_computed_again(corpus: Corpus, tmp_path: Path) -> None:
    run = deadly(corpus, tmp_path, 1)
    shutil.copytree(run.path, tmp_path / "other")
    run.collect([Gradients(size=32)], engine=Engine("ray", cpus=1))
    assert (tmp_path / "0").exists()  # a worker was lost
    other = Run(tmp_path / "other", corpus, run.learner)
    other.collect([Gradients(size=32)])
    same(kept(run), kept(other))


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_every_worker_is_named(corpus: Corpus, tmp_path: Path) -> None:
    run = deadly(corpus, tmp_path, 50)
    with pytest.raises(ResourceError, match=r"Part \d of 6 could not be done: its worker was lost 1 times"):
        run.collect([Gradients(size=32)], engine=Engine("ray", cpus=1, retries=0))


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_sent_says_so(corpus: Corpus, tmp_path: Path) -> None:
    class Locked(Net):
        def __init__(self, shape: tuple[int, ...], width: int) -> None:
            super().__init__(shape, width)
            self.lock = threading.Lock()

    run = imprint.fit(imprint.Learner(Locked, epochs=1), corpus, tmp_path / "run", progress=False)
    with pytest.raises(EvidenceError, match=r"cannot be sent to another process.*\n.*the engine 'local'"):
        run.collect([GradientNorms()], engine="ray")
    run.collect([GradientNorms()])


# ----------------------------------------------------------------------------------------------------------------- parts, in order


def double(number: int, values: np.ndarray) -> np.ndarray:
    if number == 3:
        raise EvidenceError("The third is bad.", "Leave it out.")
    return 2 * values


@pytest.mark.usefixtures("cluster")
def test_parts_come_in_order_and_few_are_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "AHEAD_BYTES", 3)
    sent: list[int] = []

    def inputs(number: int) -> tuple[int, np.ndarray]:
        sent.append(number)
        return 0, np.full(2, number)

    got = []
    for value in in_order(double, 8, inputs, Engine("ray", cpus=1)):
        got.append(value.tolist())
        assert max(sent) < len(got) - 1 + 3
    assert got == [[2 * number] * 2 for number in range(8)]
    assert sorted(sent) == list(range(8))


@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_part_is_one_of_this_process() -> None:
    with pytest.raises(EvidenceError, match=r"The third is bad") as caught:
        list(in_order(double, 5, lambda number: (number, np.ones(1)), Engine("ray", cpus=1)))
    assert caught.value.remedy == "Leave it out."


@pytest.mark.usefixtures("cluster")
def test_a_job_that_is_lost_is_put_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first task finds that a node died with what it was to read, as Ray would tell it."""
    import ray

    put, do, flag = ray.put, ordered.do_part, tmp_path / "lost"
    jobs: list[Any] = []

    def losing(*arguments: Any) -> Any:
        if not flag.exists():
            flag.touch()
            raise ray.exceptions.ObjectLostError("00", None, "")
        return do(*arguments)

    monkeypatch.setattr(ray, "put", lambda value: jobs.append(value) or put(value))
    monkeypatch.setattr(ordered, "do_part", losing)
    found = list(in_order(double, 4, lambda number: (0, np.full(1, number)), Engine("ray", cpus=1)))
    assert [int(one[0]) for one in found] == [0, 2, 4, 6]
    assert len(jobs) == 2


def test_engines_that_make_no_sense() -> None:
    with pytest.raises(EvidenceError, match="Did you mean 'ray'"):
        Engine("rays")
    with pytest.raises(EvidenceError, match="is that of a Ray cluster"):
        Engine("local", "127.0.0.1:6379")
    with pytest.raises(EvidenceError, match="cpus=0 is less than 1"):
        Engine("ray", cpus=0)


@pytest.mark.parametrize(("begin", "end", "size"), [(0, 120, 20), (7, 8, 20), (7, 121, 20), (20, 40, 20), (0, 3, 5)])
def test_slices_are_aligned(begin: int, end: int, size: int) -> None:
    found = slices(begin, end, size)
    assert [row for some in found for row in range(some.start, some.stop)] == list(range(begin, end))
    assert all(some.start % size == 0 for some in found[1:])
    assert all(some.stop - some.start <= size for some in found)


def test_a_need_that_is_there_takes_no_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[Need] = [Gradients(size=8)]
    run.collect(needs)
    monkeypatch.setattr(ordered, "connected", None)
    run.collect(needs, engine="ray")


def test_several_passes_take_one_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of our own is started once for all checkpoints, and ends with the last."""
    steps: list[str] = []

    @contextmanager
    def held(engine: Engine, size: int) -> Iterator[None]:
        assert engine == Engine("ray")
        steps.append("begin")
        yield
        steps.append("end")

    original = sharded.blocks
    monkeypatch.setattr(evidence, "held", held)
    monkeypatch.setattr(
        evidence, "blocks", lambda examples, wanted, engine: steps.append(engine.name) or original(examples, wanted)
    )
    run.collect([GradientNorms(checkpoint="kept")], engine="ray")
    assert steps == ["begin", *["ray"] * len(run.checkpoints.all()), "end"]
    assert len(run.checkpoints.all()) > 1
