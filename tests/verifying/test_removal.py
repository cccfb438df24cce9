"""Removal on a planted problem: a group of queries that only a known handful of training examples holds up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import imprint
from imprint.answers import Trust, load_answer
from imprint.errors import MethodError
from imprint.recording import Run
from imprint.tracing import Factors
from imprint.verifying.removal import Without, count, detection, harm, intervals, places_of

SUPPORT, ASKED = 8, 6
JUDGES = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two large groups, and an island: it lies with the group "right" on the first axis, but is "left", which the second axis tells.

    Only the island's own training examples teach the second axis, so the island's queries stand and fall with these.
    """
    folder = tmp_path_factory.mktemp("removal")
    random = np.random.default_rng(0)
    groups = [("left", -1.0, 0.0, 60), ("right", 1.0, 0.0, 60), ("island", 1.0, 2.0, SUPPORT + ASKED)]
    rows = [
        {
            "id": f"{name}-{number}",
            "first": first + 0.1 * random.standard_normal(),
            "second": second + (0.05 * random.standard_normal() if second else 0.0),
            "label": "right" if name == "right" else "left",
            "split": "train" if number < size - ASKED else "test",
        }
        for name, first, second, size in groups
        for number in range(size)
    ]
    corpus = imprint.open(pl.DataFrame(rows), target="label", id="id", split="split", store=folder / "store")
    learner = imprint.Learner("linear", epochs=30, batch_size=16, learning_rate=0.05)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def oracle(run: Run) -> imprint.Attribution:
    """An attribution of the island's queries that knows what holds them up."""
    queries = [f"island-{number}" for number in range(SUPPORT, SUPPORT + ASKED)]
    found = imprint.trace(run, queries, method="random", progress=False)
    island = torch.from_numpy(run.ids.str.starts_with("island").to_numpy().copy()).float()
    return replace(
        found, methods=("oracle",), higher={"oracle": "helps"}, factors=Factors(torch.ones(ASKED, 1), island[:, None])
    )


@pytest.fixture(scope="module")
def trust(run: Run, oracle: imprint.Attribution) -> Trust:
    return imprint.verify(oracle, run, members=JUDGES, removal=SUPPORT, seeds=2, progress=False)


def test_without_what_holds_it_up_a_prediction_falls_and_without_anything_else_it_stands(trust: Trust) -> None:
    assert trust.removed == SUPPORT
    assert trust.flips["oracle"] == pytest.approx((1.0, 1.0, 1.0))
    assert trust.flips["random"] == (0.0, 0.0, 0.0)
    assert trust.flip_leads["random"] == pytest.approx((1.0, 1.0, 1.0))
    value, low, high = trust.drop_leads["random"]
    assert 0 < low <= value <= high
    assert trust.drops["oracle"][0] > 5 * abs(trust.drops["random"][0])
    # The island is most similar to itself and of its own class, so the control knows as much as the oracle.
    assert trust.flips["embedding-class"][0] == 1.0
    assert "100% of 6 right predictions turn wrong (0% by random, 100% by embedding-class)" in str(trust)


def test_what_does_not_hold_it_up_can_go(run: Run, oracle: imprint.Attribution) -> None:
    turned = replace(oracle, factors=Factors(-oracle.factors.queries, oracle.factors.examples))
    trust = imprint.verify(turned, run, members=JUDGES, removal=SUPPORT, seeds=2, progress=False)
    assert trust.flips["oracle"][0] == 0.0
    assert trust.flip_leads["embedding-class"][0] == -1.0


def test_the_table_says_it_of_each_query(trust: Trust, oracle: imprint.Attribution) -> None:
    own = trust.frame().filter(pl.col("method") == "oracle")
    assert own["query"].to_list() == oracle.queries
    assert own["flip"].to_list() == [1.0] * ASKED
    assert own["drop"].mean() == pytest.approx(trust.drops["oracle"][0])
    # Arms of the removal have values, other controls have none.
    assert trust.frame().filter(pl.col("drop").is_not_null())["method"].unique().sort().to_list() == [
        "embedding-class", "oracle", "random",
    ]  # fmt: skip
    assert trust.queries == ASKED


def test_nothing_is_trained_twice(
    run: Run, oracle: imprint.Attribution, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    module = sys.modules["imprint.verifying.kept"]
    execute = module.execute

    def counted(shared, members, *, numbers, **more):
        trained.extend(numbers)
        return execute(shared, members, numbers=numbers, **more)

    monkeypatch.setattr(module, "execute", counted)
    again = imprint.verify(oracle, run, members=JUDGES, removal=SUPPORT, seeds=2, progress=False)
    assert trained == []
    assert (again.drops, again.flips) == (trust.drops, trust.flips)


def test_it_survives_the_disk(trust: Trust, tmp_path: Path) -> None:
    saved = load_answer(trust.save(tmp_path / "trust"))
    assert isinstance(saved, Trust)
    for name in ("drops", "drop_leads", "flips", "flip_leads", "seconds", "evidence_bytes"):
        assert getattr(saved, name) == getattr(trust, name)
    assert saved.summary() == trust.summary()


def test_cost_and_evidence_are_measured(run: Run) -> None:
    attribution = imprint.trace(run, "test", method="embedding", progress=False)
    trust = imprint.verify(attribution, run, members=JUDGES, progress=False)
    assert trust.seconds["embedding"] == attribution.cost["seconds"]
    assert set(trust.seconds) == {"embedding", *trust.controls}
    folder = run.path / "evidence" / "features.lance"
    assert trust.evidence_bytes["embedding"] == sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    assert trust.evidence_bytes["random"] == 0


def test_known_wrong_labels_are_found_by_the_harm_that_they_do(run: Run, oracle: imprint.Attribution) -> None:
    """An attribution that holds the island against its queries names exactly the island."""
    island = [name for name in run.ids if name.startswith("island")]
    turned = replace(oracle, factors=Factors(-oracle.factors.queries, oracle.factors.examples))
    trust = imprint.verify(turned, run, members=JUDGES, known=island, progress=False)
    assert trust.detection["oracle"] == (1.0, 1.0, 1.0)
    assert trust.detection["random"][0] < 1
    assert trust.detection_leads["random"][0] == pytest.approx(1 - trust.detection["random"][0])
    assert not trust.drops
    with pytest.raises(MethodError, match="0 of the 1 ids"):
        imprint.verify(turned, run, members=JUDGES, known=["nobody"], progress=False)
    assert places_of(run, island).sum() == SUPPORT


def test_what_cannot_be_asked_says_why(run: Run, oracle: imprint.Attribution) -> None:
    for settings, problem in (
        ({"removal": 0}, "removal=0"),
        ({"removal": 2.5}, "removal=2.5"),
        ({"removal": 100}, "removal=100"),
        ({"removal": SUPPORT, "seeds": 0}, "0 trainings"),
    ):
        with pytest.raises(MethodError, match=problem):
            imprint.verify(oracle, run, members=JUDGES, progress=False, **settings)
    few = imprint.trace(run, oracle.queries[:2], method="random", progress=False)
    with pytest.raises(MethodError, match="2 queries that the recorded model gets right"):
        imprint.verify(few, run, members=JUDGES, removal=SUPPORT, progress=False)


def test_members_lack_what_they_should(run: Run) -> None:
    rows, target = run.rows(), run.target()
    members = Without(rows, target, [np.array([], dtype=np.int64), np.array([3, 0])], [5, 7])
    assert len(members) == 2
    whole, less = members[0:2]
    assert (whole.seed, less.seed) == (5, 7)
    assert np.array_equal(whole.rows, rows)
    assert np.array_equal(less.rows, np.delete(rows, [0, 3]))
    assert torch.equal(less.target, target[np.delete(np.arange(len(rows)), [0, 3])])


@given(st.floats(0.001, 0.499), st.integers(10, 10_000))
def test_a_share_is_a_number_of_examples(share: float, examples: int) -> None:
    k = count(share, examples)
    assert k >= 1
    assert abs(k - share * examples) <= 1


def test_intervals_are_paired() -> None:
    """What both have in common does not widen the interval of their difference."""
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    means, leads = intervals({"own": noise + 1, "other": noise}, "own", 0.95)
    assert means["own"][0] == pytest.approx(float(noise.mean()) + 1)
    assert means["own"][1] < means["own"][0] < means["own"][2]
    # Normal theory: the half-width is 1.96 standard errors; a bootstrap of 2000 is within a tenth of it.
    reach = 1.96 * float(noise.std()) / 40**0.5
    assert (means["own"][2] - means["own"][1]) / 2 == pytest.approx(reach, rel=0.1)
    assert leads["other"] == pytest.approx((1.0, 1.0, 1.0))


def test_the_area_under_the_curve_is_scikit_learns_and_its_interval_that_of_a_bootstrap(
    rng: np.random.Generator,
) -> None:
    known = rng.random(400) < 0.2
    values = {
        name: torch.from_numpy(np.round(rng.normal(size=400) + shift * known, 1))
        for name, shift in (("a", 1.0), ("b", 0.3))
    }
    means, leads = detection(values, torch.from_numpy(known), "a", 0.95)
    for name, one in values.items():  # rounded: there are ties
        assert means[name][0] == pytest.approx(roc_auc_score(known, one))
    assert leads["b"][0] == pytest.approx(means["a"][0] - means["b"][0])
    wrong, fine = np.flatnonzero(known), np.flatnonzero(~known)
    drawn = [np.concatenate([rng.choice(wrong, len(wrong)), rng.choice(fine, len(fine))]) for _ in range(400)]
    areas = {name: np.array([roc_auc_score(known[some], one[some]) for some in drawn]) for name, one in values.items()}
    # The spread of 400 resamples has a standard error of 3.5 %.
    assert (means["a"][2] - means["a"][1]) / (2 * 1.96) == pytest.approx(areas["a"].std(), rel=0.15)
    assert (leads["b"][2] - leads["b"][1]) / (2 * 1.96) == pytest.approx((areas["a"] - areas["b"]).std(), rel=0.15)


def test_harm_is_minus_the_mean_score(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Factors(torch.randn(7, 3), torch.randn(11, 3))
    monkeypatch.setattr(sys.modules["imprint.verifying.removal"], "BLOCK_QUERIES", 2)
    torch.testing.assert_close(harm(found).float(), -found.matrix().mean(0))
