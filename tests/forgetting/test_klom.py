"""KLoM: closed forms, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from imprint.errors import EvidenceError
from imprint.forgetting import klom as module
from imprint.forgetting.klom import LEAST, klom, shares

MARGINS = st.floats(-50, 50, width=32)


def some(models: int, examples: int = 3) -> st.SearchStrategy:
    return arrays.arrays("float32", (models, examples), elements=MARGINS).map(torch.from_numpy)


def test_two_bins_by_hand() -> None:
    ours = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    judges = torch.tensor([[0.0], [1.0]])
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(klom(ours, judges, bins=2)) == pytest.approx(wanted, rel=1e-6)
    assert float(klom(ours, judges, bins=20)) == pytest.approx(wanted, rel=1e-6)  # the others are empty


def test_without_a_common_bin_it_is_the_log_of_the_least_share() -> None:
    ours, judges = torch.zeros(5, 1), torch.ones(7, 1)
    # q is LEAST where p is 1, and 1 elsewhere; scaled to sum to one.
    assert float(klom(ours, judges)) == pytest.approx(math.log((1 + LEAST) / LEAST), rel=1e-6)


@given(some(4), some(6))
def test_it_is_no_less_than_zero_and_does_not_know_the_order_of_models(
    ours: torch.Tensor, judges: torch.Tensor
) -> None:
    found = klom(ours, judges)
    assert bool((found >= -1e-4).all())  # q is raised to LEAST in up to 4 bins before it is scaled
    assert bool((found <= math.log((1 + 20 * LEAST) / LEAST)).all())
    assert torch.equal(found, klom(ours.flip(0), judges.flip(0)))
    assert torch.equal(klom(ours, ours), torch.zeros(3))


@given(some(4), some(6), st.sampled_from([0.25, 0.5, 2.0]))
def test_a_scale_by_a_power_of_two_changes_nothing(ours: torch.Tensor, judges: torch.Tensor, scale: float) -> None:
    spread = torch.cat([ours, judges])
    wide = spread.amax(0) - spread.amin(0) > 4 * module.SAME
    assert torch.equal(klom(ours * scale, judges * scale, clip=1e3)[wide], klom(ours, judges, clip=1e3)[wide])


def test_each_example_is_looked_at_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    ours, judges = torch.randn(5, 40, generator=random), torch.randn(9, 40, generator=random)
    whole = klom(ours, judges)
    each = torch.cat([klom(ours[:, place : place + 1], judges[:, place : place + 1]) for place in range(40)])
    assert torch.equal(whole, each)
    monkeypatch.setattr(module, "NUMBERS", 20 * 7)  # in pieces of 7 examples
    assert torch.equal(whole, klom(ours, judges))


def test_clipped_and_broken_margins_lie_at_the_ends() -> None:
    ours = torch.tensor([[math.nan, math.inf, 300.0]])
    judges = torch.tensor([[-100.0, 100.0, 100.0], [-200.0, 5.0, 100.0]])
    assert klom(ours, judges)[0] == 0
    assert klom(ours, judges)[1] == pytest.approx(math.log(2), rel=1e-5)
    assert klom(ours, judges)[2] == 0


def test_models_that_agree_to_rounding_agree() -> None:
    judges = torch.full((3, 1), 4.0)
    assert klom(judges[:1] + 5e-5, judges) == 0
    assert klom(judges[:1] + 5e-3, judges) > 11


def test_every_margin_is_counted_once() -> None:
    margins = torch.tensor([[0.0], [0.05], [0.5], [1.0]])
    found = shares(margins, torch.tensor([0.0]), torch.tensor([1.0]), 10)[:, 0]
    assert found.nonzero()[:, 0].tolist() == [0, 5, 9]
    assert found[[0, 5, 9]].tolist() == [0.5, 0.25, 0.25]


def test_other_examples_cannot_be_compared() -> None:
    with pytest.raises(EvidenceError, match=r"\(2, 3\) and \(2, 4\)"):
        klom(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(EvidenceError, match="at least one model"):
        klom(torch.zeros(0, 3), torch.zeros(2, 3))
