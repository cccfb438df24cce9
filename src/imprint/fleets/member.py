"""A member of a fleet: one variation of a training, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from imprint.fitting import Fixed, Learner, Sampler


@dataclass(frozen=True)
class Member:
    """One variation of a training. None keeps what the shared training has.

    Attributes:
        seed: Of initial weights, order, dropout and augmentation; None for the learner's own.
        rows: Training rows.
        target: Encoded targets of the training rows (aligned to `rows`).
        weight: Weights of the training rows (aligned to `rows`); a training scales them to a mean of one.
        settings: Fields of the learner that differ, such as `{"learning_rate": 0.1}`.
    """

    seed: int | None = None
    rows: Int[Tensor, " example"] | np.ndarray | None = None
    target: Shaped[Tensor, "example ..."] | None = None
    weight: Float[Tensor, " example"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def learner(self, shared: Learner) -> Learner:
        """The learner of this member: the shared one with this seed and these settings, which records nothing."""
        seed = shared.seed if self.seed is None else self.seed
        return replace(shared, **{**self.settings, "seed": seed, "record": "none"})

    def sampler(self, shared: Learner, rows: Int[Tensor, " example"]) -> Sampler | str | None:
        """The sampler of this member: its own, which speaks of its own training rows, or the shared one.

        A shared fixed choice speaks of the shared training rows; this member follows it as far as it has them.

        Args:
            shared: The shared learner.
            rows: The shared training rows, ascending.
        """
        if "sampler" in self.settings:
            return self.settings["sampler"]
        if self.rows is None or not isinstance(shared.sampler, Fixed):
            return shared.sampler
        own = torch.as_tensor(self.rows).long()
        places = torch.searchsorted(rows, own).clamp(max=len(rows) - 1)
        elsewhere = len(rows) + int(shared.sampler.order.max())  # a row that is none of them was not chosen
        return shared.sampler.among(places.where(rows[places] == own, elsewhere))


@dataclass(frozen=True)
class Outcome:
    """What became of a member.

    Attributes:
        metrics: On the rows that were tested.
        outputs: On the rows that were asked for, in that order, float32; else None.
        seconds: It took.
    """

    metrics: dict[str, float]
    outputs: Float[Tensor, "example ..."] | None
    seconds: float
