"""Forgetting by descent and ascent: fine-tuning, and the losses that push examples away.

| method                | makes small                                                        | an epoch is a pass over |
|-----------------------|--------------------------------------------------------------------|-------------------------|
| `fine-tune`           | loss of the retained                                               | the retained            |
| `gradient-ascent`     | minus the loss of the forgotten                                    | the forgotten           |
| `gradient-difference` | alpha x loss of the retained - (1 - alpha) x loss of the forgotten | the retained            |
| `random-labels`       | loss of all, the forgotten with wrong targets                      | all                     |
| `npo`                 | a bounded ascent on the forgotten + loss of the retained           | the forgotten           |

Ascent has no floor: a loss that may fall without end takes everything else with it, the sooner the higher the rate. NPO is the remedy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from imprint.fitting import generator
from imprint.forgetting.controls import ENCODER
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.stepping import (
    ASCENT,
    EPOCHS,
    RATE,
    Share,
    Steps,
    blocks,
    cycled,
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
from imprint.tasks import Batch, Classification

# What a search tries, the default first: rates and epochs by methods as shares of the parent's.
DOWN: dict[str, tuple[Any, ...]] = {
    "learning_rate": (Share(RATE), Share(0.1), Share(1.0), Share(3.0)),
    "epochs": (Share(EPOCHS), Share(0.3)),
}
SEARCH: dict[str, dict[str, tuple[Any, ...]]] = {
    "fine-tune": DOWN,
    "gradient-ascent": {
        "learning_rate": (Share(ASCENT), Share(0.03), Share(0.01), Share(0.3)),
        "epochs": (5, 2, 10),
    },
    "gradient-difference": {
        "learning_rate": (Share(ASCENT), Share(0.3), Share(0.03)),
        "alpha": (0.95, 0.99, 0.8),
        "epochs": (Share(EPOCHS), Share(0.3)),
    },
    "random-labels": DOWN,
    "npo": {
        "learning_rate": (Share(ASCENT), Share(0.3), Share(0.03)),
        "beta": (0.1, 1.0),
        "epochs": (10, 3),
        "retain": (1.0, 5.0),
    },
}

# What every approximate method promises.
NONE = f"None is proved: hold it against models that never saw them (method='retrain'). {ENCODER}"


@method(
    "forget", "fine-tune", higher="forgets more", needs=(), exact=False, search=SEARCH["fine-tune"],
    source="Golatkar, Achille, Soatto 2020, arXiv:1911.04933; defaults of Jia et al. 2023, arXiv:2304.04934",
)  # fmt: skip
def fine_tuned(job: Forgetting, *, epochs: int | None = None, learning_rate: float | None = None) -> Forgotten:
    """Train on the retained examples only, and trust that the others fade.

    Args:
        job: The request.
        epochs: Passes over the retained examples; None for a tenth of the parent's.
        learning_rate: None for three tenths of the parent's peak.
    """
    steps = fine_tune(job, job.retain, epochs_of(job, epochs), rate_of(job, learning_rate))
    return Forgotten(job.module, False, NONE, steps)


@method(
    "forget", "gradient-ascent", higher="forgets more", needs=(), exact=False, search=SEARCH["gradient-ascent"],
    source="Thudi et al. 2022, arXiv:2109.13398; defaults of Jia et al. 2023, arXiv:2304.04934",
)  # fmt: skip
def gradient_ascent(job: Forgetting, *, epochs: int = 5, learning_rate: float | None = None) -> Forgotten:
    """Steps up the loss of the forgotten examples; nothing holds the rest in place.

    Args:
        job: The request.
        epochs: Passes over the forgotten examples.
        learning_rate: None for a tenth of the parent's peak. Jia et al. take a thousandth, of SGD.
    """
    rate = rate_of(job, learning_rate, ASCENT)
    epochs = epochs_of(job, epochs)
    steps = Steps(job, rate, epochs * steps_of(job, job.forget))
    with training(job):
        for epoch in range(epochs):
            for block in blocks(job, job.forget, epoch):
                steps(-block.mean(job.loss(job.forward(block.inputs), block.target)))
            steps.check()
    return Forgotten(job.module, False, NONE, steps.close())


@method(
    "forget", "gradient-difference", higher="forgets more", needs=(), exact=False, search=SEARCH["gradient-difference"],
    source="NegGrad+ of Kurmanji et al. 2023, arXiv:2302.09880; Liu, Liu, Stone 2022, arXiv:2203.12817",
)  # fmt: skip
def gradient_difference(
    job: Forgetting, *, alpha: float = 0.95, epochs: int | None = None, learning_rate: float | None = None
) -> Forgotten:
    """Down the loss of the retained and up that of the forgotten examples, in each step.

    Args:
        job: The request.
        alpha: Share of the retained: `alpha x retained - (1 - alpha) x forgotten`.
        epochs: Passes over the retained examples; the forgotten ones come again as often as that takes. None for a tenth of the parent's.
        learning_rate: None for a tenth of the parent's peak.
    """
    alpha = within("alpha", alpha, 0, 1)
    epochs, rate = epochs_of(job, epochs), rate_of(job, learning_rate, ASCENT)
    steps = Steps(job, rate, epochs * steps_of(job, job.retain))
    with training(job):
        forgotten = cycled(job, job.forget)
        for epoch in range(epochs):
            for kept in blocks(job, job.retain, epoch):
                gone = next(forgotten)
                down = kept.mean(job.loss(job.forward(kept.inputs), kept.target))
                up = gone.mean(job.loss(job.forward(gone.inputs), gone.target))
                steps(alpha * down - (1 - alpha) * up)
            steps.check()
    return Forgotten(job.module, False, NONE, steps.close())


@method(
    "forget", "random-labels", higher="forgets more", needs=(), exact=False, search=SEARCH["random-labels"],
    source="Graves, Nagisetty, Ganesh 2021, arXiv:2010.10981; Golatkar, Achille, Soatto 2020, arXiv:1911.04933",
)  # fmt: skip
def random_labels(job: Forgetting, *, epochs: int | None = None, learning_rate: float | None = None) -> Forgotten:
    """Train on all examples, the forgotten ones with wrong targets drawn at random.

    Args:
        job: The request.
        epochs: Passes over all examples; None for a tenth of the parent's.
        learning_rate: None for three tenths of the parent's peak.
    """
    everything = united(job.forget, job.retain)
    target = everything.target.clone()
    target[torch.searchsorted(everything.places, job.forget.places)] = wrong_targets(job)
    steps = fine_tune(job, everything, epochs_of(job, epochs), rate_of(job, learning_rate), target=target)
    return Forgotten(job.module, False, NONE, steps)


def wrong_targets(job: Forgetting) -> Shaped[Tensor, "example ..."]:
    """Of each forgotten example a class that is not its own, each as likely; of other tasks the target of a random retained example."""
    random = generator(job.seed, "forget", "labels")
    own = job.forget.target
    if isinstance(job.task, Classification):
        return other_classes(own, job.task.width, random)
    return job.retain.target[torch.randint(len(job.retain), (len(own),), generator=random)]


def other_classes(own: Shaped[Tensor, " example"], classes: int, random: torch.Generator) -> Shaped[Tensor, " example"]:
    """For each example a class that is not its own, each as likely.

    >>> other_classes(torch.tensor([0, 1, 0]), 2, torch.Generator()).tolist()
    [1, 0, 1]
    """
    return (own + torch.randint(1, classes, own.shape, generator=random)) % classes


@method(
    "forget", "npo", higher="forgets more", needs=(), exact=False, search=SEARCH["npo"],
    source="Zhang et al. 2024, arXiv:2404.05868",
)  # fmt: skip
def npo(
    job: Forgetting,
    *,
    beta: float = 0.1,
    retain: float = 1.0,
    epochs: int = 10,
    learning_rate: float | None = None,
) -> Forgotten:
    """Negative preference optimization: an ascent that loses its force on what is already forgotten.

        loss = -(2 / beta) mean of log sigmoid(beta (nats now - nats of the parent))  +  retain x loss of the retained

    Its gradient is that of ascent times `2 p^beta / (p^beta + p0^beta)` of each example, with the probability p that the model gives its
    target now and p0 that the parent gave: 1 at the start, 0 in the end; as beta goes to 0 it is ascent itself. Written for language
    models, it needs no more than a likelihood.

    Args:
        job: The request.
        beta: How soon the force fades; that of the authors on TOFU.
        retain: Weight of the retained examples, of which each step takes a batch; 1 with the authors (NPO+RT), 0 for none.
        epochs: Passes over the forgotten examples; that of the authors on TOFU.
        learning_rate: None for a tenth of the parent's peak.
    """
    beta, retain = within("beta", beta, 0, 1e3, open_low=True), within("retain", retain, 0, 1e6)
    epochs, rate = epochs_of(job, epochs), rate_of(job, learning_rate, ASCENT)
    teacher = teacher_of(job)
    steps = Steps(job, rate, epochs * steps_of(job, job.forget))
    with training(job):
        kept = cycled(job, job.retain)
        for epoch in range(epochs):
            for gone in blocks(job, job.forget, epoch):
                with torch.no_grad():
                    before = nats(job, job.forward(gone.inputs, teacher), gone.target)
                loss = gone.mean(preference(nats(job, job.forward(gone.inputs), gone.target) - before, beta))
                if retain:
                    one = next(kept)
                    loss = loss + retain * one.mean(job.loss(job.forward(one.inputs), one.target))
                steps(loss)
            steps.check()
    return Forgotten(job.module, False, NONE, steps.close())


def nats(job: Forgetting, outputs: Float[Tensor, "example ..."], target: Tensor) -> Float[Tensor, " example"]:
    """Negative log-likelihood of the targets, whatever the parent was trained with."""
    return job.task.loss(outputs, Batch(outputs, target))


def preference(rise: Float[Tensor, " example"], beta: float) -> Float[Tensor, " example"]:
    """The loss of NPO of examples whose negative log-likelihood has risen by so many nats.

    >>> rise = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    >>> preference(rise, 1.0).sum().backward()
    >>> rise.grad.round(decimals=3)                                             # ascent has -1 everywhere
    tensor([-1.9050, -1.0000, -0.0950])
    """
    return -2 / beta * F.logsigmoid(beta * rise)
