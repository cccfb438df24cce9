"""Trust in an attribution: measured on models that nobody has seen, beside controls, and kept."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

import imprint
from imprint.answers import Trust, load_answer
from imprint.errors import MethodError
from imprint.recording import Run
from imprint.tracing import Factors
from imprint.verifying import attribution as module
from imprint.verifying.attribution import held_out

MEMBERS = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trust")
    images, target = load_digits(n_class=3, return_X_y=True)
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(160)],
            "x": pl.Series(images[:160].astype(np.float32)),
            "label": [f"d{value}" for value in target[:160]],
            "split": ["test" if number % 4 == 0 else "train" for number in range(160)],
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("linear", epochs=4, batch_size=32), corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def attribution(run: Run) -> imprint.Attribution:
    return imprint.trace(run, "test", members=MEMBERS, progress=False)


@pytest.fixture(scope="module")
def trust(run: Run, attribution: imprint.Attribution) -> Trust:
    return imprint.verify(attribution, run, members=MEMBERS, progress=False)


def test_the_models_to_judge_by_are_others(run: Run, trust: Trust) -> None:
    judges = held_out(run, MEMBERS, progress=False)
    read = imprint.Fleet.load(run.path / "fleets" / f"subsets-{MEMBERS}-0.5")
    assert not set(judges.members["seed"]) & set(read.members["seed"])
    ours, theirs = judges.weights.included(), read.weights.included()
    assert not (ours[:, None] == theirs[None]).all(2).any()
    assert (ours.sum(1) == 60).all()  # all of one size: a constant added to every score must not matter


def test_it_is_the_rank_correlation_with_what_held_out_models_say(
    run: Run, attribution: imprint.Attribution, trust: Trust
) -> None:
    judges = held_out(run, MEMBERS, progress=False)
    margin, seen = judges.outcomes("margin", rows=run.rows("test")).T.numpy(), judges.weights.included().double()
    predicted = (attribution.matrix().double() @ seen.T).numpy()
    expected = [stats.spearmanr(one, other).statistic for one, other in zip(predicted, margin, strict=True)]
    table = trust.frame().filter(pl.col("method") == "datamodel")
    assert table["query"].to_list() == attribution.queries
    assert table["lds"].to_list() == pytest.approx(expected)
    assert trust.lds == pytest.approx(np.mean(expected))
    assert trust.interval[0] < trust.lds < trust.interval[1]
    assert list(trust.controls) == ["random", "embedding", "embedding-class", "pixels"]
    for name, (value, low, high) in trust.controls.items():
        own = trust.frame().filter(pl.col("method") == name)["lds"]
        assert value == pytest.approx(own.mean())
        assert low < value < high
        assert trust.leads[name][0] == pytest.approx(trust.lds - value)


def test_what_the_models_say_themselves_is_trusted_and_its_opposite_is_not(
    run: Run, attribution: imprint.Attribution
) -> None:
    """Scores fitted to the judges themselves are the best there can be; turned round they are worse than random."""
    judges = held_out(run, MEMBERS, progress=False)
    margin, seen = judges.outcomes("margin", rows=run.rows("test")).double(), judges.weights.included().double()
    centred = seen - seen.mean(0)
    exact = Factors((torch.linalg.pinv(centred @ centred.T) @ (margin - margin.mean(0))).T, seen.T)
    told = replace(attribution, methods=("oracle",), higher={"oracle": "helps"}, factors=exact)
    trust = imprint.verify(told, run, members=MEMBERS, progress=False)
    assert trust.lds == pytest.approx(1.0)
    assert all(trust.beats(name) for name in trust.controls)
    assert str(trust).startswith("oracle is better than random and embedding")
    turned = replace(told, factors=Factors(-exact.queries, exact.examples))
    assert "oracle is worse than random" in str(imprint.verify(turned, run, members=MEMBERS, progress=False))


def test_random_scores_are_no_better_than_random(run: Run, attribution: imprint.Attribution) -> None:
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(40, 256, generator=generator), torch.randn(120, 256, generator=generator)
    told = replace(attribution, methods=("noise",), higher={"noise": "nothing"}, factors=Factors(*noise))
    trust = imprint.verify(told, run, members=MEMBERS, progress=False)
    # 40 rank correlations of 16 pairs, each with the standard error 1/sqrt(15), as good as independent.
    assert abs(trust.lds) < 4 / (15 * 40) ** 0.5
    assert "no better than random" in str(trust)


def test_the_models_are_kept(run: Run, attribution: imprint.Attribution, trust: Trust, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sys.modules["imprint.fleets.fleet"], "execute", refuse)
    again = imprint.verify(attribution, run, members=MEMBERS, progress=False)
    assert (again.lds, again.interval, again.leads) == (trust.lds, trust.interval, trust.leads)
    with pytest.raises(AssertionError, match="trained again"):
        imprint.verify(attribution, run, members=MEMBERS + 1, progress=False)


def test_it_survives_the_disk_as_does_what_it_is_about(
    run: Run, attribution: imprint.Attribution, trust: Trust, tmp_path: Path
) -> None:
    saved = load_answer(trust.save(tmp_path / "trust"))
    assert isinstance(saved, Trust)
    assert (saved.interval, saved.controls, saved.leads) == (trust.interval, trust.controls, trust.leads)
    assert saved.summary() == trust.summary()
    assert saved.plot().data
    loaded = imprint.Attribution.load(attribution.save(tmp_path / "attribution"))
    assert imprint.verify(loaded, members=MEMBERS, progress=False).lds == pytest.approx(trust.lds)


def test_many_queries_are_drawn_from(
    run: Run, attribution: imprint.Attribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_QUERIES", 10)
    trust = imprint.verify(attribution, run, members=MEMBERS, progress=False)
    assert trust.queries == 10
    assert set(trust.frame()["query"]) <= set(attribution.queries)
    assert "10 of 40" in trust.notes[0]


def test_what_cannot_be_verified_says_why(run: Run, attribution: imprint.Attribution, trust: Trust) -> None:
    with pytest.raises(MethodError, match="4 subset models"):
        imprint.verify(attribution, run, members=4)
    with pytest.raises(MethodError, match="'trust' cannot be verified"):
        imprint.verify(trust, run)  # type: ignore[call-overload]
