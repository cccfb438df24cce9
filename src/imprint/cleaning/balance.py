"""Class imbalance: classes so rare that a model can ignore them at no loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from imprint.cleaning.flags import Flags
from imprint.methods import method
from imprint.recording.needs import Classes, Target

# A class is rare below this fraction of the even share.
RARE = 0.1


@method(
    "clean", "imbalance", kind="imbalance", tasks=["classification", "multilabel"], needs=[Target(), Classes()],
    higher="the class has less of its even share of the examples", source="He, Garcia 2009, IEEE TKDE 21(9)",
)  # fmt: skip
def imbalance(target: Num[Tensor, "example *label"], classes: Sequence[Any]) -> Flags:
    """Classes with less than a tenth of their even share of the training examples; one finding per class, with no id.

    Severity = 1 - examples / even share. For multilabel targets the even share is the mean number of examples per label.
    """
    held = torch.bincount(target, minlength=len(classes)) if target.ndim == 1 else (target > 0.5).sum(0)
    counts = held.double().numpy()
    even = counts.mean()
    rare = np.flatnonzero(counts < RARE * even)
    rare = rare[np.argsort(counts[rare], kind="stable")]
    names = [str(classes[code]) for code in rare.tolist()]
    return Flags(
        row=np.full(len(rare), -1),
        severity=(1 - counts[rare] / even).astype(np.float32),
        suggestion=["review"] * len(rare),
        evidence=[
            f"class {name} has {int(number)} training examples; an even share would be {even:.0f}"
            for name, number in zip(names, counts[rare], strict=True)
        ],
        column=names,
    )
