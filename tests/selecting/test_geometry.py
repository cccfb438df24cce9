"""The methods that look at where examples lie, asked as a user asks them."""

from __future__ import annotations

import polars as pl
import pytest

import imprint
from imprint.corpus import Corpus
from imprint.recording import Run

METHODS = ["k-center", "k-center-class", "herding", "facility-location"]


@pytest.mark.parametrize("method", [*METHODS, "got-d"])
@pytest.mark.parametrize("budget", [1, 40, 120])
def test_a_run_serves_them_and_the_choice_is_the_same_again(run: Run, method: str, budget: int) -> None:
    first, again = (imprint.select(run, budget=budget, method=method, seed=3) for _ in range(2))
    assert len(first.frame()) == budget
    assert first.frame().equals(again.frame())


@pytest.mark.parametrize("method", METHODS)
def test_a_corpus_serves_what_needs_no_target(corpus: Corpus, method: str) -> None:
    assert len(imprint.select(corpus, budget=0.25, method=method).frame()) == 30


def test_got_d_goes_for_the_target(run: Run) -> None:
    labels = pl.DataFrame({"id": run.corpus.ids, "label": run.corpus.target, "split": run.corpus.split_names})
    target = labels.filter(split="valid", label="d2")["id"].to_list()
    chosen = imprint.select(run, budget=15, method="got-d", target=target)
    picked = chosen.frame().join(labels, on="id")
    # Of 120 training examples 24 are of this class.
    assert (picked["label"] == "d2").mean() > 0.9
    assert picked.sort("rank")["value"].is_sorted(descending=True)
