"""Verifying edits: right edits help, random ones do not, and nothing is trained twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

import imprint
from imprint.answers import Findings, Verdict, load_answer
from imprint.errors import MethodError
from imprint.fleets import Member, share
from imprint.recording import Run
from imprint.verifying.edits import plan, suggested_values
from imprint.verifying.kept import Kept

NOISE = 0.3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short training on digits of which 30 % of the training labels were flipped; the test labels are right."""
    folder = tmp_path_factory.mktemp("verifying")
    images, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    train = rng.random(len(truth)) < 0.7
    flipped = train & (rng.random(len(truth)) < NOISE)
    given = np.where(flipped, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(len(truth))],
            "x": pl.Series(images.astype(np.float32)),
            "label": [f"d{label}" for label in given],
            "split": np.where(train, "train", "test"),
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner(epochs=6, batch_size=64), corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def right(run: Run) -> Findings:
    """The findings of somebody who knows which labels were flipped, and to what they belong."""
    truth = load_digits(return_X_y=True)[1]
    known = pl.DataFrame({"id": run.ids, "given": run.corpus.target.gather(run.rows())}).with_columns(
        pl.Series("truth", [f"d{truth[int(name.removeprefix('digit-'))]}" for name in run.ids])
    )
    wrong = known.filter(pl.col("given") != pl.col("truth"))
    return findings(run, wrong["id"].to_list(), "relabel", wrong["truth"].to_list())


def findings(run: Run, ids: list[str], suggestion: str, values: list | None = None, kind: str = "label") -> Findings:
    table = pl.DataFrame(
        {
            "id": ids,
            "position": list(range(len(ids))),
            "kind": [kind] * len(ids),
            "severity": [0.9] * len(ids),
            "suggestion": [suggestion] * len(ids),
            "suggested_value": values or [None] * len(ids),
            "method": ["oracle"] * len(ids),
            "evidence": ["known"] * len(ids),
            "related": [None] * len(ids),
        },
        schema_overrides={"id": pl.String, "suggested_value": pl.String, "related": pl.String},
    )
    about = {"path": str(run.path), "corpus": run.fingerprint}
    return Findings("clean", ("oracle",), {}, {}, about, {"seconds": 0.0, "trainings": 0}, table)


def test_right_edits_help_and_random_ones_do_not(run: Run, right: Findings, tmp_path: Path) -> None:
    verdict = imprint.verify(right, run, seeds=2, path=tmp_path, progress=False)
    # A third of the labels wrong costs an MLP on 1,250 digits several points; undoing it cannot fail to show.
    assert verdict.effect > 0.02
    assert verdict.clear
    assert np.mean(verdict.controls["random"]) < np.mean(verdict.after) - 0.02
    assert verdict.effect == pytest.approx(np.mean(verdict.after) - np.mean(verdict.before))
    assert verdict.edits == {"drop": 0, "relabel": len(right)}
    assert verdict.frame().shape[0] == verdict.cost["trainings"] == 6
    assert "raises test accuracy" in str(verdict)

    saved = load_answer(verdict.save(tmp_path / "answer"))
    assert isinstance(saved, Verdict)
    assert (saved.effect, saved.interval, saved.before) == (verdict.effect, verdict.interval, verdict.before)


def test_an_interrupted_verification_goes_on(run: Run, right: Findings, tmp_path: Path, monkeypatch) -> None:
    whole = imprint.verify(right, run, seeds=1, path=tmp_path, progress=False)
    from imprint.fleets import batched, sequential

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(batched, "train_wave", refuse)
    monkeypatch.setattr(sequential, "train_module", refuse)
    with pytest.raises(AssertionError, match="trained again"):
        imprint.verify(right, run, seeds=2, path=tmp_path, progress=False)
    again = imprint.verify(right, run, seeds=1, path=tmp_path, progress=False)
    assert again.before == whole.before
    assert again.after == whole.after


def test_trainings_kept_for_another_corpus_are_not_taken(run: Run, tmp_path: Path) -> None:
    shared = share(run)
    member = Member(0, run.rows(), run.target())
    keys = {Kept(tmp_path, shared, shared.test, corpus).key(member) for corpus in ("0123", "4567")}
    assert len(keys) == 2


def test_the_control_does_as_many_edits_of_the_same_kinds(run: Run) -> None:
    ids = run.ids.to_list()
    frame = pl.concat(
        [
            findings(run, ids[:10], "drop").frame(),
            findings(run, ids[5:25], "relabel", ["d1"] * 20).frame(),
            findings(run, ids[30:40], "review").frame(),
        ]
    )
    edits, control = plan(run, frame)
    assert (len(edits.drop), len(edits.relabel)) == (10, 15)  # an example that is dropped is not relabelled
    assert (len(control.drop), len(control.relabel)) == (10, 15)
    assert not set(control.drop) & set(control.relabel)
    member = edits.member(0, run.rows(), run.target())
    assert len(member.rows) == len(member.target) == len(run) - 10
    relabelled = np.isin(member.rows, edits.relabel)
    assert run.task.decode(member.target[relabelled]).unique().to_list() == ["d1"]
    assert (run.target()[10:][~relabelled] == member.target[~relabelled]).all()


def test_leaked_test_examples_are_not_measured_on(run: Run, right: Findings, tmp_path: Path) -> None:
    train, test = run.ids[0], run.corpus.ids.gather(run.rows("test"))[0]
    leak = findings(run, [train], "drop", kind="leak")
    leak = replace(leak, table=leak.table.with_columns(pl.lit(test).alias("related")))
    verdict = imprint.verify(leak, run, seeds=1, progress=False)
    assert verdict.examples == len(run.rows("test")) - 1
    assert "1 leaked" in verdict.notes[0]


def test_what_cannot_be_verified_says_why(run: Run) -> None:
    with pytest.raises(MethodError, match="nothing to verify"):
        imprint.verify(findings(run, run.ids.to_list()[:3], "review"), run, seeds=1)
    with pytest.raises(MethodError, match="drop every"):
        imprint.verify(findings(run, run.ids.to_list(), "drop"), run, seeds=1)


def test_suggested_values_take_the_type_of_the_target() -> None:
    text = pl.Series(["1", "2"])
    assert suggested_values(text, pl.Series("y", [3], dtype=pl.Int32)).to_list() == [1, 2]
    assert suggested_values(pl.Series(["true", "False"]), pl.Series("y", [True])).to_list() == [True, False]
    assert suggested_values(pl.Series(['["a", "b"]']), pl.Series("y", [["a"]])).to_list() == [["a", "b"]]
