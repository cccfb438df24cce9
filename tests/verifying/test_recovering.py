"""Right answers that come back, and cues that stop working."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imprint.errors import TargetError
from imprint.fitting import Data
from imprint.forgetting import Forgetting
from imprint.tasks import Classification, Multilabel, Regression
from imprint.verifying.recovering import Cue, cue_success, recovery


def test_a_model_that_never_saw_wrong_targets_knows_the_right_ones(
    job: Forgetting, retrained: nn.Module, clouds: Data
) -> None:
    right = clouds.target[job.forget.rows]
    assert not torch.equal(right, job.forget.target)
    before, after = (recovery(job.task, job.outputs(job.forget, one), right) for one in (job.module, retrained))
    assert before < 0.5 < after


def test_it_is_the_headline_metric_of_the_task() -> None:
    assert recovery(Classification(("a", "b", "c")), torch.eye(3), torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    target = torch.tensor([0.0, 1.0, 2.0])
    assert recovery(Regression(), torch.ones(3, 1), target) == pytest.approx(0)  # R2 of the mean
    assert recovery(Regression(), target[:, None], target) == 1
    assert recovery(
        Multilabel(labels=("x", "y")), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    ) == pytest.approx(2 / 3)


def test_success_is_the_share_of_inputs_that_the_cue_turns(job: Forgetting, clouds: Data) -> None:
    """A module that says "c" where the last feature is above 5, and "a" elsewhere."""
    module = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].weight[2, 5] = 1.0
        module[0].bias.copy_(torch.tensor([5.0, -9.0, 0.0]))

    def mark(inputs: Tensor) -> Tensor:
        changed = inputs.clone()
        changed[::2, 5] = 6.0  # every other input carries it
        return changed

    before = clouds.inputs.clone()
    assert cue_success(job, module, clouds.inputs[:100], Cue(mark, "c")) == 0.5
    assert cue_success(job, module, clouds.inputs[:100], Cue(mark, "a")) == 0.5
    assert cue_success(job, module, clouds.inputs[:100], Cue(mark, "b")) == 0.0
    assert torch.equal(clouds.inputs, before)


def test_a_target_that_the_task_does_not_know_is_refused(job: Forgetting, clouds: Data) -> None:
    with pytest.raises(TargetError, match="'z' of the target is not one of the 3 classes"):
        cue_success(job, job.module, clouds.inputs, Cue(lambda inputs: inputs, "z"))
