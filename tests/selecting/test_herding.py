"""Herding: iCaRL's rule, a mean that comes nearer like 1/t, and classes apart."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from imprint.selecting import herding
from imprint.selecting.herding import herded


def drawn(examples: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(seed))


@given(examples=st.integers(1, 40), width=st.integers(1, 5), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_every_pick_brings_the_mean_nearest(examples: int, width: int, seed: int) -> None:
    x = drawn(examples, width, seed)
    unit = normalize(x.double(), dim=1)
    order = herded(x, examples).tolist()
    assert sorted(order) == list(range(examples))
    for step, pick in enumerate(order):
        error = (unit.mean(0) - (unit + unit[order[:step]].sum(0)) / (step + 1)).norm(dim=1)
        error[order[:step]] = torch.inf
        # float32 products: what is nearer by less than 1e-5 is as near
        assert float(error[pick]) <= float(error.min()) + 1e-5


def test_the_mean_comes_nearer_as_one_over_the_number() -> None:
    unit = normalize(drawn(2000, 8, 0), dim=1)
    order = herded(unit, 400)

    def error(places: torch.Tensor) -> float:
        return float((unit[places].mean(0) - unit.mean(0)).norm())

    errors = [error(order[:count]) for count in (4, 40, 400)]
    # 1/t would be a tenth each time; 1/sqrt(t), as of random examples, a third.
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5
    generator = torch.Generator().manual_seed(1)
    random = [error(torch.randperm(2000, generator=generator)[:400]) for _ in range(20)]
    assert errors[2] < min(random) / 5


def test_classes_are_herded_apart_and_quantities_together() -> None:
    x, target = drawn(30, 3, 1), torch.tensor([0, 1, 1] * 10)
    order = herding(x, target, 9).order
    for code, count in ((0, 3), (1, 6)):
        members = (target == code).nonzero().squeeze(1)
        assert order[target[order] == code].tolist() == members[herded(x[members], count)].tolist()
    together = herded(x, 9).tolist()
    assert herding(x, target.float(), 9).order.tolist() == together
    assert herding(x, torch.zeros(30, 4), 9).order.tolist() == together  # several labels
