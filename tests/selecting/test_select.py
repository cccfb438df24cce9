"""The verb: controls, what a selection is, corpora without a run, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.answers import Selection, load_answer
from imprint.corpus import Corpus
from imprint.errors import MethodError
from imprint.fitting import SamplerState, generator
from imprint.methods import registered
from imprint.recording import Run
from imprint.selecting import cluster_balance, serves_corpus


def test_a_selection_names_its_examples_in_order(run: Run) -> None:
    found = imprint.select(run, 0.25, "el2n-top", progress=False)
    frame = found.frame()
    assert frame.columns == ["id", "position", "rank", "weight", "value"]
    assert frame["rank"].to_list() == list(range(1, 31))
    assert frame["value"].is_sorted(descending=True)
    assert (frame["weight"] == 1).all()
    assert len(found) == found.budget == 30
    assert found.examples == 120
    assert found.ids == frame["id"].to_list()
    assert found.weights == dict.fromkeys(found.ids, 1.0)
    training = set(run.ids)
    assert set(found.ids) < training
    assert "30 of 120 training examples (25%) by el2n-top" in str(found)
    assert set(found.table["id"]) == training  # those left out are there too, without a rank
    positions = dict(run.examples.select("id", "position").iter_rows())
    assert all(positions[row["id"]] == row["position"] for row in frame.iter_rows(named=True))


def test_random_is_uniform_and_another_seed_chooses_anew(run: Run) -> None:
    one, same, other = (imprint.select(run, 30, "random", seed=seed, progress=False) for seed in (0, 0, 1))
    assert one.ids == same.ids != other.ids
    counts = pl.concat(imprint.select(run, 30, seed=seed).frame()["id"] for seed in range(200)).value_counts()["count"]
    # Each of 120 examples is in 200 choices with chance 1/4: 50 with a standard deviation of 6. Seeds are fixed.
    assert len(counts) == 120
    assert 20 < counts.min() <= counts.max() < 80  # type: ignore[operator]


@pytest.mark.parametrize("budget", [1, 7, 60, 119, 120])
def test_stratified_keeps_the_shares_of_the_classes(run: Run, budget: int) -> None:
    found = imprint.select(run, budget, "stratified", progress=False)
    target = run.corpus.target.gather(run.corpus.rows_of(found.ids))
    for label, size in (("d0", 60), ("d1", 36), ("d2", 24)):
        assert abs(int((target == label).sum()) - budget * size / 120) < 1


def test_clusters_get_equal_shares_and_small_ones_are_taken_whole() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = [300, 60, 9, 3]  # far apart, so that they are the clusters
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]]).repeat_interleave(
        torch.tensor(sizes), 0
    )
    features = centres + torch.randn(len(centres), 2, generator=random)
    groups = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    found = cluster_balance(features, 4, torch.Generator().manual_seed(1)).checked(4, len(features))
    assert torch.bincount(groups[found.order], minlength=4).tolist() == [1, 1, 1, 1]
    again = cluster_balance(features, 4, torch.Generator().manual_seed(1))
    assert torch.equal(found.order, again.order)


def test_a_selection_is_saved_whole(run: Run, tmp_path: Path) -> None:
    found = imprint.select(run, 12, "loss-coverage", seed=3, target="valid", progress=False)
    back = load_answer(found.save(tmp_path / "chosen"))
    assert isinstance(back, Selection)
    assert back.frame().equals(found.frame())
    assert back.spec() == found.spec()
    assert (back.seed, back.asked) == (3, {"target": "valid"})
    run.save_answer(found, "mine")
    assert run.answer("mine").frame().equals(found.frame())


def test_its_sampler_visits_every_chosen_example_once(run: Run) -> None:
    found = imprint.select(run, 12, "el2n-bottom", progress=False)
    visits, weights = found.sampler().epoch(SamplerState(1, 2, 120, generator(0, "shuffle", 1)))
    assert sorted(run.ids.gather(visits.numpy()).to_list()) == sorted(found.ids)
    assert weights is None


def test_a_policy_that_chooses_anew_shows_its_first_epoch(run: Run, tmp_path: Path) -> None:
    found = imprint.select(run, 0.25, "rs2", seed=4, progress=False)
    assert found.dynamic
    sampler = found.sampler()
    first, _ = sampler.epoch(SamplerState(1, 4, 120, generator(4, "shuffle", 1), seed=4))
    assert found.ids == run.ids.gather(first.numpy()).to_list()
    back = Selection.load(found.save(tmp_path / "moving"))
    assert back.dynamic
    assert back.sampler() == sampler
    with pytest.raises(MethodError, match=r"'rs2' chooses anew.*\n.*sampler=selection\.sampler"):
        run.corpus.apply(found)


def test_figures_hold_every_training_example(run: Run) -> None:
    for method in ("el2n-top", "random"):
        chosen, left = imprint.select(run, 30, method, progress=False).plot().data
        assert (len(chosen.x), len(left.x)) == (30, 90)


def test_classes_that_are_gone_are_named(run: Run) -> None:
    assert not imprint.select(run, 12, "stratified", progress=False).notes
    (note,) = imprint.select(run, 1, "stratified", progress=False).notes
    assert note == "no example was chosen of 2 classes: d1, d2"  # the largest remainder is the zeros'
    assert not any("classes" in one for one in imprint.select(run, 1, "rs2", progress=False).notes)


# Acting on it


def test_applying_keeps_what_was_chosen_and_all_other_splits(run: Run) -> None:
    found = imprint.select(run, 20, "el2n-top", progress=False)
    smaller = run.corpus.apply(found)
    assert smaller.splits == {"train": 20, "test": 40, "valid": 40}
    assert set(smaller.split("train").ids) == set(found.ids)
    assert smaller.weights is None
    assert smaller.parent == run.corpus.fingerprint
    assert smaller.fingerprint == run.corpus.apply(found.frame()).fingerprint
    assert run.corpus.apply(imprint.select(run, 1.0)).fingerprint == run.corpus.fingerprint


def test_applying_multiplies_weights(corpus: Corpus) -> None:
    ids = corpus.split("train").ids[:2].to_list()
    frame = pl.DataFrame({"id": ids, "rank": [1, 2], "weight": [0.5, 1.5]})
    smaller = corpus.apply(frame)
    weights = dict(zip(smaller.ids, smaller.weights, strict=True))  # type: ignore[arg-type]
    assert [weights[name] for name in ids] == [0.5, 1.5]
    assert sum(weight == 1 for weight in weights.values()) == 80  # the other splits
    twice = corpus.reweight({ids[0]: 4.0}).apply(frame)
    assert twice.weights is not None
    assert twice.weights[twice.rows_of(ids)].tolist() == [2.0, 1.5]


def test_a_frame_that_names_an_example_twice_is_refused(corpus: Corpus) -> None:
    name = corpus.split("train").ids[0]
    with pytest.raises(MethodError, match="twice"):
        corpus.apply(pl.DataFrame({"id": [name, name], "rank": [1, 2], "weight": [1.0, 1.0]}))


# Corpora without a run


@pytest.mark.parametrize("method", ["random", "stratified", "cluster-balance"])
def test_a_corpus_serves_what_needs_no_training(corpus: Corpus, method: str) -> None:
    found = imprint.select(corpus, 30, method, progress=False)
    assert len(set(found.ids)) == 30
    assert set(found.ids) < set(corpus.split("train").ids)
    assert found.ids == imprint.select(corpus, 30, method, progress=False).ids
    assert found.run == {"path": "", "corpus": corpus.fingerprint}
    assert any("nothing was trained" in note for note in found.notes) == (method == "cluster-balance")


def test_a_corpus_and_its_run_choose_alike_where_nothing_is_read_from_the_run(run: Run) -> None:
    for method in ("random", "stratified"):
        assert imprint.select(run, 9, method).ids == imprint.select(run.corpus, 9, method).ids


def test_what_reads_a_training_says_so(corpus: Corpus) -> None:
    with pytest.raises(
        MethodError, match=r"'el2n-top' reads what a training recorded(.|\n)*Without a training.*random"
    ):
        imprint.select(corpus, 0.5, "el2n-top")
    assert not serves_corpus(next(one for one in registered("select") if one.name == "loss-top"))


# What goes wrong


def test_errors_name_the_remedy(run: Run) -> None:
    with pytest.raises(MethodError, match="Did you mean 'stratified'"):
        imprint.select(run, 0.5, "stratifed")
    for budget in (0, 1.2, 121):
        with pytest.raises(MethodError, match="budget"):
            imprint.select(run, budget)
    with pytest.raises(MethodError, match="asks no fleet"):
        imprint.select(run, 0.5, "random", members=8)


def test_a_method_for_classes_is_refused_for_quantities(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": np.arange(40.0), "y": np.arange(40.0) / 7})
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    assert len(imprint.select(corpus, 5, "cluster-balance")) == 5
    with pytest.raises(MethodError, match="'stratified' is for classification"):
        imprint.select(corpus, 5, "stratified")
