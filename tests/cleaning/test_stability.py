"""Stability of a ranking: crossings and intervals against closed forms, resampled test sets and simulated benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint.cleaning.stability import crossing, ranking_stability, stability, undecided
from imprint.errors import EvidenceError


def right(clean: tuple[int, int], errors: tuple[int, int]) -> np.ndarray:
    """Which examples a model gets right: `clean[0]` of `clean[1]`, then `errors[0]` of `errors[1]`."""
    return np.concatenate([np.arange(of) < hit for hit, of in (clean, errors)])


def test_a_pair_crosses_where_two_lines_do() -> None:
    """90 % and 20 % against 85 % and 60 %: 0.05 (1 - p) = 0.40 p at p = 1/9."""
    wrong = np.arange(125) >= 100
    large, small = right((90, 100), (5, 25)), right((85, 100), (15, 25))
    found = ranking_stability({"small": small, "large": large}, {"small": small, "large": large}, wrong)
    row = found.frame().row(0, named=True)
    # At a prevalence of 1/5 the small one is ahead: 0.8 * 0.85 + 0.2 * 0.6 against 0.8 * 0.9 + 0.2 * 0.2.
    assert (row["leader"], row["other"]) == ("small", "large")
    assert row["lead"] == pytest.approx(0.04)
    assert row["crossing"] == pytest.approx(1 / 9)
    assert found.prevalence == 0.2
    lines = {
        name: part
        for (name,), part in found.curve(np.array([0.0, 1 / 9, 1.0])).filter(labels="given").group_by(["model"])
    }
    assert lines["large"]["accuracy"].to_list() == pytest.approx([0.9, 0.9 - 0.7 / 9, 0.2])
    assert lines["small"]["accuracy"][1] == pytest.approx(lines["large"]["accuracy"][1])


def test_given_and_corrected_labels_rank_on_their_own() -> None:
    """A model that learned to repeat the errors leads by the given labels and trails by the corrected ones."""
    wrong = np.arange(200) >= 180
    careful = right((171, 180), (0, 20)), right((171, 180), (20, 20))
    repeating = right((171, 180), (20, 20)), right((171, 180), (0, 20))
    found = ranking_stability(
        {"careful": careful[0], "repeating": repeating[0]}, {"careful": careful[1], "repeating": repeating[1]}, wrong
    )
    rows = {row["labels"]: row for row in found.frame().iter_rows(named=True)}
    assert rows["given"]["leader"] == "repeating"
    assert rows["corrected"]["leader"] == "careful"
    # On clean examples they are equal, example by example: the crossing is at none of the mislabelled.
    assert rows["given"]["crossing"] == rows["corrected"]["crossing"] == 0.0
    assert rows["given"]["decided"]
    assert "careful leads repeating by +0.1000, decided: crossing at 0.0%" in found.summary()


def test_a_prevalence_that_is_given_is_where_the_leader_is_judged() -> None:
    wrong = np.arange(125) >= 100
    large, small = right((90, 100), (5, 25)), right((85, 100), (15, 25))
    models = {"large": large, "small": small}
    leaders = [
        ranking_stability(models, models, wrong, prevalence=p).frame()["leader"][0] for p in (0.05, 0.11, 0.12, 0.5)
    ]
    assert leaders == ["large", "large", "small", "small"]


# Leads are shares of examples: nothing is as small as 1e-289.
SHARES = st.integers(-1000, 1000).map(lambda share: share / 1000)


@given(SHARES, SHARES)
def test_the_lead_is_zero_at_its_crossing(clean: float, errors: float) -> None:
    found = crossing(clean, errors)
    if found is None:
        assert clean == errors or clean * errors > 0
    else:
        assert 0 <= found <= 1
        assert (1 - found) * clean + found * errors == pytest.approx(0, abs=1e-9)


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0, 0.05), st.floats(0, 0.05), st.floats(0.5, 3))
def test_the_interval_is_the_hull_of_where_the_lead_is_not_told_from_zero(
    clean: float, errors: float, first: float, second: float, z: float
) -> None:
    at = np.linspace(0, 1, 2001)
    lead, variance = (1 - at) * clean + at * errors, (1 - at) ** 2 * first + at**2 * second
    inside = at[lead**2 <= z**2 * variance - 1e-12]
    found = undecided(clean, errors, first, second, z)
    if len(inside):
        assert found is not None
        assert found[0] <= inside[0] + 1e-9
        assert found[1] >= inside[-1] - 1e-9
    surely_outside = at[lead**2 > z**2 * variance + 1e-9]
    if found is None:
        assert not len(inside)
    elif len(surely_outside) == len(at):
        # Between two points of the grid at most: a touch of two lines.
        assert found[1] - found[0] <= 1 / 2000 + 1e-9
    point = crossing(clean, errors)
    if point is not None:
        assert found is not None
        assert found[0] - 1e-6 <= point <= found[1] + 1e-6


def test_the_interval_holds_the_true_crossing_as_often_as_it_says(rng: np.random.Generator) -> None:
    """Test sets drawn again and again from two models whose true crossing is at 0.1 / (0.1 + 0.3)."""
    size, held = 400, 0
    wrong = np.arange(size) >= 300
    chance = np.where(wrong, 0.2, 0.9), np.where(wrong, 0.5, 0.8)
    for _ in range(300):
        one, two = (rng.random(size) < p for p in chance)
        low, high = ranking_stability({"one": one, "two": two}, {"one": one, "two": two}, wrong).frame().row(0)[7:9]
        held += low is not None and low <= 0.25 <= high
    # 95 % of 300, give or take four standard deviations of a binomial (3.8), and a little for the normal approximation.
    assert 268 <= held <= 300


def test_leaving_out_clean_examples_gives_the_accuracies_of_the_curve(rng: np.random.Generator) -> None:
    """The line is the mean over random benchmarks of a higher prevalence."""
    wrong = np.arange(500) >= 450
    model = rng.random(500) < np.where(wrong, 0.3, 0.9)
    other = rng.random(500) < 0.5
    found = ranking_stability({"a": model, "b": other}, {"a": model, "b": other}, wrong)
    kept = 100  # of the 450 clean ones: a prevalence of 1/3
    means = [np.concatenate([rng.permutation(model[~wrong])[:kept], model[wrong]]).mean() for _ in range(2000)]
    expected = found.curve(np.array([1 / 3])).filter(labels="given", model="a")["accuracy"][0]
    # A benchmark's accuracy has a standard deviation of about 0.02, the mean of 2000 one of 0.0004.
    assert np.mean(means) == pytest.approx(expected, abs=0.002)


def test_what_does_not_fit_is_refused() -> None:
    wrong = np.arange(10) >= 8
    a = right((8, 8), (1, 2))
    for given_labels, corrected_labels, mask, said in (
        ({"a": a}, {"a": a}, wrong, "two or more models"),
        ({"a": a, "b": a}, {"a": a, "c": a}, wrong, "two or more models"),
        ({"a": a, "b": a[:5]}, {"a": a, "b": a}, wrong, "was judged on"),
        ({"a": a, "b": a}, {"a": a, "b": ~a}, wrong, "judged differently"),
        ({"a": a, "b": a}, {"a": a, "b": a}, np.zeros(10, bool), "both kinds are needed"),
    ):
        with pytest.raises(EvidenceError, match=said):
            ranking_stability(given_labels, corrected_labels, mask)


def test_runs_are_ranked_by_corrections_of_their_test_set(tmp_path: Path, rng: np.random.Generator) -> None:
    """Two models of one table, whose test labels were turned for every tenth row: all as counted by hand."""
    x = rng.normal(size=(300, 2))
    true = np.where(x[:, 0] + 0.3 * rng.normal(size=300) > 0, "up", "down")
    split = np.where(np.arange(300) < 200, "train", "test")
    turned = (np.arange(300) % 10 == 0) & (split == "test")
    label = np.where(turned, np.where(true == "up", "down", "up"), true)
    frame = pl.DataFrame(
        {"name": [f"r{place}" for place in range(300)], "x": x[:, 0], "y": x[:, 1], "label": label, "split": split}
    )
    corpus = imprint.open(frame, target="label", id="name", split="split", store=tmp_path / "store")
    runs = {
        model: imprint.fit(imprint.Learner(model), corpus, tmp_path / model, progress=False)
        for model in ("logistic", "ridge")
    }
    corrections: dict[str, str | None] = {f"r{place}": str(true[place]) for place in np.flatnonzero(turned)}
    corrections["r201"] = None  # nobody knows: left out
    first = runs["logistic"]
    found = stability(first, {"ridge": runs["ridge"]}, corrections)
    assert found.models == ("logistic", "ridge")
    assert (found.errors, found.clean) == (10, 89)
    kept = (split == "test") & (np.arange(300) != 201)
    for place, run in enumerate(runs.values()):
        said = np.array(run.model().predict(corpus.read(np.flatnonzero(kept))).to_list())
        for labels, truth in enumerate((label, true)):
            expected = [(said == truth[kept])[turned[kept] == wrong].mean() for wrong in (False, True)]
            assert found.shares[labels, place].tolist() == pytest.approx(expected)
    assert len(found.plot().data) == 4
    with pytest.raises(EvidenceError, match="of no example of the split 'test': 'r1'"):
        stability(first, {"ridge": runs["ridge"]}, {"r1": "up"})
    # What the other model said, as a table in any order, is as good as its run.
    test = np.flatnonzero(split == "test")
    answers = pl.DataFrame(
        {"id": [f"r{place}" for place in test], "label": runs["ridge"].model().predict(corpus.read(test))}
    )
    again = stability(first, {"ridge": answers.reverse()}, corrections, name="first")
    assert again.models == ("first", "ridge")
    assert np.array_equal(again.shares, found.shares)
    for table, said in (
        (answers.head(50), "50 answers on 100 test examples"),
        (
            answers.with_columns(id=pl.col("id").replace("r200", "r1")),
            "answers of 'ridge' are of no test example: 'r1'",
        ),
        (answers.rename({"label": "said"}), "id and label"),
    ):
        with pytest.raises(EvidenceError, match=said):
            stability(first, {"ridge": table}, corrections)
    with pytest.raises(EvidenceError, match="other models than 'logistic'"):
        stability(first, {}, corrections)
