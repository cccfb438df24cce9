"""How soon a model knows again what it forgot: what was only hidden comes back faster than what was never there.

A model that never saw the examples needs as long for them as for any new ones. One whose weights still carry them is back after a step or
two (relearn time: Golatkar et al. 2020, arXiv:1911.04933; Tarun et al. 2023, arXiv:2111.08947).
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import Forgetting
from imprint.forgetting.stepping import Steps, blocks, rate_of, steps_of, training

# How often an epoch is interrupted to see how far it is, if it has as many steps.
LOOKS = 4


def relearn(job: Forgetting, module: nn.Module, target_loss: float, *, cap: int = 20) -> float:
    """Epochs of training on the forgotten examples alone until their mean loss is as low as `target_loss`.

    Trained with the parent's optimizer, batch size, weight decay, loss and augmentation, from a fresh optimizer and at a constant three
    tenths of the parent's peak rate: a schedule has no place where the end is not known, and the peak itself throws back at first what
    is nearly there. The loss is looked at in evaluation mode, four times an epoch or after each step, and taken to be linear in
    between. The order of examples is that of the job's seed, so that two modules are led through the same batches.

    Args:
        job: Whose examples are to be learned again; its module is not touched.
        module: The one that has forgotten; a copy of it is trained.
        target_loss: The parent's mean loss on them, `mean_loss(job, parent)`.
        cap: The most epochs.

    Returns:
        Lower = it was still there; 0 where the loss is that low already, and `cap` where it is not reached: "cap or more".

    Raises:
        MethodError: The module has no weights to train, or `cap` is no whole number above 0.
    """
    if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
        raise MethodError(f"cap={cap!r} is not a whole number above 0.", "Give the most epochs, such as 20.")
    job = replace(job, module=copy.deepcopy(module).requires_grad_(True))
    per_epoch = steps_of(job, job.forget)
    looks = {round(per_epoch * number / LOOKS) for number in range(1, LOOKS + 1)}
    before, at = mean_loss(job), 0.0
    if before <= target_loss:
        return 0.0
    steps = Steps(job, rate_of(job, None), cap * per_epoch)
    for epoch in range(cap):
        with training(job):
            for number, block in enumerate(blocks(job, job.forget, epoch), 1):
                steps(block.mean(job.loss(job.forward(block.inputs), block.target)))
                if number not in looks:
                    continue
                now, here = mean_loss(job), epoch + number / per_epoch
                job.module.train()
                if now <= target_loss:
                    share = (before - target_loss) / (before - now) if math.isfinite(before) else 1.0
                    return at + share * (here - at)
                before, at = now, here
    return float(cap)


def mean_loss(job: Forgetting, module: nn.Module | None = None) -> float:
    """Mean over the forgotten examples of what the parent's training made small, in evaluation mode.

    Args:
        job: The request.
        module: None for the job's own.
    """
    outputs = job.outputs(job.forget, module)
    with torch.no_grad():
        return float(job.loss(outputs, job.forget.target).double().mean())
