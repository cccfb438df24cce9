"""A search of settings: where it is made, what it chooses, and what is said of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint.errors import IdError, MethodError
from imprint.forgetting import Forgetting, Forgotten, forget
from imprint.forgetting import searching as module
from imprint.forgetting.searching import disjoint, grid_of, search_settings, walked
from imprint.forgetting.stepping import Share
from imprint.methods import Method, lookup, registered
from imprint.recording import Run
from imprint.tasks import Classification, Multilabel, Regression

ASKED = np.arange(0, 40, 2)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer models and oracles than a search trains."""
    monkeypatch.setattr(module, "MODELS", 2)
    monkeypatch.setattr(module, "ORACLES", 3)


@pytest.fixture(scope="module")
def mine(digits: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("searching") / "base"
    shutil.copytree(digits.path, path, ignore=shutil.ignore_patterns("fleets", "lock"))
    return imprint.load(path)


def test_the_best_of_what_was_tried_is_used(mine: Run, tmp_path: Path) -> None:
    child = forget(mine, list(mine.ids.gather(ASKED)), method="ssd", search=4, path=tmp_path / "child", progress=False)
    done = child.manifest["forgot"]
    trials = done["search"]["trials"]
    assert [one["settings"] for one in trials][:2] == [
        {"alpha": 10.0, "dampening": 1.0},
        {"alpha": 3.0, "dampening": 1.0},
    ]
    assert len(trials) == 4
    good = [one for one in trials if one["lost"] - max(0.0, one["expected"]) <= module.LOST]
    assert done["search"]["chosen"] == min(good or trials, key=lambda one: one["value"])["settings"]
    assert done["settings"] == {**done["search"]["chosen"], "against": "retained"}
    assert set(trials[0]["sets"]) == {"forget", "retain", "held-out"}
    assert trials[0]["value"] == pytest.approx(np.mean(list(trials[0]["sets"].values())))
    assert done["search"]["count"] == len(ASKED)
    assert "4 settings were tried on 20 other examples" in done["notes"][-1]
    straight = forget(
        mine,
        list(mine.ids.gather(ASKED)),
        method="ssd",
        path=tmp_path / "straight",
        progress=False,
        **done["search"]["chosen"],
    )
    ours, theirs = (one.model().module.state_dict() for one in (child, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    text = json.dumps(child.manifest) + (child.path / "request.json").read_text()
    assert not [one for one in mine.ids if f'"{one}"' in text]


def test_the_models_are_shared_by_methods(mine: Run) -> None:
    said: list[str] = []

    def told(label: str, done: int, total: int, facts: Any = None) -> None:
        said.append(label)

    places = ASKED + 1
    search_settings(mine, places, lookup("forget", "gradient-ascent"), {}, 2, progress=told)
    assert "oracles" in said
    before = len(said)
    found = search_settings(mine, places, lookup("forget", "ssd"), {}, 3, progress=told)
    assert not {"references", "oracles"} & set(said[before:])
    assert len(found.trials) == 3
    again = search_settings(mine, places, lookup("forget", "ssd"), {}, 3)
    assert [one.value for one in again.trials] == [one.value for one in found.trials]


def test_a_setting_that_breaks_the_model_is_no_choice(mine: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ruined = lookup("forget", "ssd"), set[float]()

    def performed(method: Method, job: Forgetting, settings: dict[str, Any]) -> Forgotten:
        """What is done to the request itself: nothing, or everything."""
        if settings["alpha"] in ruined:
            for weight in job.module.parameters():
                weight.data.zero_()
        return Forgotten(job.module, False, "none")

    monkeypatch.setattr(module, "performed", performed)
    found = search_settings(mine, ASKED, one, {"dampening": 1.0}, 5)
    assert not any(trial.breaks for trial in found.trials)
    ruined |= {found.chosen["alpha"], 10.0}
    again = search_settings(mine, ASKED, one, {"dampening": 1.0}, 5)
    assert {trial.settings["alpha"] for trial in again.trials if trial.breaks} == ruined
    left = [trial for trial in found.trials if trial.settings["alpha"] not in ruined]
    assert again.chosen == min(left, key=lambda trial: trial.value).settings
    assert "the defaults have" in again.words
    assert "break the model" in again.words
    ruined |= {float(alpha) for alpha in one.search["alpha"]}
    assert "Each of them loses" in search_settings(mine, ASKED, one, {"dampening": 1.0}, 5).words


def test_what_is_given_is_fixed_and_what_is_left_is_searched(mine: Run) -> None:
    found = search_settings(mine, ASKED, lookup("forget", "ssd"), {"alpha": 50.0}, 8)
    assert [set(one.settings) for one in found.trials] == [{"dampening"}] * 3
    none = search_settings(mine, ASKED, lookup("forget", "ssd"), {"alpha": 50.0, "dampening": 1.0}, 8)
    assert none.trials == ()
    assert none.chosen == {}
    assert none.words == "No settings were tried: all settings worth trying are given."


def test_a_method_without_settings_says_so(mine: Run, tmp_path: Path) -> None:
    child = forget(
        mine, list(mine.ids.gather(ASKED)), method="nothing", search=8, path=tmp_path / "child", progress=False
    )
    assert child.manifest["forgot"]["search"]["trials"] == []
    assert child.manifest["forgot"]["notes"] == ["No settings were tried: 'nothing' has no settings worth trying."]


def test_a_request_for_a_class_is_tuned_on_another(mine: Run, sevens: np.ndarray) -> None:
    found = search_settings(mine, sevens, lookup("forget", "concept-poison"), {}, 2)
    assert found.how == "another class"
    other, _ = disjoint(mine.task, mine.target(), sevens, 0)
    assert len(np.unique(mine.target().numpy()[other])) == 1
    assert not np.intersect1d(other, sevens).size
    assert found.count == len(other) == int((mine.target() == mine.target()[other[0]]).sum())


def test_examples_to_search_on_are_given(mine: Run, tmp_path: Path) -> None:
    ids = mine.ids
    found = search_settings(mine, ASKED, lookup("forget", "ssd"), {}, 2, ids=list(ids[1:31:2]))
    assert (found.count, found.how) == (15, "given")
    for wrong, says in (
        ([ids[0]], "1 of the 1 examples to search on are themselves"),
        (["nobody"], "not in the corpus"),
    ):
        with pytest.raises(IdError, match=says):
            forget(
                mine,
                list(ids.gather(ASKED)),
                method="ssd",
                search=2,
                search_ids=wrong,
                path=tmp_path / "x",
                progress=False,
            )
        assert not (tmp_path / "x" / "manifest.json").exists()
    with pytest.raises(MethodError, match="nothing is searched for"):
        forget(mine, [ids[0]], method="ssd", search_ids=[ids[1]], path=tmp_path / "y")
    for search in (-1, 2.5, True):
        with pytest.raises(MethodError, match="not a number of trials"):
            forget(mine, [ids[0]], method="ssd", search=search, path=tmp_path / "y")


def test_another_search_is_another_request(mine: Run, tmp_path: Path) -> None:
    ids = list(mine.ids.gather(ASKED))
    first = forget(mine, ids, method="ssd", search=2, path=tmp_path / "child", progress=False)
    again = forget(mine, ids, method="ssd", search=2, path=tmp_path / "child", progress=False)
    assert again.manifest == first.manifest
    for other in ({}, {"search": 3}, {"search": 2, "search_ids": [mine.ids[1]]}):
        with pytest.raises(imprint.errors.RunError, match="another request: search"):
            forget(mine, ids, method="ssd", path=tmp_path / "child", progress=False, **other)


def test_every_setting_failed(mine: Run) -> None:
    places = np.flatnonzero(mine.target().numpy() == 7)[:5]  # concept-poison forgets whole classes
    with pytest.raises(MethodError, match="whole classes"):
        search_settings(mine, places, lookup("forget", "concept-poison"), {}, 2)


def test_regression_is_searched_by_thirds(wave: Run) -> None:
    places = np.flatnonzero(wave.target().numpy() > 1)[:12]
    found = search_settings(wave, places, lookup("forget", "gaussian"), {}, 2)
    assert found.how == "as many of each third of the target's values"
    other, _ = disjoint(wave.task, wave.target(), places, 0)
    assert len(other) == 12
    assert float(wave.target()[other].min()) > float(wave.target().quantile(2 / 3)) - 1e-6


@given(st.lists(st.integers(0, 2), min_size=12, max_size=60), st.data())
def test_other_examples_are_like_the_request_and_leave_half(labels: list[int], data: st.DataObject) -> None:
    target = torch.tensor([0, 1, 2, *labels])
    places = np.array(sorted(data.draw(st.sets(st.integers(0, len(target) - 1), min_size=1, max_size=len(target) - 6))))
    asked = np.bincount(target.numpy()[places], minlength=3)
    left = np.bincount(target.numpy(), minlength=3) - asked
    whole = not (left[asked > 0] > 0).any()
    if not whole and not np.minimum(asked, left // 2).sum():
        with pytest.raises(IdError, match="no other examples"):
            disjoint(Classification((0, 1, 2)), target, places, 0)
        return
    other, how = disjoint(Classification((0, 1, 2)), target, places, 0)
    assert not np.intersect1d(other, places).size
    assert np.array_equal(other, np.unique(other))
    found = np.bincount(target.numpy()[other], minlength=3)
    if how == "another class":
        assert whole
        assert (found > 0).sum() == 1
        assert np.array_equal(found[found > 0], left[found > 0])
    elif not whole:
        assert np.array_equal(found, np.minimum(asked, left // 2))


def test_other_tasks_have_groups_of_their_own() -> None:
    target = torch.arange(30).float()
    other, _ = disjoint(Regression(), target, np.arange(20, 25), 0)
    assert other.min() >= 25 or other.min() >= 20  # all of the upper third
    assert len(other) == 2  # half of the five that are left there
    labels = torch.randint(0, 2, (30, 3)).float()
    assert len(disjoint(Multilabel((0, 1, 2)), labels, np.arange(5), 0)[0]) == 5


def test_grids_begin_with_the_defaults_and_hold_each_candidate_once(mine: Run) -> None:
    for one in registered("forget"):
        for name, candidates in grid_of(one, mine.learner).items():
            assert len(set(candidates)) == len(candidates), (one.name, name)
            assert len(one.search[name]) > 1
    assert {one.name for one in registered("forget") if not one.search} == {
        "retrain", "sisa", "s3t", "analytic", "newton", "nothing",
    }  # fmt: skip
    short = module.replace(mine.learner, epochs=2, learning_rate=0.5)
    assert grid_of(lookup("forget", "fine-tune"), short) == {"learning_rate": (0.15, 0.05, 0.5, 1.5), "epochs": (1,)}
    assert Share(0.3).times(10) == 3


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 30), st.randoms(use_true_random=False))
def test_a_walk_stays_within_its_budget_and_ends_at_its_best(sizes: list[int], budget: int, random: Any) -> None:
    grid = {str(number): tuple(range(size)) for number, size in enumerate(sizes)}
    seen: dict[tuple[int, ...], float] = {}

    def value(point: dict[str, int]) -> float:
        assert tuple(point.values()) not in seen  # nothing is tried twice
        seen[tuple(point.values())] = random.random()
        return seen[tuple(point.values())]

    best = walked(grid, budget, value)
    assert 1 <= len(seen) <= budget
    assert next(iter(seen)) == (0,) * len(sizes)
    assert seen[tuple(best.values())] == min(seen.values())
    if budget >= np.prod(sizes) and len(sizes) == 1:
        assert len(seen) == sizes[0]


def test_a_search_that_was_killed_goes_on_with_the_other_settings(
    mine: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, path = list(mine.ids.gather(ASKED)), tmp_path / "child"
    whole = forget(mine, ids, method="ssd", search=3, path=tmp_path / "whole", progress=False)
    assert not (tmp_path / "whole" / "trials.jsonl").exists()

    applied: list[dict[str, Any]] = []
    apply = module.apply

    def counted(*words: Any, **more: Any) -> Any:
        applied.append(words[3])
        if len(applied) == 3:
            raise KeyboardInterrupt
        return apply(*words, **more)

    monkeypatch.setattr(module, "apply", counted)
    with pytest.raises(KeyboardInterrupt):
        forget(mine, ids, method="ssd", search=3, path=path, progress=False)
    noted = (path / "trials.jsonl").read_text()
    assert len(noted.split("\n\n")) == 2
    assert not any(one in noted for one in ids)
    with (path / "trials.jsonl").open("a") as file:
        file.write('{"settings": {"al')  # a line that was cut short
    child = forget(mine, ids, method="ssd", search=3, path=path, progress=False)
    assert len(applied) == 4  # the one that was killed, and nothing else, once more
    assert not (path / "trials.jsonl").exists()

    def trials(run: Run) -> list[dict[str, Any]]:
        return [{**one, "seconds": 0} for one in run.manifest["forgot"]["search"]["trials"]]

    assert trials(child) == trials(whole)
