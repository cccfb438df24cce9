"""Gradients against `torch.func`, and gradient attribution against dattri."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from imprint.gradients import Projection, capture, products
from imprint.models.modules import module_for
from imprint.tasks import Classification
from imprint.tracing import Products, trak
from imprint.tracing.gradients import TRAK_DAMPING
from imprint.tracing.products import Term

CLASSES, QUERIES, EXAMPLES = 3, 7, 40
TASK = Classification(tuple(range(CLASSES)))


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, CLASSES)).double()


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=random, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (count,), generator=random)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_products_are_those_of_torch_func(model: str) -> None:
    shape = (20,) if model == "mlp" else (3, 12, 12)
    module = module_for(model, shape, CLASSES, 0).eval()
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, *shape, generator=random)
    if model != "mlp":
        inputs = (inputs * 50 + 128).clamp(0, 255).to(torch.uint8)
    target = torch.randint(CLASSES, (12,), generator=random)

    def loss(parameters: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, parameters, (row[None],)), label[None])

    parameters = {name: one.detach() for name, one in module.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, target)
    rows = torch.cat([one.flatten(1) for one in found.values()], 1)
    expected = rows @ rows.T
    layers = capture(module, TASK, inputs, target)
    torch.testing.assert_close(products(layers, layers), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def attribution_task(models: list[nn.Module], of: Any) -> Any:
    task = pytest.importorskip("dattri.task")
    shell = network(0)

    def value(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        row, label = pair
        return of(functional_call(shell, parameters, (row[None],)), label[None])

    return task.AttributionTask(loss_func=value, model=shell, checkpoints=[one.state_dict() for one in models])


def batches(inputs: Tensor, target: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(inputs, target), batch_size=16)


@pytest.mark.parametrize("cosine", [False, True])
def test_tracin_is_that_of_dattri(cosine: bool) -> None:
    tracin = pytest.importorskip("dattri.algorithm.tracin")
    models, rates = [network(seed) for seed in (1, 2, 3)], [0.1, 0.3, 0.05]
    queries, examples = drawn(QUERIES, 0), drawn(EXAMPLES, 1)
    peer = tracin.TracInAttributor(
        attribution_task(models, F.cross_entropy), weight_list=torch.tensor(rates), normalized_grad=cosine
    )
    peer.projector_kwargs = None  # exact; the constructor has no word for it
    expected = peer.attribute(batches(*examples), batches(*queries)).T.double()
    terms = [
        Term(capture(one, TASK, *queries), capture(one, TASK, *examples), rate)
        for one, rate in zip(models, rates, strict=True)
    ]
    torch.testing.assert_close(Products(tuple(terms), cosine).matrix().double(), expected, rtol=1e-4, atol=1e-5)


def test_trak_is_that_of_dattri_with_the_same_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keep all parameters: dattri's projection is replaced by the identity, and ours keeps what is no larger than its size."""
    peer_module = pytest.importorskip("dattri.algorithm.trak")
    monkeypatch.setattr(peer_module, "random_project", lambda *_, **__: lambda gradient, ensemble_id: gradient)
    model = network(1)
    parameters = sum(one.numel() for one in model.parameters())
    queries, examples = drawn(QUERIES, 0), drawn(EXAMPLES, 1)

    def margin(outputs: Tensor, label: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, label)
        return -loss - torch.log(1 - torch.exp(-loss))

    def probability(weights: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        row, label = pair
        return torch.exp(-F.cross_entropy(functional_call(model, weights, (row[None],)), label[None]))

    projection = Projection(parameters)
    sides = [projection.project(capture(model, TASK, *some, of="margin")) for some in (queries, examples)]
    # Their kernel is of gradients divided by sqrt(parameters), and their damping is no share of its mean eigenvalue.
    damping = TRAK_DAMPING * float(sides[1].square().sum() / parameters) / parameters
    peer = peer_module.TRAKAttributor(
        attribution_task([model], margin), correct_probability_func=probability, regularization=damping
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.cache(batches(*examples))
        expected = peer.attribute(batches(*queries)).T
    logits = model(examples[0])
    own = logits.log_softmax(1).gather(1, examples[1][:, None])[:, 0].exp().detach()
    found = trak(*sides, torch.log(own / (1 - own)), TASK.classes).scores()
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
