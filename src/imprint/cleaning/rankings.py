"""The value by which label methods rank: how far to trust each label, for all examples, flagged or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from imprint.cleaning.multilabel import label_set_quality, least_confidence
from imprint.cleaning.residuals import RESIDUAL, residual_order, residual_trust
from imprint.cleaning.trajectories import AVERAGE, label_trust, own_probability
from imprint.methods import Method, lookup
from imprint.recording.needs import Features, Need, OutOfFold, Target


def _ranking(name: str, function: Callable[..., Tensor], needs: tuple[Need, ...]) -> Method:
    """The ranking behind a label method: as that method, but with a value for every example."""
    return replace(lookup("clean", name), function=function, needs=needs, higher="more trust in the label")


def rankings() -> dict[str, Method]:
    """Label method -> the value by which it ranks, for every example; those without extra trainings first."""
    return {
        "trajectory": _ranking("trajectory", label_trust, (AVERAGE, Target())),
        "trajectory-multilabel": _ranking("trajectory-multilabel", least_confidence, (AVERAGE, Target())),
        "trajectory-residual": _ranking("trajectory-residual", residual_trust, (RESIDUAL,)),
        "confident-learning": _ranking("confident-learning", own_probability, (OutOfFold("probabilities"), Target())),
        "confident-learning-multilabel": _ranking(
            "confident-learning-multilabel", label_set_quality, (OutOfFold("probabilities"), Target())
        ),
        "out-of-fold-residual": _ranking(
            "out-of-fold-residual", residual_order, (OutOfFold("logits"), Target(), Features())
        ),
    }
