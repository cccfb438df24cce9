"""Interrupted, killed, out of disk, damaged: what is left opens, and goes on to exactly the same end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

import imprint
from imprint.corpus import Corpus
from imprint.errors import ResourceError, RunError, RunLocked
from imprint.fitting import DynamicDiversity, Fixed, NaiveSplit, Proportional, Repeated, Sampler, derive
from imprint.fleets.member import Member
from imprint.fleets.sequential import train_member
from imprint.fleets.shared import share
from imprint.recording.evidence import RowsReader
from imprint.recording.lock import held, writing
from imprint.recording.needs import Dynamics, OutOfFold
from imprint.recording.recorder import Recorder

LEARNER = imprint.Learner("mlp", epochs=4, batch_size=32, ema=0.9, seed=2)  # 8 steps per epoch


class Stop(Exception):
    """An interruption at a chosen step."""


def interrupted(
    corpus: Corpus,
    path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float = 0.0,
    learner: imprint.Learner = LEARNER,
) -> None:
    """A fit that stops within `step`, with checkpoints after each step (or only after each epoch)."""
    original = Recorder.on_batch

    def stop(self: Recorder, number: int, *rest: Any) -> None:
        original(self, number, *rest)
        if number == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_batch", stop)
        with pytest.raises(Stop):
            imprint.fit(learner, corpus, path, progress=False, checkpoint_seconds=seconds)


@pytest.fixture(scope="module")
def reference(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> imprint.Run:
    return imprint.fit(LEARNER, corpus, tmp_path_factory.mktemp("reference"), progress=False)


def assert_same(run: imprint.Run, reference: imprint.Run) -> None:
    ours, theirs = (one.checkpoints.named("last").weights() for one in (run, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    said = [one.gather([Dynamics("logits")])["logits"] for one in (run, reference)]
    torch.testing.assert_close(*said, rtol=0, atol=0, equal_nan=True)  # nan: left out of an epoch by its sampler
    tables = [pl.from_arrow(one.evidence("order").table.to_table()) for one in (run, reference)]
    assert tables[0].equals(tables[1])  # type: ignore[arg-type]
    assert run.curves().drop("seconds").equals(reference.curves().drop("seconds"))


@pytest.mark.parametrize("step", [1, 2, 8, 9, 13, 31])
@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["after each step", "after each epoch"])
def test_an_interrupted_run_ends_the_same(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, seconds: float
) -> None:
    interrupted(corpus, tmp_path, step, monkeypatch, seconds)
    left = imprint.load(tmp_path, corpus)
    assert left.status == "interrupted"
    if left.checkpoints.all():
        left.model()
    assert_same(imprint.fit(LEARNER, corpus, tmp_path, progress=False), reference)


@pytest.mark.parametrize(
    "sampler",
    [
        Fixed(range(0, 240, 2), torch.linspace(0.5, 1.5, 120)), Repeated(0.5), Proportional("bound", 0.5),
        NaiveSplit(0.5, warmup=0.25), DynamicDiversity(0.5, every=2),
    ],
    ids=repr,
)  # fmt: skip
def test_a_run_with_a_sampler_goes_on_without_being_given_it(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: Sampler
) -> None:
    learner = replace(LEARNER, sampler=sampler)
    whole = imprint.fit(learner, corpus, tmp_path / "whole", progress=False)
    assert whole.curves()["step"].to_list() == [4, 8, 12, 16]
    for at, seconds in [(11, 0.0), (9, 1e9)]:  # goes on within the third epoch, and after the second
        path = tmp_path / f"{at}"
        interrupted(corpus, path, at, monkeypatch, seconds, learner)
        again = imprint.load(path, corpus).learner
        assert again.sampler == sampler
        assert_same(imprint.fit(again, corpus, path, progress=False), whole)


def test_folds_of_a_run_with_a_fixed_choice_follow_it(corpus: Corpus, tmp_path: Path) -> None:
    """Each fold's model is trained on the chosen examples outside of the fold, as if these were all."""
    chosen = torch.arange(0, 240, 3)
    learner = replace(LEARNER, sampler=Fixed(chosen), ema=None)
    imprint.fit(learner, corpus, tmp_path / "run", progress=False)
    run = imprint.load(tmp_path / "run", corpus)
    said = run.gather([OutOfFold("logits", folds=3)])["logits"]
    fold = torch.from_numpy(
        RowsReader(tmp_path / "run" / "evidence" / "out_of_fold.lance", "fold").read(run.rows()).numpy()
    )
    shared = share(run)
    rows = torch.from_numpy(run.rows())
    for number in range(3):
        kept = chosen[fold[chosen] != number]
        member = Member(derive(LEARNER.seed, "member", number), rows[kept], settings={"sampler": None})
        outcome = train_member(shared, member, outputs_of=rows[fold == number])
        assert outcome.outputs is not None
        # Out-of-fold logits are kept as float32, of whichever executor: 1e-4 between them.
        torch.testing.assert_close(said[fold == number], outcome.outputs, rtol=1e-3, atol=1e-3)


def test_a_run_can_be_interrupted_again_and_again(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 5, 12, 20, 29):
        interrupted(corpus, tmp_path, step, monkeypatch)
    run = imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    assert_same(run, reference)
    assert len(run.manifest["sittings"]) == 6


FIT = """
import sys, time
import imprint
from imprint.recording.recorder import Recorder
original = Recorder.on_batch
def slow(self, *rest):
    original(self, *rest)
    print(rest[0], flush=True)
    time.sleep(0.02)
Recorder.on_batch = slow
corpus = imprint.Corpus.load(sys.argv[1])
learner = imprint.Learner("mlp", epochs=4, batch_size=32, ema=0.9, seed=2)
imprint.fit(learner, corpus, sys.argv[2], progress=False, checkpoint_seconds=0.05)
"""


def start(corpus: Corpus, path: Path) -> subprocess.Popen[str]:
    """The same fit in a process of its own, which reports its steps."""
    saved = corpus.stores[0].folder
    command = [sys.executable, "-c", FIT, str(saved), str(path)]
    threads = str(torch.get_num_threads())
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": threads})


def test_a_killed_run_resumes_and_a_second_writer_is_refused(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with start(corpus, path) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 3:
                break
        assert held(path)
        assert imprint.load(path, corpus).status == "running"
        began = time.perf_counter()
        with pytest.raises(RunLocked, match=f"process {child.pid}") as caught:
            imprint.fit(LEARNER, corpus, path, progress=False)
        assert time.perf_counter() - began < 2
        assert caught.value.remedy
        for line in child.stdout:
            if int(line) == 14:
                break
        child.send_signal(signal.SIGKILL)
    assert not held(path)
    left = imprint.load(path, corpus)
    assert left.status == "interrupted"
    assert left.checkpoints.all()
    assert_same(imprint.fit(LEARNER, corpus, path, progress=False), reference)


def test_a_lock_may_be_taken_again_by_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    assert not held(tmp_path)
    with writing(tmp_path):
        with writing(tmp_path):
            assert held(tmp_path)
        assert held(tmp_path)
    assert not held(tmp_path)
    with writing(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(RunError, match="cannot be written"), writing(Path("/proc/nowhere")):
        pass


def test_a_full_disk_is_said_and_leaves_a_run_that_goes_on(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = 0

    def full(tensors: Any, path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved == 5:  # the weights of the third epoch
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr("imprint.recording.checkpoints.save_file", full)
        with pytest.raises(ResourceError, match=r"(?s)disk is full.*epoch-0003\.safetensors.*last complete checkpoint"):
            imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    assert [one.epoch for one in imprint.load(tmp_path, corpus).checkpoints.all()] == [1, 2]
    assert not list(tmp_path.rglob("*.tmp"))
    assert_same(imprint.fit(LEARNER, corpus, tmp_path, progress=False), reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 400 KiB, where we may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_really_is_full(corpus: Corpus, small_disk: Path) -> None:
    learner = imprint.Learner("linear", epochs=40, batch_size=64)
    with pytest.raises(ResourceError, match="disk is full"):
        imprint.fit(learner, corpus, small_disk / "run", progress=False)
    assert imprint.load(small_disk / "run", corpus).status == "interrupted"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert imprint.fit(learner, corpus, small_disk / "run", progress=False).status == "complete"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "changed", "missing"])
@pytest.mark.parametrize("suffix", ["safetensors", "state.safetensors", "json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, suffix: str
) -> None:
    interrupted(corpus, tmp_path, 20, monkeypatch, 1e9)  # epochs 1 and 2 are complete
    damaged = tmp_path / "checkpoints" / f"epoch-0002.{suffix}"
    damage(damaged)
    said = suffix != "json" or damage is not Path.unlink  # without its description, a checkpoint never was
    quiet = suffix == "state.safetensors" and damage is Path.unlink  # and without state it just cannot be resumed
    if suffix == "json" and damage is _flip:
        pytest.skip("the last byte of a JSON file is its line end")
    if said and not quiet:
        with pytest.warns(UserWarning, match=f"{damaged.name}.*goes on from epoch-0001"):
            run = imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    else:
        run = imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    assert_same(run, reference)


def test_when_all_checkpoints_are_damaged_that_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(corpus, tmp_path, 20, monkeypatch, 1e9)
    for path in (tmp_path / "checkpoints").glob("*.state.safetensors"):
        _cut(path)
    with pytest.raises(RunError, match=r"epoch-0002\.state\.safetensors is cut short"):
        imprint.fit(LEARNER, corpus, tmp_path, progress=False)


def test_damaged_weights_are_not_used(reference: imprint.Run, corpus: Corpus, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(reference.path, tmp_path / "run")
    run = imprint.load(tmp_path / "run", corpus)
    _flip(tmp_path / "run" / "checkpoints" / "epoch-0004.safetensors")
    with pytest.raises(RunError, match=r"epoch-0004\.safetensors is damaged"):
        run.model()
    assert run.model("epoch-0003")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_manifest_is_named(reference: imprint.Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        imprint.load(tmp_path)


def _read_everything(run: imprint.Run) -> None:
    run.gather([Dynamics("loss")])
    run.evidence("order").visits(1)


@pytest.mark.parametrize("name", ["evidence/dynamics.lance", "evidence/order.lance", "examples.lance"])
@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_table_is_named(reference: imprint.Run, corpus: Corpus, tmp_path: Path, name: str, part: str) -> None:
    import shutil

    shutil.copytree(reference.path, tmp_path / "run")
    for path in (tmp_path / "run" / name / part).iterdir():
        _cut(path)
    with pytest.raises(RunError, match=Path(name).name):
        _read_everything(imprint.load(tmp_path / "run", corpus))


def test_a_writer_killed_before_its_first_commit_leaves_no_table(
    corpus: Corpus, reference: imprint.Run, tmp_path: Path
) -> None:
    for name in ("dynamics", "order"):
        (tmp_path / "evidence" / f"{name}.lance" / "data").mkdir(parents=True)
    import shutil

    shutil.copy(reference.path / "manifest.json", tmp_path / "manifest.json")
    text = (tmp_path / "manifest.json").read_text().replace('"complete"', '"running"')
    (tmp_path / "manifest.json").write_text(text)
    assert_same(imprint.fit(LEARNER, corpus, tmp_path, progress=False), reference)
