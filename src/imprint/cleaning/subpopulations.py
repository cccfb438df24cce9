"""Accuracy on the minority against accuracy on the majority over many models: a line, or a curve (Liang et al. 2023, arXiv:2305.02995).

Of many models, or of one as it is trained, the accuracy on the majority subpopulation and on the minority often lie not on a line but on an
upward parabola, a moon: at first models learn what serves the majority and lose on the minority, and only then gain on both. The bend
grows with the strength of the spurious correlation in the training data, so it warns of one where no single model shows it.

A cell is a class in a group. It belongs to the majority if it holds more than its even share of its class's training examples (land
birds on land), else to the minority. Two least-squares fits of minority on majority accuracy are compared: a line and a parabola,

    minority = b0 + b1 majority + b2 majority^2,    bend = 1 - (squared error of the parabola) / (squared error of the line),

with the t-test of b2 = 0. Checkpoints of one training depend on each other, for which the test does not account.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int

from imprint.cleaning.grouping import groups_of
from imprint.errors import EvidenceError, MethodError
from imprint.fleets import Fleet
from imprint.recording.held_out import held_out
from imprint.recording.needs import Classes

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Fewest models for three coefficients and a test, and fewest examples of either subpopulation.
MODELS, LEAST = 6, 20
# Held-out examples on which checkpoints are judged.
EXAMPLES = 10_000


@dataclass(frozen=True)
class Fit:
    """Minority on majority accuracy.

    Attributes:
        line: (intercept, slope).
        parabola: (b0, b1, b2).
        r2_line, r2_parabola: Share of the variance that each explains.
        bend: Share of the line's squared error that the parabola takes away.
        p: Of b2 = 0, two-sided.
    """

    line: tuple[float, float]
    parabola: tuple[float, float, float]
    r2_line: float
    r2_parabola: float
    bend: float
    p: float

    @property
    def moon(self) -> bool:
        """Whether the fit is a clear upward parabola."""
        return self.parabola[2] > 0 and self.p <= 0.05


@dataclass(frozen=True)
class Subpopulations:
    """Majority and minority accuracy of many models.

    Attributes:
        by: What the groups are made by.
        models: Where the models are from.
        fit: The two fits.
        association: Of class and group among the training examples, 0 (none) to 1: Cramer's V.
        cells: class, group, training, held_out (counts), majority (bool).
        table: model, majority, minority, accuracy, line, parabola.
    """

    by: str
    models: str
    fit: Fit
    association: float
    cells: pl.DataFrame = field(repr=False)
    table: pl.DataFrame = field(repr=False)

    def frame(self) -> pl.DataFrame:
        """One row per model: model, majority, minority, accuracy, and what the line and the parabola say of the minority."""
        return self.table

    def summary(self) -> str:
        """The fits, and what they mean."""
        fit = self.fit
        shape = (
            "The curve bends upwards, as where models first learn what serves the majority: look for a spurious cue."
            if fit.moon
            else "No upward bend."
        )
        return (
            f"{len(self.table)} models ({self.models}), groups by {self.by}; association of class and group {self.association:.2f}. "
            f"Minority on majority accuracy: a line explains {fit.r2_line:.2f} of the variance, a parabola {fit.r2_parabola:.2f} "
            f"(bend {fit.bend:.2f}, p = {fit.p:.3f}). {shape}"
        )

    def plot(self) -> go.Figure:
        """The models, with both fits."""
        import plotly.graph_objects as go

        ordered = self.table.sort("majority")
        x = ordered["majority"].to_list()
        figure = go.Figure(
            [
                go.Scatter(x=x, y=ordered["minority"].to_list(), text=ordered["model"].to_list(), mode="markers", name="models"),
                go.Scatter(x=x, y=ordered["line"].to_list(), mode="lines", name="line"),
                go.Scatter(x=x, y=ordered["parabola"].to_list(), mode="lines", name="parabola"),
            ]
        )  # fmt: skip
        figure.update_layout(xaxis_title="accuracy on the majority", yaxis_title="accuracy on the minority")
        return figure


def subpopulations(
    run: Any, by: str | None = None, fleet: Fleet | str | os.PathLike[str] | None = None
) -> Subpopulations:
    """Majority against minority accuracy of a fleet's members or of a run's checkpoints.

    Args:
        run: A recorded run of a classification.
        by: What the groups are made by, see `imprint.cleaning.grouping`; None: the corpus's groups, else backgrounds or clusters.
        fleet: A fleet of this corpus, or its path; None: the checkpoints of the run. Members should differ in how well they do, as those
            of `sizes(...)` or of a `grid` over epochs or models.

    Raises:
        MethodError: No classification, or what makes no groups.
        EvidenceError: Fewer than six models, fewer than 20 held-out examples of either subpopulation, or a fleet of another corpus.
    """
    if run.task.name != "classification":
        raise MethodError(f"Subpopulations are of classes; this run is {run.task.name}.", "Ask clean for 'subgroups'.")
    groups = groups_of(run, by)
    target = run.target(None).numpy()
    training, rows = run.rows(), held_out(run)[1]
    if fleet is not None and not isinstance(fleet, Fleet):
        fleet = Fleet.load(os.fspath(fleet))
    if isinstance(fleet, Fleet):
        if fleet.manifest["corpus"]["fingerprint"] != run.fingerprint:
            raise EvidenceError(f"The fleet {fleet.path} is of another corpus.", "Give a fleet of the run's corpus.")
        rows = np.intersect1d(rows, fleet.queries)
    elif len(rows) > EXAMPLES:
        rows = np.sort(np.random.default_rng(0).choice(rows, EXAMPLES, replace=False))
    shape = (len(run.gather([Classes()])["classes"]), len(groups.names))
    count = np.bincount(target[training] * shape[1] + groups.code[training], minlength=shape[0] * shape[1]).reshape(
        shape
    )
    majority = major_cells(count)
    place = target[rows] * shape[1] + groups.code[rows]
    major = majority.ravel()[place]
    if min(major.sum(), (~major).sum()) < LEAST:
        raise EvidenceError(
            f"Groups by {groups.by} leave {int(major.sum())} held-out examples in the majority and {int((~major).sum())} in the minority.",
            f"Each needs {LEAST}: make groups by something else, with by=.",
        )
    names, right = _of_fleet(fleet, rows) if isinstance(fleet, Fleet) else _of_checkpoints(run, rows)
    many, few = right[:, major].mean(1), right[:, ~major].mean(1)
    fit = fitted(many, few)
    table = pl.DataFrame(
        {
            "model": names,
            "majority": many,
            "minority": few,
            "accuracy": right.mean(1),
            "line": np.polynomial.polynomial.polyval(many, fit.line),
            "parabola": np.polynomial.polynomial.polyval(many, fit.parabola),
        }
    )
    seen = np.bincount(place, minlength=shape[0] * shape[1])
    code, column = np.nonzero(count + seen.reshape(shape))
    cells = pl.DataFrame(
        {
            "class": pl.Series([str(one) for one in run.gather([Classes()])["classes"]]).gather(code),
            "group": pl.Series(groups.names).gather(column),
            "training": count[code, column],
            "held_out": seen.reshape(shape)[code, column],
            "majority": majority[code, column],
        }
    )
    source = "members of a fleet" if fleet is not None else "checkpoints of one training"
    return Subpopulations(groups.by, source, fit, association(count), cells, table)


def major_cells(count: Int[np.ndarray, "class group"]) -> Bool[np.ndarray, "class group"]:
    """Which cells hold more than their even share of their class.

    >>> major_cells(np.array([[90, 10], [20, 80]])).tolist()
    [[True, False], [False, True]]
    """
    return count * (count > 0).sum(1, keepdims=True) > count.sum(1, keepdims=True)


def association(count: Int[np.ndarray, "class group"]) -> float:
    """Cramer's V of a table of counts.

    >>> association(np.array([[50, 0], [0, 50]])), association(np.array([[25, 25], [25, 25]]))
    (1.0, 0.0)
    """
    count = count[count.sum(1) > 0][:, count.sum(0) > 0].astype(float)
    if min(count.shape) < 2:
        return 0.0
    expected = count.sum(1, keepdims=True) * count.sum(0) / count.sum()
    square = float(((count - expected) ** 2 / expected).sum())
    return float(np.sqrt(square / (count.sum() * (min(count.shape) - 1))))


def fitted(majority: Float[np.ndarray, " model"], minority: Float[np.ndarray, " model"]) -> Fit:
    """A line and a parabola through the accuracies of models.

    Raises:
        EvidenceError: Fewer than six models, or than four different accuracies on the majority.

    >>> x = np.linspace(0.5, 1, 8)
    >>> fitted(x, 2 * (x - 0.6) ** 2).moon
    True
    """
    from scipy.stats import t

    number = len(majority)
    if number < MODELS or len(np.unique(majority)) < 4:
        raise EvidenceError(
            f"{number} models with {len(np.unique(majority))} different accuracies are too few for a curve.",
            f"At least {MODELS} with 4: fit with more epochs, or give fleet=, such as imprint.fleet(run, plan=sizes([0.05, 0.1, ...])).",
        )
    middle = majority.mean()  # about the mean the columns are nearly orthogonal
    columns = np.stack([np.ones(number), majority - middle, (majority - middle) ** 2], 1)
    errors, solutions = [], []
    for width in (2, 3):
        solution = np.linalg.lstsq(columns[:, :width], minority, rcond=None)[0]
        solutions.append(solution)
        errors.append(float(((minority - columns[:, :width] @ solution) ** 2).sum()))
    total = float(((minority - minority.mean()) ** 2).sum())
    b0, b1, b2 = solutions[1]
    noise = errors[1] / max(number - 3, 1)
    inverse = float(np.linalg.pinv(columns.T @ columns)[2, 2])
    # Rounding is no noise: an exact line has no bend.
    exact = errors[0] <= 1e-12 * max(total, 1e-12)
    error = max(noise * inverse, 1e-300) ** 0.5
    p = 1.0 if exact else float(2 * t.sf(abs(b2) / error, number - 3))
    return Fit(
        (float(solutions[0][0] - solutions[0][1] * middle), float(solutions[0][1])),
        (float(b0 - b1 * middle + b2 * middle**2), float(b1 - 2 * b2 * middle), float(b2)),
        1 - errors[0] / total if total > 0 else 1.0,
        1 - errors[1] / total if total > 0 else 1.0,
        0.0 if exact else 1 - errors[1] / errors[0],
        p,
    )


def _of_fleet(fleet: Fleet, rows: Int[np.ndarray, " held_out"]) -> tuple[list[str], Bool[np.ndarray, "model held_out"]]:
    done = np.flatnonzero(fleet.done)
    right = fleet.outcomes("correct", done, rows) > 0.5
    return [f"member {number}" for number in done], right.numpy()


def _of_checkpoints(
    run: Any, rows: Int[np.ndarray, " held_out"]
) -> tuple[list[str], Bool[np.ndarray, "model held_out"]]:
    names = [one.name for one in run.checkpoints.all() if one.complete]
    if len(names) < MODELS:
        raise EvidenceError(
            f"The run has {len(names)} checkpoints, and a curve needs {MODELS} models.",
            "Fit with more epochs, or give fleet=, such as imprint.fleet(run, plan=sizes([0.05, 0.1, ...])).",
        )
    target = run.target(None)[torch.from_numpy(rows)]
    encoded = [run.model().encode(frame) for _, frame in run.corpus.batches(rows)]
    right = []
    for name in names:
        model = run.model(name)
        right.append(torch.cat([model.forward(part) for part in encoded]).argmax(1) == target)
    return names, torch.stack(right).numpy()
