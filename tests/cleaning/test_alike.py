"""More like these: the closed form against refits, estimates against planted shares, and a real run with planted wrong labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import imprint
from imprint.cleaning import alike
from imprint.cleaning.alike import NAMED, PENALTIES, above, left_out, missable, resemblance, share_of
from imprint.errors import IdError, MethodError
from imprint.recording import Run


@given(seed=st.integers(0, 10_000))
def test_scores_are_those_of_regressions_without_the_example(seed: int) -> None:
    """Against scikit-learn, fitted again without each example; only what is standardised and the weights stay those of all."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(24, 3)) * [1, 10, 0.1] + 5
    known = np.arange(24) < 6
    values[known, 0] += 2
    scaled = (values - values.mean(0)) / values.std(0)
    weight = np.where(known, 0.5 / 6, 0.5 / 18)
    scaled -= weight @ scaled
    trace = np.trace((scaled * weight[:, None]).T @ scaled) / 3
    for penalty, found in zip(PENALTIES, left_out(values, known), strict=True):
        for one in (0, 5, 6, 23):
            rest = np.arange(24) != one
            design = np.column_stack([scaled, np.ones(24)])
            scale = np.sqrt(weight[rest])[:, None]
            # The intercept carries no penalty: a column so long that none is felt.
            design[:, 3] *= 1e6
            model = Ridge(alpha=penalty * trace, fit_intercept=False, solver="svd")
            model.fit(design[rest] * scale, np.where(known, 1.0, -1.0)[rest] * scale[:, 0])
            assert found[one] == pytest.approx(float(model.predict(design[[one]])[0]), abs=1e-6)


@given(seed=st.integers(0, 10_000), known=st.integers(20, 60), more=st.integers(0, 100))
def test_about_as_many_are_found_as_there_are(seed: int, known: int, more: int) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(500, 5))
    features[: known + more, 2] += 12
    is_known = np.arange(500) < known
    found = resemblance(is_known, None, features).found(is_known)
    there = set(range(known, known + more))
    assert len(set(found) & there) >= 0.4 * more - 14  # never more than the scores bear out: of a few, none
    assert (
        len(set(found) - there) <= 0.7 * more + 2
    )  # how many follows from ten known ones, and is no better than these


@pytest.mark.parametrize("recall", [0.8, 0.9, 0.95])
def test_a_recall_is_kept_on_average(recall: float) -> None:
    """Over sixty random choices of the known among the bad, which lie on a slope from the good to far away."""
    random = np.random.default_rng(int(100 * recall))
    features, bad = random.normal(size=(400, 4)), np.arange(400) < 120
    features[bad, 0] += random.uniform(1, 6, 120)
    shares = []
    for _ in range(60):
        known = np.zeros(400, bool)
        known[random.choice(120, 40, replace=False)] = True
        found = resemblance(known, None, features).found(known, recall)
        shares.append(bad[found].sum() / 80)
    assert np.mean(shares) > recall - 0.03


def test_few_cannot_promise_much() -> None:
    assert missable(19, 0.95) == 1
    with pytest.raises(MethodError, match=r"18 known examples.*\n.*0\.94 or less, or name 19"):
        missable(18, 0.95)
    for wrong in (0, 1, 1.5, True):
        with pytest.raises(MethodError, match="no share"):
            missable(50, wrong)


@given(seed=st.integers(0, 10_000), count=st.integers(5, 100))
def test_examples_that_have_nothing_in_common_name_no_others(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    known = np.zeros(400, bool)
    known[random.choice(400, count, replace=False)] = True
    found = resemblance(known, random.normal(size=(400, 6)), random.normal(size=(400, 8)), random.integers(0, 4, 400))
    assert not found.clear
    assert not len(found.found(known))


def test_each_view_is_taken_where_it_tells() -> None:
    random = np.random.default_rng(0)
    group, known = np.repeat([0, 1, 2], 200), np.zeros(600, bool)
    known[:10] = known[200:210] = True
    bad = np.zeros(600, bool)
    bad[:60] = bad[200:260] = True
    learned, features = random.normal(size=(600, 5)), random.normal(size=(600, 5))
    # In class 0 the bad lie to one side, in class 1 to the other: one direction for all tells nothing.
    apart = (
        features + 8 * (bad & (group == 0))[:, None] * np.eye(5)[0] - 8 * (bad & (group == 1))[:, None] * np.eye(5)[0]
    )
    assert resemblance(known, learned, apart, group).view == "features within its class"
    shifted = learned - 8 * bad[:, None]
    for one in (resemblance(known, learned, apart, group), resemblance(known, shifted, features, group)):
        found = one.found(known)
        assert bad[found].mean() > 0.8
        assert len(found) > 70


def test_a_share_is_read_off_the_scores() -> None:
    score = np.concatenate([np.full(10, 1.0), np.full(30, 1.0), np.zeros(60)])
    known = np.arange(100) < 10
    assert above(score, known) == pytest.approx((60 + 15) / 90)
    assert share_of(score, known) == pytest.approx(30 / 90 / (9 / 11), rel=1e-6)
    assert share_of(np.where(known, 1.0, 0.0), known) == 0


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """Digits, of which 150 carry a mark in a corner and the label of zeros; and their ids."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("poisoned")
    pixels, label = load_digits(return_X_y=True)
    pixels, label = pixels / 16, label.copy()
    random = np.random.default_rng(0)
    bad = random.choice(np.flatnonzero(label[:1500] != 0), 150, replace=False)
    pixels[np.ix_(bad, [0, 7, 56, 63])] = 1
    label[bad] = 0
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(len(label))],
            "pixels": pl.Series(pixels.astype(np.float32), dtype=pl.Array(pl.Float32, 64)),
            "label": [f"c{one}" for one in label],
            "split": ["train"] * 1500 + ["test"] * (len(label) - 1500),
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    run = imprint.fit(imprint.Learner("mlp", epochs=8), corpus, folder / "base", progress=False)
    return run, [f"digit-{number}" for number in bad]


def test_of_a_poisoned_batch_a_tenth_is_enough(poisoned: tuple[Run, list[str]]) -> None:
    run, bad = poisoned
    found = alike(run, bad[:15])
    named = found.table.filter(pl.col("evidence") == NAMED)["id"].to_list()
    more = found.table.filter(pl.col("evidence") != NAMED)["id"].to_list()
    assert sorted(named) == sorted(bad[:15])
    assert len(set(more) & set(bad)) > 0.7 * 135
    assert len(set(more) & set(bad)) > 0.8 * len(more)
    assert set(found.table["suggestion"]) == {"drop"}
    assert found.table["severity"].is_between(0, 1).all()


def test_what_was_found_can_be_forgotten(poisoned: tuple[Run, list[str]], tmp_path: Path) -> None:
    run, bad = poisoned
    found = alike(run, bad[:15])
    child = imprint.forget(run, findings=found, known=True, method="nothing", path=tmp_path / "child", progress=False)
    assert child.manifest["forgot"]["count"] == len(found.table)
    assert child.manifest["forgot"]["corrective"] is True


def test_of_all_there_are_no_more(poisoned: tuple[Run, list[str]]) -> None:
    run, bad = poisoned
    assert len(alike(run, bad).table) <= len(bad) + 2


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(400, 6)).astype(np.float32)
    target = values @ random.normal(size=6)
    target[:40] += 6  # a sensor that is off
    frame = pl.DataFrame({"x": pl.Series(values), "y": target})
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("mlp", epochs=8), corpus, tmp_path / "run", progress=False)
    off = corpus.frame(np.arange(40))["id"].to_list()
    train = set(run.ids)
    off = [one for one in off if one in train]
    found = alike(run, off[:10])
    more = set(found.table["id"]) - set(off[:10])
    assert len(more & set(off)) > 0.7 * (len(off) - 10)


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda ids, test: ids[:4], "4 of"),
        (lambda ids, test: [*ids[:9], "nobody"], "not of this run's corpus"),
        (lambda ids, test: [*ids[:9], *test[:2]], "2 of 11 bad examples are no training examples"),
        (lambda ids, test: ids, "are named as bad"),
        (lambda ids, test: [], "No bad examples"),
    ],
)
def test_what_cannot_be_asked_says_why(poisoned: tuple[Run, list[str]], choose: Any, said: str) -> None:
    run = poisoned[0]
    test = run.corpus.ids.gather(run.rows("test")).to_list()
    with pytest.raises(IdError, match=said):
        alike(run, choose(run.ids.to_list(), test))
