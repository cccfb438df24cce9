"""What a comparison says of a trained model beside its headline metric: its weakest group and how honest its confidence is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.recording import Run
from imprint.tasks.reliability import reliability

BINS = 15
# Of fewer test examples a group's accuracy is not known to ten points, and the least of many such would say nothing of the model.
FEWEST_OF_GROUP = 10


def calibration_error(probabilities: Float[Tensor, "example class"], target: Int[Tensor, " example"]) -> float:
    """Expected calibration error over 15 equal bins (`imprint.tasks.reliability`).

    0 = of the predictions with probability p a share p is right.

    >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> calibration_error(sure, torch.tensor([0, 0, 1, 1])), calibration_error(sure, torch.tensor([0, 1, 1, 0]))
    (0.0, 0.5)
    """
    confidence, said = probabilities.double().max(1)
    return reliability(confidence.numpy(), (said == target).numpy(), BINS)[1]


def groups_of(run: Run, test: Int[Tensor, " example"]) -> tuple[str, Int[Tensor, " example"] | None]:
    """Which group each test example is of, as codes, -1 for groups that are too small: by the role `group`, else by class.

    Returns:
        "group" or "class", and the codes; ("", None) where there are no groups large enough to speak of.
    """
    columns = {}
    if run.corpus.groups is not None:
        columns["group"] = run.corpus.groups.gather(test.numpy())
    if run.task.name == "classification":
        columns["class"] = run.corpus.target.gather(test.numpy())
    for name, column in columns.items():
        codes = column.rank("dense").fill_null(0).cast(int).to_torch().long()
        sizes = torch.bincount(codes)
        sizes[0] = 0  # of unknown group
        if int((sizes >= FEWEST_OF_GROUP).sum()) > 1:
            return name, torch.where(sizes[codes] >= FEWEST_OF_GROUP, codes, -1)
    return "", None


def worst_group(credit: Float[Tensor, " example"], codes: Int[Tensor, " example"]) -> float:
    """Mean credit of the group where it is least.

    Args:
        credit: What each test example adds to the headline metric.
        codes: Which group it is of; -1: none.

    >>> worst_group(torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([1, 1, 2, 2, -1]))
    0.5
    """
    known = codes >= 0
    sizes = torch.bincount(codes[known])
    means = torch.bincount(codes[known], weights=credit[known].double()) / sizes
    return float(means[sizes > 0].min())
