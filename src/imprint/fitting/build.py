"""From a learner to what it trains: the task, the encoder, the module, the fitted estimator or the solved head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from imprint import models, tasks
from imprint.errors import LearnerError
from imprint.fitting.data import Data, training_rows
from imprint.fitting.deletable import scheme
from imprint.fitting.heads import solve_head
from imprint.fitting.learner import OBJECT, Learner
from imprint.fitting.losses import loss_from, resolved
from imprint.fitting.seeds import derive
from imprint.fitting.sharded import Sharded
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus


def fit_task(learner: Learner, corpus: Corpus) -> Task:
    """The task, fitted: classes are those of all rows, a regression's mean and scale those of the training rows."""
    target = corpus.target
    if learner.task == "regression":
        target = target.gather(training_rows(corpus))
    return with_loss(tasks.fit(learner.task, target), learner)


def with_loss(task: Task, learner: Learner) -> Task:
    """The task, to be trained with the learner's loss.

    Raises:
        LearnerError: It is not one for this task.
    """
    return replace(task, criterion=loss_from(resolved(learner.loss, task.name)))


def encoder_for(corpus: Corpus, learner: Learner) -> Any:
    """The unfitted encoder that suits the corpus and the learner's model."""
    return models.encoder_for(corpus, "auto" if models.is_estimator(learner.model) else learner.model)


def require_code(model: Any) -> None:
    """Raise `LearnerError` if a model is only the name of a user's own object, read from a manifest."""
    if isinstance(model, str) and model.startswith(OBJECT):
        raise LearnerError(
            f"The run trained the model {model.removeprefix(OBJECT)}, whose code is not part of the run.",
            "Give it: imprint.load(path, model=YourFactory). Nothing is imported by name from a run.",
        )


def build(learner: Learner, encoder: Any, task: Task, seed: int | None = None) -> nn.Module:
    """A new module with initial weights of the learner's seed (or another one)."""
    require_code(learner.model)
    seed = learner.seed if seed is None else seed

    def one(*purpose: str | int) -> nn.Module:
        return models.module_for(
            learner.model,
            encoder.shape,
            task.width,
            derive(seed, *purpose),
            normalisation=encoder.normalisation,
            codes=getattr(encoder, "codes", 0),
        )

    if learner.deletable is None:
        return one("weights")
    return Sharded([one("shard", number, "weights") for number in range(scheme(learner.deletable).shards)])


def has_epochs(model: Any) -> bool:
    """Whether a training of this model has epochs: a network's has; a scikit-learn estimator and a solved head are fitted at once."""
    return not models.is_estimator(model) and models.solver_of(model) is None


def fit_at_once(learner: Learner, encoder: Any, task: Task, data: Data) -> nn.Module:
    """A fitted module of a learner without epochs: its scikit-learn estimator, or its solved head.

    Raises:
        LearnerError: It cannot be fitted on these data.
    """
    if models.is_estimator(learner.model):
        return fit_estimator(learner, task, data)
    return solve_head(learner, build(learner, encoder, task), task, data)


def fit_estimator(learner: Learner, task: Task, data: Data) -> models.Estimator:
    """A fitted clone of the learner's scikit-learn estimator, as a module.

    Raises:
        LearnerError: The estimator cannot be fitted on these data, or takes no weights while the examples have some.
    """
    require_code(learner.model)
    weight = None if data.weight is None else data.weight[data.rows]
    estimator = models.Estimator(learner.model, task.width, learner.seed % 2**32)
    return estimator.fit(data.inputs[data.rows], data.target[data.rows], weight)
