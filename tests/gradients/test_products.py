"""Products and norms from factors are those of the gradients written out, whichever way they are computed."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.gradients import LayerGradient, capture, full, products, squared_norms
from imprint.gradients import products as exported
from imprint.gradients.layer import whole
from imprint.gradients.products import _by_pairs, _by_rows, merged, rows

from .networks import MADE, case, naive

CODES, WIDTH = 7, 3


def layer(
    kind: str, examples: int, positions: int, height: int, width: int, seed: int, name: str = "layer"
) -> LayerGradient:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    if kind == "other":
        return whole(name, "other", normal(examples, height * width))
    if kind == "linear":
        return LayerGradient(name, "linear", normal(examples, positions, height), normal(examples, positions, width))
    codes = torch.randint(0, CODES, (examples, positions), generator=random)
    tied = None
    if kind == "tied":
        tied = LayerGradient(
            "head", "linear", normal(examples, positions + 1, WIDTH), normal(examples, positions + 1, CODES)
        )
    return LayerGradient(name, "embedding", codes, normal(examples, positions, WIDTH), CODES, tied)


def flat(one: LayerGradient) -> torch.Tensor:
    return full(one).flatten(1)


@given(
    kind=st.sampled_from(["linear", "other", "embedding", "tied"]), queries=st.integers(1, 5), examples=st.integers(1, 9),
    positions=st.integers(1, 6), height=st.integers(1, 6), width=st.integers(1, 5), block=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_products_are_those_of_the_gradients(
    kind: str, queries: int, examples: int, positions: int, height: int, width: int, block: int, seed: int
) -> None:
    left = layer(kind, queries, positions, height, width, seed)
    right = layer(kind, examples, positions if kind == "other" else positions % 4 + 1, height, width, seed + 1)
    torch.testing.assert_close(products([left], [right], block), flat(left) @ flat(right).T)
    torch.testing.assert_close(squared_norms([left]), flat(left).square().sum(1))
    two = products([left, left], [right, right], block)
    torch.testing.assert_close(two, 2 * flat(left) @ flat(right).T)


@given(
    queries=st.integers(1, 4), examples=st.integers(1, 7), positions=st.integers(1, 5), height=st.integers(1, 6),
    width=st.integers(1, 5), block=st.integers(1, 100), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_pairs_of_positions_and_written_out_rows_are_the_same(
    queries: int, examples: int, positions: int, height: int, width: int, block: int, seed: int
) -> None:
    left, right = (layer("linear", count, positions, height, width, seed + count) for count in (queries, examples))
    expected = flat(left) @ flat(right).T
    torch.testing.assert_close(_by_pairs(left, right, block), expected)
    torch.testing.assert_close(_by_rows(left, right, block), expected)
    # A gradient at hand itself (a preconditioned one) against one in factors.
    torch.testing.assert_close(products([whole("layer", "other", flat(left))], [right], block), expected)
    torch.testing.assert_close(products([left], [whole("layer", "other", flat(right))], block), expected)


@given(kind=st.sampled_from(["embedding", "tied"]), block=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_a_written_out_gradient_against_an_embeddings(kind: str, block: int, seed: int) -> None:
    left, right = layer(kind, 3, 4, 1, 1, seed), layer(kind, 5, 2, 1, 1, seed + 1)
    found = products([whole("layer", "other", flat(left))], [right], block)
    torch.testing.assert_close(found, flat(left) @ flat(right).T)


@pytest.mark.parametrize("kind", ["linear", "embedding", "tied"])
def test_rows_are_those_of_the_whole(kind: str) -> None:
    one = layer(kind, 4, 5, CODES, WIDTH, 0)
    for begin, end in ((0, CODES), (0, 3), (3, 5), (6, CODES)):
        torch.testing.assert_close(rows(one, begin, end), full(one)[:, begin:end])


def test_an_embeddings_gradient_has_a_row_per_token_that_occurs() -> None:
    outputs = torch.tensor([[[1.0], [2.0], [4.0]], [[8.0], [16.0], [32.0]]])
    one = LayerGradient("tokens", "embedding", torch.tensor([[5, 0, 5], [0, 0, 0]]), outputs, codes=10**9)
    example, code, row = merged(one)
    assert example.tolist() == [0, 0, 1]
    assert code.tolist() == [0, 5, 0]
    assert row.flatten().tolist() == [2.0, 5.0, 56.0]
    # A vocabulary of 10^9 codes would not fit in memory, were it ever written out.
    assert products([one], [one]).tolist() == [[29.0, 112.0], [112.0, 3136.0]]
    assert squared_norms([one]).tolist() == [29.0, 3136.0]


def test_examples_without_a_common_token_have_nothing_in_common() -> None:
    left = LayerGradient("tokens", "embedding", torch.tensor([[1, 2]]), torch.ones(1, 2, 3), codes=9)
    right = LayerGradient("tokens", "embedding", torch.tensor([[3, 4], [4, 1]]), torch.ones(2, 2, 3), codes=9)
    assert products([left], [right]).tolist() == [[0.0, 3.0]]
    assert products([left], [right[:1]]).tolist() == [[0.0]]


@pytest.mark.parametrize("name", MADE)
def test_of_a_network_they_are_those_of_its_whole_gradient(name: str) -> None:
    one = case(name)
    expected = naive(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = capture(one.module, one.task, one.inputs, one.target)
    found = exported([part[:2] for part in layers], layers)
    scale = float(expected.square().sum(1).max())
    torch.testing.assert_close(found / scale, expected[:2] @ expected.T / scale, rtol=0, atol=1e-12)
    torch.testing.assert_close(squared_norms(layers), expected.square().sum(1), rtol=1e-9, atol=1e-12 * scale)


def test_different_layers_are_not_multiplied() -> None:
    left, right = layer("linear", 2, 1, 3, 2, 0), layer("linear", 2, 1, 3, 2, 0, name="another")
    with pytest.raises(ValueError, match="another"):
        products([left], [right])


def test_a_layer_can_be_cut_and_moved() -> None:
    one = layer("tied", 5, 3, 1, 1, 0)
    part = one[1:3].to("cpu")
    assert len(part) == 2
    assert part.tied is not None
    torch.testing.assert_close(full(part), full(one)[1:3])
    assert one.nbytes == 8 * (5 * 3 + 5 * 3 * WIDTH + 5 * 4 * (WIDTH + CODES))
