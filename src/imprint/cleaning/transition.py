"""Noise transition: which classes are given which labels, and how often.

Confident learning counts given against confident labels and calibrates the counts to the labels that there are (Northcutt, Jiang, Chuang
2021). That is an estimate of the joint distribution of given and true labels; divided by the shares of the true ones it is the
row-stochastic matrix

    T[true, given] = P(given label | true label),

which says what to do: labels that two classes exchange need a better definition, one class that is drawn from everywhere a
better annotator. The intervals are of a Bayesian bootstrap over examples, thresholds estimated anew each time: they hold for new
examples, and not for the errors of the model, which counts as noise what it confuses itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from imprint.cleaning.confident import Probabilities, class_thresholds, confident_guess, self_confidence
from imprint.cleaning.folds import folds_of
from imprint.cleaning.trajectories import EARLY_AVERAGE
from imprint.errors import MethodError
from imprint.methods import Method, evaluate
from imprint.recording.needs import Classes, Need, OutOfFold, Target

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Resamples of the bootstrap; the ends of a 95 % interval are then the 5th lowest and highest of them.
RESAMPLES = 200
LEVEL = 0.95


def joint_distribution(
    probabilities: Probabilities,
    target: Int[np.ndarray, " example"],
    weights: Float[np.ndarray, " example"] | None = None,
) -> Float[np.ndarray, "given true"]:
    """Estimated joint distribution of given and true labels; its sum is 1.

    Args:
        probabilities: `[example, class]`, best from a model that did not see the example with this label; rows sum to 1.
        target: Given class codes.
        weights: Of the examples; None for all one.

    Returns:
        Shares of (given, true). Each row sums to the share of the examples that are given this label.

    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    >>> joint_distribution(probabilities, np.array([0, 0, 0, 1, 1, 1])).round(2)
    array([[0.33, 0.17],
           [0.17, 0.33]])
    """
    confidence = self_confidence(probabilities, target)
    return _joint(probabilities, target, confidence, np.ones(len(target)) if weights is None else weights)


def _joint(
    probabilities: Probabilities,
    target: Int[np.ndarray, " example"],
    confidence: Float[np.ndarray, " example"],
    weights: Float[np.ndarray, " example"],
) -> Float[np.ndarray, "given true"]:
    classes = probabilities.shape[1]
    guess, _ = confident_guess(probabilities, target, class_thresholds(confidence, target, classes, weights))
    sure = guess >= 0
    joint = np.bincount(target[sure] * classes + guess[sure], weights[sure], classes**2).reshape(classes, classes)
    share = np.bincount(target, weights, classes)
    # A label none of whose examples is confidently anything is taken as right.
    joint[np.diag_indices(classes)] = np.where(joint.sum(1) > 0, joint.diagonal(), share)
    total = joint.sum(1, keepdims=True)
    return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0) * share[:, None] / share.sum()


def transition_matrix(joint: Float[np.ndarray, "*draw given true"]) -> Float[np.ndarray, "*draw true given"]:
    """T[true, given] = P(given label | true label); rows sum to 1. A class that nothing is estimated to be keeps its label.

    >>> transition_matrix(np.array([[0.3, 0.1], [0.2, 0.4]]))
    array([[0.6, 0.4],
           [0.2, 0.8]])
    """
    share = joint.sum(-2)[..., None]
    turned = np.swapaxes(joint, -1, -2)
    return np.where(share > 0, turned / np.where(share > 0, share, 1), np.eye(joint.shape[-1]))


@dataclass(frozen=True)
class NoiseTransition:
    """Which classes are given which labels.

    Attributes:
        joint: Shares of (given, true); sum 1.
        matrix: T[true, given], rows sum to 1.
        low, high: Its interval, entry by entry.
        noise: Estimated share of wrong labels, and its interval.
        classes: What the codes stand for.
        examples: Examples with each given label.
        how: Whose probabilities they are from: "out of fold", or "averaged over training".
    """

    joint: Float[np.ndarray, "given true"] = field(repr=False)
    matrix: Float[np.ndarray, "true given"] = field(repr=False)
    low: Float[np.ndarray, "true given"] = field(repr=False)
    high: Float[np.ndarray, "true given"] = field(repr=False)
    noise: tuple[float, float, float]
    classes: tuple[Any, ...]
    examples: Int[np.ndarray, " class"] = field(repr=False)
    how: str

    def frame(self) -> pl.DataFrame:
        """`true, given, rate, low, high, examples`: the last the estimated number of them; wrong labels first, the most frequent first."""
        width = len(self.classes)
        true, given = (axis.ravel() for axis in np.indices((width, width)))
        names = pl.Series([str(name) for name in self.classes])
        return (
            pl.DataFrame({
                "true": names.gather(true),
                "given": names.gather(given),
                "rate": self.matrix.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
                "examples": self.joint.T.ravel() * self.examples.sum(),
            })
            .sort(pl.col("true") == pl.col("given"), -pl.col("examples"), maintain_order=True)
        )  # fmt: skip

    def summary(self) -> str:
        """The share of wrong labels, and the largest confusions."""
        share, low, high = self.noise
        wrong = self.frame().filter((pl.col("true") != pl.col("given")) & (pl.col("examples") >= 0.5))
        worst = "; ".join(
            f"{row['true']} labelled {row['given']}: {row['rate']:.1%} of {row['true']} ({row['low']:.1%} to {row['high']:.1%})"
            for row in wrong.head(3).iter_rows(named=True)
        )
        text = (
            f"{share:.1%} of {self.examples.sum()} labels are estimated to be wrong ({LEVEL:.0%} interval for new examples {low:.1%} to "
            f"{high:.1%}), by probabilities {self.how}; what the model itself confuses counts as wrong too."
        )
        return f"{text} Most frequent: {worst}." if worst else text

    def plot(self) -> go.Figure:
        """T as a heat map: a row is a true class, its cells the labels that it is given."""
        import plotly.graph_objects as go

        names = [str(name) for name in self.classes]
        few = len(names) <= 20
        heat = go.Heatmap(
            z=self.matrix.tolist(), x=names, y=names, zmin=0, zmax=1, colorscale="Blues",
            text=[[f"{value:.0%}" if value >= 0.005 else "" for value in row] for row in self.matrix] if few else None,
            texttemplate="%{text}" if few else None,
            customdata=np.stack([self.low, self.high], 2).tolist(),
            hovertemplate="%{y} labelled %{x}: %{z:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>",
        )  # fmt: skip
        figure = go.Figure(heat)
        figure.update_layout(
            xaxis={"title": "given label", "type": "category"},
            yaxis={"title": "true label", "type": "category", "autorange": "reversed"},
        )
        return figure


def estimate_transition(
    probabilities: Float[np.ndarray, "example class"],
    target: Int[np.ndarray, " example"],
    classes: tuple[Any, ...],
    how: str = "out of fold",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NoiseTransition:
    """The transition matrix with intervals, from probabilities of each example's classes.

    Args:
        probabilities: Best from a model that did not see the example with this label; rows sum to 1.
        target: Given class codes.
        classes: What the codes stand for.
        how: Whose probabilities they are, in words.
        resamples: Of the bootstrap, in each of which every example has a weight drawn from the exponential law.
        seed: Of these draws.
    """
    if len(target) < 2:
        raise MethodError(f"{len(target)} examples tell nothing of noise.", "Give more examples.")
    generator = np.random.default_rng(seed)
    confidence = self_confidence(probabilities, target)
    joint = _joint(probabilities, target, confidence, np.ones(len(target)))
    draws = np.stack(
        [_joint(probabilities, target, confidence, generator.exponential(size=len(target))) for _ in range(resamples)]
    )
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile(transition_matrix(draws), ends, axis=0)
    least, most = np.quantile(1 - np.trace(draws, axis1=1, axis2=2), ends)
    return NoiseTransition(
        joint=joint, matrix=transition_matrix(joint), low=low, high=high,
        noise=(float(1 - np.trace(joint)), float(least), float(most)),
        classes=classes, examples=np.bincount(target, minlength=len(classes)), how=how,
    )  # fmt: skip


def noise_transition(run: Any, folds: int | None = None) -> NoiseTransition:
    """Which classes of a run's training labels are given which labels.

    Args:
        run: A recorded run of a classification.
        folds: How many trainings give out-of-fold probabilities. None: those that the run holds; where it holds none, what the model
            said in the epochs before it had memorised its labels, which costs no training and tells less in a short one.

    Raises:
        MethodError: The run is no classification.
    """
    if run.task.name != "classification":
        raise MethodError(
            f"Only classes are confused; this run is {run.task.name}.", "Use clean(run), which judges single labels."
        )
    folds = folds or folds_of(run)
    said: Need = OutOfFold("probabilities", folds=folds) if folds else EARLY_AVERAGE
    how = "out of fold" if folds else "averaged over training"

    def estimate(target: Any, classes: tuple[Any, ...], **of: Any) -> NoiseTransition:
        (probabilities,) = of.values()
        return estimate_transition(probabilities.numpy(), target.numpy(), classes, how)

    needs = (said, Target(), Classes())
    asked = Method("clean", "noise_transition", estimate, "", needs, "", ("classification",), rowwise=False)
    return evaluate(asked, run)
