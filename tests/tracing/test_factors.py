"""Factors: what is streamed in blocks equals what is computed at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from imprint.errors import EvidenceError, ResourceError
from imprint.tracing import Factors
from imprint.tracing import factors as module
from imprint.tracing.factors import first_largest


def whole(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Small whole numbers: products are exact, and many of them are equal."""
    return torch.randint(-2, 3, shape, generator=generator).float()


def both(queries: torch.Tensor, examples: torch.Tensor) -> list[Factors]:
    """The same factors, dense and sparse."""
    return [Factors(queries, examples), Factors(sparse.csr_array(queries.numpy()), sparse.csr_array(examples.numpy()))]


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 7), examples=st.integers(1, 30), rank=st.integers(1, 4), k=st.integers(1, 35),
    block=st.integers(1, 40), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_top_is_that_of_the_whole_matrix_in_blocks_of_any_size(
    queries: int, examples: int, rank: int, k: int, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = whole(generator, queries, rank), whole(generator, examples, rank)
    scores = left @ right.T
    for factors in both(left, right):
        helpful, harmful = factors.top(k, block_scores=block)
        for found, values in ((helpful, scores), (harmful, -scores)):
            # A stable sort of everything: the first of equal scores first.
            order = torch.from_numpy(np.argsort(-values.numpy(), axis=1, kind="stable")[:, :k].copy())
            assert torch.equal(found.examples, order)
            assert torch.equal(found.scores, scores.gather(1, order))


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 5), columns=st.integers(1, 20), k=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_first_largest_is_a_stable_sort(rows: int, columns: int, k: int, seed: int) -> None:
    k = min(k, columns)
    values = torch.randint(0, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    expected = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(first_largest(values, k), expected)


def test_predict_is_the_sum_over_the_examples_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 3, generator=generator), torch.randn(41, 3, generator=generator)
    seen = torch.rand(6, 41, generator=generator) < 0.5
    expected = (left @ right.T).double() @ seen.double().T
    for block in (1, 7, 2**22):
        monkeypatch.setattr(module, "BLOCK_SCORES", block)
        for factors in both(left, right):
            torch.testing.assert_close(factors.predict(seen), expected, rtol=1e-5, atol=1e-5)


def test_examples_may_be_of_another_number_type() -> None:
    seen = torch.tensor([[True, False], [True, True]])
    assert Factors(torch.tensor([[1.0, 2.0]]), seen).scores().tolist() == [[1.0, 3.0]]


def test_what_does_not_fit_in_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = Factors(torch.ones(10**6, 1), torch.ones(10**6, 1))  # 4 TB of scores
    with pytest.raises(ResourceError, match="GiB"):
        factors.matrix()
    assert Factors(torch.ones(2, 1), torch.ones(3, 1)).matrix().shape == (2, 3)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(EvidenceError, match="not finite"):
        Factors(torch.tensor([[torch.nan]]), torch.ones(3, 1))
    with pytest.raises(ValueError, match="cannot be multiplied"):
        Factors(torch.ones(1, 2), torch.ones(3, 1))
