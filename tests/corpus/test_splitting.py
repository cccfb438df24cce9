"""Splits: the fractions are kept class by class, groups stay whole, and the seed decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imprint
from imprint.corpus.splitting import assign, check, quotas, strata_of
from imprint.errors import ColumnError

FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}
classes = st.lists(st.sampled_from("abcde"), min_size=1, max_size=120)
seeds = st.integers(0, 2**31)


def names(count: int) -> pl.Series:
    return pl.Series("id", [f"r{k}" for k in range(count)], dtype=pl.String)


@given(classes, seeds)
def test_each_class_keeps_the_fractions_within_one_row(labels: list[str], seed: int) -> None:
    split = assign(names(len(labels)), FRACTIONS, seed, pl.Series(labels))
    table = pl.DataFrame({"label": labels, "split": split})
    for label in set(labels):
        own = table.filter(pl.col("label") == label)["split"]
        if len(own) == 1:
            assert own[0] == "train"
        for name, share in FRACTIONS.items():
            if len(own) > 1:
                assert abs((own == name).sum() - share * len(own)) < 1 + 1e-9
    assert len(split) == len(labels)
    assert split.is_in(list(FRACTIONS)).all()


@given(classes, seeds)
def test_order_of_the_rows_does_not_matter(labels: list[str], seed: int) -> None:
    ids, target = names(len(labels)), pl.Series(labels)
    split = assign(ids, FRACTIONS, seed, target)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert assign(ids.gather(order), FRACTIONS, seed, target.gather(order)).to_list() == split.gather(order).to_list()


def test_another_seed_gives_another_split() -> None:
    ids = names(1000)
    assert assign(ids, FRACTIONS, 0).to_list() == assign(ids, FRACTIONS, 0).to_list()
    agree = (assign(ids, FRACTIONS, 0) == assign(ids, FRACTIONS, 1)).mean()
    # Two independent draws agree on .7^2 + .1^2 + .2^2 = .54 of the rows; a standard deviation is .016.
    assert 0.46 < agree < 0.62


def test_many_small_classes_still_come_out_at_the_fractions() -> None:
    """10,000 classes of two rows: rounding each class alone would leave no test set."""
    target = pl.Series(np.repeat(np.arange(10_000), 2))
    split = assign(names(20_000), {"train": 0.8, "test": 0.2}, 0, target)
    assert abs((split == "test").sum() - 4000) <= 20  # a golden-ratio sequence of 10^4 points deviates by a few units


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40), st.lists(st.integers(1, 9), min_size=1, max_size=5), seeds
)
def test_quotas_are_rounded_shares_that_add_up(counts: list[int], shares: list[int], seed: int) -> None:
    fractions = np.array(shares) / sum(shares)
    sizes = quotas(np.array(counts), fractions, seed)
    assert sizes.sum(1).tolist() == counts
    assert (np.abs(sizes - np.array(counts)[:, None] * fractions) < 1 + 1e-6).all()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab")), min_size=12, max_size=150), seeds)
def test_groups_are_never_cut(rows: list[tuple[int, str]], seed: int) -> None:
    groups = pl.Series("patient", [group for group, _ in rows])
    target = pl.Series([label for _, label in rows])
    if groups.n_unique() < 3:
        return
    split = assign(names(len(rows)), FRACTIONS, seed, target, groups)
    table = pl.DataFrame({"group": groups, "split": split})
    assert table.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(split) == set(FRACTIONS)


def test_groups_keep_fractions_and_classes_roughly() -> None:
    rng = np.random.default_rng(0)
    groups = pl.Series(rng.integers(0, 400, 8000))
    target = pl.Series(np.where(groups.to_numpy() % 4 == 0, "rare", "common"))
    split = assign(names(8000), {"train": 0.8, "test": 0.2}, 0, target, groups)
    for label in ("rare", "common"):
        own = split.filter(target == label)
        # Whole groups of about 20 rows: off by one group's rows at each cut.
        assert abs((own == "test").mean() - 0.2) < 40 / len(own)


def test_fewer_groups_than_splits_is_an_error() -> None:
    with pytest.raises(ColumnError, match="patient"):
        assign(names(10), FRACTIONS, 0, None, pl.Series("patient", [1] * 10))


@pytest.mark.parametrize(
    "wrong", [{}, {"train": 0.5}, {"test": 1.0}, {"train": 1.5, "test": -0.5}, {"train": True}, {"train": float("nan")}]
)
def test_fractions_that_are_none(wrong: dict) -> None:
    with pytest.raises(ColumnError):
        check(wrong)


@pytest.mark.parametrize(
    ("values", "stratified"),
    [
        (["a", "b"], True),
        ([1, 2, 1], True),
        ([0.5, 1.0], False),
        ([1.0, 2.0], True),
        (list(range(200)), False),
        ([["a"], ["b"]], False),
    ],
)
def test_only_classes_are_stratified(values: list, stratified: bool) -> None:
    assert (strata_of(pl.Series(values), "auto") is not None) == stratified
    assert strata_of(pl.Series([1, 2]), "regression") is None


def test_fractions_overrule_a_column_that_looks_like_splits(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": range(100), "label": ["a", "b"] * 50, "split": ["train"] * 90 + ["test"] * 10})
    corpus = imprint.open(frame, target="label", split={"train": 0.5, "test": 0.5}, store=tmp_path)
    assert corpus.splits == {"train": 50, "test": 50}
    assert corpus.roles.inputs == ("x",)
