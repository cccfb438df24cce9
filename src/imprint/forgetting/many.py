"""A method, applied to many models as if each were the parent: what it does beside chance.

One child says little of a method: two trainings that differ in nothing but their seed differ in their outputs, too. So a verdict looks at
the method's distribution: applied to models that were trained as the parent was, by other seeds.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.errors import MethodError, nearest
from imprint.fitting import Data, Progress, derive, predict, silent
from imprint.forgetting.job import Forgetting, Forgotten, prepare
from imprint.forgetting.oracles import Models
from imprint.methods import Method, check_serves, lookup

if TYPE_CHECKING:
    from imprint.recording import Run


@dataclass(frozen=True)
class Applied:
    """What a method made of some models.

    Attributes:
        outputs: What each says of all rows of the corpus.
        modules: The models, on the learner's device, in evaluation mode.
        seconds: What the method took on each.
        notes: Of the method, each once.
    """

    outputs: Float[Tensor, "model row ..."]
    modules: list[nn.Module]
    seconds: list[float]
    notes: tuple[str, ...] = ()


def apply(
    run: Run,
    places: Int[Tensor, " example"] | np.ndarray,
    method: str,
    settings: Mapping[str, Any],
    models: Models,
    count: int,
    *,
    seed: int = 0,
    corrective: bool = False,
    data: Data | None = None,
    memories: Sequence[dict[Any, Any]] | None = None,
    progress: Progress = silent,
) -> Applied:
    """Let a method forget some examples from each of some models, as if that were the parent.

    Nothing is written but evidence that the method collects of the run. The method's randomness differs from model to model, and a method
    that trains anew does so with the model's own seed.

    Args:
        run: The parent, whose learner and data the models share.
        places: The training examples to forget, 0..n-1 in the order of `run.ids`.
        method: Name of a forget method.
        settings: Of the method.
        models: Trained on all training examples (`imprint.forgetting.oracles.references`).
        count: How many of the models.
        seed: Of the method.
        corrective: Whether these are only the known part of the bad data.
        data: The corpus encoded by the run's encoder, if at hand.
        memories: Of each model, what the method found of it in an earlier call (`Forgetting.memory`).
        progress: Told the models done.

    Raises:
        MethodError: The method is unknown, does not serve the run, or has no such setting.
    """
    one = lookup("forget", method)
    check_serves([one], run)
    checked(one, settings)
    data = models.shared.data if data is None else data
    total = min(count, len(models))
    outputs, modules, took, notes = [], [], [], dict[str, None]()
    for number in range(total):
        job = prepare(
            run,
            places,
            seed=derive(seed, "model", number),
            module=models.module(number),
            data=data,
            corrective=corrective,
        )
        job = replace(
            job,
            learner=replace(job.learner, seed=models.seeds[number]),
            memory={} if memories is None else memories[number],
        )
        began = time.perf_counter()
        done = performed(one, job, settings)
        took.append(time.perf_counter() - began)
        modules.append(done.module.eval())
        outputs.append(predict(done.module, job.task, data.inputs, device=str(job.device)))
        notes |= dict.fromkeys(done.notes)
        progress(one.name, number + 1, total)
    return Applied(torch.stack(outputs), modules, took, tuple(notes))


def performed(one: Method, job: Forgetting, settings: Mapping[str, Any]) -> Forgotten:
    """What a method makes of a job; what it draws without a generator of its own comes from the job's seed as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        done: Forgotten = one.function(job, **settings)
    return done


def checked(one: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method, its defaults filled in.

    Raises:
        MethodError: It has no such setting.
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(one.function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in settings:
        if name not in known:
            remedy = nearest(name, known) if known else "It has no settings."
            raise MethodError(f"The method '{one.name}' has no setting '{name}'.", remedy)
    return {**known, **settings}
