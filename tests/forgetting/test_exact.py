"""Exact methods: equal to a training that never held the examples, in any order of requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

import imprint
from imprint.corpus import Corpus
from imprint.errors import LearnerError
from imprint.fitting.build import build, fit_at_once
from imprint.fitting.heads import Summed, head
from imprint.fitting.sharded import Sharding, train_sharded
from imprint.forgetting import add, downdate, prepare
from imprint.forgetting.sisa import sisa
from imprint.recording import Run

from .conftest import clouds


def layer(run: Run) -> torch.Tensor:
    """Weights and intercepts of a head, in one."""
    last = head(run.model().module)
    return torch.cat([last.weight.detach(), last.bias.detach()[:, None]], 1).double()


# -------------------------------------------------------------------------------------------------------------- analytic


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 10**6), st.floats(1e-6, 1.0), st.booleans())
def test_taking_away_is_never_having_had(extra: int, width: int, seed: int, decay: float, weighted: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    total, gone = width + extra, extra // 2
    x = 100 + torch.randn(total, width, generator=random, dtype=torch.float64)  # a large mean, which costs digits
    y = torch.randn(total, 2, generator=random, dtype=torch.float64)
    w = torch.rand(total, generator=random, dtype=torch.float64) + 0.1 if weighted else torch.ones(total).double()
    whole = Summed.of(x, y, w)
    left = downdate(whole, x[:gone], y[:gone], w[:gone])
    refit = Ridge(alpha=decay * float(w[gone:].sum()), solver="svd").fit(x[gone:], y[gone:], sample_weight=w[gone:])
    W, b = left.head(decay)
    scale = 1 + np.abs(refit.coef_).max()
    assert np.abs(W.T.numpy() - refit.coef_).max() < 1e-6 * scale
    assert np.abs((x @ W + b).numpy() - refit.predict(x)).max() < 1e-6 * scale
    back, _ = add(left, x[:gone], y[:gone], w[:gone]).head(decay)
    assert (back - whole.head(decay)[0]).abs().max() < 1e-6 * scale


def test_a_ridge_run_keeps_what_it_was_solved_from(ridge: Run, tmp_path: Path) -> None:
    ids = ridge.ids.to_list()
    job = prepare(ridge, np.arange(30))
    expected = head(fit_at_once(ridge.learner, ridge.encoder, ridge.task, job.without)).weight
    once = imprint.forget(ridge, ids[:30], path=tmp_path / "once", progress=False)
    assert once.manifest["forgot"]["method"] == "analytic"
    assert once.manifest["forgot"]["exact"] is True
    assert (layer(once)[:, :-1] - expected).abs().max() < 1e-6
    forth = imprint.forget(ridge, ids[:10], path=tmp_path / "a", progress=False)
    forth = imprint.forget(imprint.load(forth.path), ids[10:30], path=tmp_path / "ab", progress=False)
    back = imprint.forget(ridge, ids[10:30], path=tmp_path / "b", progress=False)
    back = imprint.forget(back, ids[:10], path=tmp_path / "ba", progress=False)
    assert (layer(forth) - layer(back)).abs().max() < 1e-6
    assert (layer(forth) - layer(once)).abs().max() < 1e-6
    assert (layer(forth) - layer(ridge)).abs().max() > 1e-4


def test_a_run_without_moments_is_solved_from_the_rest(ridge: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ridge.path, tmp_path / "older")
    (tmp_path / "older" / "evidence" / "moments.safetensors").unlink()
    older = imprint.load(tmp_path / "older", ridge.corpus)
    child = imprint.forget(older, ridge.ids[:9], path=tmp_path / "gone", progress=False)
    kept = imprint.forget(ridge, ridge.ids[:9], path=tmp_path / "kept", progress=False)
    assert (layer(child) - layer(kept)).abs().max() < 1e-6
    assert "no moments" in child.manifest["forgot"]["notes"][0]


def test_a_ridge_regression_forgets_too(tmp_path: Path) -> None:
    corpus = clouds(tmp_path / "store", task="regression")
    run = imprint.fit(imprint.Learner("ridge"), corpus, tmp_path / "base", progress=False)
    child = imprint.forget(run, where="x0 > 1", path=tmp_path / "gone", progress=False)
    job = prepare(run, np.flatnonzero(corpus.read(run.rows(), ["x0"])["x0"].to_numpy() > 1))
    expected = head(fit_at_once(run.learner, run.encoder, run.task, job.without)).weight
    assert (layer(child)[:, :-1] - expected).abs().max() < 1e-6


# ---------------------------------------------------------------------------------------------------------------- newton


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("places", [range(15), range(0, 140, 2), [7]], ids=["some", "half", "one"])
def test_the_bound_holds(logistic: Run, tmp_path: Path, steps: int, places: list[int]) -> None:
    """Against scikit-learn's minimum of the same objective: C = 1 / (decay n), to 1e-10."""
    ids = logistic.ids.gather(list(places))
    child = imprint.forget(logistic, ids, method="newton", path=tmp_path / "gone", progress=False, steps=steps)
    measured = child.manifest["forgot"]["measured"]
    job = prepare(logistic, np.array(places))
    decay = logistic.learner.weight_decay
    assert decay is not None
    oracle = LogisticRegression(C=1 / (decay * len(job.retain)), tol=1e-10, max_iter=10_000)
    oracle.fit(job.retain.inputs().double().flatten(1).numpy(), job.retain.target.numpy())
    distance = np.linalg.norm(layer(child)[:, :-1].numpy() - oracle.coef_)
    assert distance <= measured["bound"] + 1e-6  # what is left of the oracle's own error
    if steps == 3:
        assert measured["bound"] < 1e-3
    assert "Proved" in child.manifest["forgot"]["guarantee"]
    assert child.manifest["forgot"]["exact"] is False


def test_more_steps_come_nearer(logistic: Run, tmp_path: Path) -> None:
    bounds = []
    for steps in (1, 2, 3):
        child = imprint.forget(logistic, logistic.ids[:20], path=tmp_path / f"{steps}", progress=False, steps=steps)
        assert child.manifest["forgot"]["method"] == "newton"
        bounds.append(child.manifest["forgot"]["measured"]["bound"])
    assert bounds[2] < bounds[1] / 10 < bounds[0] / 100  # each step squares what is left: by far more than ten times


def test_a_class_can_be_forgotten_by_newton(logistic: Run, tmp_path: Path) -> None:
    child = imprint.forget(
        logistic, classes="class 1", method="newton", path=tmp_path / "gone", progress=False, steps=4
    )
    outputs = child.model().outputs(child.corpus)
    assert (outputs.argmax(1) != 1).all()
    assert child.manifest["forgot"]["measured"]["bound"] < 1e-3


def test_the_bound_of_a_ridge_head(ridge: Run, tmp_path: Path) -> None:
    child = imprint.forget(ridge, ridge.ids[:20], method="newton", path=tmp_path / "gone", progress=False)
    exact = imprint.forget(ridge, ridge.ids[:20], method="analytic", path=tmp_path / "exact", progress=False)
    assert child.manifest["forgot"]["measured"]["bound"] < 1e-6
    assert (layer(child) - layer(exact)).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------------------------ sisa


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    one, two = left.state_dict(), right.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def never(run: Run, places: list[int]) -> torch.nn.Module:
    """A sharded training that never held these, from nothing."""
    job = prepare(run, np.array(places))
    module = build(run.learner, run.encoder, run.task)
    return train_sharded(run.learner, module, run.task, job.without).module


def test_any_order_of_requests_is_never_having_held_them(sharded: Run, tmp_path: Path) -> None:
    ids = sharded.ids.to_list()
    expected = never(sharded, list(range(6)))
    once = imprint.forget(sharded, ids[:6], path=tmp_path / "once", progress=False)
    assert once.manifest["forgot"]["method"] == "sisa"
    assert same(once.model().module, expected)
    for name, order in (("forth", [ids[:2], ids[2:6]]), ("back", [ids[3:6], ids[:1], ids[1:3]])):
        run = sharded
        for number, part in enumerate(order):
            run = imprint.forget(run, part, path=tmp_path / f"{name}{number}", progress=False)
            run = imprint.load(run.path)
        assert same(run.model().module, expected)
    assert not same(sharded.model().module, expected)


def test_only_what_saw_the_example_is_trained_again(sharded: Run, tmp_path: Path) -> None:
    """Proved from the parts: an example of slice s costs the stages from s on, of its shard, and no other."""
    data = prepare(sharded, np.array([0])).data
    sharding = Sharding.read(str(sharded.learner.deletable))
    assert data.keys is not None
    shard, piece = sharding.parts(data.keys[data.rows])
    for place in (int(np.flatnonzero(piece.numpy() == 2)[0]), int(np.flatnonzero(piece.numpy() == 0)[0])):
        folder = tmp_path / str(place)
        child = imprint.forget(sharded, [sharded.ids[place]], path=folder, progress=False)
        again = 3 - int(piece[place])
        assert child.manifest["forgot"]["measured"] == {"stages": again, "stages_in_all": 9, "shards": 1}
        for stage in sorted((folder / "shards").iterdir()):
            number, slice_number = int(stage.name[6:9]), int(stage.name[16:19])
            untouched = number != int(shard[place]) or slice_number < int(piece[place])
            assert (stage.read_bytes() == (sharded.path / "shards" / stage.name).read_bytes()) == untouched


def test_a_shard_that_lost_all_its_examples_does_not_count(sharded: Run) -> None:
    job = prepare(sharded, np.array([0]))
    assert job.data.keys is not None
    shard, _ = Sharding.read(str(sharded.learner.deletable)).parts(job.data.keys[job.data.rows])
    lost = sisa(prepare(sharded, np.flatnonzero(shard.numpy() == 1))).module
    inputs = job.retain.inputs()[:5]
    others = [member(inputs) for number, member in enumerate(lost.members) if number != 1]  # type: ignore[union-attr]
    torch.testing.assert_close(lost(inputs), (others[0] + others[1]) / 2)


def test_an_interrupted_sharded_training_goes_on(sharded: Run, corpus: Corpus, tmp_path: Path) -> None:
    data = prepare(sharded, np.array([0])).data
    module = build(sharded.learner, sharded.encoder, sharded.task)
    done = train_sharded(sharded.learner, module, sharded.task, data, folder=tmp_path)
    assert len(done.trained) == done.total == 9
    (tmp_path / "shard-001-slice-001.safetensors").write_bytes(b"cut")
    (tmp_path / "shard-002-slice-002.safetensors").unlink()
    module = build(sharded.learner, sharded.encoder, sharded.task)
    again = train_sharded(sharded.learner, module, sharded.task, data, folder=tmp_path)
    assert again.trained == ((1, 1), (1, 2), (2, 2))
    assert same(again.module, done.module)
    assert same(again.module, sharded.model().module)


def test_parts_do_not_depend_on_the_others(corpus: Corpus) -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    shard, piece = Sharding(5, 4).parts(keys)
    some_shard, some_piece = Sharding(5, 4).parts(keys[::3])
    assert torch.equal(shard[::3], some_shard)
    assert torch.equal(piece[::3], some_piece)
    counts = torch.bincount(shard * 4 + piece, minlength=20)
    assert counts.min() > 25  # of 50 expected; a fair draw leaves it less often than once in 10^5


def test_impossible_shards_are_refused(corpus: Corpus) -> None:
    for text in ("sisa", "sisa(shards=0)", "s4t(shards=2)", "sisa(shards=2, slices=0)", "sisa(slices=3)"):
        with pytest.raises(LearnerError, match="sisa"):
            imprint.Learner(deletable=text)
    with pytest.raises(LearnerError, match="analytic"):
        imprint.Learner("ridge", deletable="sisa(shards=2)").resolve(corpus)


def test_a_fleet_of_shards_trains_shards(sharded: Run) -> None:
    from imprint.fleets.member import Member
    from imprint.fleets.sequential import train_module
    from imprint.fleets.shared import share

    job = prepare(sharded, np.arange(6))
    found = train_module(share(sharded), Member(rows=job.retain.rows))
    assert same(found, never(sharded, list(range(6))))
    assert not same(found, train_module(share(sharded), Member(seed=9, rows=job.retain.rows)))
    assert replace(sharded.learner, deletable=None) != sharded.learner
