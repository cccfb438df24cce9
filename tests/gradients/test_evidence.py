"""Gradients as evidence: one pass over the corpus, float16 on disk, resumed where it was interrupted, of the weights that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, RunError
from imprint.gradients import Examples, Projection, capture, evidence, full, products, squared_norms
from imprint.gradients import examples as examples_module
from imprint.gradients.examples import examples_of, kept_checkpoints
from imprint.recording import Run
from imprint.recording.needs import (
    GradientBlocks,
    GradientNorms,
    Gradients,
    GradientValues,
    LayerGradients,
    LearningRates,
    Outputs,
)

ROWS = 120


def opened(folder: Path) -> Corpus:
    images, target = load_digits(n_class=3, return_X_y=True)
    frame = pl.DataFrame(
        {
            "x": pl.Series(images[:ROWS].astype(np.float32)),
            "label": [f"d{value}" for value in target[:ROWS]],
            "split": ["test" if number % 4 == 0 else "train" for number in range(ROWS)],
        }
    )
    return imprint.open(frame, target="label", split="split", store=folder / "store")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("gradients")
    return imprint.fit(imprint.Learner("mlp", epochs=12, batch_size=32), opened(folder), folder / "run", progress=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    learner = imprint.Learner("linear", epochs=2, batch_size=32)
    return imprint.fit(learner, opened(tmp_path), tmp_path / "run", progress=False)


def exact(run: Run, split: str, of: str = "loss", checkpoint: str = "last") -> list:
    rows = torch.from_numpy(run.rows(split))
    return capture(run.model(checkpoint).module, run.task, run.data.inputs[rows], run.target(split), of=of)


@pytest.mark.parametrize("projection", ["factored", "paired", "sparse"])
def test_what_is_read_is_the_projection_of_the_gradients(run: Run, projection: str) -> None:
    need = Gradients(size=96, projection=projection, of="margin")
    found = run.gather([need])["gradients"]
    assert found.shape == (90, 96)
    assert found.dtype == torch.float32
    expected = Projection(96, evidence.SEED, projection).project(exact(run, "train", "margin"))
    # Float16 has 11 bits, and each example is kept relative to its largest number.
    largest = expected.abs().amax(1, keepdim=True)
    assert float(((found - expected) / largest).abs().max()) < 2**-11


def test_small_gradients_keep_their_precision(run: Run) -> None:
    """A converged model's gradients are far below 6e-8, the least that float16 holds."""
    found = run.gather([Gradients(size=96)])["gradients"]
    expected = Projection(96, evidence.SEED).project(exact(run, "train"))
    length = expected.norm(dim=1)
    assert float(length.min()) < 1e-2 * float(length.max())
    torch.testing.assert_close(found.norm(dim=1) / length, torch.ones(90), rtol=0, atol=2**-10)


def test_values_norms_and_blocks(run: Run) -> None:
    got = run.gather([GradientValues(size=96), GradientNorms(), GradientBlocks(size=96), Outputs("loss")])
    torch.testing.assert_close(got["values"], got["loss"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got["norms"], squared_norms(exact(run, "train")).sqrt(), rtol=1e-4, atol=1e-7)
    ends = [(one.start, one.stop) for one in got["blocks"].values()]
    assert list(got["blocks"]) == ["1", "4", "7"]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == 96


def test_splits_and_blocks_of_examples_are_parts_of_one_pass(run: Run) -> None:
    whole = run.gather([Gradients(size=96, split=None)])["gradients"]
    assert whole.shape == (ROWS, 96)
    for split in ("train", "test"):
        part = run.gather([Gradients(size=96, split=split)])["gradients"]
        assert torch.equal(part, whole[torch.from_numpy(run.rows(split))])
    some = run.gather([Gradients(size=96)], slice(10, 17))["gradients"]
    assert torch.equal(some, whole[torch.from_numpy(run.rows()[10:17])])
    rows = np.array([7, 3, 7, 119])
    assert torch.equal(evidence.of_rows(run, Gradients(size=96), rows), whole[torch.from_numpy(rows)])


def test_a_loaded_run_encodes_its_inputs_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run.gather([Gradients(size=32)])["gradients"]
    rows = run.rows()[::-1][:7].copy()
    for fits in (True, False):
        monkeypatch.setattr(examples_module, "_fits", lambda _, fits=fits: fits)
        loaded = imprint.load(run.path, corpus=run.corpus)
        assert loaded.has(Gradients(size=32))
        taken = examples_of(loaded, rows)
        assert (loaded.data is not None) == fits
        projected = Projection(32, evidence.SEED).project(taken.layers())
        torch.testing.assert_close(projected, expected.flip(0)[:7], rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_kept_checkpoints_and_the_learning_rates_that_they_stand_for(run: Run) -> None:
    kept = kept_checkpoints(run)
    epochs = [int(name.removeprefix("epoch-")) for name, _ in kept]
    assert len(kept) == len(run.checkpoints.all()) < 12  # not all of the 12 epochs are kept
    rates = dict(zip(run.curves()["epoch"], run.curves()["learning_rate"], strict=True))
    assert sum(rate for _, rate in kept) == pytest.approx(sum(rates.values()))
    for before, epoch, (_, rate) in zip([0, *epochs], epochs, kept, strict=False):
        assert rate == pytest.approx(sum(rates[one] for one in range(before + 1, epoch + 1)))
    got = run.gather([Gradients(size=16, checkpoint="kept"), LearningRates()])
    assert got["gradients"].shape == (len(kept), 90, 16)
    assert got["rates"].tolist() == pytest.approx([rate for _, rate in kept])
    expected = Projection(16, evidence.SEED).project(exact(run, "train", checkpoint="first"))
    torch.testing.assert_close(got["gradients"][0], expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_examples_are_read_block_by_block(run: Run) -> None:
    (taken,) = run.gather([LayerGradients(split="test")])["examples"]
    assert isinstance(taken, Examples)
    assert len(taken) == 30
    layers = exact(run, "test")
    for some, part in taken.blocks(8):
        torch.testing.assert_close(full(part[0]), full(layers[0])[some])
    torch.testing.assert_close(products(taken.layers(), layers), products(layers, layers))
    assert taken.bytes_each == sum(layer.nbytes for layer in layers) // 30


class Stop(Exception):
    """An interruption."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """Blocks of 20 examples, each written at once; the third one stops the first pass."""
    taken: list[slice] = []
    original = Examples.with_values

    def with_values(self: Examples, examples: slice = slice(None)) -> object:
        if len(self) == ROWS and examples.stop != 4:  # the first four are looked at beforehand
            taken.append(examples)
            if len(taken) == 3:
                raise Stop
        return original(self, examples)

    monkeypatch.setattr(Examples, "with_values", with_values)
    monkeypatch.setattr(Examples, "size", 20)
    monkeypatch.setattr(evidence, "CHUNK_BYTES", 1)
    return taken


def test_an_interrupted_pass_goes_on_where_it_was(fresh: Run, stopping: list[slice]) -> None:
    need = Gradients(size=24)
    with pytest.raises(Stop):
        fresh.gather([need])
    assert not fresh.has(need)
    found = fresh.gather([need])["gradients"]
    assert fresh.has(need)
    assert [some.start for some in stopping] == [0, 20, 40, 40, 60, 80, 100]
    expected = Projection(24, evidence.SEED).project(exact(fresh, "train"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    assert [path.name for path in (fresh.path / "evidence").glob(".*")] == []


def test_gradients_of_other_weights_are_not_taken(fresh: Run, stopping: list[slice]) -> None:
    need = Gradients(size=24)
    with pytest.raises(Stop):
        fresh.gather([need])
    # Another training into the same folder: neither the whole nor the begun table is of these weights.
    again = imprint.fit(replace(fresh.learner, seed=1), fresh.corpus, fresh.path, resume=False, progress=False)
    found = again.gather([need])["gradients"]
    assert [some.start for some in stopping] == [0, 20, 40, 0, 20, 40, 60, 80, 100]
    expected = Projection(24, evidence.SEED).project(exact(again, "train"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_memory_does_not_grow_with_the_number_of_examples(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time are gradients of more examples alive than a block has."""
    monkeypatch.setattr(examples_module, "BLOCK_BYTES", 10 * examples_of(run, run.rows()).bytes_each)
    sizes = []
    original = Examples.with_values

    def with_values(self: Examples, examples: slice = slice(None)) -> object:
        values, layers = original(self, examples)
        sizes.append(len(layers[0]))
        return values, layers

    monkeypatch.setattr(Examples, "with_values", with_values)
    run.gather([Gradients(size=17)])
    assert max(sizes) == 10
    assert sum(sizes) >= ROWS


def test_what_cannot_be_had_says_so(run: Run, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"'sparce'.*\n.*'sparse'"):
        run.gather([Gradients(projection="sparce")])
    with pytest.raises(RunError, match="No checkpoint '99'"):
        run.gather([GradientNorms(checkpoint=99)])
    trees = imprint.fit(imprint.Learner(LogisticRegression()), opened(tmp_path), tmp_path / "run", progress=False)
    with pytest.raises(EvidenceError, match="LogisticRegression, which has no gradients"):
        trees.gather([Gradients()])
    solved = imprint.fit(imprint.Learner("ridge"), opened(tmp_path), tmp_path / "solved", progress=False)
    assert solved.gather([Gradients(size=16)])["gradients"].shape == (90, 16)
    with pytest.raises(EvidenceError, match="no learning rates"):
        solved.gather([Gradients(size=16, checkpoint="kept")])
