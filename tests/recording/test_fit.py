"""A run on disk: what it holds, that it is aligned to ids, and that nothing is mistaken for something else."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError, RunError
from imprint.recording.needs import Classes, Dynamics, Features, Outputs, Rows, Table, Target

from .conftest import blobs

LEARNER = imprint.Learner("mlp", epochs=4, batch_size=32, seed=1)


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> imprint.Run:
    return imprint.fit(LEARNER, corpus, tmp_path_factory.mktemp("runs") / "base", progress=False)


def test_the_manifest_says_what_was_trained(run: imprint.Run, corpus: Corpus) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["status"] == run.status == "complete"
    assert manifest["corpus"]["fingerprint"] == corpus.fingerprint
    assert manifest["corpus"]["rows"] == 300
    assert manifest["learner"]["model"] == "table/mlp"
    assert "auto" not in manifest["learner"].values()
    # What is installed, as pip names it: some builds of PyTorch call themselves otherwise when asked.
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["checkpoints"]["judged_on"] == "test"
    assert not (run.path / "scratch").exists()


def test_nothing_in_a_run_is_pickled(run: imprint.Run) -> None:
    names = {path.suffix for path in run.path.rglob("*") if path.is_file()}
    assert not names & {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy"}


def test_examples_are_aligned_without_the_corpus(run: imprint.Run, corpus: Corpus) -> None:
    alone = imprint.load(run.path, corpus=None)
    assert alone.examples["id"].to_list() == corpus.ids.to_list()
    assert alone.examples["position"].to_list() == corpus.positions.to_list()
    for split in ("train", "test", None):
        assert alone.rows(split).tolist() == corpus.rows(split).tolist()
        decoded = alone.task.decode(alone.target(split))
        assert decoded.to_list() == corpus.target.gather(corpus.rows(split)).to_list()
    assert alone.ids.to_list() == corpus.ids.gather(corpus.rows("train")).to_list()
    with pytest.raises(RunError, match="no split"):
        alone.rows("valid")


def test_a_loaded_run_finds_its_corpus_and_its_model(run: imprint.Run, corpus: Corpus) -> None:
    loaded = imprint.load(run.path)
    assert loaded.corpus.fingerprint == corpus.fingerprint
    assert torch.equal(loaded.model().outputs(corpus), run.model().outputs(corpus))
    assert loaded.learner == run.learner == LEARNER.resolve(corpus)


def test_metrics_are_those_of_the_predictions(run: imprint.Run, corpus: Corpus) -> None:
    test = corpus.split("test")
    predicted = run.model().predict(test)
    accuracy = (predicted == test.target.alias("")).mean()
    assert run.metrics("test")["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.8  # three clouds two standard deviations apart
    assert run.curves()["test_accuracy"][-1] == pytest.approx(accuracy)


def test_what_is_recorded_is_the_training_pass(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imprint.recording.recorder import Recorder

    said = torch.full((4, 240, 3), torch.nan)
    steps = torch.zeros(4, 240, dtype=torch.int64)
    original = Recorder.on_batch

    def keep(
        self: Recorder, step: int, epoch: int, indices: torch.Tensor, outputs: torch.Tensor, loss: torch.Tensor
    ) -> None:
        said[epoch - 1, indices], steps[epoch - 1, indices] = outputs, step
        original(self, step, epoch, indices, outputs, loss)

    monkeypatch.setattr(Recorder, "on_batch", keep)
    run = imprint.fit(LEARNER, corpus, tmp_path, progress=False)
    recorded = run.gather([Dynamics("logits")])["logits"]
    assert torch.equal(recorded, said.half().float())
    order = run.evidence("order")
    for epoch in (1, 4):
        visits = order.visits(epoch)
        assert sorted(visits["id"].to_list()) == sorted(run.ids.to_list())
        expected = dict(zip(run.ids.to_list(), steps[epoch - 1].tolist(), strict=True))
        assert dict(visits.select("id", "step").iter_rows()) == expected
    wanted = run.ids[7]
    assert order.steps([wanted])["step"].to_list() == steps[:, 7].tolist()
    assert wanted in order.batch(int(steps[2, 7])).to_list()
    assert torch.equal(order.seen(int(steps[1].max())), torch.full((240,), 2))
    with pytest.raises(EvidenceError, match="No step"):
        order.batch(10**6)


def test_gathered_values_are_named_aligned_and_the_same_in_blocks(run: imprint.Run, corpus: Corpus) -> None:
    needs = [Dynamics("loss", epochs=0.5), Target(), Rows(), Classes(), Table()]
    whole = run.gather(needs)
    assert whole["classes"] == ("class 0", "class 1", "class 2")
    assert whole["corpus"] is corpus
    assert whole["rows"].tolist() == corpus.rows("train").tolist()
    assert whole["loss"].shape == (2, 240)
    parts = [run.gather(needs, slice(begin, begin + 100)) for begin in (0, 100, 200)]
    for name, axis in (("loss", 1), ("target", 0), ("rows", 0)):
        assert torch.equal(torch.cat([part[name] for part in parts], axis), whole[name])


def test_fields_follow_from_the_logits(run: imprint.Run) -> None:
    logits, target = run.gather([Dynamics("logits")])["logits"], run.target()
    own = logits.gather(2, target.expand(4, -1)[:, :, None]).squeeze(2)
    probabilities = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = {
        "probabilities": probabilities,
        "loss": logits.logsumexp(2) - own,
        "confidence": own.exp() / logits.exp().sum(2),
        "margin": own - logits.masked_fill(torch.nn.functional.one_hot(target, 3).bool(), -torch.inf).amax(2),
        "predicted": logits.argmax(2),
        "correct": logits.argmax(2) == target,
    }
    for field, value in expected.items():
        torch.testing.assert_close(run.gather([Dynamics(field)])[field], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(None, [0, 1, 2, 3]), (2, [0, 1]), (-1, [3]), (0.2, [0]), (0.5, [0, 1]), (9, [0, 1, 2, 3])]
)
def test_epochs_are_chosen_from_either_end(run: imprint.Run, epochs: float | None, expected: list[int]) -> None:
    whole = run.gather([Dynamics("margin")])["margin"]
    assert torch.equal(run.gather([Dynamics("margin", epochs=epochs)])["margin"], whole[expected])


def test_outputs_and_features_are_collected_in_one_pass(run: imprint.Run, corpus: Corpus, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    for kind in ("outputs", "features"):
        shutil.rmtree(tmp_path / "copy" / "evidence" / f"{kind}.lance", ignore_errors=True)
    copy = imprint.load(tmp_path / "copy", corpus)
    needs = [Outputs("logits", split=None), Features(split="test")]
    assert {need.kind for need in copy.missing(needs)} == {"outputs", "features"}
    values = copy.gather(needs)
    assert copy.missing(needs) == []
    torch.testing.assert_close(values["logits"], run.model().outputs(corpus))
    encoded = run.encoder.encode(corpus.read(corpus.rows("test")))
    torch.testing.assert_close(values["features"], encoded, rtol=1e-3, atol=1e-3)


def test_the_same_call_returns_the_finished_run(run: imprint.Run, corpus: Corpus) -> None:
    before = (run.path / "manifest.json").stat().st_mtime_ns
    again = imprint.fit(LEARNER, corpus, run.path, progress=False)
    assert again.status == "complete"
    assert (run.path / "manifest.json").stat().st_mtime_ns == before


def test_another_learner_or_corpus_is_refused_and_named(run: imprint.Run, corpus: Corpus) -> None:
    with pytest.raises(RunError, match=r"epochs=4 there, 5 here"):
        imprint.fit(imprint.Learner("mlp", epochs=5, batch_size=32, seed=1), corpus, run.path, progress=False)
    changed = corpus.relabel({corpus.ids[1]: "class 0", corpus.ids[2]: "class 1"})
    with pytest.raises(RunError, match=changed.fingerprint):
        imprint.fit(LEARNER, changed, run.path, progress=False)
    with pytest.raises(RunError, match=changed.fingerprint):
        imprint.load(run.path, changed)


def test_starting_over_replaces_the_run(corpus: Corpus, tmp_path: Path) -> None:
    imprint.fit(imprint.Learner("linear", epochs=1), corpus, tmp_path, progress=False)
    run = imprint.fit(imprint.Learner("linear", epochs=2), corpus, tmp_path, resume=False, progress=False)
    assert len(run.curves()) == 2
    assert run.gather([Dynamics("loss")])["loss"].shape[0] == 2


def test_a_folder_that_is_no_run(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(RunError, match="no run"):
        imprint.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"manifest\.json is missing"):
        imprint.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        imprint.fit(LEARNER, corpus, tmp_path / "file", progress=False)


def test_weights_and_regression(store: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(300, 3))
    y = x @ [1.0, -2.0, 0.5] * 100 + 1000 + random.normal(size=300)
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y, "sample_weight": random.random(300)})
    corpus = imprint.open(frame, target="y", store=store)
    run = imprint.fit(imprint.Learner("linear", epochs=60), corpus, tmp_path / "net", progress=False)
    assert run.task.name == "regression"
    assert run.metrics("test")["r2"] > 0.9
    assert run.examples["weight"].to_numpy() == pytest.approx(corpus.weights)
    assert run.gather([Dynamics("logits")])["logits"].shape == (60, len(run), 1)
    predicted = run.model().predict(corpus.split("test"))
    assert abs(predicted.mean() - 1000) < 100
    ridge = imprint.fit(imprint.Learner(Ridge()), corpus, tmp_path / "ridge", progress=False)
    assert ridge.metrics("test")["r2"] > 0.99


def test_multilabel(store: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(300, 3))
    labels = [[name for name, value in zip("uvw", row, strict=True) if value > 0] for row in x]
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": labels})
    corpus = imprint.open(frame, target="y", store=store)
    run = imprint.fit(imprint.Learner("linear", epochs=40), corpus, tmp_path, progress=False)
    assert run.task.name == "multilabel"
    assert run.metrics("test")["f1"] > 0.8  # guessing gives a half
    loaded = imprint.load(tmp_path)
    assert torch.equal(loaded.target("test"), loaded.task.encode(corpus.target.gather(corpus.rows("test"))))
    assert loaded.gather([Dynamics("probabilities")])["probabilities"].shape == (40, len(run), 3)


def test_an_estimator_has_outputs_but_no_dynamics(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(imprint.Learner(LogisticRegression()), corpus, tmp_path, progress=False)
    values = run.gather([Outputs("probabilities", split="test"), Features(split="test")])
    inputs = run.encoder.encode(corpus.read(corpus.rows())).numpy()
    train, test = corpus.rows("train"), corpus.rows("test")
    theirs = LogisticRegression(random_state=0).fit(inputs[train], run.target().numpy())
    torch.testing.assert_close(
        values["probabilities"], torch.from_numpy(theirs.predict_proba(inputs[test])).float(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(EvidenceError, match="LogisticRegression") as caught:
        run.gather([Dynamics("loss")])
    assert "model='auto'" in caught.value.remedy
    loaded = imprint.load(tmp_path)
    assert torch.equal(loaded.model().outputs(corpus), run.model().outputs(corpus))


def test_a_summary_holds_what_the_logits_give(corpus: Corpus, tmp_path: Path) -> None:
    learner = imprint.Learner("mlp", epochs=2, seed=3, record="logits")
    whole = imprint.fit(learner, corpus, tmp_path / "logits", progress=False)
    brief = imprint.fit(
        imprint.Learner("mlp", epochs=2, seed=3, record="summary"), corpus, tmp_path / "brief", progress=False
    )
    for field in ("loss", "margin", "confidence", "correct"):
        ours, theirs = (run.gather([Dynamics(field)])[field] for run in (brief, whole))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=5e-3)  # both went through float16, at other places
    with pytest.raises(EvidenceError, match="not probabilities"):
        brief.gather([Dynamics("probabilities")])


def test_recording_can_be_switched_off(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(imprint.Learner("mlp", epochs=1, record="none"), corpus, tmp_path, progress=False)
    assert len(run.curves()) == 1
    with pytest.raises(EvidenceError, match="recorded no 'dynamics'"):
        run.evidence("dynamics")
    with pytest.raises(EvidenceError, match="outputs"):
        run.evidence("ouputs")


def small(shape: tuple[int, ...], width: int) -> torch.nn.Module:
    """A user's own factory."""
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 4), torch.nn.Tanh(), torch.nn.Linear(4, width))


def test_a_users_model_is_not_imported_by_name(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(imprint.Learner(small, epochs=1), corpus, tmp_path, progress=False)
    loaded = imprint.load(tmp_path)
    assert str(loaded.learner.model).endswith(":small")
    with pytest.raises(LearnerError, match=r"small.*not part of the run"):
        loaded.model()
    given = imprint.load(tmp_path, model=small)
    assert torch.equal(given.model().outputs(corpus), run.model().outputs(corpus))


def test_checkpoints_are_first_best_last_and_evenly_spaced(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(imprint.Learner("linear", epochs=30), corpus, tmp_path, progress=False, keep=4)
    kept = {one.epoch for one in run.checkpoints.all()}
    best = int(run.curves()["test_accuracy"].arg_max()) + 1  # the earliest of equals
    assert kept == {1, 11, 20, 30} | {best}
    assert run.checkpoints.named("best").epoch == best
    assert run.checkpoints.named("first").epoch == 1
    assert run.checkpoints.named("11").epoch == 11
    states = list((tmp_path / "checkpoints").glob("*.state.safetensors"))
    assert [path.name for path in states] == ["epoch-0030.state.safetensors"]
    with pytest.raises(RunError, match=r"'epoch-0002'"):
        run.model("epoch-0002")


def test_examples_without_a_split_are_all_trained_on(store: Path, tmp_path: Path) -> None:
    corpus = blobs(store, seed=5).split("test")  # a version with no row called "train"
    run = imprint.fit(imprint.Learner("linear", epochs=1), corpus, tmp_path, progress=False)
    assert len(run) == len(run.ids) == 60
    assert run.gather([Dynamics("loss")])["loss"].shape == (1, 60)
