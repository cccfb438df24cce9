"""Schedules, augmentation, samplers, encoded data, memory and progress."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imprint
from imprint.errors import LearnerError, ResourceError
from imprint.fitting import Bar, Shuffled, as_torch_sampler, derive, encode, generator, reporter, silent
from imprint.fitting.augment import flip_crop
from imprint.fitting.memory import available_memory, parse_size
from imprint.fitting.schedule import factor
from imprint.models import encoder_for
from imprint.tasks import fit as fit_task


@settings(deadline=None)
@given(st.floats(0, 1))
def test_rates_are_between_nothing_and_the_peak(progress: float) -> None:
    assert all(0 <= factor(schedule, progress) <= 1 for schedule in ("onecycle", "cosine", "constant"))


def test_one_cycle_is_that_of_pytorch() -> None:
    steps = 1000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, final_div_factor=1e9)
    for step in range(steps - 1):
        # PyTorch counts the last step of a phase as its end, which shifts the curve by at most a few steps.
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor("onecycle", step / steps), abs=0.01)
        optimizer.step()
        theirs.step()


def test_mirroring_and_shifting_is_what_a_loop_would_do() -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = flip_crop(images, generator(0, "augment", 1))
    draw = generator(0, "augment", 1)
    mirrored = torch.rand(6, 1, generator=draw) < 0.5
    down = torch.randint(-2, 3, (6, 1), generator=draw)
    right = torch.randint(-2, 3, (6, 1), generator=draw)
    for example, y, x in itertools.product(range(6), range(16), range(16)):
        from_y = min(15, max(0, y + int(down[example])))
        from_x = min(15, max(0, x + int(right[example])))
        if mirrored[example]:
            from_x = 15 - from_x
        assert torch.equal(made[example, :, y, x], images[example, :, from_y, from_x])
    assert mirrored.any()
    assert not mirrored.all()


def test_purposes_have_seeds_of_their_own() -> None:
    seeds = {
        derive(seed, purpose, epoch) for seed in range(4) for purpose in ("shuffle", "dropout") for epoch in range(9)
    }
    assert len(seeds) == 4 * 2 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_data_loader_takes_the_same_order() -> None:
    passes = as_torch_sampler(Shuffled(), 20, epochs=2, seed=3)
    for epoch in (1, 2):
        assert list(passes) == torch.randperm(20, generator=generator(3, "shuffle", epoch)).tolist()


def test_inputs_on_disk_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    frame = pl.DataFrame({"a": rng.normal(size=500), "b": rng.normal(size=500), "y": ["u", "v"] * 250})
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    encoder, task = encoder_for(corpus, "auto"), fit_task("auto", corpus.target)
    encoder.fit(corpus, corpus.rows("train"))
    inside = encode(corpus, encoder, task)
    torch.testing.assert_close(inside.inputs, encoder.encode(corpus.read(corpus.rows())))
    monkeypatch.setattr("imprint.fitting.data.MEMORY_SHARE", 0.0)
    mapped = encode(corpus, encoder, task, scratch=tmp_path / "scratch")
    assert (tmp_path / "scratch" / "inputs").stat().st_size == inside.inputs.numel() * 4
    assert torch.equal(mapped.inputs, inside.inputs)
    with pytest.raises(ResourceError, match="GiB"):
        encode(corpus, encoder, task)


def test_a_training_set_is_rows_of_the_same_inputs(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": np.arange(10.0), "y": ["u", "v"] * 5, "split": ["train"] * 8 + ["test"] * 2})
    corpus = imprint.open(frame, target="y", store=tmp_path)
    encoder, task = encoder_for(corpus, "auto"), fit_task("auto", corpus.target)
    data = encode(corpus, encoder.fit(corpus, corpus.rows("train")), task)
    other = data.train_on(torch.tensor([1, 3]), torch.tensor([0, 0]), torch.tensor([2.0, 3.0]))
    assert other.inputs is data.inputs
    assert other.rows.tolist() == [1, 3]
    assert other.target.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 1]
    assert other.weight is not None
    assert other.weight.tolist() == [1, 2, 1, 3, 1, 1, 1, 1, 1, 1]
    assert data.target.tolist() == [0, 1] * 5
    assert data.weight is None


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("1k", 1024), ("1.5 GB", 3 * 2**29), ("4GiB", 2**32)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "four", "4XB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(LearnerError):
        parse_size(text)


def test_a_stated_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory()
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("IMPRINT_MEMORY", "1k")
    assert available_memory() == 0


def test_progress_goes_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []

    def mine(label: str, done: int, total: int, facts: object = None) -> None:
        calls.append((label, done, total))

    with reporter(mine) as report:
        report("train", 1, 2)
    assert calls == [("train", 1, 2)]
    with reporter(False) as report:
        assert report is silent
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with reporter(None) as report:
        assert isinstance(report, Bar)
        report("train", 1, 2, {"loss": "0.1"})
        report("train", 2, 2)
