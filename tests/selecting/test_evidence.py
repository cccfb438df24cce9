"""What select methods read: targets, trusted examples, entries, scores, and the same of corpora that nothing was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, IdError, MethodError
from imprint.methods import Derived, Method, Scored
from imprint.recording import Run
from imprint.recording.needs import Classes, Features, GradientNorms, Need, Rows, Target
from imprint.selecting import target_rows
from imprint.selecting.evidence import TARGET, Asked, Entries, Inputs, Random, Texts, Trusted, gather
from imprint.selecting.untrained import Untrained


def values(source: Any, *needs: Need, **said: Any) -> dict[str, Any]:
    """What a method with these needs would be given."""
    return gather(Asked(source, Method("select", "probe", lambda: None, "", needs, ""), 3, **said))


# The target


def test_the_target_is_the_validation_split_unless_another_is_named(run: Run) -> None:
    assert target_rows(run, None).tolist() == run.rows("valid").tolist()
    assert target_rows(run, "test").tolist() == run.rows("test").tolist()
    ids = run.examples["id"].gather([9, 4]).to_list()
    assert target_rows(run, ids).tolist() == target_rows(run, [9, 4]).tolist() == [9, 4]
    assert target_rows(run, run.corpus.split("test")).tolist() == run.rows("test").tolist()


def test_without_a_validation_split_it_is_half_of_the_test_split(texts: Corpus) -> None:
    rows = target_rows(Untrained(texts), None)
    assert len(rows) == 8
    assert set(rows) < set(texts.rows("test"))
    assert rows.tolist() == target_rows(Untrained(texts), None).tolist()


def test_a_target_that_is_none_is_an_error(run: Run, corpus: Corpus) -> None:
    for nothing in ([], corpus._take(np.empty(0, np.int64))):
        with pytest.raises(IdError, match="No target examples"):
            target_rows(run, nothing)
    with pytest.raises(IdError, match="1 of 1 target examples are not of this run's corpus: 'nobody'"):
        target_rows(run, ["nobody"])
    with pytest.raises(EvidenceError, match="no held-out examples"):
        target_rows(Untrained(corpus.split("train")), None)


def test_evidence_of_the_target_is_in_its_order(run: Run) -> None:
    rows = [7, 2, 30]
    needs = (
        Features("theirs", split=TARGET), Features(), Target("labels", split=TARGET), Rows("places", split=TARGET), Target(),
        GradientNorms("steps", split=TARGET), GradientNorms(checkpoint="last"), Classes(),
    )  # fmt: skip
    found = values(run, *needs, target=rows)
    everything = run.gather([Features("all", split=None), Target("codes", split=None), GradientNorms("n", split=None)])
    torch.testing.assert_close(found["theirs"], everything["all"][rows])
    torch.testing.assert_close(found["labels"], everything["codes"][rows])
    torch.testing.assert_close(found["steps"], everything["n"][rows])
    assert found["places"].tolist() == rows
    assert len(found["features"]) == len(found["target"]) == len(found["norms"]) == 120
    assert found["classes"] == ("d0", "d1", "d2")


def test_a_value_may_be_derived_from_evidence_of_the_target(run: Run) -> None:
    def nearness(features: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(features, theirs).amin(1)

    needs = (Features(), Features("theirs", split=TARGET))
    found = values(run, Derived("nearness", function=nearness, needs=needs, rowwise=False), target="test")
    parts = values(run, *needs, target="test")
    torch.testing.assert_close(found["nearness"], nearness(**parts))


def test_what_was_aimed_at_is_said(run: Run, texts: Corpus) -> None:
    def note(source: Any, need: Need, **said: Any) -> str:
        return Asked(source, Method("select", "probe", lambda: None, "", (need,), ""), 3, **said).note

    aiming = Features("theirs", split=TARGET)
    assert note(run, aiming) == "aimed at the split 'valid', 40 examples"
    assert "half of the split 'test', 8 examples; the other half can judge" in note(Untrained(texts), aiming)
    assert note(run, aiming, target="test") == note(run, Features()) == ""


def test_a_target_may_be_another_corpus(run: Run, corpus: Corpus) -> None:
    """The same examples under other names: their evidence is theirs."""
    test = corpus.split("test")
    frame = (
        test.frame().with_columns(pl.concat_str(pl.lit("other-"), pl.col("id")).alias("id")).drop("position", "split")
    )
    other = imprint.open(
        frame, target="label", id="id", split={"train": 0.5, "test": 0.5}, store=run.path.parent / "other"
    )
    needs = (Features("theirs", split=TARGET), Target("labels", split=TARGET), Inputs("raw", split=TARGET))
    mine, theirs = values(run, *needs, target="test"), values(run, *needs, target=other)
    # Evidence of a run's own rows is kept in float16.
    torch.testing.assert_close(mine["theirs"], theirs["theirs"], rtol=2e-3, atol=2e-3)
    assert torch.equal(mine["labels"], theirs["labels"])
    torch.testing.assert_close(mine["raw"], theirs["raw"])
    with pytest.raises(EvidenceError, match=r"gradient_norms of the target(.|\n)*as a split of their own"):
        values(run, GradientNorms(split=TARGET), target=other)


def test_a_corpus_has_features_and_texts_of_a_target_too(corpus: Corpus, texts: Corpus) -> None:
    found = values(Untrained(corpus), Features("theirs", split=TARGET), Features(), Inputs(), target="test")
    assert found["theirs"].shape == (40, found["features"].shape[1])
    torch.testing.assert_close(found["features"], found["inputs"])
    said = values(Untrained(texts), Texts("theirs", split=TARGET), Texts(), target="test")
    assert said["theirs"].to_list() == texts.split("test").read(np.arange(15))["text"].to_list()
    assert len(said["texts"]) == 45


# What the user says


def test_trusted_examples_are_training_examples(run: Run) -> None:
    ids = run.ids.gather([3, 0]).to_list()
    assert values(run, Trusted(), trusted=ids)["trusted"].nonzero().flatten().tolist() == [0, 3]
    for nobody in (None, []):
        with pytest.raises(MethodError, match="examples that you trust, and none were named"):
            values(run, Trusted(), trusted=nobody)
    with pytest.raises(IdError, match="1 of 2 trusted examples are not training examples"):
        values(run, Trusted(), trusted=[ids[0], run.examples["id"][int(run.rows("test")[0])]])
    with pytest.raises(IdError, match="trusted examples are not of this run's corpus"):
        values(run, Trusted(), trusted=["nobody"])


def test_entries_are_given_or_words_or_classes(run: Run, texts: Corpus) -> None:
    assert values(run, Entries())["entries"] == ("d0", "d1", "d2")
    assert values(run, Entries(), entries=["a", "b"])["entries"] == ("a", "b")
    # "once7" is in one text only, and balances nothing.
    assert values(Untrained(texts), Entries())["entries"] == ("blue", "green", "long", "red", "round", "square")


def test_randomness_is_of_the_seed_and_the_method(run: Run) -> None:
    def first(seed: int) -> float:
        return float(torch.rand(1, generator=values(run, Random(), seed=seed)["generator"]))

    assert first(1) == first(1) != first(2)


def test_a_score_is_what_the_score_verb_says(run: Run) -> None:
    for name in ("el2n", "knn-shapley"):
        expected = imprint.score(run, name, progress=False).frame()[name]
        found = values(run, Scored("said", method=name))["said"]
        np.testing.assert_allclose(found.numpy(), expected.to_numpy(), rtol=1e-6)
