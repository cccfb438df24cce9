"""Label issues from the recorded trajectory: no extra training.

While a network is being trained it fits the regular part of the data first and memorises wrong labels late (Arpit et al. 2017).
So what it said of an example before it had memorised the label is nearly what a model would say that had not been shown this
label: on label noise it ranks wrong labels about as well as out-of-fold probabilities, which cost k trainings.

So epochs are averaged with weights. When the model spoke best about examples that it was not trained on, it also spoke best about
labels: an epoch weighs exp(-(held-out loss - the lowest one) / 0.05 nats). On a table that is never memorised that is nearly the
plain average; for a head on short texts, which are known by heart after eight epochs, it is the first few; for a small
convolutional net, which goes on learning, the last ones. Where nothing was held out, the record itself says how far memorising
has gone: examples whose label an early consensus doubts are followed through the epochs, and an epoch weighs (1 - s)^3, with s
the share of them on which the model has given in to the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from imprint.cleaning.confident import class_thresholds, find_label_issues
from imprint.cleaning.flags import Flags
from imprint.methods import Derived, method
from imprint.recording.needs import Classes, Dynamics, HeldOutLoss, OutOfFold, Target

# Nats of held-out loss by which an epoch may be worse before it counts for less than 1/e. Of 0.02, 0.05 and
# 0.1 it is the best or within 0.004 (AUROC) of the best on 20 recorded trajectories of images, texts and tables.
TEMPERATURE = 0.05
# The early consensus is that of the first fifth of the epochs, but never of the first one alone.
EARLY = 0.2
# A suggestion is weak when the guess leads the label by less than this probability, and clear when it leads every other class by it.
WEAK, CLEAR = 0.2, 0.3


def memorised(
    probabilities: Float[Tensor, "epoch example *label"], target: Num[Tensor, "example *label"]
) -> Float[Tensor, "example epoch"]:
    """Whether the model has given in to a doubted label in each epoch: 1 or 0, NaN for labels that are not doubted.

    A label is doubted when the average over the first fifth of the epochs (after the first one) prefers another class; the model has
    given in when it then prefers the label to that class. Multilabel: the share of the doubted answers of an example.
    """
    early = probabilities[min(1, len(probabilities) - 1) : 1 + max(1, int(EARLY * len(probabilities)))].nanmean(0)
    if target.ndim == 2:
        sign = 2 * target - 1
        doubted = (early - 0.5) * sign < 0
        given_in = ((probabilities - 0.5) * sign > 0).float()
        return torch.where(doubted, given_in, torch.nan).nanmean(2).T.contiguous()
    guess = early.argmax(1)
    pair = torch.stack([target, guess], dim=1).expand(len(probabilities), -1, -1)
    own, other = probabilities.gather(2, pair).unbind(2)
    return torch.where(guess != target, (own > other).float(), torch.nan).T.contiguous()


def epoch_weights(
    memorised: Float[Tensor, "example epoch"], held_out_loss: Float[Tensor, " epoch"] | None = None
) -> Float[Tensor, " epoch"]:
    """Weights of the epochs, with sum 1: by held-out loss where it was measured, else by what has been memorised.

    Args:
        memorised: What `memorised` gives.
        held_out_loss: Mean loss on held-out examples after each epoch, in nats; empty or None where there were none.

    >>> epoch_weights(torch.zeros(1, 3), torch.tensor([0.6, 0.5, 0.55])).round(decimals=3)
    tensor([0.0900, 0.6650, 0.2450])
    >>> epoch_weights(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [torch.nan] * 3])).round(decimals=3)
    tensor([0.8890, 0.1110, 0.0000])
    """
    if held_out_loss is not None and len(held_out_loss) == memorised.shape[1] and held_out_loss.isfinite().all():
        return torch.softmax(-held_out_loss / TEMPERATURE, 0)
    weights = (1 - memorised.nanmean(0).nan_to_num(0)) ** 3
    return weights / weights.sum() if weights.sum() > 0 else torch.full_like(weights, 1 / len(weights))


def mean_probabilities(
    probabilities: Float[Tensor, "epoch example class"], weights: Float[Tensor, " epoch"]
) -> Float[Tensor, "example class"]:
    """Predicted probabilities averaged over the epochs in which the example was seen."""
    share = weights[:, None, None] * probabilities.isfinite()
    return (share * probabilities.nan_to_num(0)).sum(0) / share.sum(0).clamp(min=1e-12)


def label_trust(average: Float[Tensor, "example class"], target: Int[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Trust in the given label: its probability less half the largest other, mapped to 0..1; lower = more likely wrong.

    The probability alone ranks evenly drawn noise slightly better, the whole margin noise that prefers one other class; half of
    the other's probability is a compromise that is close to the better one on both.

    >>> label_trust(torch.tensor([[0.6, 0.4], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor([0.6000, 0.0000])
    """
    own = average.gather(1, target[:, None])
    others = average.scatter(1, target[:, None], -torch.inf)
    return (own.squeeze(1) - others.amax(1) / 2 + 0.5) / 1.5


def trajectory_confidence(
    probabilities: Float[Tensor, "epoch example class"],
    target: Int[Tensor, " example"],
    held_out_loss: Float[Tensor, " epoch"] | None = None,
) -> Float[Tensor, " example"]:
    """Trust in the given labels from a whole trajectory: what `trajectory` ranks by.

    >>> trajectory_confidence(torch.tensor([[[0.9, 0.1]], [[0.7, 0.3]]]), torch.tensor([0]))
    tensor([0.8000])
    """
    weights = epoch_weights(memorised(probabilities, target), held_out_loss)
    return label_trust(mean_probabilities(probabilities, weights), target)


MEMORISED = Derived("memorised", function=memorised, needs=(Dynamics("probabilities"), Target()))
WEIGHTS = Derived("weights", function=epoch_weights, needs=(MEMORISED, HeldOutLoss()), rowwise=False)
AVERAGE = Derived("average", function=mean_probabilities, needs=(Dynamics("probabilities"), WEIGHTS))
# The same by the record alone: less sharp in its order, but not yet sure of labels that late epochs know by heart.
EARLY_WEIGHTS = Derived("weights", function=epoch_weights, needs=(MEMORISED,), rowwise=False)
EARLY_AVERAGE = Derived("early_average", function=mean_probabilities, needs=(Dynamics("probabilities"), EARLY_WEIGHTS))


@method(
    "clean", "trajectory", kind="label", tasks=["classification"], needs=[AVERAGE, EARLY_AVERAGE, Target(), Classes()],
    higher="the averaged probability prefers another class more clearly",
    source="confident learning (Northcutt et al. 2021, arXiv:1911.00068) on averaged training dynamics "
    "(Swayamdipta et al. 2020, arXiv:2009.10795)",
)  # fmt: skip
def trajectory(
    average: Float[Tensor, "example class"],
    early_average: Float[Tensor, "example class"],
    target: Int[Tensor, " example"],
    classes: Sequence[Any],
) -> Flags:
    """Labels that the model did not believe while it was trained on them.

    How many are flagged follows from confident learning (prune by noise rate): the larger of what it finds in the averaged probabilities
    and in the average over the epochs before memorising. Each misses some, the one those that were known by heart by the epochs that
    generalise best, the other those of classes that the model had yet to learn. Which ones follows from the order of `label_trust`: the
    least trusted whose label is not the most probable class. Severity = 1 - `label_trust`. What is suggested follows from `judge_labels`,
    by which no lead over the label is weak: the model was being trained on the label, which pulls what it says towards it, so that
    another class in front, however little, has been put there by all the other examples.
    """
    trust = label_trust(average, target)
    wrong = max(find_label_issues(said.numpy(), target.numpy()).sum() for said in (average, early_average))
    flagged = least_trusted(trust, average.argmax(1) != target, int(wrong))
    return judge_labels(flagged, average, 1 - trust, target, classes, "averaged over training", weak=0.0)


def least_trusted(
    trust: Float[Tensor, " example"], disbelieved: Bool[Tensor, " example"], number: int
) -> Bool[np.ndarray, " example"]:
    """Which are the `number` least trusted of the disbelieved examples (or all of these, if there are fewer).

    >>> least_trusted(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([False, True, True]), 1).tolist()
    [False, True, False]
    """
    candidates = disbelieved.nonzero().squeeze(1)
    chosen = candidates[trust[candidates].argsort(stable=True)[:number]]
    flagged = torch.zeros(len(trust), dtype=torch.bool)
    flagged[chosen] = True
    return flagged.numpy()


@method(
    "clean", "confident-learning", kind="label", tasks=["classification"],
    needs=[OutOfFold("probabilities"), Target(), Classes()],
    higher="less of the out-of-fold probability went to the label",
    source="Northcutt, Jiang, Chuang 2021, arXiv:1911.00068",
)  # fmt: skip
def confident_learning(
    probabilities: Float[Tensor, "example class"], target: Int[Tensor, " example"], classes: Sequence[Any]
) -> Flags:
    """Labels that models which had not seen them do not believe. Costs one training per fold.

    Models that are surer than they are right would relabel to what they are not right about. So whether another class is clear is
    judged on probabilities that were softened until they fit the given labels (`softened`); which labels are flagged is not.
    """
    flagged = find_label_issues(probabilities.numpy(), target.numpy())
    trust = own_probability(probabilities, target)
    return judge_labels(
        flagged, probabilities, 1 - trust, target, classes, "out of fold", softened(probabilities, target)
    )


def softened(
    probabilities: Float[Tensor, "example class"], target: Int[Tensor, " example"]
) -> Float[Tensor, "example class"]:
    """Probabilities to the power 1 / T, T >= 1 chosen for the likelihood of the given labels (Guo et al. 2017, arXiv:1706.04599).

    >>> said = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
    >>> softened(said, torch.tensor([0] * 7 + [1] * 3))[0].round(decimals=2)  # sure of nine in ten, right in seven
    tensor([0.7000, 0.3000])
    """
    from scipy.optimize import minimize_scalar

    logs = probabilities.double().clamp(min=1e-12).log()

    def loss(log_temperature: float) -> float:
        scaled = logs * math.exp(-log_temperature)
        return float((scaled.logsumexp(1) - scaled.gather(1, target[:, None]).squeeze(1)).mean())

    found = minimize_scalar(loss, bounds=(0.0, math.log(100.0)), method="bounded", options={"xatol": 1e-3})
    return (logs * math.exp(-found.x)).softmax(1).to(probabilities.dtype)


def judge_labels(
    flagged: Bool[np.ndarray, " example"],
    probabilities: Float[Tensor, "example class"],
    severity: Float[Tensor, " example"],
    target: Int[Tensor, " example"],
    classes: Sequence[Any],
    how: str,
    calibrated: Float[Tensor, "example class"] | None = None,
    weak: float = WEAK,
) -> Flags:
    """What to do about flagged labels.

    The guess is the most probable class. "review" when it leads the label by less than `weak`; else "relabel" to the guess
    when it leads every other class by at least 0.3 and is as probable as it usually is for examples of that class (clear); else
    "drop", since the label is not believed and no other class is clear. What is clear is judged on `calibrated`, where given.
    """
    row = torch.from_numpy(np.flatnonzero(flagged))
    said, given = probabilities[row], target[row]
    own = said.gather(1, given[:, None]).squeeze(1)
    best, guess = said.max(1)
    sure = probabilities if calibrated is None else calibrated
    usual = class_thresholds(own_probability(sure, target).numpy(), target.numpy(), sure.shape[1])
    first, second = sure[row].topk(2, dim=1).values.T
    hardly = best - own < weak
    clear = (first - second >= CLEAR) & (first >= torch.from_numpy(usual)[guess])
    names = pl.Series([str(name) for name in classes])
    words = pl.select(
        pl.format(
            f"labelled {{}}, but the model says {{}}: probability {{}} to {{}} {how}",
            names.gather(given.numpy()), names.gather(guess.numpy()),
            pl.Series(best.numpy()).round(2), pl.Series(own.numpy()).round(2),
        )
    ).to_series()  # fmt: skip
    return Flags(
        row=row.numpy(),
        severity=severity[row].clamp(0, 1).numpy(),
        suggestion=np.select([hardly.numpy(), clear.numpy()], ["review", "relabel"], "drop").tolist(),
        evidence=words.to_list(),
        suggested=guess,
    )


def own_probability(
    probabilities: Float[Tensor, "example class"], target: Int[Tensor, " example"]
) -> Float[Tensor, " example"]:
    """Probability of the given label."""
    return probabilities.gather(1, target[:, None]).squeeze(1)
