"""The transformer's gradients in factored form are the naive ones, and no layer of it takes the general path."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from imprint.gradients import LayerGradient, capture, full, products, squared_norms
from imprint.models import module_for
from imprint.models.transformer import Transformer
from imprint.tasks import Batch, Classification

CODES, LENGTH, EXAMPLES = 30, 6, 5
TASK = Classification(("a", "b", "c"))


@pytest.fixture(scope="module")
def model() -> Transformer:
    """In float64; its weights are moved from where they start, where norms have no shift."""
    module = module_for("transformer", (LENGTH,), 3, 0, codes=CODES).double().eval()
    assert isinstance(module, Transformer)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        module.tokens.weight[0] = 0
    return module


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    codes = torch.randint(1, CODES, (EXAMPLES, LENGTH), generator=random)
    words = torch.tensor([6, 3, 1, 5, 6])
    return codes * (torch.arange(LENGTH) < words[:, None]), torch.tensor([0, 1, 2, 1, 0])


def losses(model: Transformer, codes: Tensor, target: Tensor) -> Tensor:
    return TASK.loss(model(codes), Batch(codes, target))


def naive(model: Transformer, codes: Tensor, target: Tensor) -> Tensor:
    """`[example, parameter]`: one backward pass per example."""
    parameters = list(model.parameters())
    return torch.stack(
        [
            torch.cat([one.flatten() for one in torch.autograd.grad(value, parameters, retain_graph=True)])
            for value in losses(model, codes, target)
        ]
    )


def captured(model: Transformer, codes: Tensor, target: Tensor) -> list[LayerGradient]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layer that no rule reads is told by a warning
        return capture(model, TASK, codes, target)


def test_every_layer_is_factored_and_products_are_those_of_the_naive_gradients(
    model: Transformer, texts: tuple[Tensor, Tensor]
) -> None:
    found, expected = captured(model, *texts), naive(model, *texts)
    assert {layer.name: layer.kind for layer in found} == {
        name: "linear" if isinstance(one, nn.Linear) else "embedding" if isinstance(one, nn.Embedding) else "affine"
        for name, one in model.named_modules()
        if list(one.parameters(recurse=False))
    }
    torch.testing.assert_close(products(found, found), expected @ expected.T, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(squared_norms(found), expected.square().sum(1), rtol=1e-5, atol=1e-9)
    tokens = next(layer for layer in found if layer.name == "tokens")
    written = torch.stack([one.grad for one in _gradients_of_tokens(model, *texts)])
    torch.testing.assert_close(full(tokens), written, rtol=1e-5, atol=1e-9)


def _gradients_of_tokens(model: Transformer, codes: Tensor, target: Tensor) -> list[Tensor]:
    found = []
    for value in losses(model, codes, target):
        one = torch.zeros_like(model.tokens.weight)
        (one.grad,) = torch.autograd.grad(value, [model.tokens.weight], retain_graph=True)
        found.append(one)
    return found
