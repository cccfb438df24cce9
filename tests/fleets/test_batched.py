"""Members trained side by side end where they would end alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError
from imprint.fitting import SamplerState
from imprint.fleets import Member, Sequential, Shared, execute, share
from imprint.fleets.batched import Batched, TrainingSets, alike_members, wave_size
from imprint.fleets.choosing import choose, steady

# What the issue asks for: outcomes agree to 1e-4.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 240)
    values = random.normal(size=(240, 5)).astype(np.float32)
    values[np.arange(240), label] += 2
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(5)}).with_columns(y=pl.Series(label))
    return imprint.open(frame, target="y", store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 60)
    pixels = random.integers(0, 128, (60, 16, 16, 3)).astype(np.uint8)
    pixels[label == 1, :8] += 100
    return imprint.open((pixels, label), store=tmp_path_factory.mktemp("store"))


def outputs(shared: Shared, members: list[Member], executor: object, queries: Tensor | None = None) -> Tensor:
    """`[member, query, ...]` in the order of the members."""
    asked = torch.arange(len(shared.data.target)) if queries is None else queries
    found: dict[int, Tensor] = {}
    for finished in execute(shared, members, queries=asked, executor=executor):  # type: ignore[arg-type]
        assert finished.outputs.dtype == torch.float32
        assert len(finished.seconds) == len(finished.numbers)
        found |= dict(zip(finished.numbers, finished.outputs, strict=True))
    return torch.stack([found[number] for number in range(len(members))])


def varied(shared: Shared) -> list[Member]:
    """Members that differ in everything that members may differ in."""
    rows, random = shared.data.rows, torch.Generator().manual_seed(0)

    def some(count: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=random)[:count].sort().values]

    n = len(rows)
    return [
        Member(),
        *(Member(seed=seed, rows=some(n // 2 + seed)) for seed in range(4)),
        Member(seed=1, rows=some(n // 5)),
        Member(seed=2, weight=torch.rand(n, generator=random)),
        Member(seed=3, target=shared.data.target[rows].roll(1)),
        Member(seed=4, settings={"learning_rate": 0.02, "weight_decay": 0.1}),
        Member(seed=5, settings={"epochs": 1}),
    ]


@pytest.mark.parametrize(
    "learner",
    [
        imprint.Learner("mlp", epochs=3, batch_size=32, seed=1),  # with dropout
        imprint.Learner("linear", epochs=3, batch_size=64),
        imprint.Learner("mlp", epochs=2, batch_size=32, ema=0.9),
        imprint.Learner("mlp", epochs=2, batch_size=50, optimizer="sgd", schedule="cosine"),
    ],
    ids=["mlp", "linear", "average", "sgd"],
)
@pytest.mark.parametrize("wave", [None, 2], ids=["one wave", "waves of two"])
def test_members_end_where_they_would_end_alone(table: Corpus, learner: imprint.Learner, wave: int | None) -> None:
    shared = share(learner, table)
    members = varied(shared)
    alone = outputs(shared, members, "sequential")
    together = outputs(shared, members, Batched(wave=wave))
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)
    # They do differ from each other: agreement is not for want of anything to tell.
    assert all(float((alone[0] - other).abs().max()) > 100 * CLOSE for other in alone[1:])


def test_images_that_are_mirrored_and_shifted(images: Corpus) -> None:
    shared = share(imprint.Learner("cnn", epochs=2, batch_size=16, augment="flip-crop"), images)
    members = [Member(seed=seed, rows=shared.data.rows[seed:]) for seed in range(3)]
    together, alone = outputs(shared, members, "batched"), outputs(shared, members, "sequential")
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(120, 3))
    target: object = values.sum(1) + random.normal(size=120)
    if task == "multilabel":
        target = [[name for name, value in zip("abc", row, strict=True) if value > 0] for row in values]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": target}, strict=False)
    corpus = imprint.open(frame, target="y", store=tmp_path)
    shared = share(imprint.Learner("mlp", epochs=2, batch_size=32, task=task), corpus)
    members = [Member(seed=seed, rows=shared.data.rows[5 * seed :]) for seed in range(3)]
    together, alone = outputs(shared, members, "batched"), outputs(shared, members, "sequential")
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)


def test_weights_of_the_corpus_and_trained_parameters(table: Corpus) -> None:
    weighted = table.reweight(np.linspace(0.1, 3, len(table), dtype=np.float32))
    shared = share(imprint.Learner("mlp", epochs=2, batch_size=32), weighted)
    members = [Member(seed=seed) for seed in range(2)]
    queries = shared.data.rows[:4]
    (stacked,) = execute(shared, members, queries=queries, executor="batched", parameters=True)
    assert stacked.parameters is not None
    for alone in execute(shared, members, queries=queries, executor="sequential", parameters=True):
        assert alone.parameters is not None
        mine = stacked.parameters[alone.numbers[0]]
        assert mine.keys() == alone.parameters[0].keys()
        for name, value in alone.parameters[0].items():
            torch.testing.assert_close(mine[name], value, rtol=CLOSE, atol=CLOSE)


def test_only_the_asked_members_are_trained(table: Corpus) -> None:
    shared = share(imprint.Learner("linear", epochs=1), table)
    members = [Member(seed=seed) for seed in range(6)]
    found = [
        n for f in execute(shared, members, queries=shared.test, executor="batched", numbers=[4, 1]) for n in f.numbers
    ]
    assert sorted(found) == [1, 4]
    assert list(execute(shared, members, queries=shared.test, numbers=[])) == []


def test_the_same_call_gives_bitwise_the_same(table: Corpus) -> None:
    shared = share(imprint.Learner("mlp", epochs=2, batch_size=32), table)
    members = varied(shared)
    assert torch.equal(outputs(shared, members, "batched"), outputs(shared, members, "batched"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_visits_each_example_once(table: Corpus, sizes: list[int], batch_size: int, seed: int) -> None:
    """Whatever the sizes of the sets, padding counts for nothing, and the weights of a batch sum to one."""
    shared = share_cached(table)
    random = torch.Generator().manual_seed(seed)
    members = [Member(rows=shared.data.rows[torch.randperm(100, generator=random)[:size]]) for size in sizes]
    for _, alike in alike_members(replace_batch(shared, batch_size), members, range(len(members))):
        chosen = [members[number] for number in alike]
        sets = TrainingSets.of(shared, chosen, batch_size)
        visits = sets.visits([torch.randperm(size, generator=random) for size in sets.sizes])
        seen: list[list[int]] = [[] for _ in chosen]
        for step in range(sets.steps):
            rows, weight = sets.batch(visits, step)
            if weight is None:
                weight = torch.full(rows.shape, 1 / rows.shape[1])
            torch.testing.assert_close(weight.sum(1), torch.ones(len(chosen)))
            for member in range(len(chosen)):
                seen[member] += rows[member][weight[member] > 0].tolist()
        for member, own in enumerate(chosen):
            assert own.rows is not None
            assert sorted(seen[member]) == sorted(torch.as_tensor(own.rows).tolist())


_SHARED: dict[str, Shared] = {}


def share_cached(corpus: Corpus) -> Shared:
    if corpus.fingerprint not in _SHARED:
        _SHARED[corpus.fingerprint] = share(imprint.Learner("linear", epochs=1), corpus)
    return _SHARED[corpus.fingerprint]


def replace_batch(shared: Shared, batch_size: int) -> Shared:
    return replace(shared, learner=replace(shared.learner, batch_size=batch_size))


def test_waves_fit_the_memory(table: Corpus) -> None:
    shared = share(imprint.Learner("mlp", epochs=1), table)
    each = 2**20 * 4  # a wave of this network takes about 1.3 MB of parameters and moments per member
    small, large = (wave_size(shared, shared.learner, 240, memory) for memory in (10 * each, 100 * each))
    assert 1 <= small < large
    assert wave_size(shared, shared.learner, 240, memory=1) == 1
    assert wave_size(shared, shared.learner, 10**7, 10 * each) < small  # outputs on the queries count as well


def test_a_member_that_diverges_is_named(table: Corpus) -> None:
    shared = share(imprint.Learner("mlp", epochs=3, batch_size=32, optimizer="sgd"), table)
    members = [Member(), Member(), Member(seed=1, settings={"learning_rate": 1e30})]
    with pytest.raises(LearnerError, match="member 2 diverged"):
        outputs(shared, members, "batched")


class Odd:
    """A sampler of one's own."""

    def epoch(self, state: SamplerState) -> tuple[Tensor, None]:
        return torch.arange(0, state.size, 2), None


def with_batch_norm(shape: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 4), nn.BatchNorm1d(4), nn.Linear(4, width))


@pytest.mark.parametrize(
    ("learner", "says"),
    [
        (lambda: imprint.Learner(LogisticRegression()), "scikit-learn"),
        (lambda: imprint.Learner("linear", epochs=1, sampler=Odd()), "sampler"),
        (lambda: imprint.Learner(with_batch_norm, epochs=1), "batch normalisation"),
    ],
    ids=["estimator", "sampler", "batch norm"],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(
    table: Corpus, learner: Callable[[], imprint.Learner], says: str
) -> None:
    shared = share(learner(), table)
    members = [Member(seed=seed) for seed in range(2)]
    with pytest.raises(EvidenceError, match=says):
        outputs(shared, members, "batched")
    choice = choose(shared, members, range(2))
    assert isinstance(choice.executor, Sequential)
    assert says in choice.why
    assert isinstance(steady(shared), Sequential)
    assert torch.equal(outputs(shared, members, "auto"), outputs(shared, members, "sequential"))


def test_an_unknown_executor_is_named(table: Corpus) -> None:
    with pytest.raises(EvidenceError, match="batched"):
        outputs(share_cached(table), [Member()], "bached")


def test_convolutions_are_not_stacked_on_a_cpu_without_measuring(images: Corpus, table: Corpus) -> None:
    assert isinstance(steady(share(imprint.Learner("cnn", epochs=1), images)), Sequential)
    assert isinstance(steady(share_cached(table)), Batched)


def test_the_choice_says_what_was_measured(table: Corpus) -> None:
    shared = share(imprint.Learner("mlp", epochs=20, batch_size=32), table)
    members = [Member(seed=seed) for seed in range(200)]
    choice = choose(shared, members, range(200))
    assert "times as fast" in choice.why
    assert choice.seconds is not None
    assert choice.seconds > 0
    # A few members of one epoch are trained sooner than measured.
    few = choose(share_cached(table), members, range(3))
    assert isinstance(few.executor, Sequential)
    assert "not worth measuring" in few.why
