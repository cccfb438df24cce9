"""NMTune: the authors' terms written naively, and what they do to a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.errors import LearnerError
from imprint.fitting import Data, Learner, train
from imprint.models import features, module_for
from imprint.models.nmtune import NMTune, consistency, covariance, dominance, regularised
from imprint.tasks import Classification

TASK = Classification((0, 1, 2))


class Plain(NMTune):
    """The same module without its penalty."""

    penalty = None  # type: ignore[assignment]


def learner(**settings: Any) -> Learner:
    usual: dict[str, Any] = {
        "task": "classification", "epochs": 4, "batch_size": 32, "learning_rate": 0.01, "weight_decay": 0.0, "augment": "none",
        "precision": "float32", "device": "cpu", "record": "none",
    }  # fmt: skip
    return Learner(**{**usual, **settings})


@pytest.fixture
def data() -> Data:
    """128 examples of three classes in 12 dimensions that go together."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (128,), generator=random)
    inputs = torch.randn(3, 12, generator=random)[target] + torch.randn(128, 12, generator=random)
    return Data(inputs @ torch.randn(12, 12, generator=random) / 3, target, None, {"train": torch.arange(128)})


def built(kind: type[NMTune] = NMTune, seed: int = 0) -> NMTune:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind((12,), 3)


def authors(inputs: Tensor, moved: Tensor) -> Tensor:
    """The terms of src/models/nml_tune.py of Hhhhhhao/Noisy-Model-Learning, with its default weights."""
    loss = 1.0 * torch.nn.MSELoss()(F.normalize(moved, dim=1), F.normalize(inputs.detach(), dim=1))
    _, s, _ = torch.svd(moved)
    s = s / torch.sum(s)
    loss = loss - 0.001 * torch.mean(s[:5])
    moved = moved - moved.mean(dim=0)
    found = (moved.T @ moved) / (moved.size(0) - 1)
    size = found.shape[0]
    off_diagonal = found.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()
    return loss + 0.04 * off_diagonal.pow(2).sum().div(moved.size(1))


@pytest.mark.parametrize("examples", [3, 20])
def test_the_terms_are_the_authors(examples: int) -> None:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 7, generator=random, dtype=torch.float64)
    moved = torch.randn(examples, 7, generator=random, dtype=torch.float64)
    ours, theirs = (moved.clone().requires_grad_() for _ in range(2))
    regularised(inputs, ours).backward()
    authors(inputs, theirs).backward()
    torch.testing.assert_close(regularised(inputs, ours), authors(inputs, theirs))
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_closed_forms_of_each_term() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert float(consistency(x, 5 * x)) == 0  # directions alone
    assert float(consistency(x, -x)) == pytest.approx(2.0)  # (2^2 + 0) / 2 numbers per example
    # Features y = x and y = -x: covariance of -2 off the diagonal, twice, squared, over two features.
    assert float(covariance(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))) == pytest.approx((2**2 + 2**2) / 2)
    assert float(covariance(x[:1])) == 0
    assert float(dominance(torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 1.0])))) == pytest.approx(0.9 / 5)


def test_the_loop_adds_the_penalty_of_each_batch(data: Data) -> None:
    """One step of plain descent, against one taken by hand."""
    module, by_hand = built(), built()
    settings = learner(epochs=1, batch_size=128, optimizer="sgd", schedule="constant", learning_rate=0.1)
    outputs = by_hand(data.inputs)
    loss = F.cross_entropy(outputs, data.target) + authors(data.inputs, by_hand.features(data.inputs))
    loss.backward()
    start = {name: value.clone() for name, value in module.named_parameters()}
    train(module, TASK, data, settings)
    for (name, value), other in zip(module.named_parameters(), by_hand.parameters(), strict=True):
        assert other.grad is not None
        # The first step of Nesterov momentum 0.9 is 1.9 times the gradient.
        torch.testing.assert_close(value.detach(), start[name] - 0.19 * other.grad, rtol=1e-3, atol=1e-5)


def test_a_training_with_the_penalty_has_what_it_asks_for(data: Data) -> None:
    """Beside the same training without it: nearer to the frozen features, less that goes together; and as right."""
    ends = {kind: train(built(kind), TASK, data, learner(epochs=20)).module for kind in (NMTune, Plain)}
    said = {kind: features(module, data.inputs) for kind, module in ends.items()}
    assert float(consistency(data.inputs, said[NMTune])) < 0.5 * float(consistency(data.inputs, said[Plain]))
    assert float(covariance(said[NMTune])) < 0.5 * float(covariance(said[Plain]))
    right = {
        kind: float((module(data.inputs).argmax(1) == data.target).float().mean()) for kind, module in ends.items()
    }
    assert right[NMTune] > 0.9


def test_it_is_a_model_by_name_that_reads_vectors() -> None:
    module = module_for("nmtune", (12,), 3, 0)
    assert isinstance(module, NMTune)
    assert module(torch.zeros(2, 12)).shape == (2, 3)
    module.eval()(torch.ones(2, 12))
    assert float(module.penalty()) == 0  # nothing was read in training mode
    assert features(module, torch.randn(4, 12)).shape == (4, 12)
    with pytest.raises(LearnerError, match="reads features"):
        module_for("nmtune", (3, 8, 8), 3, 0)


def test_members_of_a_fleet_are_trained_alone() -> None:
    import polars as pl

    import imprint
    from imprint.fleets import share
    from imprint.fleets.batched import Batched

    frame = pl.DataFrame({"x": [float(place) for place in range(40)], "label": [place % 2 for place in range(40)]})
    shared = share(imprint.Learner("nmtune", epochs=1), imprint.open(frame, target="label"))
    assert "penalty of whole batches" in str(Batched().why_not(shared))
