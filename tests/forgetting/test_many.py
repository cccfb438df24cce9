"""Every method, applied to models that are not the parent."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import MethodError
from imprint.fitting import derive, predict
from imprint.forgetting import layout, prepare
from imprint.forgetting.many import apply
from imprint.forgetting.oracles import Models, references
from imprint.forgetting.searching import grid_of
from imprint.methods import lookup, registered
from imprint.recording import Run
from imprint.recording.needs import Curvature

# Of methods whose defaults would train more than a test should.
QUICK = {"datamodel-matching": {"members": 4}, "laf": {"epochs": 1}}
DELETABLE = {"sisa": "sisa(shards=2, slices=2)", "s3t": "s3t(shards=1, slices=2, orders=2)"}
SOLVED = {"analytic": "ridge", "newton": "logistic"}
OTHERS = sorted(one.name for one in registered("forget") if one.name not in {*DELETABLE, *SOLVED})


@pytest.fixture(scope="module")
def mine(digits: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the run, since methods collect evidence of it."""
    path = tmp_path_factory.mktemp("many") / "base"
    shutil.copytree(digits.path, path, ignore=shutil.ignore_patterns("fleets", "lock", "curvature*"))
    return imprint.load(path)


@pytest.fixture(scope="module")
def two(mine: Run) -> Models:
    return references(mine, 2)


@pytest.fixture(scope="module")
def curve(wave: Run) -> Models:
    return references(wave, 2)


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in module.parameters()])


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_forgets_from_each_model(
    name: str, mine: Run, sevens: np.ndarray, two: Models, wave: Run, curve: Models
) -> None:
    run, models, places = mine, two, sevens
    if not lookup("forget", name).serves(mine):
        run, models, places = wave, curve, np.flatnonzero(wave.target().numpy() > 1)
    before = [file for file in run.path.rglob("*.safetensors") if "forgetting" in file.parts]
    done = apply(run, places, name, QUICK.get(name, {}), models, 2)
    assert done.outputs.shape == models.outputs[:2].shape
    assert len(done.modules) == len(done.seconds) == 2
    assert before == [file for file in run.path.rglob("*.safetensors") if "forgetting" in file.parts]
    for number, one in enumerate(done.modules):
        assert not one.training
        assert torch.equal(predict(one, run.task, models.shared.data.inputs), done.outputs[number])
    # It went on from each model, and not from the parent: what comes out differs from model to model.
    assert float((done.outputs[0] - done.outputs[1]).abs().max()) > 1e-3
    if name == "nothing":
        assert torch.allclose(done.outputs, models.outputs, atol=1e-5)
    elif name != "retrain":
        ours, theirs = (torch.stack(list(map(flat, every))) for every in (done.modules, map(models.module, range(2))))
        assert torch.cdist(ours, theirs).argmin(1).tolist() == [0, 1]
    # The same again with the defaults written out, as a search begins with them.
    defaults = {setting: candidates[0] for setting, candidates in grid_of(lookup("forget", name), run.learner).items()}
    again = apply(run, places, name, {**defaults, **QUICK.get(name, {})}, models, 1)
    assert torch.equal(again.outputs[0], done.outputs[0])


@pytest.mark.parametrize("name", sorted(DELETABLE))
def test_a_deletable_training_is_repeated_with_the_models_seed(
    name: str, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    learner = imprint.Learner("mlp", epochs=2, batch_size=32, deletable=DELETABLE[name])
    run = imprint.fit(learner, corpus, tmp_path_factory.mktemp(name) / "base", progress=False)
    models, places = references(run, 2), np.array([3])
    done, again = (apply(run, places, one, {}, models, 2) for one in (name, "retrain"))
    kept = torch.from_numpy(np.delete(run.rows(), places))
    for number, seed in enumerate(models.seeds):
        own = replace(prepare(run, places), learner=replace(run.learner, seed=seed))
        assert torch.equal(lookup("forget", name).function(own).module(own.data.inputs), done.outputs[number])
    if name == "sisa":
        assert torch.equal(done.outputs, again.outputs)
    assert not torch.equal(done.outputs[:, kept], models.outputs[:, kept])


@pytest.mark.parametrize("name", sorted(SOLVED))
def test_a_head_without_chance_has_one_model(name: str, ridge: Run, logistic: Run) -> None:
    run = {"ridge": ridge, "logistic": logistic}[SOLVED[name]]
    places = np.arange(20)
    models = references(run, 3)
    done, again = (apply(run, places, one, {}, models, 3) for one in (name, "retrain"))
    assert len(done.outputs) == 1
    assert torch.allclose(done.outputs, again.outputs, atol=1e-2 if name == "newton" else 1e-5)


def test_chance_differs_from_model_to_model_and_not_from_call_to_call(
    mine: Run, sevens: np.ndarray, two: Models
) -> None:
    done = apply(mine, sevens, "random-labels", {}, two, 2, seed=7)
    for number in range(2):
        job = prepare(mine, sevens, seed=derive(7, "model", number), module=two.module(number))
        said = predict(lookup("forget", "random-labels").function(job).module, mine.task, job.data.inputs)
        assert torch.equal(said, done.outputs[number])
    other = apply(mine, sevens, "random-labels", {}, two, 1, seed=8)
    assert not torch.equal(other.outputs[0], done.outputs[0])


def test_no_evidence_of_the_parents_weights_is_taken_for_theirs(
    mine: Run, sevens: np.ndarray, two: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.collect([Curvature(approximation="diagonal", fisher="empirical")])
    fitted: list[int] = []
    original = layout.fitted
    monkeypatch.setattr(layout, "fitted", lambda *given: (fitted.append(len(given[1])), original(*given))[1])
    memories: list[dict] = [{}, {}]
    done = apply(mine, sevens, "ssd", {}, two, 2, memories=memories)
    assert sum(fitted) == 2 * len(mine)  # each example once for each model, though the run has recorded it all
    before = len(fitted)
    again = apply(mine, sevens, "ssd", {}, two, 2, memories=memories)  # what was found of all is remembered
    assert fitted[before:] == [len(sevens)] * 2
    assert torch.equal(again.outputs, done.outputs)


def test_an_influence_of_the_parent_is_said_to_be_one(mine: Run, sevens: np.ndarray, two: Models) -> None:
    settings = {"attribution": "influence-diagonal", "epochs": 1}
    done = apply(mine, sevens, "datamodel-matching", settings, two, 1)
    assert "the run's own weights" in done.notes[-1]


def test_what_is_wrong_is_said(mine: Run, sevens: np.ndarray, two: Models) -> None:
    with pytest.raises(MethodError, match="no setting 'alpa'"):
        apply(mine, sevens, "ssd", {"alpa": 1}, two, 2)
    with pytest.raises(MethodError, match="'blindspot' is for regression"):
        apply(mine, sevens, "blindspot", {}, two, 2)
