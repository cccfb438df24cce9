"""The matrix of who is trained on what: every way to store it says the same as the matrix itself, in few bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from imprint.errors import RunError
from imprint.fleets import Weights
from imprint.fleets.factors import draw, flip
from imprint.fleets.weights import Coded, Counts, LeftOut, Nested, Ones, Packed, empty, product

Made = tuple[Weights, np.ndarray]


def packed(random: np.random.Generator, members: int, n: int) -> Made:
    inside = random.random((members, n)) < 0.5
    return Packed(np.packbits(inside, axis=1, bitorder="little"), n), inside


def counts(random: np.random.Generator, members: int, n: int) -> Made:
    drawn = random.integers(0, 4, (members, n)).astype(np.uint8)
    return Counts(drawn), drawn


def left_out(random: np.random.Generator, members: int, n: int) -> Made:
    outside = random.random((members, n)) < 0.3
    begins = np.concatenate([[0], np.cumsum(outside.sum(1))])
    return LeftOut(begins, np.nonzero(outside)[1], n), ~outside


def coded(random: np.random.Generator, members: int, n: int) -> Made:
    code = random.integers(0, 3, n)
    table = random.integers(0, 3, (members, 3)).astype(np.float32)
    whole = np.stack([[row[one] for one in code] for row in table]) if n else np.zeros((members, 0))
    return Coded(code, table), whole


def nested(random: np.random.Generator, members: int, n: int) -> Made:
    order, sizes = random.permutation(n), random.integers(0, n + 1, members)
    whole = np.zeros((members, n))
    for member, size in enumerate(sizes):
        whole[member, order[:size]] = 1
    return Nested(np.argsort(order), sizes), whole


def ones(random: np.random.Generator, members: int, n: int) -> Made:
    return Ones((members, n)), np.ones((members, n))


def outer(random: np.random.Generator, members: int, n: int) -> Made:
    parts = [packed(random, members, n), ones(random, 2, n), coded(random, 3, n)]
    whole = np.einsum("an,bn,cn->abcn", *(part[1].astype(float) for part in parts)).reshape(-1, n)
    return product([part[0] for part in parts]), whole


KINDS = [packed, counts, left_out, coded, nested, ones, outer]


@st.composite
def indices(draw_: st.DrawFn, size: int) -> slice | np.ndarray:
    if draw_(st.booleans()):
        return draw_(st.slices(size))
    return np.array(draw_(st.lists(st.integers(-size, size - 1), max_size=size)), dtype=np.int64)


@pytest.mark.parametrize("make", KINDS)
@given(data=st.data(), members=st.integers(1, 6), n=st.integers(1, 40), seed=st.integers(0, 3))
def test_a_block_is_the_block_of_the_matrix(
    make: Callable[..., Made], data: st.DataObject, members: int, n: int, seed: int
) -> None:
    weights, whole = make(np.random.default_rng(seed), members, n)
    assert weights.shape == whole.shape
    rows, columns = data.draw(indices(len(whole))), data.draw(indices(n))
    expected = whole[rows][:, columns].astype(np.float32)
    assert np.array_equal(weights.dense(rows, columns).numpy(), expected)
    assert np.array_equal(weights.included(rows, columns).numpy(), expected > 0)
    assert np.array_equal(weights.counts(), (whole > 0).sum(1))
    assert np.array_equal(empty(weights), np.flatnonzero(~(whole > 0).any(1)))


@pytest.mark.parametrize("make", KINDS)
def test_it_is_read_back_as_it_was_written(make: Callable[..., Made], tmp_path: Path, rng: np.random.Generator) -> None:
    weights, whole = make(rng, 5, 77)
    weights.save(tmp_path / "weights")
    again = Weights.load(tmp_path / "weights")
    assert type(again) is type(weights)
    assert np.array_equal(again.dense().numpy(), whole.astype(np.float32))
    assert again.digest() == weights.digest()
    assert again.nbytes == weights.nbytes


def test_the_digest_tells_matrices_apart(rng: np.random.Generator) -> None:
    first, second = packed(rng, 4, 50)[0], packed(rng, 4, 50)[0]
    assert first.digest() != second.digest()
    assert product([first, second]).digest() != product([second, first]).digest()
    # 50 and 51 examples are the same bytes.
    bits = np.zeros((4, 7), dtype=np.uint8)
    assert Packed(bits, 50).digest() != Packed(bits, 51).digest()


def test_a_mask_chooses_members_and_examples(rng: np.random.Generator) -> None:
    weights, whole = packed(rng, 4, 9)
    mask = torch.tensor([True, False, False, True])
    assert np.array_equal(weights.included(mask).numpy(), whole[[0, 3]])
    with pytest.raises(IndexError, match="place 4 of 4"):
        weights.dense([4])


@pytest.mark.parametrize("damage", ["truncated", "kind", "absent"])
def test_damaged_weights_are_named(damage: str, tmp_path: Path, rng: np.random.Generator) -> None:
    packed(rng, 4, 50)[0].save(tmp_path)
    path = tmp_path / "factor-0.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "kind":
        save_file(load_file(path), path, metadata={"kind": "dense", "members": "4", "examples": "50"})
    else:
        path.unlink()
    with pytest.raises(RunError, match="resume=False"):
        Weights.load(tmp_path)


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=120),
    st.lists(st.integers(1, 120), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_draws_have_exactly_their_size_and_the_shares_of_strata(code: list[int], sizes: list[int], seed: int) -> None:
    n = len(code)
    wanted = np.minimum(sizes, n)
    assert np.array_equal(draw(np.random.default_rng(seed), wanted, n).counts(), wanted)
    _, strata = np.unique(code, return_inverse=True)
    inside = draw(np.random.default_rng(seed), wanted, n, strata).included().numpy()
    assert np.array_equal(inside.sum(1), wanted)
    for stratum in range(strata.max() + 1):
        share = wanted * (strata == stratum).sum() / n
        assert (np.abs(inside[:, strata == stratum].sum(1) - share) < 1 + 1e-9).all()


def test_every_example_is_as_likely_as_any_other() -> None:
    """2000 halves of 50: each is in 1000 of them, with a standard deviation of sqrt(500) = 22; five of these for 50 examples."""
    for strata in (None, np.arange(50) % 3):
        often = draw(np.random.default_rng(0), np.full(2000, 25), 50, strata).included().sum(0)
        # A stratum of 17 of which 8 or 9 are drawn always has the one or the other: 1/34 of 2000 is 59.
        assert (often - 1000).abs().max() < 5 * 22 + (0 if strata is None else 59)


def test_coins_land_as_they_should() -> None:
    """100 x 1000 coins: a standard deviation of sqrt(.3 x .7 / 1e5) = 0.0014; and sizes vary, sqrt(1000 x .21) = 14."""
    weights = flip(np.random.default_rng(0), np.full(100, 0.3), 1000)
    assert abs(weights.counts().mean() / 1000 - 0.3) < 5 * 0.0014
    assert 10 < weights.counts().std() < 19  # 14 with a relative error of 1/sqrt(200) = 7 %: five of these


def test_two_thousand_subsets_of_a_hundred_thousand_stay_packed() -> None:
    """25 MB of bits; the floats would be 800 MB. What drawing and reading a block take besides is bounded."""
    tracemalloc.start()
    weights = draw(np.random.default_rng(0), np.full(2000, 50_000), 100_000)
    assert weights.nbytes == 2000 * 100_000 / 8
    assert int(weights.included(slice(3, 5)).sum()) == 100_000
    assert weights.dense(slice(None), slice(70, 80)).shape == (2000, 10)
    assert weights.dense(np.arange(2000), np.array([99_999])).shape == (2000, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20  # a block of 2^22 keys, places and marks is 16 + 32 + 4 MB, some twice
