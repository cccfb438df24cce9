"""Sequenced training: which orders, what a stage trains, and what it never reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from imprint.errors import LearnerError
from imprint.fitting import Data, Learner, loop
from imprint.fitting.adapters import Adapted, added, added_all
from imprint.fitting.build import build
from imprint.fitting.deletable import scheme, train_deletable
from imprint.fitting.sequenced import ORDER, Sequencing, orders, recorded, stage_name, touched, train_sequenced
from imprint.fitting.sharded import Sharding
from imprint.models import Frozen

from .conftest import TASK, network, resolved

PLAN = "s3t(shards=2, slices=3, orders=3, rank=2)"


class Encoding:
    """Vectors as they are."""

    normalisation = None
    shape = (4,)


@pytest.fixture
def keyed(data: Data) -> Data:
    keys = torch.randint(-(2**63), 2**63 - 1, (90,), generator=torch.Generator().manual_seed(1))
    return replace(data, keys=keys)


def learner(deletable: str = PLAN, **words: Any) -> Learner:
    return resolved(deletable=deletable, **{"model": "mlp", "learning_rate": 0.003, "epochs": 2, **words})


def fresh(one: Learner) -> torch.nn.Module:
    return build(one, Encoding(), TASK)


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    return all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


# -------------------------------------------------------------------------------------------------------------- orders


def differ(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """Places at which two orders differ."""
    return sum(a != b for a, b in zip(one, two, strict=True))


@settings(max_examples=60)
@given(st.integers(1, 6), st.data())
def test_orders_are_many_and_different(slices: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(40, math.factorial(slices))))
    found = orders(range(slices), count)
    assert len(found) == len(set(found)) == count
    assert all(sorted(one) == list(range(slices)) for one in found)
    for length in range(1, slices + 1):  # as many beginnings of each length as there can be, each as often as another
        beginnings = [one[:length] for one in found]
        most = min(count, math.perm(slices, length))
        assert len(set(beginnings)) == most
        often = {beginnings.count(one) for one in beginnings}
        assert max(often) - min(often) <= 1
    if count <= slices:
        assert all(differ(one, two) == slices for one, two in combinations(found, 2))


def test_as_many_orders_as_slices_are_those_of_the_paper() -> None:
    """Rotations to the right, as `get_cyclic(L, L)` of the paper's code gives them."""
    for size in (2, 3, 5):
        theirs = {tuple(range(size))[-k:] + tuple(range(size))[:-k] for k in range(1, size + 1)}
        assert set(orders(range(size), size)) == theirs


def test_of_two_orders_one_keeps_what_the_other_loses() -> None:
    """After any one slice is lost, half of the slices or more are left in one of the two: neighbouring rotations would leave a quarter."""
    for gone in range(4):
        assert max(one.index(gone) for one in orders(range(4), 2)) >= 2


@pytest.mark.parametrize(
    "text",
    ["s3t", "s3t(4)", "s3t(shards=0)", "s3t(shards=2, orders=0)", "s3t(slices=3, orders=7)", "s3t(depth=2)", "s3t(slices=2, slices=3)",
     "s3t(shards=-1)", "s3t(shards=2"],
)  # fmt: skip
def test_impossible_plans_are_refused(text: str) -> None:
    with pytest.raises(LearnerError) as error:
        Learner(deletable=text)
    assert error.value.remedy


def test_both_schemes_are_read() -> None:
    assert scheme("s3t(slices=3, rank=8)") == Sequencing(2, 3, 3, 8)
    assert scheme(" s3t( shards = 5 ) ") == Sequencing(5, 4, 4, 64)
    assert scheme("sisa(shards=3, slices=2)") == Sharding(3, 2)
    with pytest.raises(LearnerError, match=r"sisa.*s3t"):
        scheme("s4t(shards=2)")


# ------------------------------------------------------------------------------------------------------------ adapters


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_a_change_is_of_low_rank_and_adds(rank: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)).double()
    adapted = Adapted(net, rank, random).double()
    inputs = torch.randn(5, 12, generator=random).double()
    torch.testing.assert_close(adapted(inputs), net(inputs), rtol=0, atol=0)  # it begins as the module
    with torch.no_grad():
        for one in adapted.changed.values():
            one.copy_(torch.randn(one.shape, generator=random))
    changes, weights = adapted.changes(), dict(net.named_parameters())
    moved = added(weights, changes)
    assert torch.linalg.matrix_rank(moved["0.weight"] - weights["0.weight"]) == rank
    assert "2.weight" in changes  # the head changes freely
    torch.testing.assert_close(adapted(inputs), torch.func.functional_call(net, moved, inputs))
    twice = added_all(weights, [changes, changes])
    torch.testing.assert_close(twice["0.weight"] - weights["0.weight"], 2 * (moved["0.weight"] - weights["0.weight"]))


def test_only_changes_are_trained(data: Data) -> None:
    net = network(dropout=0.1)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    adapted = Adapted(net, 2, torch.Generator().manual_seed(0))
    loop.train(adapted, TASK, data, resolved(ema=0.9))
    assert all(torch.equal(before[name], weight) for name, weight in net.state_dict().items())
    assert all(float(one.abs().max()) > 0 for one in adapted.changes().values())


# ------------------------------------------------------------------------------------------------------------ training


def test_a_stage_reads_its_own_slices_and_no_other(
    keyed: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop was really given, beside what the file's name and the record say."""
    read: list[torch.Tensor] = []
    real = loop.train

    def spied(module: Any, task: Any, data: Data, *rest: Any, **words: Any) -> Any:
        read.append(data.rows)
        return real(module, task, data, *rest, **words)

    monkeypatch.setattr(loop, "train", spied)
    done = train_sequenced(learner(), fresh(learner()), TASK, keyed, folder=tmp_path)
    assert len(read) == len(done.trained) == done.total == 18
    assert keyed.keys is not None
    shard, piece = Sharding(2, 3).parts(keyed.keys[keyed.rows])
    record = json.loads((tmp_path / ORDER).read_text())["parameters"]
    for rows, (number, slices) in zip(read, done.trained, strict=True):
        mine = (shard == number) & torch.isin(piece, torch.tensor(slices))
        assert torch.equal(rows, keyed.rows[mine])
        assert record[stage_name(number, slices)] == {"shard": number, "updated_with": list(slices)}
    assert set(record) | {ORDER} == {path.name for path in tmp_path.iterdir()}
    assert len(keyed.rows) == sum(
        one["count"] for part in json.loads((tmp_path / ORDER).read_text())["examples"] for one in part
    )


def test_what_is_served_is_the_base_and_its_stages(keyed: Data, tmp_path: Path) -> None:
    """Recomputed in double precision from the files that the record names."""
    one = learner()
    done = train_sequenced(one, fresh(one), TASK, keyed, folder=tmp_path)
    record = json.loads((tmp_path / ORDER).read_text())
    assert done.served == ((0, 1, 2), (0, 1, 2))
    for member, base, files in zip(done.module.members, fresh(one).members, record["served"], strict=True):  # type: ignore[arg-type]
        weights = load_file(tmp_path / files[0])
        assert all(
            torch.equal(weights[name], value) for name, value in base.named_parameters()
        )  # random, before any example
        expected = {name: value.double() for name, value in weights.items()}
        for file in files[1:]:
            for name, change in load_file(tmp_path / file).items():
                if name.endswith(":down"):
                    continue
                stem = name.removesuffix(":up")
                down = load_file(tmp_path / file).get(f"{stem}:down")
                step = change.double() if down is None else 2**0.5 * change.double() @ down.double()
                expected[stem] = expected[stem] + step
        for name, value in member.named_parameters():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert sum(float((expected[name] - weights[name].double()).abs().max()) > 0 for name in expected) == len(
            expected
        )


def test_an_interrupted_training_goes_on(keyed: Data, tmp_path: Path) -> None:
    one = learner()
    done = train_deletable(one, fresh(one), TASK, keyed, folder=tmp_path)
    (tmp_path / stage_name(0, (1, 2))).write_bytes(b"cut")
    (tmp_path / stage_name(1, (0,))).unlink()
    again = train_sequenced(one, fresh(one), TASK, keyed, folder=tmp_path)
    # Stages that were trained on top of a lost one stay as they were: they depend on the same examples.
    assert again.trained == ((0, (1, 2)), (1, (0,)))
    assert same(again.module, done.module)
    memory = train_sequenced(one, fresh(one), TASK, keyed)
    assert same(memory.module, done.module)
    assert recorded(tmp_path, one)
    assert not recorded(tmp_path, replace(one, seed=1))


@pytest.mark.parametrize("words", [{}, {"ema": 0.9}, {"model": "linear"}], ids=["plain", "averaged", "linear"])
def test_garbage_in_a_slice_that_is_off_changes_no_bit(keyed: Data, words: dict[str, Any]) -> None:
    """The strongest form of "never read": what is left is the same whatever the forgotten inputs were."""
    one = learner(**words)
    assert keyed.keys is not None
    gone = torch.tensor([3, 17])
    off = touched(Sequencing.read(PLAN), keyed.keys[gone])
    spoilt = replace(keyed, inputs=keyed.inputs.index_fill(0, gone, 1e3))
    clean, dirty = (train_sequenced(one, fresh(one), TASK, given, off=off).module for given in (keyed, spoilt))
    assert same(clean, dirty)
    whole, other = (train_sequenced(one, fresh(one), TASK, given).module for given in (keyed, spoilt))
    assert not same(whole, other)


def test_the_longest_beginning_is_served(keyed: Data) -> None:
    one = learner()
    off = torch.tensor([[True, False, False], [False, False, True]])
    done = train_sequenced(one, fresh(one), TASK, keyed, off=off)
    assert done.served == ((1, 2), (0, 1))
    assert {stage for shard, stage in done.stages if shard == 0} == {(1,), (1, 2), (2,)}
    assert (
        done.capacity == 3
    )  # four slices come first in some order and are clean: the fourth deletion could be the last
    lost = train_sequenced(one, fresh(one), TASK, keyed, off=torch.tensor([[True] * 3, [False] * 3]))
    assert lost.served == ((), (0, 1, 2))
    assert lost.module.present.tolist() == [0.0, 1.0]
    inputs = keyed.inputs[:5]
    torch.testing.assert_close(lost.module(inputs), lost.module.members[1](inputs))


def test_a_slice_without_examples_is_passed_over(keyed: Data) -> None:
    one = learner()
    assert keyed.keys is not None
    shard, piece = Sharding(2, 3).parts(keyed.keys[keyed.rows])
    without = keyed.train_on(keyed.rows[~((shard == 0) & (piece == 1))])
    done = train_sequenced(one, fresh(one), TASK, without)
    assert done.served == ((0, 2), (0, 1, 2))


def test_keys_are_needed(data: Data) -> None:
    with pytest.raises(LearnerError, match="have none"):
        train_sequenced(learner(), fresh(learner()), TASK, data)


@pytest.mark.parametrize("model", ["cnn", "nmtune", torch.nn.Identity(), Frozen(torch.nn.Identity(), head="resnet")])
def test_what_learns_its_features_is_refused(model: Any) -> None:
    with pytest.raises(LearnerError, match="learns its features") as error:
        Learner(model, deletable=PLAN)._check_deletable(model, None)
    assert "sisa" in str(error.value.remedy)
    for served in ("table/mlp", "wordllama/linear", Frozen(torch.nn.Identity())):
        Learner(served, deletable=PLAN)._check_deletable(served, None)
