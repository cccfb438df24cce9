"""Asking a run: which queries, what is read, what comes back, and that it survives the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint import evidence, tracing
from imprint.answers import load_answer
from imprint.errors import IdError, MethodError, RunError
from imprint.methods import registered
from imprint.recording import Run
from imprint.tracing.evidence import QUERIES, Inputs, gather, inputs

MEMBERS = 8


def test_the_table_is_that_of_the_whole_matrix(run: Run) -> None:
    answer = imprint.trace(run, "test", k=5, members=MEMBERS, progress=False)
    frame = answer.frame()
    assert frame.columns == ["query", "id", "position", "rank", "score"]
    assert answer.queries == run.corpus.ids.gather(run.rows("test")).to_list()
    assert frame["rank"].to_list() == [1, 2, 3, 4, 5, -1, -2, -3, -4, -5] * 40
    matrix, ids = answer.matrix(), run.ids.to_list()
    assert matrix.shape == (40, 120)
    order = matrix.argsort(dim=1, descending=True, stable=True)
    worst = (-matrix).argsort(dim=1, descending=True, stable=True)
    expected = torch.cat([order[:, :5], worst[:, :5]], 1)
    assert frame["id"].to_list() == [ids[place] for place in expected.flatten().tolist()]
    np.testing.assert_allclose(frame["score"].to_numpy(), matrix.gather(1, expected).flatten().numpy(), rtol=1e-5)
    positions = dict(zip(run.corpus.ids, run.corpus.positions, strict=True))
    assert frame["position"].to_list() == [positions[name] for name in frame["id"]]
    assert answer.cost["trainings"] == MEMBERS
    assert "5 most helpful" in answer.summary()


def test_the_scores_are_those_of_the_fleet(run: Run) -> None:
    answer = imprint.trace(run, "test", method="subset-influence", members=MEMBERS, progress=False)
    fleet = imprint.Fleet.load(run.path / "fleets" / f"subsets-{MEMBERS}-0.5")
    margin, seen = fleet.outcomes("margin", rows=run.rows("test")), fleet.weights.included()
    expected = tracing.subset_influence(margin, seen).scores()
    torch.testing.assert_close(answer.matrix(), expected)


@pytest.mark.parametrize("method", [one.name for one in registered("trace")])
def test_every_method_answers_or_says_what_it_is_for(run: Run, method: str) -> None:
    reads_fleet = method in ("datamodel", "subset-influence")
    if method in ("bm25", "columns"):
        with pytest.raises(MethodError, match="array data"):
            imprint.trace(run, "test", method=method, progress=False)
        return
    answer = imprint.trace(run, "test", method=method, k=2, members=MEMBERS if reads_fleet else None, progress=False)
    assert len(answer) == 40 * 4
    assert answer.frame()["score"].is_finite().all()
    assert answer.plot().data


def test_queries_may_be_a_split_a_corpus_ids_or_rows(run: Run) -> None:
    rows = run.rows("test")[[5, 0, 7]]
    ids = run.corpus.ids.gather(rows).to_list()
    asked = {
        "ids": imprint.trace(run, ids, "embedding", progress=False),
        "rows": imprint.trace(run, rows, "embedding", progress=False),
        "repeated": imprint.trace(run, [*ids, ids[0]], "embedding", progress=False),
    }
    for answer in asked.values():
        assert answer.queries == ids
        assert answer.frame().equals(asked["ids"].frame())
    whole = imprint.trace(run, "test", "embedding", progress=False)
    torch.testing.assert_close(asked["ids"].matrix(), whole.matrix()[[5, 0, 7]])
    part = imprint.trace(run, run.corpus.split("test"), "embedding", progress=False)
    assert part.frame().equals(whole.frame())


def test_a_training_example_is_its_own_nearest(run: Run) -> None:
    ids = run.ids.to_list()[:6]
    for method in ("pixels", "embedding", "embedding-class"):
        answer = imprint.trace(run, ids, method, k=1, progress=False)
        assert answer.frame().filter(pl.col("rank") == 1)["id"].to_list() == ids


def test_wrong_questions_say_what_is_wrong(run: Run) -> None:
    with pytest.raises(IdError, match="nobody"):
        imprint.trace(run, ["nobody"], "random")
    with pytest.raises(IdError, match="no row 160"):
        imprint.trace(run, [160], "random")
    with pytest.raises(IdError, match="No queries"):
        imprint.trace(run, [], "random")
    with pytest.raises(RunError, match="no split"):
        imprint.trace(run, "tset", "random")
    with pytest.raises(MethodError, match="datamodel"):
        imprint.trace(run, "test", "datamodle")
    with pytest.raises(MethodError, match="k=0"):
        imprint.trace(run, "test", "random", k=0)
    with pytest.raises(IdError, match="was not traced"):
        imprint.trace(run, "test", "random").plot("nobody")


def test_it_survives_the_disk_and_computes_its_factors_again(run: Run, tmp_path: Path) -> None:
    answer = imprint.trace(run, "test", k=2, members=MEMBERS, progress=False)
    saved = load_answer(answer.save(tmp_path / "answer"))
    assert isinstance(saved, imprint.Attribution)
    assert saved == replace(answer, factors=None, table=saved.table)
    assert saved.frame().equals(answer.frame())
    assert saved.factors is None
    torch.testing.assert_close(saved.matrix(), answer.matrix())
    elsewhere = replace(saved, run={**saved.run, "corpus": "0" * 16})
    with pytest.raises(RunError, match="is about the corpus"):
        elsewhere.matrix()


def test_inputs_are_those_of_the_encoder_in_the_order_asked(run: Run) -> None:
    rows = np.array([9, 3, 9, 0])
    loaded = imprint.load(run.path, corpus=run.corpus)  # holds no encoded inputs
    expected = loaded.model().encode(run.corpus.read(np.arange(10)))[torch.from_numpy(rows)].flatten(1).float()
    for one in (run, loaded):
        torch.testing.assert_close(inputs(one, rows), expected)


def test_wide_inputs_are_projected_and_keep_their_distances(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run.rows()
    exact = torch.cdist(inputs(run, rows), inputs(run, rows))
    monkeypatch.setattr(evidence, "WIDEST", 48)
    found = gather(run, [Inputs("query_inputs", split=QUERIES), Inputs()], rows)
    assert found["inputs"].shape == (120, 48)
    near = torch.cdist(found["query_inputs"], found["inputs"])
    apart = ~torch.eye(120, dtype=torch.bool)
    # A squared distance over 48 directions has the relative standard deviation sqrt(2/48) = 0.2, a distance half of that.
    ratio = (near / exact.clamp(min=1e-6))[apart]
    assert abs(float(ratio.mean()) - 1) < 0.05
    assert float(ratio.std()) < 0.15
