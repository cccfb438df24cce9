"""Projections keep inner products: unbiased, with the spread that the module states, and the same on every machine."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imprint.errors import EvidenceError
from imprint.gradients import LayerGradient, Projection, capture, products
from imprint.gradients import projections as module
from imprint.gradients.layer import whole
from imprint.gradients.projections import KINDS, shares, sizes

from .networks import case

ENTRIES = ["rademacher", "gaussian"]


def layers_of(name: str) -> list[LayerGradient]:
    one = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(one.module, one.task, one.inputs, one.target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "attention", "convolutions", "recurrent"])
def test_inner_products_are_unbiased(name: str, kind: str) -> None:
    layers = layers_of(name)
    exact = products(layers, layers)
    draws = torch.stack([(p := Projection(24, seed, kind).project(layers)) @ p.T for seed in range(400)])
    error = (draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5)
    # A mean of 400 draws is nearly normal; of 15 pairs the largest error is beyond 4.5 standard errors once in 10,000 times.
    assert float(error.abs().max()) < 4.5


def test_gaussian_entries_are_unbiased_too() -> None:
    layers = layers_of("mlp")
    exact = products(layers, layers)
    for kind in ("factored", "paired"):
        draws = torch.stack(
            [(p := Projection(24, seed, kind, "gaussian").project(layers)) @ p.T for seed in range(400)]
        )
        assert float(((draws.mean(0) - exact) / (draws.std(0) / 20)).abs().max()) < 4.5


def test_the_spread_is_as_stated() -> None:
    """Of a gradient of one position: (8 / k) for "paired", 2 / k for "sparse", above 4 / sqrt(k) for "factored"."""
    random = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(1, 1, width, generator=random, dtype=torch.float64) for width in (300, 200))
    layer = LayerGradient("wide", "linear", inputs, outputs)
    exact, size = float(products([layer], [layer])), 64

    def error(kind: module.Kind) -> float:
        found = [Projection(size, seed, kind).project([layer]).square().sum() for seed in range(1000)]
        return float((torch.stack(found) / exact - 1).square().mean())

    # The mean of 1000 squared errors has a relative standard error below 0.1.
    assert error("paired") == pytest.approx(8 / size, rel=0.35)
    assert error("sparse") == pytest.approx(2 / size, rel=0.35)
    assert error("factored") == pytest.approx(4 / size**0.5, rel=0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_projected_alike(kind: module.Kind) -> None:
    layers = layers_of("cnn")
    projection = Projection(40, 3, kind)
    together = projection.project(layers)
    apart = torch.cat([projection.project([layer[some] for layer in layers]) for some in (slice(0, 2), slice(2, 5))])
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(Projection(40, 3, kind).project([layer[:1] for layer in layers]), together[:1])
    assert not torch.allclose(Projection(40, 4, kind).project(layers), together)


@pytest.mark.parametrize("positions", [1, 3, 40])
def test_paired_projections_of_positions_and_of_written_out_gradients_are_the_same(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(7, positions, width, generator=random, dtype=torch.float64) for width in (5, 4))
    layer = LayerGradient("layer", "linear", inputs, outputs)
    projection = Projection(12, 0, "paired")
    expected = projection.project([layer])
    sides = projection._sides["layer"]
    torch.testing.assert_close(module._paired_rows(layer, sides), expected)
    torch.testing.assert_close(module._paired_positions(layer, sides), expected)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 1)  # one example at a time
    torch.testing.assert_close(Projection(12, 0, "paired").project([layer]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_embeddings_and_written_out_ones_are_projected_alike(kind: module.Kind) -> None:
    codes = torch.tensor([[1, 4, 1], [0, 0, 2]])
    outputs = torch.randn(2, 3, 8, dtype=torch.float64)
    sparse = LayerGradient("tokens", "embedding", codes, outputs, codes=50)
    one_hot = nn.functional.one_hot(codes, 50).double()
    dense = LayerGradient("tokens", "linear", one_hot, outputs)
    torch.testing.assert_close(Projection(20, 0, kind).project([sparse]), Projection(20, 0, kind).project([dense]))


def test_a_model_smaller_than_its_projection_is_kept_as_it_is() -> None:
    for name in ("mlp", "attention", "convolutions"):
        layers = layers_of(name)
        parameters = sum(layer.parameters for layer in layers)
        exact = products(layers, layers)
        found = Projection(parameters).project(layers)
        torch.testing.assert_close(found @ found.T, exact)
        assert Projection.of(case(name).module, 10**6).size == parameters
        assert Projection.of(case(name).module, 10**6, kind="paired").kind == "factored"


def test_a_long_gradient_of_no_known_layer_is_projected_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 50)
    random = torch.Generator().manual_seed(0)
    layer = whole("cell", "other", torch.randn(3, 90, generator=random, dtype=torch.float64))
    for kind in ("factored", "paired"):
        draws = torch.stack([(p := Projection(16, seed, kind).project([layer])) @ p.T for seed in range(400)])
        error = (draws.mean(0) - products([layer], [layer])) / (draws.std(0) / 20)
        assert float(error.abs().max()) < 4.5


@given(
    parameters=st.lists(st.integers(1, 10**6), min_size=1, max_size=12), more=st.integers(0, 600)
)  # fmt: skip
def test_shares_are_all_there_is(parameters: list[int], more: int) -> None:
    size = len(parameters) + more
    found = shares(parameters, size)
    assert sum(found) == min(size, sum(parameters))
    assert all(1 <= share <= own for share, own in zip(found, parameters, strict=True))
    order = sorted(range(len(parameters)), key=parameters.__getitem__)
    # A larger layer has no smaller share, but for the one that rounding moves.
    assert all(found[large] >= found[small] - 1 for small, large in pairwise(order))


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), share=st.integers(1, 600))
def test_sizes_fit_their_share(height: int, width: int, share: int) -> None:
    high, wide = sizes(height, width, share)
    assert 1 <= high <= height
    assert 1 <= wide <= width
    assert high * wide <= share


def test_wrong_settings_say_what_is_wrong() -> None:
    with pytest.raises(EvidenceError, match=r"'fctored'.*\n.*'factored'"):
        Projection(8, kind="fctored")  # type: ignore[arg-type]
    with pytest.raises(EvidenceError, match="keeps nothing"):
        Projection(0)
    with pytest.raises(EvidenceError, match="2 numbers cannot hold something of each of 3 layers"):
        Projection(2).project(layers_of("mlp"))
    projection = Projection(64)
    projection.project(layers_of("mlp"))
    with pytest.raises(ValueError, match="first called with"):
        projection.project(layers_of("linear"))
