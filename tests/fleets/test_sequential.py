"""Members share inputs and differ in what they are told to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError
from imprint.fleets import Member, share, train_member
from imprint.recording.needs import Outputs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 200)
    values = random.normal(size=(200, 3)) + 3 * label[:, None]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": label})
    return imprint.open(frame, target="y", store=tmp_path_factory.mktemp("store"))


LEARNER = imprint.Learner("mlp", epochs=2, seed=4)


def test_the_plain_member_is_the_run_itself(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    rows = corpus.rows()
    for source in (share(run), share(imprint.load(tmp_path)), share(LEARNER, corpus)):
        outcome = train_member(source, outputs_of=rows)
        assert outcome.outputs is not None
        assert torch.equal(outcome.outputs, run.gather([Outputs("logits", split=None)])["logits"])
        assert outcome.metrics == run.metrics("test")


def test_dropping_rows_is_training_on_the_version_without_them(corpus: Corpus, tmp_path: Path) -> None:
    """Up to the encoder, which the members share and the version fits again."""
    shared = share(LEARNER, corpus)
    keep = corpus.rows("train")[30:]
    member = train_member(shared, Member(rows=keep), outputs_of=corpus.rows("test"))
    whole = train_member(shared, Member(), outputs_of=corpus.rows("test"))
    assert member.outputs is not None
    assert whole.outputs is not None
    assert not torch.equal(member.outputs, whole.outputs)
    data = shared.data.train_on(torch.from_numpy(keep))
    assert data.inputs is shared.data.inputs
    assert data.rows.tolist() == keep.tolist()


def test_wrong_targets_make_wrong_models_and_are_not_tested_against(corpus: Corpus) -> None:
    shared = share(LEARNER, corpus)
    rows = torch.from_numpy(corpus.rows("train").copy())
    right = train_member(shared, Member(rows=rows))
    wrong = train_member(shared, Member(rows=rows, target=1 - shared.data.target[rows]))
    assert right.metrics["accuracy"] > 0.95
    assert wrong.metrics["accuracy"] < 0.05


def test_weight_zero_is_no_example(corpus: Corpus) -> None:
    """In whole batches, where the order does not matter."""
    shared = share(imprint.Learner("linear", epochs=5, batch_size=1000, optimizer="sgd"), corpus)
    rows = corpus.rows("train")
    weight = torch.ones(len(rows))
    weight[:40] = 0.0
    weighted, without = (
        train_member(shared, one, outputs_of=corpus.rows()) for one in (Member(weight=weight), Member(rows=rows[40:]))
    )
    torch.testing.assert_close(weighted.outputs, without.outputs)


def test_seeds_differ_and_repeat(corpus: Corpus) -> None:
    shared = share(LEARNER, corpus)
    first, again, other = (train_member(shared, Member(seed), outputs_of=corpus.rows("test")) for seed in (1, 1, 2))
    assert first.outputs is not None
    assert again.outputs is not None
    assert other.outputs is not None
    assert torch.equal(first.outputs, again.outputs)
    assert not torch.equal(first.outputs, other.outputs)


def test_a_learner_alone_has_nothing_to_train_on() -> None:
    with pytest.raises(EvidenceError, match="needs a corpus"):
        share(LEARNER)
