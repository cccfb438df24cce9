"""Scores from gradients, against gradients taken one example at a time from the checkpoints on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

import imprint
from imprint.errors import EvidenceError, MethodError
from imprint.gradients import Examples
from imprint.gradients.capture import Capture
from imprint.models.modules import Normalise
from imprint.recording import Run
from imprint.scoring import gradients as module
from imprint.scoring.gradients import input_variance, vog, within_class
from imprint.tasks import Batch, Classification

EPOCHS = 4


def digits(examples: int = 120, wrong: int = 0) -> pl.DataFrame:
    images, target = load_digits(n_class=3, return_X_y=True)
    given = np.where(np.arange(examples) < wrong, (target[:examples] + 1) % 3, target[:examples])
    return pl.DataFrame(
        {
            "x": pl.Series(images[:examples].astype(np.float32)),
            "label": [f"d{value}" for value in given],
            "split": ["test" if number % 4 == 3 else "train" for number in range(examples)],
        }
    )


def fitted(frame: pl.DataFrame, folder: Path, model: str = "mlp", **settings: object) -> Run:
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    settings = {"epochs": EPOCHS, "batch_size": 16, **settings}
    return imprint.fit(imprint.Learner(model, **settings), corpus, folder / "run", progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fitted(digits(), tmp_path_factory.mktemp("gradients"))


def one_by_one(
    run: Run, checkpoint: str | int, value: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """A function of the model and one example, for each training example."""
    model = run.model(checkpoint)
    inputs, target = model.encode(run.corpus.read(run.rows())), run.target()
    return [value(model.module, inputs[i : i + 1], target[i : i + 1]) for i in range(len(inputs))]


def squared_norms(run: Run, checkpoint: str | int) -> np.ndarray:
    def value(net: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = run.task.loss(net(inputs), Batch(inputs, target)).sum()
        return sum((part.square().sum() for part in torch.autograd.grad(loss, list(net.parameters()))), torch.zeros(()))

    return torch.stack(one_by_one(run, checkpoint, value)).numpy()


def of_logits(run: Run, checkpoint: str | int) -> torch.Tensor:
    def value(net: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = inputs.clone().requires_grad_()
        return torch.autograd.grad(net(given)[0, target[0]], given)[0][0]

    return torch.stack(one_by_one(run, checkpoint, value))


def test_norms_are_those_of_each_example_alone(run: Run) -> None:
    frame = imprint.score(run, ["gradient-norm", "grand"], progress=False).frame()
    np.testing.assert_allclose(frame["gradient-norm"], squared_norms(run, "last") ** 0.5, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(frame["grand"], squared_norms(run, 1) ** 0.5, rtol=1e-4)  # a fifth of four epochs is one
    assert frame["grand"].mean() > frame["gradient-norm"].mean()  # the model has learned something since


def test_self_influence_is_the_sum_over_checkpoints(run: Run) -> None:
    rates = run.curves()["learning_rate"].to_numpy()
    expected = sum(rates[epoch - 1] * squared_norms(run, epoch) for epoch in range(1, EPOCHS + 1))
    found = imprint.score(run, "self-influence", progress=False).frame()["self-influence"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_checkpoints_stand_for_the_epochs_that_were_not_kept(tmp_path: Path) -> None:
    run = fitted(digits(40), tmp_path, "linear", epochs=13, batch_size=32)
    kept = [one.epoch for one in run.checkpoints.all()]
    assert len(kept) < 13
    rates = run.curves()["learning_rate"].to_numpy()
    sums = [rates[begin:end].sum() for begin, end in zip([0, *kept[:-1]], kept, strict=True)]
    expected = sum(rate * squared_norms(run, epoch) for rate, epoch in zip(sums, kept, strict=True))
    frame = imprint.score(run, ["self-influence", "grand"], progress=False).frame()
    np.testing.assert_allclose(frame["self-influence"], expected, rtol=1e-4)
    early = [epoch for epoch in kept if epoch <= 3]  # a fifth of 13 epochs
    assert len(early) > 1
    mean = np.mean([squared_norms(run, epoch) ** 0.5 for epoch in early], axis=0)
    np.testing.assert_allclose(frame["grand"], mean, rtol=1e-4)


def test_vog_is_the_formula_of_the_paper(run: Run) -> None:
    """sqrt(1/K) sum over checkpoints of (S - mean)^2, averaged over pixels, then standardised within the class."""
    stacked = torch.stack([of_logits(run, epoch) for epoch in range(1, EPOCHS + 1)]).double().numpy()
    raw = ((stacked - stacked.mean(0)) ** 2).sum(0) / EPOCHS**0.5
    raw = raw.reshape(len(raw), -1).mean(1)
    target = run.target().numpy()
    expected = np.empty_like(raw)
    for value in range(3):
        own = raw[target == value]
        expected[target == value] = (own - own.mean()) / own.std()
    found = imprint.score(run, "vog", progress=False).frame()["vog"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.ptp(expected) > 1


def test_blocks_give_what_one_block_gives(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imprint.score(run, "vog", progress=False).frame()["vog"]
    monkeypatch.setattr(module, "BLOCK", 7 * 61)
    np.testing.assert_allclose(imprint.score(run, "vog", progress=False).frame()["vog"], whole, rtol=1e-5, atol=1e-6)


def test_standardised_within_the_class() -> None:
    values, target = torch.rand(60, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    found = within_class(values, target)
    for value in range(4):
        assert float(found[target == value].mean()) == pytest.approx(0, abs=1e-6)
        assert float(found[target == value].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert within_class(torch.ones(3), torch.tensor([0, 0, 2])).tolist() == [0, 0, 0]


def test_wrong_labels_stand_out(tmp_path: Path) -> None:
    """One example in ten with a wrong label. Large gradients tell of them, early, in sum and at the end."""
    run = fitted(digits(400, wrong=40), tmp_path, epochs=10)
    wrong = run.rows() < 40
    frame = imprint.score(run, ["grand", "self-influence", "gradient-norm"], progress=False).frame()
    area = {name: roc_auc_score(wrong, frame[name]) for name in ("grand", "self-influence", "gradient-norm")}
    assert min(area.values()) > 0.85
    assert area["self-influence"] > 0.95


def test_norms_serve_every_task(tmp_path: Path) -> None:
    inputs, target = load_diabetes(return_X_y=True)
    frame = pl.DataFrame(
        {"a": inputs[:80, 2], "b": inputs[:80, 8], "label": target[:80], "split": ["train", "test"] * 40}
    )
    run = fitted(frame, tmp_path, "linear", task="regression")
    assert run.task.name == "regression"
    found = imprint.score(run, ["grand", "self-influence"], progress=False).frame()
    np.testing.assert_allclose(found["grand"], squared_norms(run, "first") ** 0.5, rtol=1e-4)
    with pytest.raises(MethodError, match="classification"):
        imprint.score(run, "vog", progress=False)


# What has no variance of gradients, or none that is meant.


def examples(net: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> Examples:
    capture = Capture(net, Classification(tuple("ab")))
    return Examples(lambda places: (inputs[places], target[places]), len(inputs), capture, torch.device("cpu"))


def test_bytes_of_images_are_read_as_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 1, 4, 4), generator=generator, dtype=torch.uint8)
    target = torch.tensor([0, 1, 0, 1, 0, 1])
    statistics = torch.tensor([100.0]), torch.tensor([50.0])
    nets = [nn.Sequential(Normalise(1, statistics), nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)]
    found = input_variance([examples(net, pixels, target) for net in nets])
    weights = torch.stack([net[2].weight for net in nets])[:, target] / 50  # type: ignore[union-attr]
    torch.testing.assert_close(found, weights.var(0, correction=0).mean(1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_codes_have_no_gradient(dtype: torch.dtype) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 2)

        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return self.table(codes.long()).mean(1) + codes.dtype.is_floating_point

    codes = torch.randint(0, 10, (4, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    one = examples(Bag(), codes, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(EvidenceError, match="as codes"):
        vog([one, one], torch.tensor([0, 1, 0, 1]))


def test_one_checkpoint_has_no_variance(tmp_path: Path) -> None:
    run = fitted(digits(40), tmp_path, "linear", epochs=1)
    with pytest.raises(EvidenceError, match="takes two"):
        imprint.score(run, "vog", progress=False)


def test_a_solved_head_has_norms_but_no_training(tmp_path: Path) -> None:
    run = fitted(digits(60), tmp_path, "logistic", epochs=None, batch_size=None)
    found = imprint.score(run, "gradient-norm", progress=False).frame()["gradient-norm"]
    np.testing.assert_allclose(found, squared_norms(run, "last") ** 0.5, rtol=1e-4, atol=1e-6)
    with pytest.raises(EvidenceError, match="learning rates"):
        imprint.score(run, "self-influence", progress=False)
