"""Policies as selections: what they visit first, that they train, and that a run with one needs nothing else to be read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import imprint
from imprint.answers import Selection
from imprint.corpus import Corpus
from imprint.errors import ImprintError
from imprint.fitting import DynamicDiversity, NaiveSplit, Proportional, Repeated, Sampler
from imprint.methods import lookup
from imprint.recording import Run
from imprint.selecting import dynamic_diversity, gradient_norm_proportional, loss_proportional, rs2, rs2_replace, saa

POLICIES: dict[str, Sampler] = {
    "rs2": Repeated(0.25),
    "rs2-replace": Repeated(0.25, replace=True),
    "loss-proportional": Proportional("loss", 0.25),
    "gradient-norm-proportional": Proportional("bound", 0.25),
    "saa": NaiveSplit(0.25),
    "dynamic-diversity": DynamicDiversity(0.25),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_a_selection_with_a_sampler(run: Run, tmp_path: Path, name: str) -> None:
    selection = imprint.select(run, 0.25, name, progress=False)
    assert selection.dynamic
    assert selection.budget == 30
    assert selection.sampler() == POLICIES[name]
    # The table shows the first epoch, in which nothing is known yet: different examples, all of the same weight.
    frame = selection.frame()
    assert len(frame) == frame["id"].n_unique() == 30
    assert (frame["weight"] == 1).all()
    with pytest.raises(ImprintError, match="sampler"):
        run.corpus.apply(selection)
    selection.save(tmp_path / "answer")
    again = Selection.load(tmp_path / "answer")
    assert isinstance(again, Selection)
    assert again.sampler() == POLICIES[name]


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_with_a_policy_is_read_and_gone_on_with_alone(run: Run, tmp_path: Path, name: str) -> None:
    sampler = imprint.select(run, 30, name, progress=False).sampler()
    learner = replace(run.learner, sampler=sampler, epochs=6)
    fitted = imprint.fit(learner, run.corpus, tmp_path / "run", progress=False)
    read = imprint.load(tmp_path / "run", run.corpus)
    assert read.learner.sampler == sampler
    assert [len(read.evidence("order").visits(epoch)) for epoch in range(1, 7)] == [30] * 6
    # Three kinds of digits: a third is chance, and six epochs of thirty examples are enough for most of them.
    assert fitted.metrics("test")["accuracy"] > 0.75


def test_a_corpus_is_enough(corpus: Corpus) -> None:
    assert imprint.select(corpus, 0.1, "rs2", seed=3, progress=False).sampler() == Repeated(12 / 120)


def test_other_seeds_begin_elsewhere(run: Run) -> None:
    first = [set(imprint.select(run, 30, "rs2", seed=seed, progress=False).ids) for seed in (0, 1)]
    assert first[0] != first[1]


def test_functions_give_the_budget_as_a_share_that_is_exactly_it() -> None:
    for function in (rs2, rs2_replace, loss_proportional, gradient_norm_proportional, saa, dynamic_diversity):
        for size, budget in ((3, 1), (7, 3), (60_000, 18_001), (999_983, 333_331)):
            assert function(torch.arange(size), budget).visits(size) == budget


def test_what_they_read_is_in_the_table() -> None:
    for name in POLICIES:
        method = lookup("select", name)
        assert method.trainings == 0
        assert "policy" in (method.function.__doc__ or "")
