"""Slices: planted ones are found and named, null data gives none, and the statistics agree with SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imprint.cleaning import clean
from imprint.cleaning.attributes import cut
from imprint.cleaning.slices import (
    LEAST,
    Candidates,
    benjamini_hochberg,
    compare,
    gap_interval,
    performance,
    subgroups,
    worst,
)

COUNT = 1200


def table(seed: int = 0, count: int = COUNT) -> dict[str, pl.Series]:
    """Three columns of words, one number and one that is partly missing."""
    rng = np.random.default_rng(seed)
    return {
        "job": pl.Series(rng.choice(["clerk", "nurse", "smith", "tutor"], count)),
        "sex": pl.Series(rng.choice(["f", "m"], count)),
        "town": pl.Series(rng.choice(["a", "b", "c", "d", "e"], count)),
        "age": pl.Series(rng.uniform(18, 80, count)),
        "wage": pl.Series(np.where(rng.random(count) < 0.3, np.nan, rng.normal(size=count))),
    }


def hits(chance: np.ndarray | float, seed: int = 0, count: int = COUNT) -> np.ndarray:
    return (np.random.default_rng(1000 + seed).random(count) < chance).astype(float)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_adjusted_p_values_are_those_of_scipy(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), stats.false_discovery_control(p), rtol=1e-12)


@settings(max_examples=25)
@given(st.integers(1, 29), st.integers(0, 2**31))
def test_right_and_wrong_are_compared_as_by_fishers_test(count: int, seed: int) -> None:
    value = hits(0.6, seed, 30)
    total = value[:count].sum()
    gap, p = compare(np.array([count]), np.array([total]), np.array([total]), value)
    assert gap[0] == pytest.approx(value[count:].mean() - value[:count].mean())
    if gap[0] > 1e-12:  # elsewhere it is not asked
        square = [[total, count - total], [value.sum() - total, 30 - count - value.sum() + total]]
        assert p[0] == pytest.approx(stats.fisher_exact(square, alternative="less").pvalue, rel=1e-9)


def test_quantities_are_compared_as_by_welch(rng: np.random.Generator) -> None:
    inside, outside = rng.normal(0, 1, 40), rng.normal(0.4, 3, 70)
    gap, p = compare(
        np.array([40]), np.array([inside.sum()]), np.array([(inside**2).sum()]), np.concatenate([inside, outside])
    )
    oracle = stats.ttest_ind(inside, outside, equal_var=False, alternative="less")
    assert p[0] == pytest.approx(oracle.pvalue, rel=1e-9)
    interval = stats.ttest_ind(outside, inside, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(gap_interval(inside, outside, 0.9), (interval.low, interval.high), rtol=1e-9)
    assert gap[0] == pytest.approx(outside.mean() - inside.mean())


def test_sums_of_pairs_are_those_of_their_members() -> None:
    """Every candidate: count, sum and sum of squares against its own mask."""
    value = np.random.default_rng(3).normal(size=400)
    cuts = cut(table(count=400), LEAST)
    found = Candidates.of(cuts, np.arange(400) % 5, value, LEAST)
    assert (found.second[:, 0] >= 0).sum() > 30
    for place in range(len(found.count)):
        member = found.member(place)
        assert LEAST <= member.sum() == found.count[place] <= 400 - LEAST
        assert found.total[place] == pytest.approx(value[member].sum(), abs=1e-9)
        assert found.square[place] == pytest.approx((value[member] ** 2).sum(), abs=1e-9)


def test_a_planted_value_comes_first_and_alone() -> None:
    """0.55 against 0.9 on a quarter of 1,200 examples: more than ten standard errors; nothing else is planted."""
    columns = table()
    weak = (columns["job"] == "nurse").to_numpy()
    found = worst(hits(np.where(weak, 0.55, 0.9)), cut(columns, LEAST))
    assert [one.name for one in found] == ["job = nurse"]
    one = found[0]
    assert one.count == weak.sum()
    np.testing.assert_array_equal(one.member, weak)
    assert one.gap == pytest.approx(one.outside - one.inside)
    assert one.interval[0] < one.gap < one.interval[1]


def test_a_planted_pair_is_named_as_the_pair() -> None:
    """Only nurses of town b are weak: neither nurses nor town b as a whole tell it as well."""
    columns = table(count=4000)
    weak = ((columns["job"] == "nurse") & (columns["town"] == "b")).to_numpy()
    found = worst(hits(np.where(weak, 0.4, 0.9), count=4000), cut(columns, LEAST))
    assert found[0].name == "job = nurse and town = b"
    assert len(found) == 1


def test_missing_values_and_ranges_are_slices() -> None:
    columns = table()
    missing = columns["wage"].is_nan().to_numpy()
    assert worst(hits(np.where(missing, 0.6, 0.9)), cut(columns, LEAST))[0].name == "wage is missing"
    old = columns["age"].to_numpy() > np.quantile(columns["age"].to_numpy(), 0.8, method="lower")
    assert worst(hits(np.where(old, 0.6, 0.9)), cut(columns, LEAST))[0].name.startswith("age > 6")


def test_null_data_gives_no_slice() -> None:
    """Nothing is planted in 100 data sets. At a rate of 5 % at most 10 of them speak up with probability 0.989; without any correction 99
    of these do."""
    spoke = [bool(worst(hits(0.8, seed), cut(table(seed), LEAST), matters=0.0)) for seed in range(100)]
    assert sum(spoke) <= 10


def test_few_discoveries_are_false() -> None:
    """One slice is planted in each of 20 data sets; what is reported beside it, and shares less than half with it, is false."""
    shares = []
    for seed in range(20):
        columns = table(seed)
        weak = (columns["town"] == "c").to_numpy()
        found = worst(hits(np.where(weak, 0.6, 0.9), seed), cut(columns, LEAST))
        assert found
        shares.append(np.mean([(one.member & weak).sum() < 0.5 * one.count for one in found]))
    assert np.mean(shares) <= 0.1


def test_intervals_of_found_slices_cover_the_planted_gap() -> None:
    """95 % are promised after selection; at least 17 of 20 is met with probability 0.98 if that holds."""
    covered = []
    for seed in range(20):
        columns = table(seed)
        weak = (columns["town"] == "c").to_numpy()
        one = worst(hits(np.where(weak, 0.6, 0.9), seed), cut(columns, LEAST))[0]
        covered.append(one.interval[0] <= 0.3 <= one.interval[1])
    assert sum(covered) >= 17


def test_order_of_rows_does_not_matter() -> None:
    columns = table()
    weak = (columns["job"] == "nurse").to_numpy()
    value = hits(np.where(weak, 0.6, 0.9))
    order = np.random.default_rng(5).permutation(COUNT)
    moved = worst(value[order], cut({name: one.gather(order) for name, one in columns.items()}, LEAST))
    assert [one.name for one in moved] == [one.name for one in worst(value, cut(columns, LEAST))]


def test_there_are_never_more_than_were_asked_for() -> None:
    """Every value of a column of 40 has its own chance: far more than ten are weak."""
    words = pl.Series([f"w{place % 40}" for place in range(8000)])
    chance = np.where(np.arange(8000) % 40 < 20, 0.5, 0.95)
    cuts = cut({"word": words}, LEAST)
    assert len(worst(hits(chance, count=8000), cuts)) == 10
    assert len(worst(hits(chance, count=8000), cuts, most=3)) == 3


def test_gaps_too_small_to_matter_are_left_out() -> None:
    """Two points of accuracy on half of 40,000 examples are certain, and matter to nobody."""
    half = np.arange(40_000) % 2 == 0
    cuts = cut({"half": pl.Series(half)}, LEAST)
    value = hits(np.where(half, 0.88, 0.90), count=40_000)
    assert not worst(value, cuts)
    assert worst(value, cuts, matters=0.005)


def test_what_counts_as_performance() -> None:
    value, expected, name = performance(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    assert name == "accuracy"
    assert value.tolist() == [1.0, 0.0]
    assert expected is not None
    np.testing.assert_allclose(expected, 1 / (1 + np.exp(-2)), rtol=1e-6)
    target = torch.tensor([0.0, 2.0, 4.0])
    value, expected, name = performance(torch.tensor([[0.0], [2.0], [6.0]]), target)
    assert (name, expected) == ("R2", None)
    assert value.mean() == pytest.approx(1 - (4 / 3) / float(target.var(correction=0)))
    value, expected, name = performance(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert value.tolist() == [1.0, 0.0]
    np.testing.assert_allclose(expected, float(torch.sigmoid(torch.tensor(1.0))) ** 2, rtol=1e-6)


def test_findings_name_the_slice_and_no_example(corpus_of: Any, rng: np.random.Generator) -> None:
    frame = pl.DataFrame({name: one for name, one in table().items() if name in ("job", "sex", "age")})
    target = np.array(["no", "yes"])[rng.integers(0, 2, COUNT)]
    corpus = corpus_of(frame, target, {"job": "categorical", "sex": "categorical", "age": "numeric"}, "table")
    codes = torch.from_numpy((target == "yes").astype(np.int64))
    right = torch.from_numpy(hits(np.where((frame["job"] == "nurse").to_numpy(), 0.5, 0.95)) > 0)
    logits = torch.nn.functional.one_hot(torch.where(right, codes, 1 - codes), 2).float() * 3
    flags = subgroups(
        logits, codes, torch.from_numpy(rng.normal(size=(COUNT, 4))).float(), torch.arange(COUNT), corpus, ("no", "yes")
    )
    assert flags.column == ["job = nurse"]
    assert flags.row.tolist() == [-1]
    assert flags.suggestion == ["review"]
    assert flags.severity[0] == pytest.approx(0.45, abs=0.1)
    assert "held-out examples with job = nurse" in flags.evidence[0]
    assert "the model expects 0.95 there" in flags.evidence[0]


def test_a_planted_cluster_is_found_and_described(corpus_of: Any, rng: np.random.Generator) -> None:
    """A far blob of 100 of 900 examples on which the model is mostly wrong; the texts in it share a word."""
    far = np.arange(900) < 100
    features = torch.from_numpy(rng.normal(size=(900, 6)) + 12.0 * far[:, None]).float()
    texts = pl.Series([f"{'zebra' if one else 'horse'} number {place % 7}" for place, one in enumerate(far)])
    corpus = corpus_of(pl.DataFrame({"text": texts}), rng.choice(["a", "b"], 900), {"text": "text"}, "text")
    codes = torch.from_numpy((corpus.target == "b").to_numpy().astype(np.int64))
    right = torch.from_numpy(hits(np.where(far, 0.4, 0.95), count=900) > 0)
    logits = torch.nn.functional.one_hot(torch.where(right, codes, 1 - codes), 2).float()
    flags = subgroups(logits, codes, features, torch.arange(900), corpus, ("a", "b"))
    assert flags.evidence
    assert all("in cluster" in one and "zebra" in one and "'r" in one for one in flags.evidence)


def test_quantities_have_slices_too(corpus_of: Any, rng: np.random.Generator) -> None:
    frame = pl.DataFrame(table()).select("job")
    target = torch.from_numpy(rng.normal(size=COUNT)).float()
    noise = torch.from_numpy(rng.normal(size=COUNT) * np.where((frame["job"] == "nurse").to_numpy(), 1.0, 0.1)).float()
    corpus = corpus_of(frame, target.numpy(), {"job": "categorical"}, "table")
    flags = subgroups((target + noise)[:, None], target, torch.zeros(COUNT, 2), torch.arange(COUNT), corpus, ())
    assert flags.column == ["job = nurse"]
    assert flags.evidence[0].startswith("R2 ")
    assert "expects" not in flags.evidence[0]


def test_too_few_examples_say_nothing(corpus_of: Any) -> None:
    corpus = corpus_of(pl.DataFrame({"x": [1.0] * 20}), ["a", "b"] * 10, {"x": "numeric"}, "table")
    flags = subgroups(
        torch.zeros(20, 2), torch.ones(20, dtype=torch.int64), torch.zeros(20, 2), torch.arange(20), corpus, ("a", "b")
    )
    assert len(flags) == 0


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(5.0)), min_size=1, max_size=60), st.integers(1, 10))
def test_cuts_are_disjoint_named_and_large_enough(values: list[float | None], least: int) -> None:
    cuts = cut({"x": pl.Series(values, dtype=pl.Float64)}, least)
    code = cuts.code[:, 0]
    assert code.min() >= -1
    assert code.max() < len(cuts.names[0])
    assert len(set(cuts.names[0])) == len(cuts.names[0])
    counts = np.bincount(code[code >= 0], minlength=len(cuts.names[0]))
    assert ((counts >= least) & (counts <= len(values) - least)).all()
    if "x is missing" in cuts.names[0]:
        missing = code == cuts.names[0].index("x is missing")
        assert missing.tolist() == [one is None for one in values]


def test_clean_asks_for_subgroups(grouped_run: Any) -> None:
    """A model that never sees the group, whose labels are turned around in one group: that group is the finding."""
    found = clean(grouped_run, ["subgroups"])
    frame = found.frame()
    assert frame["kind"].unique().to_list() == ["subgroup"]
    assert frame["id"].null_count() == len(frame)
    assert found.table["related"][0] == "group = odd"
