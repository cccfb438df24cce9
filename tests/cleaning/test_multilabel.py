"""Label issues of sets of labels: planted errors are found, by the answer that is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from imprint.cleaning import clean, find_multilabel_issues, label_quality, label_set_quality
from imprint.cleaning.confident import find_label_issues
from imprint.cleaning.multilabel import judge_label_sets
from imprint.errors import MethodError

LABELS = ["day", "rain", "road", "tree"]


def planted(seed: int = 0, examples: int = 600) -> dict[str, Any]:
    """Four labels, of 8 % of whose answers the opposite is given, and logits around the truth."""
    rng = np.random.default_rng(seed)
    true = rng.random((examples, 4)) < [0.5, 0.3, 0.2, 0.4]
    wrong = rng.random(true.shape) < 0.08
    logits = torch.from_numpy((2 * true - 1) * 2.5 + rng.normal(size=true.shape)).float()
    return {"true": true, "given": true ^ wrong, "wrong": wrong, "logits": logits}


@pytest.fixture
def run(corpus_of: Any, run_of: Any) -> Any:
    found = planted()
    target = [[name for name, there in zip(LABELS, row, strict=True) if there] for row in found["given"]]
    corpus = corpus_of(pl.DataFrame({"x": np.arange(600.0)}), target, {"x": "numeric"}, "table")
    made = run_of(corpus, found["logits"][None].repeat(2, 1, 1), out_of_fold=torch.sigmoid(found["logits"]))
    return SimpleNamespace(run=made, **found)


def test_planted_answers_are_found(run: Any) -> None:
    """Logits are 5 standard deviations apart: what is flagged is wrong. The joint counts confident examples only, and so flags fewer."""
    flagged = find_multilabel_issues(torch.sigmoid(run.logits).numpy(), run.given)
    assert run.wrong[flagged].mean() > 0.95
    assert flagged[run.wrong].mean() > 0.8


def test_findings_suggest_the_true_set(run: Any) -> None:
    frame = clean(run.run, "confident-learning-multilabel").frame()
    row = frame["id"].str.slice(1).cast(pl.Int64).to_numpy()
    assert run.wrong.any(1)[row].mean() > 0.95
    relabel = frame.filter(pl.col("suggestion") == "relabel")
    assert len(relabel) > 100
    true = [[n for n, there in zip(LABELS, run.true[int(id[1:])], strict=True) if there] for id in relabel["id"]]
    assert (
        np.mean([one == sorted(two) for one, two in zip(true, relabel["suggested_value"].to_list(), strict=True)]) > 0.9
    )
    assert set(frame["kind"]) == {"label"}
    assert frame["evidence"].str.contains("out of fold").all()


def test_both_methods_judge_alike_when_the_model_says_the_same(run: Any) -> None:
    """The trajectory is two epochs of the very logits that are out of fold: flags and suggestions are the same."""
    one, two = (clean(run.run, name).frame() for name in ("trajectory-multilabel", "confident-learning-multilabel"))
    assert one["id"].equals(two["id"])
    np.testing.assert_allclose(one["severity"], two["severity"], atol=1e-5)
    assert one["suggested_value"].equals(two["suggested_value"])


def test_quality_ranks_sets_with_errors_last(run: Any) -> None:
    value = label_quality(run.run, "confident-learning-multilabel").frame()["confident-learning-multilabel"].to_numpy()
    assert roc_auc_score(run.wrong.any(1), -value) > 0.97


def test_one_label_is_confident_learning_of_two_classes() -> None:
    rng = np.random.default_rng(1)
    there, given_label = rng.random(300), rng.integers(0, 2, 300)
    two = np.stack([1 - there, there], 1)
    found = find_multilabel_issues(there[:, None], given_label[:, None])
    assert np.array_equal(found[:, 0], find_label_issues(two, given_label))


@given(st.integers(1, 9), st.integers(0, 1000))
def test_quality_lies_between_least_and_most_believed_answer(labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(5, labels, generator=generator)
    target = (torch.rand(5, labels, generator=generator) < 0.5).float()
    own = torch.where(target > 0.5, probabilities, 1 - probabilities)
    quality = label_set_quality(probabilities, target)
    assert (quality >= own.amin(1) - 1e-6).all()
    assert (quality <= own.amax(1) + 1e-6).all()
    order = torch.randperm(labels, generator=generator)
    torch.testing.assert_close(quality, label_set_quality(probabilities[:, order], target[:, order]))


def test_nothing_flagged_is_no_flag() -> None:
    target = torch.eye(3).repeat(20, 1)
    flags = judge_label_sets(0.9 * target + 0.05, target, ["a", "b", "c"], "out of fold")
    assert len(flags) == 0


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(MethodError, match=r"\(4, 2\).*\(4, 3\)"):
        find_multilabel_issues(np.zeros((4, 2)), np.zeros((4, 3), bool))
