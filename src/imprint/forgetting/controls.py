"""The two ends between which every method lies: doing nothing, and training again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from imprint.errors import LearnerError
from imprint.fitting import Fixed, Learner, train
from imprint.fitting.build import build, fit_at_once, has_epochs
from imprint.fitting.deletable import train_deletable
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.methods import method
from imprint.recording.fit import fit

# The encoder stays for every method but `retrain`, and each guarantee says so with these words.
ENCODER = "The encoder stays as the parent fitted it, with the forgotten examples among its rows."


@method("forget", "nothing", higher="forgets more", needs=(), source="control", exact=False)
def nothing(job: Forgetting) -> Forgotten:
    """The parent's weights as they are: the control that every method has to beat.

    The rows leave the record, and the model knows them as before.
    """
    return Forgotten(job.module, False, "None: the weights are the parent's, and know what they knew.")


@method("forget", "retrain", higher="forgets more", needs=(), source="reference", exact=True)
def retrain(job: Forgetting) -> Forgotten:
    """Train the same learner again without the examples: the reference.

    Encoder, task and module are made anew from the retained examples, with the parent's settings and seed; the child is a recorded
    training like any other, and an interrupted one goes on. Without a folder for a child only the module is trained, on the parent's
    encoding.
    """
    learner = among(job.learner, job.retain.places)
    if job.run.encoder is None or job.run.manifest.get("watched"):
        raise LearnerError(
            f"The run {job.run.path} recorded a loop of your own, which cannot be trained again from here.",
            "Train it on run.corpus.drop(ids) and record it with imprint.watch; or choose a method that changes weights.",
        )
    if job.folder is None or job.corpus is None:
        return Forgotten(trained(job, learner), True, f"Trained again without the examples. {ENCODER}")
    run = fit(learner, job.corpus, job.folder, progress=job.progress)
    steps = 0 if run.manifest.get("estimator") else run.checkpoints.named("last").step
    guarantee = "Trained again without the examples: encoder, task and weights have never met them."
    return Forgotten(run.model().module, True, guarantee, trained=steps, recorded=True)


def trained(job: Forgetting, learner: Learner) -> nn.Module:
    """A module trained on the retained examples as the parent encoded them."""
    if not has_epochs(learner.model):
        return fit_at_once(learner, job.run.encoder, job.task, job.without)
    module = build(learner, job.run.encoder, job.task)
    if learner.deletable is not None:
        return train_deletable(learner, module, job.task, job.without, progress=job.progress).module
    return train(module, job.task, job.without, learner, progress=job.progress).module


def among(learner: Learner, places: torch.Tensor) -> Learner:
    """The learner for these of its training examples: a fixed choice of examples is renumbered."""
    if isinstance(learner.sampler, Fixed):
        return replace(learner, sampler=learner.sampler.among(places))
    return learner
