"""Forgetting by teachers: SCRUB for any task, Blindspot and Gaussian fine-tuning for regression."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import MethodError
from imprint.fitting import derive, generator
from imprint.forgetting.controls import among, trained
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.stepping import (
    EPOCHS,
    RATE,
    Share,
    Steps,
    blocks,
    epochs_of,
    fine_tune,
    rate_of,
    steps_of,
    teacher_of,
    training,
    united,
    within,
)
from imprint.methods import method
from imprint.tasks import Classification, Multilabel, Task

REGRESSION_SOURCE = "Tarun et al. 2023, arXiv:2210.08196, github.com/ayu987/deep-regression-unlearning"
# Least epochs of SCRUB: two in which it goes away from the teacher and back, and one in which it only comes back.
SCRUB_EPOCHS = 3
# Share of the parent's epochs that the blind teacher of Blindspot is trained for: 2 of 100.
BLIND = 0.02
SEARCH: dict[str, dict[str, tuple[Any, ...]]] = {
    "scrub": {
        "learning_rate": (Share(RATE), Share(0.1), Share(1.0)),
        "alpha": (0.5, 0.1),
        "ascents": (2, 1, 3),
        "temperature": (2.0, 4.0),
    },
    "blindspot": {
        "learning_rate": (Share(RATE), Share(0.1), Share(1.0)),
        "attention": (50.0, 5.0),
        "epochs": (Share(EPOCHS), Share(0.3)),
    },
    "gaussian": {
        "learning_rate": (Share(RATE), Share(0.1), Share(1.0), Share(3.0)),
        "epochs": (Share(EPOCHS), Share(0.3)),
    },
}


@method(
    "forget", "scrub", higher="forgets more", needs=(), exact=False, search=SEARCH["scrub"],
    source="Kurmanji et al. 2023, arXiv:2302.09880, github.com/meghdadk/SCRUB",
)  # fmt: skip
def scrub(
    job: Forgetting,
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    temperature: float = 2.0,
    ascents: int = 2,
    epochs: int | None = None,
    learning_rate: float | None = None,
) -> Forgotten:
    """A student that disobeys its teacher, the parent, on the forgotten examples and obeys on the others (SCRUB).

    Of each epoch the first `ascents` begin with a pass over the forgotten examples, up the divergence from the teacher; each goes
    over the retained ones, down `alpha x divergence + gamma x loss`. The defaults are those of the authors' small-scale experiments, and
    the numbers of epochs those of their large-scale ones (3, of which 2 with an ascent).

    Args:
        job: The request.
        alpha: Weight of the divergence from the teacher on retained examples.
        gamma: Weight of their loss.
        temperature: Softens both distributions; a quantity has none.
        ascents: In how many epochs it goes away from the teacher.
        epochs: Passes over the retained examples; None for a tenth of the parent's, at least 3.
        learning_rate: None for three tenths of the parent's peak.
    """
    alpha, gamma = within("alpha", alpha, 0, 1e6), within("gamma", gamma, 0, 1e6)
    temperature = within("temperature", temperature, 0, 1e3, open_low=True)
    count = max(SCRUB_EPOCHS, epochs_of(job, None)) if epochs is None else epochs_of(job, epochs)
    ascents = min(epochs_of(job, ascents), count)
    teacher = teacher_of(job)
    steps = Steps(
        job, rate_of(job, learning_rate), count * steps_of(job, job.retain) + ascents * steps_of(job, job.forget)
    )
    with training(job):
        for epoch in range(count):
            if epoch < ascents:
                for gone in blocks(job, job.forget, epoch):
                    with torch.no_grad():
                        said = job.forward(gone.inputs, teacher)
                    steps(-gone.mean(divergence(job.task, job.forward(gone.inputs), said, temperature)))
            for kept in blocks(job, job.retain, epoch):
                with torch.no_grad():
                    said = job.forward(kept.inputs, teacher)
                outputs = job.forward(kept.inputs)
                obeyed = kept.mean(divergence(job.task, outputs, said, temperature))
                steps(alpha * obeyed + gamma * kept.mean(job.loss(outputs, kept.target)))
            steps.check()
    return Forgotten(job.module, False, NONE, steps.close())


def divergence(
    task: Task, outputs: Float[Tensor, "example ..."], teacher: Float[Tensor, "example ..."], temperature: float = 1.0
) -> Float[Tensor, " example"]:
    """Kullback-Leibler divergence of what a teacher says from what is said, in nats, times the squared temperature.

    Of several labels the mean over labels; of a quantity half the squared difference, that of two Gaussians of variance 1.

    >>> from imprint.tasks import Regression
    >>> divergence(Regression(), torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([2.])
    """
    if isinstance(task, Classification):
        log, wanted = (outputs / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
        return F.kl_div(log, wanted, reduction="none", log_target=True).flatten(1).sum(1) * temperature**2
    if isinstance(task, Multilabel):
        logits, wanted = outputs / temperature, teacher / temperature
        p = wanted.sigmoid()
        each = p * (F.logsigmoid(wanted) - F.logsigmoid(logits))
        each = each + (1 - p) * (F.logsigmoid(-wanted) - F.logsigmoid(-logits))
        return each.flatten(1).mean(1) * temperature**2
    return 0.5 * (outputs - teacher).square().flatten(1).sum(1)


@method(
    "forget", "blindspot", higher="forgets more", needs=(), tasks=("regression",), exact=False, search=SEARCH["blindspot"],
    source=REGRESSION_SOURCE,
)  # fmt: skip
def blindspot(
    job: Forgetting,
    *,
    attention: float = 50.0,
    blind_epochs: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
) -> Forgotten:
    """Like a briefly trained model on the forgotten examples, and like the data on the others (Blindspot).

    A second model is trained from new weights for a moment, on retained examples only. In each batch the forgotten examples learn its
    values and where its hidden layers are active, the retained ones their targets, each by their share of the batch:

        share x (|f - blind| + attention x mean squared difference of attention maps)  +  (1 - share) x loss

    Args:
        job: The request.
        attention: Weight of the attention maps, the authors' AT_beta.
        blind_epochs: Of the second model; None for 2 in 100 of the parent's, at least one.
        epochs: Passes over all examples; None for a tenth of the parent's. The authors take 1 of 100.
        learning_rate: None for three tenths of the parent's peak.

    Raises:
        MethodError: How to build a new model is not known: the parent recorded a loop of the user's own.
    """
    if job.run.encoder is None or job.run.manifest.get("watched"):
        raise MethodError(
            f"Blindspot trains a second model, and how {job.run.path} was trained is not known: it recorded a loop of your own.",
            "Choose method='gaussian', or another that changes weights.",
        )
    attention = within("attention", attention, 0, 1e9)
    short = replace(
        among(job.learner, job.retain.places),
        epochs=epochs_of(job, blind_epochs, BLIND),
        seed=derive(job.seed, "forget", "blind"),
    )
    blind = trained(job, short).eval().requires_grad_(False)
    everything = united(job.forget, job.retain)
    count, rate = epochs_of(job, epochs), rate_of(job, learning_rate)
    steps = Steps(job, rate, count * steps_of(job, everything))
    with training(job):
        for epoch in range(count):
            for block in blocks(job, everything, epoch):
                gone = torch.isin(block.places, job.forget.places).to(job.device)
                share = float(gone.float().mean())
                with listening(job.module) as own:
                    outputs = job.forward(block.inputs)
                loss = outputs.new_zeros(())
                if share < 1:
                    losses = job.loss(outputs[~gone], block.target[~gone])
                    weight = None if block.weight is None else block.weight[~gone]
                    loss = loss + (1 - share) * (losses if weight is None else losses * weight).mean()
                if share > 0:
                    with torch.no_grad(), listening(blind) as wanted:
                        said = job.forward(block.inputs[gone], blind)
                    away = F.l1_loss(outputs[gone], said)
                    for one, other in zip(own, wanted, strict=True):
                        away = away + attention * (attended(one[gone]) - attended(other)).square().mean()
                    loss = loss + share * away
                steps(loss)
            steps.check()
    notes = (f"The second model was trained for {short.epochs} of the parent's {job.learner.epochs} epochs.",)
    return Forgotten(job.module, False, NONE, steps.close(), notes)


@contextmanager
def listening(module: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into each linear layer and convolution of a call but the first: the hidden activations."""
    layers = [one for one in module.modules() if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d)]
    heard: list[Tensor] = []
    handles = [one.register_forward_pre_hook(lambda _, given: heard.append(given[0])) for one in layers[1:]]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def attended(hidden: Float[Tensor, "example ..."]) -> Float[Tensor, "example place"]:
    """Attention map of hidden activations, of length 1: squares, averaged over the channels where there are places.

    >>> attended(torch.tensor([[3.0, 0.0], [1.0, 1.0]])).round(decimals=3)
    tensor([[1.0000, 0.0000],
            [0.7070, 0.7070]])
    """
    squares = hidden.float().square()
    return F.normalize(squares if squares.dim() == 2 else squares.mean(1).flatten(1), dim=1)


@method(
    "forget", "gaussian", higher="forgets more", needs=(), tasks=("regression",), exact=False, search=SEARCH["gaussian"],
    source=REGRESSION_SOURCE,
)  # fmt: skip
def gaussian(job: Forgetting, *, epochs: int | None = None, learning_rate: float | None = None) -> Forgotten:
    """Train on all examples, the forgotten ones with targets drawn from a Gaussian (Gaussian-amnesiac fine-tuning).

    The Gaussian has the mean and spread of the retained targets. The authors take those of all, with the forgotten among them.

    Args:
        job: The request.
        epochs: Passes over all examples; None for a tenth of the parent's. The authors take 1 of 100.
        learning_rate: None for three tenths of the parent's peak.
    """
    kept = job.retain.target.double()
    noise = torch.randn(len(job.forget), generator=generator(job.seed, "forget", "labels"), dtype=torch.float64)
    everything = united(job.forget, job.retain)
    target = everything.target.clone()
    drawn = kept.mean() + kept.std(correction=0) * noise
    target[torch.searchsorted(everything.places, job.forget.places)] = drawn.to(target.dtype)
    steps = fine_tune(job, everything, epochs_of(job, epochs), rate_of(job, learning_rate), target=target)
    return Forgotten(job.module, False, NONE, steps)
