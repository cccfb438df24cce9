"""Metadata balancing: matches beside a loop over texts and entries, the cap beside its equation, draws beside their probabilities."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imprint
import imprint.selecting.metadata as module
from imprint.corpus import Corpus
from imprint.errors import MethodError
from imprint.selecting.metadata import balance, matches, systematic, tag_matches

WORD = st.text("ab é.,-", min_size=0, max_size=6)


def wrapped(text: str) -> str:
    """MetaCLIP's spacing, of every mark of punctuation, with single spaces."""
    apart = re.sub(r"([^a-z0-9é ])", r" \1 ", text.lower())
    return f" {' '.join(apart.split())} "


@settings(deadline=None, max_examples=60)
@given(st.lists(WORD, max_size=6), st.lists(WORD, max_size=5, unique_by=wrapped))
def test_matches_are_those_of_a_loop(texts: list[str], entries: list[str]) -> None:
    expected = [
        [place, entry]
        for place, text in enumerate(texts)
        for entry, word in enumerate(entries)
        if word.strip() and wrapped(word) in wrapped(text)
    ]
    assert matches(pl.Series(texts, dtype=pl.String), entries).tolist() == expected


def test_what_an_entry_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pl.Series(["I like C++, and\tNew\nYork!", None, "我喜歡紅色的車", "newyork c"])
    entries = ["c++", "new york", "紅色", "c", "C", "York", ""]
    expected = [[0, 0], [0, 1], [0, 3], [0, 5], [2, 2], [3, 3]]  # "C" is "c" again, which is inside of "c++" too
    assert matches(texts, entries).tolist() == expected
    monkeypatch.setattr(module, "BLOCK", 1)
    assert matches(texts, entries).tolist() == expected


def test_tags_match_as_they_are() -> None:
    assert tag_matches(pl.Series(["new york", "york", None]), ["york"]).tolist() == [[1, 0]]
    assert tag_matches(pl.Series([3, 4]), ["4", "5"]).tolist() == [[1, 0]]
    assert tag_matches(pl.Series([["a", "a"], []], dtype=pl.List(pl.String)), ["a"]).tolist() == [[0, 0]]


def zipfian(examples: int = 500, entries: int = 40) -> np.ndarray:
    """Entries whose counts fall as 1 / rank; an example has three draws of them, or (every tenth) none."""
    random = np.random.default_rng(0)
    chance = 1 / np.arange(1, entries + 1)
    own = random.choice(entries, (examples, 3), p=chance / chance.sum())
    places = np.repeat(np.arange(examples), 3)
    pairs = np.stack([places, own.ravel()], 1)
    return np.unique(pairs[places % 10 != 0], axis=0)


@pytest.mark.parametrize("budget", [1, 30, 200, 449])
def test_the_cap_solves_the_budget(budget: int) -> None:
    pairs = zipfian()
    found = balance(pairs, 500, 40, budget)
    assert float(found.keep.sum()) == pytest.approx(budget, rel=1e-6)
    counts = np.bincount(pairs[:, 1], minlength=40)
    assert np.array_equal(found.counts.numpy(), counts)
    for place in (1, 2, 57):  # the paper's formula
        own = pairs[pairs[:, 0] == place, 1]
        expected = 1 - np.prod(1 - np.minimum(1, found.cap / counts[own]))
        assert float(found.keep[place]) == pytest.approx(expected, abs=1e-9)
    assert (found.keep[::10] == 0).all()


def test_with_as_many_as_have_an_entry_all_of_them_are_certain() -> None:
    pairs = zipfian()
    found = balance(pairs, 500, 40, 450)
    assert found.keep.unique().tolist() == [0.0, 1.0]
    assert found.cap == np.bincount(pairs[:, 1]).max()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(0, 99), st.data())
def test_exactly_the_budget_is_drawn(raw: list[float], seed: int, data: st.DataObject) -> None:
    """Probabilities that sum to a whole number: each example at most once, certain ones always, impossible ones never."""
    budget = data.draw(st.integers(1, len(raw) - 1))
    chance = torch.tensor(raw, dtype=torch.float64).clamp(min=1e-3)
    chance = chance * budget / chance.sum()
    while bool((chance > 1).any()):  # what is over one goes to the others
        over = chance >= 1
        chance = torch.where(over, 1.0, chance * (budget - int(over.sum())) / chance[~over].sum())
    drawn = systematic(chance, budget, torch.Generator().manual_seed(seed))
    assert len(drawn.unique()) == len(drawn) == budget
    assert set((chance >= 1).nonzero().flatten().tolist()) <= set(drawn.tolist())


def test_each_example_is_drawn_with_its_probability() -> None:
    chance = torch.tensor([1.0, 0.8, 0.0, 0.5, 0.3, 0.4])
    at = torch.Generator().manual_seed(0)
    times = sum(torch.bincount(systematic(chance, 3, at), minlength=6) for _ in range(2000))
    # The standard error of a share is at most 0.011; five of them.
    assert (times / 2000).tolist() == pytest.approx(chance.tolist(), abs=0.056)
    assert times[0] == 2000
    assert times[2] == 0


def corpus_of(texts: list[str], folder: object) -> Corpus:
    frame = pl.DataFrame(
        {
            "id": [f"t{place}" for place in range(len(texts))],
            "text": texts,
            "label": ["a" if place % 2 else "b" for place in range(len(texts))],
            "split": ["train"] * len(texts),
        }
    )
    return imprint.open(frame, target="label", id="id", split="split", inputs="text", store=folder)


def test_rare_entries_are_kept_and_common_ones_thinned(tmp_path_factory: pytest.TempPathFactory) -> None:
    said = [f"the common thing number {place}" for place in range(180)] + [
        f"a rare bird {place}" for place in range(20)
    ]
    corpus = corpus_of(said, tmp_path_factory.mktemp("rare") / "store")
    chosen = imprint.select(corpus, 60, "metadata-balance", entries=["common thing", "bird", "unicorn"], progress=False)
    # cap 40: all 20 birds, and 40 of the 180.
    birds = [one for one in chosen.ids if int(one[1:]) >= 180]
    assert len(birds) == 20
    assert (
        chosen.notes[0]
        == "2 of 3 entries were found; 1 of them in more than 40.0 examples and thinned; 0 examples have no entry."
    )
    assert (
        chosen.ids
        == imprint.select(
            corpus, 60, "metadata-balance", entries=["common thing", "bird", "unicorn"], progress=False
        ).ids
    )
    only = imprint.select(corpus, 60, "metadata-balance", entries=["bird"], progress=False)
    assert set(birds) < set(only.ids)
    assert set(only.ids[:20]) == set(birds)
    with pytest.raises(MethodError, match="None of the 1 entries is in the texts"):
        imprint.select(corpus, 60, "metadata-balance", entries=["unicorn"], progress=False)


def test_classes_are_tags_where_there_are_no_texts(corpus: Corpus) -> None:
    chosen = imprint.select(corpus, 60, "metadata-balance", progress=False)
    kinds = corpus.target.gather(corpus.rows_of(chosen.ids)).value_counts()
    # 60 zeros, 36 ones, 24 twos: a cap of 20 gives 60. Systematic sampling is off by less than one per class only on average.
    assert dict(kinds.iter_rows())["d2"] == pytest.approx(20, abs=6)
    assert "thinned" in chosen.notes[0]


def test_columns_are_tags(tmp_path_factory: pytest.TempPathFactory) -> None:
    frame = pl.DataFrame(
        {
            "id": [f"r{row}" for row in range(100)],
            "colour": ["teal" if row < 5 else "grey" for row in range(100)],
            "size": [float(row) for row in range(100)],
            "label": [float(row % 7) for row in range(100)],
            "split": ["train"] * 100,
        }
    )
    store = tmp_path_factory.mktemp("tags") / "store"
    corpus = imprint.open(frame, target="label", id="id", split="split", task="regression", store=store)
    chosen = imprint.select(corpus, 20, "metadata-balance", entries=["teal", "grey"], progress=False)
    assert {f"r{row}" for row in range(5)} < set(chosen.ids)
