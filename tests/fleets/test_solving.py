"""Solved heads together: the same answers as one after the other, whichever way they are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import imprint
from imprint.errors import LearnerError
from imprint.fitting import Data, Learner
from imprint.fleets import Member, Sequential, Shared, plan, solving
from imprint.fleets.executing import Finished
from imprint.fleets.solving import Solved, price_solved, run_solved, solvable
from imprint.models.estimator import IMPOSSIBLE
from imprint.tasks import Classification, Multilabel, Regression, Task

CLOSE = 1e-5
COUNT, TRAIN, CLASSES = 120, 100, 3


class Given:
    """Inputs that are encoded already."""

    normalisation = None
    frozen_features = True

    def __init__(self, width: int) -> None:
        self.shape = (width,)


def shared(
    model: str, task: str = "classification", width: int = 6, weighted: bool = False, count: int = COUNT
) -> Shared:
    """Overlapping clouds, mean far from zero; the last rows are not trained on."""
    random = torch.Generator().manual_seed(3)
    code = torch.randint(0, CLASSES, (count,), generator=random)
    inputs = torch.randn(count, width, generator=random) + torch.randn(CLASSES, width, generator=random)[code] + 2
    tasks: dict[str, tuple[Task, Tensor]] = {
        "classification": (Classification(tuple(range(CLASSES))), code),
        "regression": (Regression(0.0, 1.0), inputs[:, 0] - inputs[:, 1] + torch.randn(count, generator=random)),
        "multilabel": (Multilabel(tuple(range(CLASSES))), (torch.rand(count, CLASSES, generator=random) < 0.4).float()),
    }
    kind, target = tasks[task]
    weight = torch.rand(count, generator=random) + 0.2 if weighted else None
    learner = Learner(
        f"array/{model}", task=task, epochs=1, batch_size=8, learning_rate=0.1, weight_decay=1e-2, augment="none", device="cpu",
        precision="float32", record="none",
    )  # fmt: skip
    train = count * TRAIN // COUNT
    splits = {"train": torch.arange(train), "test": torch.arange(train, count)}
    return Shared(learner, kind, Given(width), Data(inputs, target, weight, splits))


def variations(one: Shared) -> dict[str, list[Member]]:
    """Every way in which members may differ."""
    rows, target = one.data.rows, one.data.target
    random = torch.Generator().manual_seed(5)
    count = len(rows)
    half = torch.rand(count, generator=random) < 0.5
    drawn = torch.randint(0, count, (count,), generator=random)
    fold = torch.arange(count) % 4
    turned = target[rows].clone()
    turned[[4, 9]] = turned[[5, 10]]
    return {
        "all": [Member(), Member(seed=7)],
        "leave one out": [Member(rows=torch.cat([rows[:i], rows[i + 1 :]])) for i in range(0, count, 4)],
        "leave a group out": [Member(rows=rows[torch.arange(count) // 5 != group]) for group in range(3)],
        "folds": [Member(rows=rows[fold != k]) for k in range(4)],
        "half": [Member(rows=rows[half]), Member(rows=rows[half].numpy())],
        "few": [Member(rows=rows[:9])],
        "bootstrap": [
            Member(weight=torch.bincount(drawn, minlength=count).float()),
            Member(rows=rows[drawn.unique()], weight=torch.bincount(drawn, minlength=count)[drawn.unique()].float()),
        ],
        "repeated rows": [Member(rows=torch.cat([rows, rows[:2]]))],
        "weights": [Member(weight=torch.rand(count, generator=random)), Member(rows=rows[half], weight=torch.rand(int(half.sum())))],
        "few labels": [Member(target=turned)],
        "many labels": [
            Member(rows=rows[5:], target=target[rows[5:]].flip(0)),
            Member(rows=rows[half], target=target[rows[half]].flip(0), weight=torch.rand(int(half.sum()), generator=random)),
        ],
        "settings": [Member(settings={"weight_decay": decay}) for decay in (1.0, 1e-3)],
        "settings and rows": [Member(rows=rows[3:], settings={"weight_decay": 0.3})],
        "other rows": [Member(rows=torch.arange(10, COUNT) if len(one.data.target) == COUNT else rows)],
    }  # fmt: skip


def gathered(run: Any, members: Sequence[Member]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Outputs and parameters by member; each member exactly once."""
    found: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
    one: Finished
    for one in run:
        assert one.parameters is not None
        assert one.outputs.dtype == torch.float32
        assert len(one.seconds) == len(one.numbers) == len(one.outputs) == len(one.parameters)
        for number, outputs, parameters in zip(one.numbers, one.outputs, one.parameters, strict=True):
            assert number not in found
            found[number] = (outputs, parameters)
    assert sorted(found) == list(range(len(members)))
    return [found[number] for number in range(len(members))]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [6, 130])
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("ridge", "classification"), ("ridge", "regression"), ("ridge", "multilabel"), ("logistic", "classification"),
        ("logistic", "multilabel"),
    ],
)  # fmt: skip
def test_together_or_one_after_the_other(model: str, task: str, width: int, weighted: bool) -> None:
    """More features than examples, too; both with weights of the corpus and without."""
    one = shared(model, task, width, weighted)
    groups = variations(one)
    members = [member for group in groups.values() for member in group]
    names = [name for name, group in groups.items() for _ in group]
    queries = torch.tensor([119, 0, 50, 4, 110])
    numbers = range(len(members))
    theirs = gathered(Sequential().run(one, members, numbers, queries, parameters=True), members)
    ours = gathered(Solved().run(one, members, numbers, queries, parameters=True), members)
    for name, (said, weights), (expected, expected_weights) in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        assert weights.keys() == expected_weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(value, expected_weights[key], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("width", [6, 130])
@pytest.mark.parametrize("corrected", [True, False])
def test_a_correction_and_a_solution_agree(width: int, corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to a ridge head, each held to the other executor; and that the one that was meant is taken."""
    monkeypatch.setattr(solving, "LEAST_CORRECTED", 0 if corrected else 10**9)
    called = []
    original = solving.Heads._corrected
    monkeypatch.setattr(
        solving.Heads, "_corrected", lambda self, few, parameters: called.extend(few) or original(self, few, parameters)
    )
    one = shared("ridge", width=width, weighted=True)
    groups = variations(one)
    members = [*groups["leave one out"], *groups["leave a group out"], *groups["few labels"], *groups["settings"]]
    numbers = range(len(members))
    theirs = gathered(Sequential().run(one, members, numbers, one.test, parameters=True), members)
    ours = gathered(Solved().run(one, members, numbers, one.test, parameters=True), members)
    for (said, weights), (expected, expected_weights) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)
        torch.testing.assert_close(weights["1.weight"], expected_weights["1.weight"], rtol=0, atol=CLOSE)
    assert bool(called) == corrected


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_waves_change_nothing(model: str) -> None:
    """Little memory means small waves; who is beside whom does not matter."""
    one = shared(model)
    members = [member for group in variations(one).values() for member in group]
    numbers = list(range(len(members)))
    whole = gathered(run_solved(one, members, numbers, one.test, parameters=True), members)
    waves = list(Solved(memory=60_000).run(one, members, numbers, one.test, parameters=True))
    assert len(waves) > 5
    for (said, _), (expected, _) in zip(gathered(iter(waves), members), whole, strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)


def test_inputs_that_do_not_fit_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shared("ridge")
    members = [member for group in variations(one).values() for member in group]
    numbers = list(range(len(members)))
    held = gathered(run_solved(one, members, numbers, one.test, parameters=True), members)
    monkeypatch.setattr(solving, "available_memory", lambda: 0)
    heads = solving.Heads(one, one.test)
    assert not isinstance(heads.inputs, Tensor)
    assert heads.wave == 1
    again = gathered(run_solved(one, members, numbers, one.test, parameters=True, memory=10**6), members)
    for (said, _), (expected, _) in zip(again, held, strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_a_class_that_is_left_out(model: str) -> None:
    one = shared(model)
    rows = one.data.rows[one.data.target[one.data.rows] != 1]
    ((said, _),) = gathered(run_solved(one, [Member(rows=rows)], [0], one.test, True), [0])  # type: ignore[list-item]
    assert (said.argmax(1) != 1).all()
    if model == "logistic":
        assert (said[:, 1] == IMPOSSIBLE).all()
    else:
        torch.testing.assert_close(said[:, 1], torch.full((len(said),), -1.0), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_one_example_or_one_class_is_enough(model: str) -> None:
    """As along the random orders of Shapley values, which begin with a single example."""
    one = shared(model)
    rows = one.data.rows
    same = rows[one.data.target[rows] == 2]
    members = [Member(rows=rows[:1]), Member(rows=same)]
    ours = gathered(run_solved(one, members, range(2), one.test, True), members)
    theirs = gathered(Sequential().run(one, members, range(2), one.test, parameters=True), members)
    for (said, _), (expected, _), code in zip(ours, theirs, (int(one.data.target[0]), 2), strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)
        assert (said.argmax(1) == code).all()


def test_other_models_of_a_grid_are_trained_as_they_are() -> None:
    one = shared("ridge")
    members = [Member(settings={"model": model}) for model in ("array/ridge", "array/logistic", "array/linear")]
    ours = gathered(run_solved(one, members, range(3), one.test, True), members)
    theirs = gathered(Sequential().run(one, members, range(3), one.test, parameters=True), members)
    for (said, _), (expected, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)


def test_what_cannot_be_solved_is_refused() -> None:
    one = shared("ridge")
    with pytest.raises(LearnerError, match="none above 0"):
        list(run_solved(one, [Member(weight=torch.zeros(TRAIN))], [0], one.test))
    with pytest.raises(LearnerError, match="this target is a number"):
        list(run_solved(shared("logistic", "regression"), [Member()], [0], one.test))
    assert not solvable(shared("linear"))
    assert "not solved" in (Solved().why_not(shared("linear")) or "")


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_a_fleet_of_solved_heads(model: str, tmp_path: Path) -> None:
    """Through the public door: together and one after the other, the same outcomes of folds and of leaving out."""
    random = np.random.default_rng(0)
    code = random.integers(0, 3, 90)
    values = random.normal(size=(90, 4)) + 2 * random.normal(size=(3, 4))[code]
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(4)}).with_columns(y=pl.Series(code))
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    for number, variation in enumerate((plan.leave_out("example"), plan.folds(4), plan.grid(weight_decay=[1.0, 0.1]))):
        ours, theirs = (
            imprint.fleet(
                imprint.Learner(model), corpus, variation, tmp_path / f"{name}-{number}", queries="test", executor=name,
                progress=False,
            )
            for name in ("auto", "sequential")
        )  # fmt: skip
        assert ours.manifest["executor"]["name"] == "batched"
        torch.testing.assert_close(ours.outcomes("logits"), theirs.outcomes("logits"), rtol=0, atol=CLOSE)
        # The variations do something: members differ by far more than the two executors.
        assert (ours.outcomes("logits")[0] - ours.outcomes("logits")[1]).abs().max() > 1e-3


def test_a_price_is_measured() -> None:
    one = shared("ridge")
    members = [Member(rows=one.data.rows[1:])] * 40
    assert 0 < price_solved(one, members, list(range(40)), len(one.test)) < 10
    assert price_solved(one, members, [], 5) == 0
