"""Members whose samplers differ: they end where they would end alone, side by side where that can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError
from imprint.fitting import DynamicDiversity, Fixed, NaiveSplit, Proportional, Repeated
from imprint.fleets import Member, Shared, execute, share
from imprint.fleets.batched import Batched, alike_members
from imprint.fleets.choosing import choose, measured, steady

# As in test_batched: sums are taken in another order.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 240)
    values = random.normal(size=(240, 5)).astype(np.float32)
    values[np.arange(240), label] += 2
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(5)}).with_columns(y=pl.Series(label))
    corpus: Corpus = imprint.open(frame, target="y", store=tmp_path_factory.mktemp("store"))
    return share(imprint.Learner("mlp", epochs=3, batch_size=32, seed=1), corpus)


def chosen(shared: Shared, count: int, seed: int) -> Tensor:
    return torch.randperm(len(shared.data.rows), generator=torch.Generator().manual_seed(seed))[:count]


def outputs(shared: Shared, members: list[Member], executor: object) -> Tensor:
    found: dict[int, Tensor] = {}
    for finished in execute(shared, members, queries=torch.arange(60), executor=executor):  # type: ignore[arg-type]
        found |= dict(zip(finished.numbers, finished.outputs, strict=True))
    return torch.stack([found[number] for number in range(len(members))])


def steady_members(shared: Shared) -> list[Member]:
    """Samplers of steady visits, of two numbers of visits, some with weights."""
    weights = torch.linspace(0.5, 1.5, 80)
    return [
        *(Member(seed=seed, settings={"sampler": Fixed(chosen(shared, 80, seed))}) for seed in range(3)),
        Member(seed=3, settings={"sampler": Fixed(chosen(shared, 80, 3), weights)}),
        Member(seed=4, settings={"sampler": Fixed(chosen(shared, 81, 4))}),
        Member(seed=5, settings={"sampler": Repeated(80 / len(shared.data.rows))}),
        Member(seed=6, settings={"sampler": Repeated(80 / len(shared.data.rows), replace=True)}),
        Member(seed=7, rows=shared.data.rows[:160], settings={"sampler": Repeated(0.5)}),
        Member(seed=8, weight=torch.rand(len(shared.data.rows)), settings={"sampler": Repeated(0.4)}),
        Member(seed=9),
        Member(seed=10, settings={"sampler": Fixed(chosen(shared, 80, 9)), "learning_rate": 0.02}),
    ]


@pytest.mark.parametrize("wave", [None, 2], ids=["one wave", "waves of two"])
def test_they_end_where_they_would_end_alone(shared: Shared, wave: int | None) -> None:
    members = steady_members(shared)
    alone, together = outputs(shared, members, "sequential"), outputs(shared, members, Batched(wave=wave))
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)
    assert all(float((alone[0] - other).abs().max()) > 100 * CLOSE for other in alone[1:])


def test_a_fixed_choice_is_the_training_on_these_rows(shared: Shared) -> None:
    picked = chosen(shared, 80, 0)
    by_sampler = Member(seed=2, settings={"sampler": Fixed(picked)})
    by_rows = Member(seed=2, rows=shared.data.rows[picked.sort().values])
    said = outputs(shared, [by_sampler, by_rows], "sequential")
    assert torch.equal(said[0], said[1])


def test_members_of_as_many_visits_share_a_wave_whatever_they_visit(shared: Shared) -> None:
    groups = {tuple(alike): learner for learner, alike in alike_members(shared, steady_members(shared), range(11))}
    # 80 or 81 visits in batches of 32 are three steps (as are 77, four tenths of 192); all 192 are six.
    assert {frozenset(alike) for alike in groups} == {frozenset(range(9)), frozenset([9]), frozenset([10])}
    assert all(learner.sampler is None for learner in groups.values())


def test_samplers_that_follow_the_training_are_trained_alone(shared: Shared) -> None:
    members = [
        *(
            Member(seed=seed, settings={"sampler": sampler})
            for seed in (0, 1)
            for sampler in (Proportional("loss", 0.4), Proportional(), NaiveSplit(0.4), DynamicDiversity(0.4, every=1))
        ),
        *(Member(seed=seed, settings={"sampler": Repeated(0.4)}) for seed in (0, 1)),
    ]
    alone = outputs(shared, members, "sequential")
    for executor in ("batched", "steady"):
        together = outputs(shared, members, executor)
        assert torch.equal(together[:8], alone[:8])
        torch.testing.assert_close(together[8:], alone[8:], rtol=CLOSE, atol=CLOSE)


def test_the_shared_sampler_is_everyones(shared: Shared) -> None:
    repeated = replace(shared, learner=replace(shared.learner, sampler=Repeated(0.4)))
    members = [Member(), Member(seed=1), Member(seed=2, rows=shared.data.rows[50:])]
    assert isinstance(steady(repeated), Batched)
    alone, together = outputs(repeated, members, "sequential"), outputs(repeated, members, "batched")
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)
    own = [replace(one, settings={"sampler": Repeated(0.4)}) for one in members]
    assert torch.equal(alone, outputs(shared, own, "sequential"))
    moving = replace(shared, learner=replace(shared.learner, sampler=Proportional()))
    with pytest.raises(EvidenceError, match="sampler follows the training"):
        outputs(moving, members, "batched")


@pytest.mark.parametrize("executor", ["sequential", "batched"])
def test_a_member_follows_the_shared_choice_as_far_as_it_has_the_rows(shared: Shared, executor: str) -> None:
    picked = chosen(shared, 100, 0)
    fixed = replace(shared, learner=replace(shared.learner, sampler=Fixed(picked)))
    some = torch.arange(0, len(shared.data.rows), 2)
    both = some[torch.isin(some, picked)]
    said = outputs(fixed, [Member(seed=1, rows=shared.data.rows[some])], executor)
    expected = outputs(shared, [Member(seed=1, rows=shared.data.rows[both])], executor)
    assert torch.equal(said, expected)
    none = torch.arange(len(shared.data.rows))[~torch.isin(torch.arange(len(shared.data.rows)), picked)]
    with pytest.raises(LearnerError, match="at least one example"):
        outputs(fixed, [Member(rows=shared.data.rows[none])], executor)


def test_a_price_is_measured_whatever_the_sampler(shared: Shared) -> None:
    """A fixed choice speaks of all rows, of which the few of a measurement are not."""
    fixed = replace(shared, learner=replace(shared.learner, sampler=Fixed(chosen(shared, 80, 0))))
    assert measured(Batched(), fixed, Member(), 2, 10, 0.0).step > 0
    choice = choose(fixed, steady_members(shared), range(11), 10)
    assert "one after the other" in choice.why


def test_a_solved_head_has_no_place_for_a_sampler(shared: Shared) -> None:
    ridge = replace(shared, learner=replace(shared.learner, model="ridge", epochs=1))
    with pytest.raises(LearnerError, match="no place"):
        outputs(ridge, [Member(settings={"sampler": Repeated(0.4)})], "batched")
