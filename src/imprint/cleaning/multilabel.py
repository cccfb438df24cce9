"""Label issues where an example has any number of labels: each label is its own question, asked by confident learning.

Given K labels an example answers K questions "is it there?", and an example is as trustworthy as its least believed answers. So
confident learning runs once per label on the pair (1 - p, p) (Thyagarajan et al. 2022, arXiv:2211.13895). An example is flagged when one
of its answers is; for a ranking the trust in its answers is aggregated so that the least trusted ones decide
(`label_set_quality`). Flags and qualities are those of cleanlab's `multilabel_classification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.cleaning.confident import Rule, find_label_issues
from imprint.cleaning.flags import Flags
from imprint.cleaning.trajectories import AVERAGE, CLEAR
from imprint.errors import MethodError
from imprint.methods import method
from imprint.recording.needs import Classes, OutOfFold, Target

# Share of an answer's trust in the moving average that runs from the most to the least trusted answer: the least trusted counts 0.8,
# the next 0.16, and so on.
FORGETTING = 0.8


def find_multilabel_issues(
    probabilities: Float[np.ndarray, "example label"],
    target: Bool[np.ndarray, "example label"],
    rule: Rule = "prune_by_noise_rate",
) -> Bool[np.ndarray, "example label"]:
    """Flag the answers ("this label is there", "it is not there") that are likely wrong.

    Args:
        probabilities: Of each label being there, best from a model that did not see the example. Rows need not sum to 1.
        target: Which labels are said to be there; 0/1 or bool.
        rule: As of `find_label_issues`.

    Returns:
        True where an answer is flagged; `.any(1)` are the examples.

    Raises:
        MethodError: If the rule is unknown or shapes do not fit.

    >>> probabilities = np.array([[0.9], [0.8], [0.05], [0.1], [0.2], [0.9]])
    >>> find_multilabel_issues(probabilities, np.array([[1], [1], [1], [0], [0], [0]]))[:, 0]
    array([False, False,  True, False, False,  True])
    """
    if probabilities.shape != target.shape:
        raise MethodError(
            f"Probabilities of shape {probabilities.shape} for targets of shape {target.shape}.",
            "Give one probability for each label of each example.",
        )
    flagged = np.zeros(target.shape, dtype=bool)
    for label in range(target.shape[1]):
        there = probabilities[:, label]
        flagged[:, label] = find_label_issues(np.stack([1 - there, there], 1), target[:, label].astype(np.int64), rule)
    return flagged


def own_probabilities(
    probabilities: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
) -> Float[Tensor, "example label"]:
    """Probability of each given answer.

    >>> own_probabilities(torch.tensor([[0.75, 0.25]]), torch.tensor([[1.0, 0.0]]))
    tensor([[0.7500, 0.7500]])
    """
    return torch.where(target > 0.5, probabilities, 1 - probabilities)


def label_set_quality(
    probabilities: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
) -> Float[Tensor, " example"]:
    """Trust in a label set: the probabilities of its answers, averaged so that the least believed decide; lower = more likely wrong.

    With the answers sorted from the most to the least believed, q <- 0.8 p + 0.2 q, starting at the first. One wrong answer
    among many right ones is seen, and two are worse than one.

    >>> label_set_quality(torch.tensor([[0.9, 0.1], [0.9, 0.8]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    tensor([0.2600, 0.8200])
    """
    own = own_probabilities(probabilities, target).sort(dim=1, descending=True).values
    labels = own.shape[1]
    weights = FORGETTING * (1 - FORGETTING) ** torch.arange(labels - 1, -1, -1, dtype=own.dtype)
    weights[0] = (1 - FORGETTING) ** (labels - 1)
    return own @ weights


def least_confidence(
    average: Float[Tensor, "example label"], target: Float[Tensor, "example label"]
) -> Float[Tensor, " example"]:
    """Trust in a label set: averaged probability of what the target says, of the label that is believed least."""
    return own_probabilities(average, target).amin(1)


@method(
    "clean", "trajectory-multilabel", kind="label", tasks=["multilabel"], needs=[AVERAGE, Target(), Classes()],
    higher="less of the probability, averaged over training, went to the least believed label",
    source="confident learning label by label (Northcutt et al. 2021; Thyagarajan et al. 2022, arXiv:2211.13895)",
)  # fmt: skip
def trajectory_multilabel(
    average: Float[Tensor, "example label"], target: Float[Tensor, "example label"], classes: Sequence[Any]
) -> Flags:
    """Label sets of which some member, or some absence, was not believed during training.

    Each label is its own question "is it there?", asked by confident learning. An example is flagged when at least one of its
    answers is; severity is that of the least believed one. What is suggested: `judge_label_sets`.
    """
    return judge_label_sets(average, target, classes, "averaged over training")


@method(
    "clean", "confident-learning-multilabel", kind="label", tasks=["multilabel"],
    needs=[OutOfFold("probabilities"), Target(), Classes()],
    higher="less of the out-of-fold probability went to the least believed label",
    source="confident learning label by label (Northcutt et al. 2021; Thyagarajan et al. 2022, arXiv:2211.13895)",
)  # fmt: skip
def confident_learning_multilabel(
    probabilities: Float[Tensor, "example label"], target: Float[Tensor, "example label"], classes: Sequence[Any]
) -> Flags:
    """Label sets of which some answer is not believed by models that had not seen the example. Costs one training per fold."""
    return judge_label_sets(probabilities, target, classes, "out of fold")


def judge_label_sets(
    probabilities: Float[Tensor, "example label"],
    target: Float[Tensor, "example label"],
    classes: Sequence[Any],
    how: str,
) -> Flags:
    """What to do about label sets of which some answer is flagged.

    Severity = 1 - the probability of the least believed of the flagged answers. Suggested: the set with the flagged answers turned,
    when all of them are clear (probability of the given answer at most 0.5 - 0.3 / 2), else a review.
    """
    given = target > 0.5
    own = own_probabilities(probabilities, target)
    flagged = torch.from_numpy(find_multilabel_issues(probabilities.numpy(), given.numpy()))
    row = flagged.any(1).nonzero().squeeze(1)
    least, which = torch.where(flagged, own, 1.0)[row].min(1)
    clear = (~flagged[row] | (own[row] <= 0.5 - CLEAR / 2)).all(1)
    names = pl.Series([str(name) for name in classes])
    words = pl.select(
        pl.format(
            f"label {{}} is {{}}, which the model gave probability {{}} {how}",
            names.gather(which.numpy()),
            pl.Series(np.where(given[row, which].numpy(), "there", "not there"), dtype=pl.String),
            pl.Series(least.numpy()).round(2),
        )
    ).to_series()
    return Flags(
        row=row.numpy(),
        severity=(1 - least).numpy(),
        suggestion=np.where(clear.numpy(), "relabel", "review").tolist(),
        evidence=words.to_list(),
        suggested=(given ^ flagged)[row].float(),
    )
