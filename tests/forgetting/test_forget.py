"""Requests and children: what can be asked, what is refused, and what a child is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import ColumnError, IdError, ImprintError, MethodError, RunError, TargetError
from imprint.fitting import Data
from imprint.forgetting import Part, prepare, wanted
from imprint.forgetting.request import hashed, holds
from imprint.recording import Run


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder by its contents."""
    files = (one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.model().module.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# -------------------------------------------------------------------------------------------------------------- requests


def test_a_request_says_the_same_in_four_ways(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    codes = run.target().numpy()
    expected = np.flatnonzero(codes == 1)
    ids = run.ids.gather(expected)
    assert wanted(run, ids=ids[::-1]).tolist() == expected.tolist()
    assert wanted(run, ids=[*ids, ids[0]]).tolist() == expected.tolist()
    assert wanted(run, classes="class 1").tolist() == expected.tolist()
    assert wanted(run, where="label = 'class 1'").tolist() == expected.tolist()
    assert wanted(run, where=pl.col("label") == "class 1").tolist() == expected.tolist()
    everyone = corpus.ids.filter(corpus.target == "class 1")  # test examples among them, as a leak would be
    findings = pl.DataFrame({"id": everyone, "suggestion": "drop"}).vstack(
        pl.DataFrame({"id": [run.ids[int(np.flatnonzero(codes == 0)[0])]], "suggestion": ["relabel"]})
    )
    assert wanted(run, findings=findings).tolist() == expected.tolist()
    findings.write_parquet(tmp_path / "found.parquet")
    assert wanted(run, findings=tmp_path / "found.parquet").tolist() == expected.tolist()


def test_a_condition_reads_inputs_position_and_weight(run: Run, corpus: Corpus) -> None:
    rows = run.rows()
    x = corpus.read(rows, ["x0"])["x0"].to_numpy()
    assert wanted(run, where="x0 > 1.5 AND weight = 1").tolist() == np.flatnonzero(x > 1.5).tolist()
    assert wanted(run, where="position < 10").tolist() == list(range(int((rows < 10).sum())))


REFUSED: list[tuple[dict[str, Any], type[ImprintError], str]] = [
    ({}, MethodError, "Nothing says what to forget"),
    ({"ids": ["person-00002"], "where": "x0 > 1"}, MethodError, "ids and where were given"),
    ({"ids": ["u-1"]}, IdError, "All of them may be of another corpus"),
    ({"ids": ["person-00002", "person-0002"]}, IdError, "'person-0002'"),
    ({"ids": ["person-00000"]}, IdError, "'person-00000' (test)"),
    ({"ids": [2]}, IdError, "ids are text"),
    ({"ids": []}, IdError, "No training example"),
    ({"where": "x0 > 1000"}, IdError, "No training example"),
    ({"where": "x0 > -1000"}, IdError, "All 140 training examples"),
    ({"where": "x7 > 1"}, ColumnError, "'x7'"),
    ({"where": "x0 +"}, ColumnError, "no SQL condition"),
    ({"where": "x0"}, ColumnError, "instead of yes or no"),
    ({"where": "x0 > 'a'"}, ColumnError, "cannot be evaluated"),
    ({"classes": "class 7"}, TargetError, "Did you mean"),
    ({"findings": "nowhere"}, MethodError, "No findings at 'nowhere'"),
    ({"findings": pl.DataFrame({"id": ["person-00002"]})}, MethodError, "no findings in a table"),
    ({"findings": pl.DataFrame({"id": ["person-00002"], "suggestion": ["review"]})}, IdError, "drop nothing"),
    ({"findings": pl.DataFrame({"id": ["zz"], "suggestion": ["drop"]})}, IdError, "'zz'"),
]


@pytest.mark.parametrize(("asked", "kind", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_wrong_request_is_refused_before_anything_is_made(
    run: Run, tmp_path: Path, asked: dict[str, Any], kind: type[ImprintError], says: str
) -> None:
    with pytest.raises(kind) as error:
        imprint.forget(run, method="nothing", path=tmp_path / "child", progress=False, **asked)
    assert says in str(error.value)
    assert error.value.remedy
    assert not (tmp_path / "child").exists()


def test_a_wrong_method_setting_or_folder_is_refused(run: Run, tmp_path: Path) -> None:
    ids = run.ids[:2]
    for words, kind, says in (
        ({"method": "retran"}, MethodError, "Did you mean 'retrain'"),
        ({"method": "nothing", "alpha": 2}, MethodError, "no setting 'alpha'"),
        ({"method": "newton"}, MethodError, "one minimum"),
        ({"method": "analytic"}, MethodError, "ridge head"),
        ({"method": "sisa"}, MethodError, "deletable="),
        ({"method": "nothing", "path": run.path / "below"}, RunError, "stays as it is"),
        ({"method": "nothing", "path": run.path}, RunError, "stays as it is"),
    ):
        with pytest.raises(kind, match=says):
            imprint.forget(run, ids, progress=False, **{"path": tmp_path / str(words["method"]), **words})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_hashes_are_salted(run: Run) -> None:
    ids = run.ids[:3].to_list()
    one, two = hashed(ids), hashed(ids)
    assert not set(one["hashes"]) & set(two["hashes"])
    assert holds(one, [*ids, "person-00000"]) == holds(two, [*ids, "person-00000"]) == [True, True, True, False]


# --------------------------------------------------------------------------------------------------------------- the child


def test_a_part_reads_its_own_examples(run: Run) -> None:
    job = prepare(run, np.array([3, 1]))
    assert job.forget.places.tolist() == [1, 3]
    assert sorted([*job.forget.places.tolist(), *job.retain.places.tolist()]) == list(range(len(run)))
    assert torch.equal(job.forget.target, run.target()[[1, 3]])
    assert torch.equal(job.retain.inputs(job.forget.places), job.forget.inputs())
    assert job.without.rows.tolist() == job.retain.rows.tolist()
    assert job.validation is not None
    assert job.validation.rows.tolist() == run.rows("valid").tolist()
    expected = run.model().outputs(run.corpus.read(run.rows()))[[1, 3]]
    torch.testing.assert_close(job.outputs(job.forget), expected)
    torch.testing.assert_close(job.forward(job.forget.inputs()), expected)


def test_batches_visit_each_example_once() -> None:
    data = Data(torch.arange(10.0)[:, None], torch.arange(10), None, {"train": torch.arange(2, 10)})
    part = Part(data, data.rows, torch.tensor([0, 2, 3, 5, 7]))
    seen = list(part.batches(2))
    assert torch.cat([places for _, _, places in seen]).tolist() == part.places.tolist()
    assert max(len(places) for _, _, places in seen) == 2
    for inputs, target, places in part.batches(3, torch.Generator().manual_seed(0)):
        assert inputs.flatten().tolist() == target.tolist() == (places + 2).tolist()
    shuffled = torch.cat([places for _, _, places in part.batches(3, torch.Generator().manual_seed(0))])
    assert sorted(shuffled.tolist()) == part.places.tolist()


def test_the_child_of_nothing_is_its_parent_less_the_rows(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    before = digest(run.path)
    ids = run.ids[:7]
    child = imprint.forget(run, ids, method="nothing", path=tmp_path / "gone", progress=False)
    assert digest(run.path) == before
    opened = imprint.load(tmp_path / "gone")
    assert opened.status == "complete"
    assert opened.corpus.fingerprint == corpus.drop(ids).fingerprint == child.fingerprint
    assert opened.ids.to_list() == run.ids[7:].to_list()
    assert torch.equal(opened.target(), run.target()[7:])
    assert same(weights(opened), weights(run))
    assert same(opened.model("first").module.state_dict(), weights(run))
    assert opened.metrics("test") == run.metrics("test")
    done = opened.manifest["forgot"]
    assert (done["count"], done["retained"], done["exact"], done["drift"]["outputs"]) == (7, 133, False, 0.0)
    said = (tmp_path / "gone" / "manifest.json").read_text() + (tmp_path / "gone" / "request.json").read_text()
    assert not any(one in said for one in ids)
    assert all(holds(done["request"], ids.to_list()))
    # Without the run's encoded inputs, which the first call still held, the child is the same.
    again = imprint.forget(imprint.load(run.path), ids, method="nothing", path=tmp_path / "two", progress=False)
    assert same(weights(again), weights(child))


def test_retraining_is_a_training_on_the_rest(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    ids = run.ids[10:20]
    child = imprint.forget(run, ids, method="retrain", path=tmp_path / "gone", progress=False)
    alone = imprint.fit(run.learner, corpus.drop(ids), tmp_path / "alone", progress=False)
    assert same(weights(child), weights(alone))
    assert not same(weights(child), weights(run))
    assert child.manifest["forgot"]["exact"] is True
    assert torch.equal(child.evidence("dynamics").read("logits"), alone.evidence("dynamics").read("logits"))


@pytest.mark.parametrize("method", ["nothing", "retrain"])
def test_a_child_answers_every_verb(run: Run, tmp_path: Path, method: str) -> None:
    imprint.forget(run, run.ids[:5], method=method, path=tmp_path / "gone", progress=False)
    child = imprint.load(tmp_path / "gone")
    assert len(imprint.score(child, progress=False).frame()) == 135
    assert imprint.clean(child).methods
    assert imprint.select(child, 0.5, "random", progress=False).frame()["rank"].count() > 0
    traced = imprint.trace(
        child, child.corpus.ids.gather(child.rows("test")[:2]).to_list(), method="gradient-dot", progress=False
    )
    assert len(traced.frame())


def test_the_same_request_is_not_served_twice(run: Run, tmp_path: Path) -> None:
    ids = run.ids[:4]
    first = imprint.forget(run, ids, method="retrain", path=tmp_path / "gone", progress=False)
    before = digest(first.path)
    again = imprint.forget(run, ids[::-1], method="retrain", path=tmp_path / "gone", progress=False)
    assert digest(again.path) == before
    for other in ({"ids": run.ids[:3]}, {"ids": ids, "method": "nothing"}, {"ids": ids, "seed": 1}):
        with pytest.raises(RunError, match="another request"):
            imprint.forget(run, path=tmp_path / "gone", progress=False, **{"method": "retrain", **other})  # type: ignore[arg-type]
    replaced = imprint.forget(run, run.ids[:3], method="nothing", path=tmp_path / "gone", resume=False, progress=False)
    assert (len(replaced), replaced.manifest["forgot"]["method"]) == (137, "nothing")
    imprint.fit(run.learner, run.corpus, tmp_path / "other", progress=False)
    with pytest.raises(RunError, match="holds a run"):
        imprint.forget(run, ids, method="nothing", path=tmp_path / "other", progress=False)


def test_what_was_forgotten_cannot_be_forgotten_again(run: Run, tmp_path: Path) -> None:
    child = imprint.forget(run, run.ids[:2], method="nothing", path=tmp_path / "one", progress=False)
    second = imprint.forget(child, run.ids[2:3], method="nothing", path=tmp_path / "two", progress=False)
    for one in run.ids[:3]:
        with pytest.raises(IdError, match="forgotten before"):
            imprint.forget(second, [one], method="nothing", path=tmp_path / "three", progress=False)
    assert second.ids.to_list() == run.ids[3:].to_list()
    assert imprint.load(tmp_path / "two").corpus.fingerprint == second.fingerprint


def test_a_corpus_without_a_folder_goes_with_the_child(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    """Of an edited corpus there is no folder to find it in, so that the child has a copy, which names nobody."""
    edited = corpus.drop(corpus.ids[2:4])
    parent = imprint.fit(run.learner, edited, tmp_path / "base", progress=False)
    gone = edited.split("train").ids[:2]
    imprint.forget(parent, gone, method="nothing", path=tmp_path / "gone", progress=False)
    child = imprint.load(tmp_path / "gone")
    assert child.corpus.fingerprint == edited.drop(gone).fingerprint
    assert "person" not in json.dumps([one.spec() for one in child.corpus.edits])


KILLED = """
    import os, sys
    import imprint, imprint.recording.checkpoints as checkpoints
    from imprint.forgetting import child
    where, base, ids, when = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4]
    if when == "epoch":  # within the retraining, after its second epoch
        after = checkpoints.Checkpoints.save
        def save(self, state):
            after(self, state)
            if state.epoch == 2:
                os._exit(9)
        checkpoints.Checkpoints.save = save
    else:  # the training is over, and the manifest does not yet say what was forgotten
        child.update_manifest = lambda *a, **k: os._exit(9)
    imprint.forget(imprint.load(base), ids, method="retrain", path=where, progress=False)
"""


@pytest.mark.parametrize("when", ["epoch", "end"])
def test_a_killed_request_leaves_the_parent_and_goes_on(run: Run, tmp_path: Path, when: str) -> None:
    before, ids = digest(run.path), run.ids[:6].to_list()
    words = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "gone"), str(run.path), ",".join(ids), when]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 9
    assert digest(run.path) == before
    killed = imprint.load(tmp_path / "gone")
    assert "forgot" not in killed.manifest
    trained = sorted(one.name for one in killed.checkpoints.all())
    assert trained[:2] == ["epoch-0001", "epoch-0002"]
    child = imprint.forget(run, ids, method="retrain", path=tmp_path / "gone", progress=False)
    alone = imprint.forget(run, ids, method="retrain", path=tmp_path / "alone", progress=False)
    assert same(weights(child), weights(alone))
    assert child.manifest["forgot"]["count"] == 6
