"""A loop of the user's own, recorded in three lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, IdError, LearnerError, RunError
from imprint.recording.needs import Dynamics, Features, OutOfFold, Outputs

from .conftest import blobs


@pytest.fixture
def tensors(corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and class codes of all rows."""
    inputs = torch.from_numpy(corpus.read(corpus.rows()).to_numpy().copy()).float()
    return inputs, torch.tensor([int(value[-1]) for value in corpus.target])


@pytest.mark.parametrize("named", ["ids", "rows", "series"])
@pytest.mark.parametrize("told", [True, False], ids=["epochs told", "epochs inferred"])
def test_a_plain_loop_is_recorded(
    corpus: Corpus, tensors: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, named: str, told: bool
) -> None:
    inputs, target = tensors
    module = torch.nn.Linear(5, 3)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    train = torch.from_numpy(corpus.rows("train").copy())
    said = torch.empty(3, len(corpus), 3)
    with imprint.watch(tmp_path / "run", corpus, module) as recorder:
        for epoch in range(3):
            for rows in train[torch.randperm(len(train))].split(50):
                logits = module(inputs[rows])
                optimizer.zero_grad()
                cross_entropy(logits, target[rows]).backward()
                optimizer.step()
                said[epoch, rows] = logits.detach()
                series = corpus.ids.gather(rows.numpy())
                recorder.batch({"ids": series.to_list(), "rows": rows, "series": series}[named], logits)
            if told:
                recorder.epoch()
                recorder.epoch()  # nothing was seen since: no epoch
        recorder.outputs(corpus.ids, module(inputs), features=inputs)
    run = recorder.run
    assert run.status == "complete"
    recorded = run.gather([Dynamics("logits")])["logits"]
    assert torch.equal(recorded, said[:, train].half().float())
    assert run.gather([Outputs("logits", split="test")])["logits"].shape == (60, 3)
    torch.testing.assert_close(run.gather([Features(split=None)])["features"], inputs, rtol=1e-3, atol=1e-3)
    assert run.metrics("test")["accuracy"] == pytest.approx(
        float((module(inputs).argmax(1) == target)[corpus.rows("test")].float().mean())
    )
    assert len(run.curves()) == 3
    loaded = imprint.load(tmp_path / "run", corpus, model=lambda: torch.nn.Linear(5, 3))
    assert torch.equal(loaded.model().forward(inputs), module(inputs).detach())
    with pytest.raises(EvidenceError, match="loop of your own"):
        run.gather([OutOfFold("logits")])


def test_classes_in_another_order_are_put_right(
    corpus: Corpus, tensors: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    _, target = tensors
    rows = torch.from_numpy(corpus.rows("train").copy())
    logits = torch.nn.functional.one_hot(2 - target[rows], 3) * 9.0  # the user's class 0 is "class 2"
    module = torch.nn.Linear(5, 3)
    with imprint.watch(tmp_path / "a", corpus, module, classes=["class 2", "class 1", "class 0"]) as recorder:
        recorder.batch(rows, logits)
    assert recorder.run.gather([Dynamics("correct")])["correct"].all()
    with pytest.raises(LearnerError, match="not the values of the target"):
        imprint.watch(tmp_path / "b", corpus, module, classes=["class 2", "class 1"])


def test_what_cannot_be_recorded_is_said(corpus: Corpus, tmp_path: Path) -> None:
    module = torch.nn.Linear(5, 3)
    train, test = corpus.rows("train"), corpus.rows("test")
    with imprint.watch(tmp_path / "run", corpus, module) as recorder:
        with pytest.raises(IdError, match="'stranger'"):
            recorder.batch(["stranger"], torch.zeros(1, 3))
        with pytest.raises(IdError, match="not in the training split"):
            recorder.batch(test[:2], torch.zeros(2, 3))
        with pytest.raises(IdError, match=r"outside 0\.\.299"):
            recorder.batch(torch.tensor([300]), torch.zeros(1, 3))
        with pytest.raises(IdError, match="float"):
            recorder.batch(torch.tensor([0.5]), torch.zeros(1, 3))
        with pytest.raises(EvidenceError, match=r"\(2, 3\), before softmax"):
            recorder.batch(train[:2], torch.zeros(2, 4))
        with pytest.raises(EvidenceError, match="shape"):
            recorder.batch(train[:2], torch.zeros(3, 3))
        recorder.batch(train[:2], torch.zeros(2, 3))
    assert recorder.run.gather([Dynamics("loss")])["loss"].isnan().sum() == 238
    with pytest.raises(RunError, match="holds a run already"):
        imprint.watch(tmp_path / "run", corpus, module).__enter__()


def test_a_loop_that_fails_leaves_an_interrupted_run(corpus: Corpus, tmp_path: Path) -> None:
    module = torch.nn.Linear(5, 3)

    def loop() -> None:
        with imprint.watch(tmp_path, corpus, module) as recorder:
            recorder.batch(corpus.rows("train"), torch.zeros(240, 3))
            recorder.epoch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    run = imprint.load(tmp_path, corpus)
    assert run.status == "interrupted"
    assert run.gather([Dynamics("loss")])["loss"].shape == (1, 240)


def test_a_loop_without_a_batch_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    with (
        pytest.raises(EvidenceError, match="without a recorded batch"),
        imprint.watch(tmp_path, corpus, torch.nn.Linear(5, 3)),
    ):
        pass


def test_with_an_encoder_outputs_are_collected_later(store: Path, tmp_path: Path) -> None:
    from imprint.models import encoder_for

    corpus = blobs(store, rows=100)
    encoder = encoder_for(corpus, "auto").fit(corpus, corpus.rows("train"))
    module = torch.nn.Linear(5, 3)
    with imprint.watch(tmp_path, corpus, module, encoder=encoder) as recorder:
        recorder.batch(corpus.rows("train"), module(encoder.encode(corpus.read(corpus.rows("train")))))
    outputs = recorder.run.gather([Outputs("logits", split=None)])["logits"]
    torch.testing.assert_close(outputs, module(encoder.encode(corpus.read(corpus.rows()))).detach())
    with pytest.raises(EvidenceError, match="cannot be trained again"):  # an encoder is not the user's loop
        recorder.run.gather([OutOfFold("logits")])
