"""Relearn time: what is hidden is back sooner than what was never learned, and the clock does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import Forgetting
from imprint.forgetting.stepping import RATE
from imprint.tasks import Regression
from imprint.verifying.relearning import mean_loss, relearn


def test_the_parent_needs_no_time_and_a_model_that_never_saw_them_needs_the_longest(
    job: Forgetting, retrained: nn.Module
) -> None:
    aim = mean_loss(job)
    hidden = nn.Sequential(*job.module)  # the parent, its output weights halved: the examples are still in it
    hidden[-1] = nn.Linear(256, 3)
    hidden[-1].load_state_dict({name: one / 2 for name, one in job.module[-1].state_dict().items()})
    assert relearn(job, job.module, aim) == 0
    assert 0 < relearn(job, hidden, aim, cap=60) < relearn(job, retrained, aim, cap=60)


def test_it_is_the_time_at_which_the_loss_is_crossed(job: Forgetting, retrained: nn.Module) -> None:
    """Between two looks the loss is linear: an aim half-way between the losses at two looks is reached half-way between them."""
    start = mean_loss(job, retrained)
    assert relearn(job, retrained, start) == 0
    # Three blocks an epoch, so that a look is a third of one. The loss after one look is what the clock finds at 1/3.
    low, high = 0.0, start
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if relearn(job, retrained, middle) < 1 / 3 else (middle, high)
    assert relearn(job, retrained, (start + high) / 2) == pytest.approx(1 / 6, abs=1e-4)


def test_a_loss_that_is_not_reached_takes_the_cap(job: Forgetting, retrained: nn.Module) -> None:
    assert relearn(job, retrained, 0.0, cap=2) == 2.0
    assert relearn(job, retrained, -1.0, cap=1) == 1.0


def test_modules_stay_as_they_are_and_the_same_question_has_the_same_answer(
    job: Forgetting, retrained: nn.Module
) -> None:
    before = [one.clone() for one in retrained.state_dict().values()]
    parent = [one.clone() for one in job.module.state_dict().values()]
    answers = []
    for state in (1, 2):
        torch.manual_seed(state)
        answers.append(relearn(job, retrained, mean_loss(job), cap=5))
        assert torch.initial_seed() == state
    assert answers[0] == answers[1]
    assert all(torch.equal(one, other) for one, other in zip(before, retrained.state_dict().values(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(parent, job.module.state_dict().values(), strict=True))
    assert not retrained.training


def test_the_time_of_a_linear_model_has_a_closed_form(job: Forgetting) -> None:
    """One example x = 1, y = 0, model w x: with SGD w falls by the rate times w in a step, an epoch of one step (momentum 0.9, Nesterov
    adds 0.9 of the same gradient in the first). From w = 1 with rate r: w1 = 1 - 1.9 r, and the loss w^2 / 2 is linear in between."""
    rate = 0.1
    data = replace(
        job.data, inputs=torch.ones(2, 1), target=torch.zeros(2), splits={"train": torch.arange(2)}
    )  # the second example is retained
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(module[0].weight)
    learner = replace(job.learner, optimizer="sgd", learning_rate=rate / RATE, weight_decay=0.0)
    parts = [replace(job.forget, data=data, split=data.rows, places=torch.tensor([place])) for place in (0, 1)]
    task = Regression()
    one = replace(job, module=module, task=task, learner=learner, forget=parts[0], retain=parts[1])
    assert mean_loss(one) == pytest.approx(0.5)
    after = (1 - 1.9 * rate) ** 2 / 2
    aim = 0.45
    assert relearn(one, module, aim) == pytest.approx((0.5 - aim) / (0.5 - after), rel=1e-5)


def test_a_model_that_is_broken_is_never_back(job: Forgetting, retrained: nn.Module) -> None:
    broken = nn.Sequential(*[nn.Linear(6, 3)])
    nn.init.constant_(broken[0].weight, torch.nan)
    assert relearn(job, broken, 0.5, cap=2) == 2.0


@pytest.mark.parametrize("cap", [0, 1.5, True])
def test_an_impossible_cap_is_refused(job: Forgetting, cap: object) -> None:
    with pytest.raises(MethodError, match="cap="):
        relearn(job, job.module, 0.0, cap=cap)  # type: ignore[arg-type]
