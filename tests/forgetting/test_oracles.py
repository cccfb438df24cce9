"""Fleets of oracles: who was trained on what, what is kept, and margins."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imprint
from imprint.errors import EvidenceError, IdError
from imprint.fitting import predict
from imprint.fleets import Member, share, train_member
from imprint.forgetting import oracles as module
from imprint.forgetting.oracles import SEEDS, halves, margins, oracles, references, seeds_of, shadows, without_chance
from imprint.recording import Run
from imprint.tasks import Classification, Multilabel, Regression

PLACES = np.arange(0, 30, 3)


@pytest.fixture
def mine(run: Run, tmp_path: Path) -> Run:
    """A copy of the run, whose fleets are not there yet."""
    shutil.copytree(run.path, tmp_path / "base", ignore=shutil.ignore_patterns("fleets", "lock"))
    return imprint.load(tmp_path / "base")


def told(found: list[tuple[str, int, int]]) -> object:
    return lambda label, done, total, facts=None: found.append((label, done, total))


def candidates(run: Run) -> np.ndarray:
    return np.concatenate([run.rows()[PLACES], run.rows("test")[: len(PLACES)]])


def test_each_is_the_training_that_its_seed_and_rows_say(mine: Run) -> None:
    shared = share(mine)
    every, without = references(mine, 2), oracles(mine, PLACES, 2)
    some, seen = shadows(mine, PLACES, candidates(mine), 2)
    kept = np.delete(mine.rows(), PLACES)
    sets = [np.sort(np.concatenate([kept, candidates(mine)[one]])) for one in seen.numpy()]
    for models, rows in ((every, [mine.rows()] * 2), (without, [kept] * 2), (some, sets)):
        for number, one in enumerate(rows):
            alone = train_member(shared, Member(models.seeds[number], one), outputs_of=torch.arange(len(mine.corpus)))
            assert torch.allclose(models.outputs[number], alone.outputs, atol=1e-4)
    assert len({*every.seeds, *without.seeds, *some.seeds, mine.learner.seed}) == 7
    assert every.outputs.shape == (2, len(mine.corpus), 3)


def test_weights_are_those_that_gave_the_outputs(mine: Run) -> None:
    found = oracles(mine, PLACES, 3)
    inputs = share(mine).data.inputs
    for number in range(3):
        said = predict(found.module(number), mine.task, inputs)
        assert torch.allclose(said, found.outputs[number], atol=1e-5)
    first = found.module(0)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert torch.allclose(predict(found.module(0), mine.task, inputs), found.outputs[0], atol=1e-5)  # a copy each time


def test_more_train_the_new_ones_alone(mine: Run) -> None:
    said: list[tuple[str, int, int]] = []
    two = oracles(mine, PLACES, 2, progress=told(said))
    assert [one for one in said if one[0] == "oracles"][-1] == ("oracles", 2, 2)
    said.clear()
    four = oracles(imprint.load(mine.path), PLACES[::-1].copy(), 4, progress=told(said))  # the same examples
    assert {done for label, done, _ in said if label == "oracles"} <= {2, 3, 4}
    assert torch.equal(four.outputs[:2], two.outputs)
    assert four.seeds[:2] == two.seeds
    said.clear()
    again = oracles(mine, PLACES, 3, progress=told(said))
    assert not [one for one in said if one[0] == "oracles"]
    assert torch.equal(again.outputs, four.outputs[:3])
    assert 0 < again.seconds < four.seconds
    assert len(list((mine.path / "fleets" / "forgetting").glob("oracles-*"))) == 1


def test_killed_it_goes_on_with_those_that_are_missing(sharded: Run) -> None:
    places = PLACES + 2

    def kill(label: str, done: int, total: int, facts: object = None) -> None:
        if label == "oracles" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # a deletable learner's are trained one after the other
        oracles(sharded, places, 3, progress=kill)
    said: list[tuple[str, int, int]] = []
    found = oracles(sharded, places, 3, progress=told(said))
    assert [done for label, done, _ in said if label == "oracles"] == [3]
    whole = train_member(
        share(sharded),
        Member(found.seeds[1], np.delete(sharded.rows(), places)),
        outputs_of=torch.arange(len(sharded.corpus)),
    )
    assert torch.equal(found.outputs[1], whole.outputs)


def test_other_examples_and_other_kinds_have_folders_of_their_own(mine: Run) -> None:
    (
        references(mine, 1),
        oracles(mine, PLACES, 1),
        oracles(mine, PLACES + 1, 1),
        shadows(mine, PLACES, candidates(mine), 1),
    )
    names = sorted(one.name.split("-")[0] for one in (mine.path / "fleets" / "forgetting").iterdir())
    assert names == ["oracles", "oracles", "references", "shadows"]
    text = "".join(one.read_text() for one in mine.path.glob("fleets/forgetting/*/*.json"))
    assert mine.ids[0] not in text


def test_what_is_damaged_is_trained_again(mine: Run) -> None:
    found = references(mine, 2)
    (file,) = mine.path.glob("fleets/forgetting/references-*/parameters/00000001.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.warns(UserWarning, match="set aside"):
        again = references(mine, 2)
    assert torch.equal(again.outputs, found.outputs)
    assert torch.allclose(predict(again.module(1), mine.task, share(mine).data.inputs), again.outputs[1], atol=1e-5)


def test_the_parents_seed_is_left_out(run: Run) -> None:
    first = SEEDS["oracles"]
    assert seeds_of("oracles", replace(run.learner, seed=first + 1), 3) == [first, first + 2, first + 3]
    with pytest.raises(EvidenceError, match="0 oracles are none"):
        oracles(run, PLACES, 0)


def test_without_chance_there_is_one(ridge: Run) -> None:
    assert len(references(ridge, 5)) == len(oracles(ridge, PLACES, 5)) == 1
    some, seen = shadows(ridge, PLACES, candidates(ridge), 4)  # whose halves differ
    assert len(some) == len(seen) == 4
    assert not torch.equal(some.outputs[0], some.outputs[2])


def test_estimators_are_trained_again_for_their_modules(mine: Run, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    assert without_chance(replace(mine.learner, model=GaussianNB()))
    assert without_chance(replace(mine.learner, model=LogisticRegression(random_state=3)))
    learner = imprint.Learner(DecisionTreeClassifier(max_features=1, max_depth=3))
    tree = imprint.fit(learner, mine.corpus, tmp_path / "tree", progress=False)
    found = references(tree, 3)
    assert not torch.equal(found.outputs[0], found.outputs[1])
    inputs = share(tree).data.inputs
    assert all(torch.equal(predict(found.module(n), tree.task, inputs), found.outputs[n]) for n in range(3))


def test_a_deletable_learner(sharded: Run) -> None:
    found = oracles(sharded, PLACES, 2)
    said = predict(found.module(1), sharded.task, share(sharded).data.inputs)
    assert torch.allclose(said, found.outputs[1], atol=1e-6)


def test_what_cannot_be_left_out_is_said(run: Run) -> None:
    with pytest.raises(IdError, match="0 of 140"):
        oracles(run, np.array([], dtype=np.int64), 2)
    with pytest.raises(IdError, match="140 of 140"):
        oracles(run, np.arange(len(run)), 2)
    with pytest.raises(IdError, match="some are retained"):
        shadows(run, PLACES, run.rows()[PLACES + 1], 2)
    with pytest.raises(IdError, match="come twice"):
        shadows(run, PLACES, np.repeat(run.rows("test")[:3], 2), 2)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_halves_balance(count: int, models: int, seed: int) -> None:
    seen = halves(count, models, seed)
    assert torch.equal(halves(count, models + 3, seed)[:models], seen)
    assert bool(((seen.sum(1) == count // 2) | (seen.sum(1) == count - count // 2)).all())
    pairs = seen[: models // 2 * 2]
    assert bool((pairs.sum(0) == len(pairs) // 2).all())


def test_margins_of_every_task() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 4, generator=random) * 2
    target = torch.randint(0, 4, (7,), generator=random)
    p = logits.double().softmax(-1).gather(-1, target.expand(2, 3, 7)[..., None])[..., 0]
    assert torch.allclose(margins(Classification((0, 1, 2, 3)), logits, target).double(), torch.logit(p), atol=1e-4)
    labels = torch.randint(0, 2, (7, 4), generator=random).float()
    each = torch.where(labels > 0, logits.double().sigmoid(), 1 - logits.double().sigmoid())
    found = margins(Multilabel((0, 1, 2, 3)), logits, labels)
    assert torch.allclose(found.double(), torch.logit(each.prod(-1)), atol=1e-4)
    value = torch.randn(7, generator=random)
    assert torch.equal(margins(Regression(), logits[..., :1], value), logits[..., 0] - value)


def test_margins_of_the_sure_are_finite() -> None:
    labels = torch.ones(1, 2)
    assert bool(torch.isfinite(margins(Multilabel((0, 1)), torch.tensor([[500.0, 500.0]]), labels)).all())
    assert float(margins(Classification((0, 1)), torch.tensor([[900.0, 0.0]]), torch.tensor([0]))) == 900


def test_a_fixed_choice_has_no_shadows(run: Run) -> None:
    chosen = imprint.fitting.Fixed(torch.arange(50))
    fixed = Run(run.path, run.corpus, replace(run.learner, sampler=chosen), run.data)
    with pytest.raises(EvidenceError, match="fixed choice"):
        shadows(fixed, PLACES, candidates(run), 2)
    assert module.digest(fixed, module.shared_of(fixed, None, lambda *given: None), []) != module.digest(
        run, module.shared_of(run, None, lambda *given: None), []
    )
