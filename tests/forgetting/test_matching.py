"""Datamodel matching: what is predicted, how it becomes outputs, and that the model comes to say it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.errors import MethodError
from imprint.fleets import Fleet
from imprint.forgetting import datamodel_matching, prepare
from imprint.forgetting.matching import MOST_LOSS, attributing, predicted, shifted, with_loss
from imprint.methods import lookup
from imprint.recording import Run
from imprint.tasks import Batch, Classification, Multilabel, Regression

SMALL = st.floats(-5, 5)


def job_of(run: Run, task: object) -> object:
    return replace(prepare(run, np.arange(3)), task=task)


@given(st.lists(SMALL, min_size=3, max_size=3), SMALL)
def test_a_classs_margin_changes_by_what_was_said(run: Run, logits: list[float], change: float) -> None:
    task = Classification(("a", "b", "c"))
    outputs, target = torch.tensor([logits], dtype=torch.float64), torch.tensor([1])
    after = shifted(job_of(run, task), outputs, target, torch.tensor([change], dtype=torch.float64))
    assert float(task.margin(after, target) - task.margin(outputs, target)) == pytest.approx(change, abs=1e-9)


@given(st.lists(SMALL, min_size=3, max_size=3), st.floats(0, 10))
def test_a_classs_loss_rises_by_what_was_said(run: Run, logits: list[float], rise: float) -> None:
    task = Classification(("a", "b", "c"))
    outputs, target = torch.tensor([logits], dtype=torch.float64), torch.tensor([1])
    before = task.loss(outputs, Batch(outputs, target))
    after = with_loss(job_of(run, task), outputs, target, torch.tensor([rise], dtype=torch.float64))
    wanted = min(float(before) + rise, MOST_LOSS)
    assert float(task.loss(after, Batch(after, target))) == pytest.approx(max(wanted, 1e-4), rel=1e-6)
    assert torch.equal(after[:, [0, 2]], outputs[:, [0, 2]])


def test_quantities_and_labels(run: Run) -> None:
    job = job_of(run, Regression())
    outputs, target = torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([1.0, 1.0, 1.0])
    assert shifted(job, outputs, target, torch.tensor([-0.5, -0.5, -0.5])).tolist() == [[2.5], [-1.5], [1.5]]
    assert shifted(job, outputs, target, torch.tensor([9.0, 0.5, 0.0])).tolist() == [[1.0], [-0.5], [1.0]]
    found = with_loss(job, outputs, target, torch.tensor([1.5, 0.0, 0.5]))
    assert torch.allclose(job.task.loss(found, Batch(found, target)), torch.tensor([2.0, 2.0, 0.5]), atol=1e-3)
    labels = torch.tensor([[1.0, 0.0]])
    after = shifted(job_of(run, Multilabel(("a", "b"))), torch.zeros(1, 2), labels, torch.tensor([-2.0]))
    assert after.tolist() == [[-2.0, 2.0]]


def test_the_prediction_is_the_parents_output_less_the_forgotten_scores(digits: Run) -> None:
    places = np.arange(0, 40, 4)
    job = prepare(digits, places)
    one = attributing("datamodel", 8)
    found = predicted(job, one, job.forget, 2.0)
    fleet = Fleet.load(next((digits.path / "fleets").glob("subsets-8-*")))
    rows = job.forget.rows.numpy()
    logits = fleet.outcomes("logits", rows=rows).float()
    for label in (0, 7):
        scores = (
            lookup("trace", "datamodel")
            .function(margin=logits[:, :, label], membership=fleet.weights.included())
            .matrix()
        )
        wanted = job.outputs(job.forget)[:, label] - 2 * scores[:, places].sum(1)
        assert torch.allclose(found[:, label], wanted, atol=1e-3)


def test_a_fleet_that_kept_margins_alone_moves_the_target(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from imprint.forgetting import matching

    job = prepare(digits, np.arange(0, 40, 4))
    one = attributing("subset-influence", 8)
    whole = predicted(job, one, job.forget, 1.0)
    monkeypatch.setattr(matching, "outputs_of", lambda *given: None)
    found = predicted(job, one, job.forget, 1.0)
    own = job.forget.target[:, None]
    rest = torch.ones_like(found, dtype=torch.bool).scatter(1, own, False)
    assert torch.equal(found[rest], job.outputs(job.forget)[rest])
    assert not torch.equal(whole[rest], found[rest])


@pytest.mark.parametrize("attribution", ["datamodel", "influence-ekfac"])
def test_the_model_comes_to_say_what_was_predicted(digits: Run, attribution: str) -> None:
    places = np.arange(0, 120, 4)
    members = 8 if attribution == "datamodel" else None
    job, before = prepare(digits, places), prepare(digits, places)
    for part in job.module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    wanted = predicted(before, attributing(attribution, members), before.forget, 3.0)
    done = datamodel_matching(job, attribution=attribution, members=members, multiplier=3.0, epochs=15)

    def gap(module: torch.nn.Module) -> float:
        return float((before.outputs(before.forget, module) - wanted).square().mean())

    assert gap(done.module) < 0.5 * gap(before.module)
    assert attribution in done.notes[0]
    assert ("from 8 trainings" in done.notes[0]) == (attribution == "datamodel")


def test_scores_that_only_rank_are_refused(digits: Run) -> None:
    with pytest.raises(MethodError, match="do not say how much an answer changes"):
        datamodel_matching(prepare(digits, np.arange(5)), attribution="trak")
    with pytest.raises(MethodError, match="No method 'datamodell'"):
        datamodel_matching(prepare(digits, np.arange(5)), attribution="datamodell")
