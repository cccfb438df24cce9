"""Edits as algebra: what is done shows in `diff`, undoing restores the fingerprint, ids and inputs never move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imprint
from imprint.corpus import Corpus, Edit
from imprint.errors import ColumnError, IdError, ImprintError, TargetError

N = 30


def table(start: int = 0, count: int = N) -> pl.DataFrame:
    """Rows with a repeat among every five, so that ordinals are at work."""
    numbers = [k - 1 if k % 5 == 1 else k for k in range(start, start + count)]
    return pl.DataFrame(
        {"number": numbers, "word": [f"w{k}" for k in numbers], "label": ["yes" if k % 2 else "no" for k in numbers]}
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return imprint.open(table(), store=tmp_path_factory.mktemp("edits"))


subsets = st.sets(st.integers(0, N - 1), max_size=N - 1)
relaxed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@relaxed
@given(subsets, subsets)
def test_dropping_twice_is_dropping_the_union(corpus: Corpus, first: set[int], second: set[int]) -> None:
    if len(first | second) == N:
        return
    ids = corpus.ids
    rest = second - first
    twice = corpus.drop([ids[k] for k in first]).drop([ids[k] for k in rest])
    once = corpus.drop([ids[k] for k in first | second])
    assert twice.fingerprint == once.fingerprint
    assert once.ids.to_list() == [ids[k] for k in range(N) if k not in first | second]
    assert once.frame().drop("id").equals(corpus.frame(np.array(sorted(set(range(N)) - first - second))).drop("id"))


@relaxed
@given(subsets.filter(bool))
def test_diff_reports_just_the_drops(corpus: Corpus, rows: set[int]) -> None:
    ids = [corpus.ids[k] for k in sorted(rows)]
    child = corpus.drop(ids)
    diff = child.diff(corpus)
    assert diff.select("id", "change").rows() == [(one, "dropped") for one in ids]
    assert diff["before"].to_list() == [corpus.target[k] for k in sorted(rows)]
    assert corpus.diff(child).select("id", "change").rows() == [(one, "added") for one in ids]
    assert child.parent == corpus.fingerprint
    assert child.edits == (Edit("drop", len(ids), tuple(ids)),)


@relaxed
@given(st.dictionaries(st.integers(0, N - 1), st.sampled_from(["yes", "no", "maybe"]), min_size=1))
def test_relabelling_shows_and_can_be_undone(corpus: Corpus, labels: dict[int, str]) -> None:
    child = corpus.relabel({corpus.ids[k]: value for k, value in labels.items()})
    changed = {k: value for k, value in labels.items() if corpus.target[k] != value}
    diff = child.diff(corpus)
    assert {row["id"]: (row["before"], row["after"]) for row in diff.iter_rows(named=True)} == {
        corpus.ids[k]: (corpus.target[k], value) for k, value in changed.items()
    }
    assert (child.fingerprint == corpus.fingerprint) == (not changed)
    assert child.ids.equals(corpus.ids)
    assert (child.content == corpus.content).all()
    back = child.relabel({corpus.ids[k]: corpus.target[k] for k in changed})
    assert back.fingerprint == corpus.fingerprint
    assert not len(back.diff(corpus))


@relaxed
@given(st.dictionaries(st.integers(0, N - 1), st.floats(0, 8, width=32), min_size=1))
def test_reweighting_shows_and_can_be_undone(corpus: Corpus, weights: dict[int, float]) -> None:
    child = corpus.reweight({corpus.ids[k]: value for k, value in weights.items()})
    changed = {k for k, value in weights.items() if value != 1}
    assert set(child.diff(corpus)["id"]) == {corpus.ids[k] for k in changed}
    assert (child.fingerprint == corpus.fingerprint) == (not changed)
    if changed:
        assert child.weights is not None
        assert child.reweight(np.ones(N)).fingerprint == corpus.fingerprint


@relaxed
@given(subsets.filter(bool))
def test_dropped_rows_appended_again_keep_their_ids(corpus: Corpus, rows: set[int]) -> None:
    ids = [corpus.ids[k] for k in sorted(rows)]
    child = corpus.drop(ids).append(table()[sorted(rows)])
    # Rows with the same content are the same examples up to their ordinals: the set of ids is restored.
    assert set(child.ids) == set(corpus.ids)
    inputs = dict(zip(child.ids.to_list(), child.read(child.rows()).rows(), strict=True))
    assert all(
        inputs[one] == row for one, row in zip(corpus.ids.to_list(), corpus.read(corpus.rows()).rows(), strict=True)
    )
    assert child.split_names.tail(len(ids)).to_list() == ["train"] * len(ids)


def test_append_from_a_corpus_restores_everything_but_the_order(corpus: Corpus) -> None:
    test = corpus.split("test")
    child = corpus.drop(test.ids).append(test)
    assert child.frame().sort("id").equals(corpus.frame().sort("id"))
    assert not len(child.diff(corpus))
    assert len(child.stores) == 2


def test_append_grows_and_reads_across_stores(corpus: Corpus) -> None:
    child = corpus.append(table(100, 7)).append(table(200, 4))
    assert len(child) == N + 11
    rows = np.random.default_rng(0).permutation(len(child))
    frame = pl.concat([table(), table(100, 7), table(200, 4)])
    assert child.read(rows).equals(frame.select("number", "word")[rows])
    assert child.read(np.array([40, 0, 40]))["number"].to_list() == frame["number"][[40, 0, 40]].to_list()
    streamed = pl.concat([batch for _, batch in child.batches(rows, columns=["word"], size=7)])
    assert streamed.equals(frame.select("word")[rows])
    assert [edit.action for edit in child.edits] == ["append", "append"]
    assert set(child.diff(corpus)["change"]) == {"added"}


def test_an_exact_copy_gets_the_next_ordinal(corpus: Corpus) -> None:
    again = corpus.append(table()[[4]])
    assert again.ids[-1] == f"{corpus.ids[4]}-1"
    assert again.content[-1] == corpus.content[4]


def test_appended_keys_that_are_there_are_refused() -> None:
    keyed = table().with_columns(pl.Series("id", range(N)))
    corpus = imprint.open(keyed)
    assert corpus.roles.id == "id"
    with pytest.raises(IdError, match="'29'"):
        corpus.append(keyed[[29]])
    more = corpus.append(keyed[[3, 4]].with_columns(pl.Series("id", [100, 101])))
    assert more.ids.tail(2).to_list() == ["100", "101"]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.drop("word"),
        lambda frame: frame.drop("label"),
        lambda frame: frame.with_columns(pl.lit("x").alias("number")),
    ],
)
def test_other_columns_cannot_be_appended(corpus: Corpus, change) -> None:
    with pytest.raises(ColumnError):
        corpus.append(change(table(100, 5)))


def test_types_are_brought_to_the_parent_s(corpus: Corpus) -> None:
    child = corpus.append(table(100, 5).with_columns(pl.col("number").cast(pl.Float64)))
    assert child.read(child.rows()).schema == corpus.read(corpus.rows()).schema


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (lambda c: c.drop(["nobody", "none"]), IdError, "'nobody', 'none'"),
        (lambda c: c.drop(c.ids), IdError, "no example"),
        (lambda c: c.relabel({"nobody": "yes"}), IdError, "'nobody'"),
        (lambda c: c.relabel({c.ids[0]: None}), TargetError, "None"),
        (lambda c: c.reweight({c.ids[0]: -1}), ColumnError, "-1"),
        (lambda c: c.reweight({c.ids[0]: float("nan")}), ColumnError, "nan"),
        (lambda c: c.reweight([1.0]), IdError, "weights"),
        (lambda c: c.rows("dev"), ColumnError, "'dev'"),
        (lambda c: c.read([N]), IdError, str(N)),
        (lambda c: c.read([-1]), IdError, "-1"),
        (lambda c: c.read([0], ["nothing"]), ColumnError, "'nothing'"),
    ],
)
def test_impossible_edits_say_why(corpus: Corpus, edit, error: type[ImprintError], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        edit(corpus)
    assert raised.value.remedy


def test_numeric_targets_keep_their_type(tmp_path: Path) -> None:
    corpus = imprint.open(pl.DataFrame({"x": range(9), "y": [1, 2, 3] * 3}))
    assert corpus.relabel({corpus.ids[0]: 3}).target.dtype == pl.Int64
    with pytest.raises(TargetError):
        corpus.relabel({corpus.ids[0]: "three"})


def test_lists_of_labels_are_relabelled() -> None:
    corpus = imprint.open(pl.DataFrame({"x": range(4), "label": [["a"], ["b", "a"], [], ["b"]]}))
    child = corpus.relabel({corpus.ids[2]: ["a", "c"], corpus.ids[0]: ["a"]})
    assert child.target.to_list() == [["a"], ["b", "a"], ["a", "c"], ["b"]]
    assert child.diff(corpus).select("before", "after").rows() == [("", "a, c")]


class _Answer:
    def frame(self) -> pl.DataFrame:
        return self.table


def test_apply_does_what_is_suggested(corpus: Corpus) -> None:
    answer = _Answer()
    answer.table = pl.DataFrame(
        {
            "id": [corpus.ids[k] for k in (0, 1, 2, 2, 3, 4)],
            "kind": ["label", "duplicate", "label", "label", "outlier", "label"],
            "severity": [0.9, 1.0, 0.5, 0.8, 0.7, 0.6],
            "suggestion": ["relabel", "drop", "relabel", "relabel", "review", "drop"],
            "suggested_value": ["maybe", None, "weak", "strong", None, None],
        }
    )
    child = corpus.apply(answer)
    assert child.diff(corpus).select("id", "change", "after").rows() == [
        (corpus.ids[1], "dropped", None),
        (corpus.ids[4], "dropped", None),
        (corpus.ids[0], "relabelled", "maybe"),
        (corpus.ids[2], "relabelled", "strong"),
    ]
    assert corpus.apply(answer, kinds="duplicate").diff(corpus)["change"].to_list() == ["dropped"]
    assert corpus.apply(answer, kinds=["outlier"]) is corpus


def test_save_and_load_keep_everything(corpus: Corpus, tmp_path: Path) -> None:
    child = (
        corpus.drop(corpus.ids[:3])
        .relabel({corpus.ids[5]: "maybe"})
        .reweight({corpus.ids[6]: 0.5})
        .append(table(100, 6))
    )
    child.save(tmp_path / "saved")
    for back in (Corpus.load(tmp_path / "saved"), imprint.open(tmp_path / "saved")):
        assert back.frame().equals(child.frame())
        assert back.fingerprint == child.fingerprint
        assert (back.content == child.content).all()
        assert (back.roles, back.kinds, back.modality, back.parent, back.notes) == (
            child.roles,
            child.kinds,
            child.modality,
            child.parent,
            child.notes,
        )
        assert back.edits == child.edits
        assert back.set_aside.equals(child.set_aside)
        assert back.drop(back.ids[:1]).fingerprint == child.drop(child.ids[:1]).fingerprint
        recomputed = back.reweight({back.ids[0]: 3}).reweight({back.ids[0]: 1})
        assert recomputed.fingerprint == child.fingerprint
    child.drop(child.ids[:1]).save(tmp_path / "saved")  # a saved corpus may be replaced
    assert len(Corpus.load(tmp_path / "saved")) == len(child) - 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ImprintError, match="not a saved corpus"):
        child.save(tmp_path / "other")
