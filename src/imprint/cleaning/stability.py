"""Stability of a benchmark: at which share of mislabelled test examples does a ranking of models turn round?

A test set holds examples with a right label (C) and some with a wrong one (E) whose right label is known by now. A model is right on
a share `c` of C and on a share `e` of E, by the given or by the corrected labels. A test set with a prevalence `p` of originally
mislabelled examples, made by leaving out examples of C at random, would show it an accuracy of

    (1 - p) c + p e

on average, a line in p. Two lines cross at

    p* = (c_a - c_b) / ((c_a - c_b) - (e_a - e_b)),

and a benchmark is as stable as its prevalence is far from there (Northcutt, Athalye, Mueller 2021, arXiv:2103.14749). Leads are measured on
few examples, so that a crossing is nowhere a point: the interval holds every prevalence at which the lead is not told from zero
(Fieller's set), with the examples of C and of E as two samples of their own. Where it holds all of 0 to 1, nothing was ever decided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool
from scipy import stats

from imprint.errors import EvidenceError, MethodError
from imprint.recording.needs import Outputs

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROUNDING = 1e-12
LABELS = ("given", "corrected")
SCHEMA: dict[str, Any] = {
    "labels": pl.String, "leader": pl.String, "other": pl.String, "lead": pl.Float64, "lead_clean": pl.Float64,
    "lead_errors": pl.Float64, "crossing": pl.Float64, "low": pl.Float64, "high": pl.Float64, "decided": pl.Boolean,
}  # fmt: skip


@dataclass(frozen=True)
class Stability:
    """How a ranking of models depends on the prevalence of mislabelled test examples.

    Attributes:
        models: Their names.
        prevalence: Share of mislabelled examples in the test set as it is.
        clean: Test examples with a right label.
        errors: Test examples with a wrong label, whose right one is known.
        shares: `[labels, model, (clean, errors)]` shares of right predictions; the first axis is `LABELS`.
        pairs: One row per kind of labels and pair of models, see `frame`.
        level: Of the intervals.
    """

    models: tuple[str, ...]
    prevalence: float
    clean: int
    errors: int
    shares: np.ndarray
    pairs: pl.DataFrame
    level: float

    def frame(self) -> pl.DataFrame:
        """One row per kind of labels and pair of models.

        Columns: labels ("given", "corrected"); leader and other (by the test set as it is); lead (there), lead_clean and lead_errors (of
        the leader, on each part alone); crossing (prevalence at which the lead is zero; null: none from 0 to 1); low, high (prevalences
        at which the lead is not told from zero, at this confidence; null: none); decided (whether the prevalence of the test set as it
        is lies outside).
        """
        return self.pairs

    def curve(self, prevalence: np.ndarray | None = None) -> pl.DataFrame:
        """Accuracy by prevalence: labels, model, prevalence, accuracy.

        Args:
            prevalence: Where; None for 0 to 1 in steps of 1 %.
        """
        at = np.linspace(0, 1, 101) if prevalence is None else np.asarray(prevalence, dtype=np.float64)
        return pl.concat(
            pl.DataFrame({"prevalence": at, "accuracy": (1 - at) * clean + at * errors}).select(
                pl.lit(labels).alias("labels"), pl.lit(model).alias("model"), "prevalence", "accuracy"
            )
            for labels, rows in zip(LABELS, self.shares, strict=True)
            for model, (clean, errors) in zip(self.models, rows, strict=True)
        )

    def plot(self) -> go.Figure:
        """Accuracy by prevalence: full lines by the corrected labels, dotted ones by the given."""
        import plotly.graph_objects as go
        from plotly.colors import qualitative

        figure = go.Figure()
        for (labels, model), lines in self.curve().group_by(["labels", "model"], maintain_order=True):
            colour = qualitative.D3[self.models.index(str(model)) % len(qualitative.D3)]
            figure.add_scatter(
                x=lines["prevalence"], y=lines["accuracy"], mode="lines", name=f"{model}, {labels} labels",
                line={"color": colour, "dash": "solid" if labels == "corrected" else "dot"},
            )  # fmt: skip
        figure.add_vline(x=self.prevalence, line_color="grey", line_width=1)
        figure.update_layout(
            xaxis_title="prevalence of mislabelled test examples", yaxis_title="accuracy", xaxis_tickformat=".0%"
        )
        return figure

    def summary(self) -> str:
        """What it says, in a few sentences."""
        said = [
            f"{self.errors} mislabelled and {self.clean} other test examples; prevalence of mislabelled ones {self.prevalence:.1%}."
        ]
        for row in self.pairs.iter_rows(named=True):
            pair = f"By the {row['labels']} labels {row['leader']} leads {row['other']} by {row['lead']:+.4f}"
            zone = "at no prevalence" if row["low"] is None else f"from {row['low']:.1%} to {row['high']:.1%}"
            turn = "no crossing" if row["crossing"] is None else f"crossing at {row['crossing']:.1%}"
            said.append(f"{pair}, {'decided' if row['decided'] else 'undecided'}: {turn}, not told apart {zone}.")
        return "\n".join(said)


def ranking_stability(
    given: Mapping[str, Bool[np.ndarray, " example"]],
    corrected: Mapping[str, Bool[np.ndarray, " example"]],
    mislabelled: Bool[np.ndarray, " example"],
    level: float = 0.95,
    prevalence: float | None = None,
) -> Stability:
    """The stability of a ranking, from what each model gets right.

    Args:
        given: Model -> whether it is right on each test example by the given labels.
        corrected: The same by the corrected labels; on examples that are not mislabelled both say the same.
        mislabelled: Which test examples had a wrong label. Examples whose right label nobody knows are left out of all three.
        level: Confidence of the intervals.
        prevalence: Of the test set, where these examples are samples of its two parts; None: as among them.

    Raises:
        EvidenceError: Fewer than two models, no example on one side, or shapes or models that differ.

    >>> wrong = np.arange(10) >= 8                                        # two of ten labels are wrong
    >>> a = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool)                # 7/8 on the clean part, 0/2 on the other
    >>> b = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], bool)                # 6/8 and 1/2
    >>> found = ranking_stability({"a": a, "b": b}, {"a": a, "b": b}, wrong)
    >>> round(found.frame()["crossing"][0], 6)                            # (1/8) / (1/8 + 1/2)
    0.2
    """
    models = tuple(given)
    wrong = np.asarray(mislabelled, dtype=bool)
    right = {
        name: [np.asarray(one[name], dtype=np.float64) for one in (given, corrected)]
        for name in models
        if name in corrected
    }
    if len(models) < 2 or set(models) != set(corrected):
        raise EvidenceError(
            f"A ranking needs the same two or more models by both labels, and there are {list(models)} and {list(corrected)}.",
            "Give each model under the same name in both.",
        )
    for name, pair in right.items():
        if any(one.shape != wrong.shape for one in pair):
            raise EvidenceError(
                f"'{name}' was judged on {pair[0].shape} and {pair[1].shape} examples, and there are {wrong.shape}.",
                "Give one value per test example, in the same order.",
            )
        if not np.array_equal(pair[0][~wrong], pair[1][~wrong]):
            raise EvidenceError(
                f"On examples that are not mislabelled '{name}' is judged differently by the given and the corrected labels.",
                "Mark every example whose label was changed as mislabelled.",
            )
    if not wrong.any() or wrong.all():
        raise EvidenceError(
            f"{int(wrong.sum())} of {len(wrong)} test examples are mislabelled; both kinds are needed.",
            "Give a test set with some known errors.",
        )
    z = float(stats.norm.ppf(0.5 + level / 2))
    here = float(wrong.mean()) if prevalence is None else prevalence
    shares = np.array(
        [[[right[name][k][~wrong].mean(), right[name][k][wrong].mean()] for name in models] for k in (0, 1)]
    )
    rows = [
        _pair(labels, a, b, right[a][k] - right[b][k], wrong, here, z)
        for k, labels in enumerate(LABELS)
        for a, b in itertools.combinations(models, 2)
    ]
    pairs = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return Stability(models, here, int((~wrong).sum()), int(wrong.sum()), shares, pairs, level)


def stability(
    run: Any,
    against: Mapping[str, Any],
    corrections: Mapping[str, Any],
    split: str = "test",
    level: float = 0.95,
    name: str | None = None,
) -> Stability:
    """The stability of the ranking of models on a test set with known errors.

    Args:
        run: A recorded run of a classifier; its test set is the one that all are judged on.
        against: Name -> another model: a run whose corpus has this split with the same ids and given labels, or what a model that was
            trained elsewhere said, a table with the columns id and label that holds every example of the split once.
        corrections: Id -> right label, of examples of this split whose given label is wrong; None for those whose right label is not
            known, which are left out.
        split: The test set.
        level: Confidence of the intervals.
        name: What the run is called; None: as its folder.

    Raises:
        EvidenceError: There is no other model, two have one name, they have not the same test set, or a correction is of no example in it.
        MethodError: A run is no classification.
    """
    name = run.path.name if name is None else name
    if not against or name in against:
        raise EvidenceError(
            f"A ranking needs other models than '{name}', and there are {list(against)}.",
            "Give them under names of their own: {'large': other}.",
        )
    shared = _said(run, name, split)
    _all_in(corrections, shared, f"corrections are of no example of the split '{split}'")
    said = {name: shared["said"]}
    for other, model in against.items():
        found = _said_elsewhere(model, other, shared) if isinstance(model, pl.DataFrame) else _said(model, other, split)
        if not found.select("id", "given").equals(shared.select("id", "given")):
            raise EvidenceError(
                f"'{other}' was tested on other examples or labels than '{name}'.", "Give models of one test set."
            )
        said[other] = found["said"]
    labels = [corrections.get(one, label) for one, label in shared.select("id", "given").iter_rows()]
    right = pl.Series([None if label is None else str(label) for label in labels], dtype=pl.String)
    known = right.is_not_null()
    judged = [
        {model: (answers == truth).filter(known).to_numpy() for model, answers in said.items()}
        for truth in (shared["given"], right)
    ]
    changed = (right != shared["given"]).filter(known).to_numpy()
    return ranking_stability(judged[0], judged[1], changed, level)


def _said(run: Any, name: str, split: str) -> pl.DataFrame:
    """Id, given and predicted label of the examples of a split, by id."""
    if run.task.name != "classification":
        raise MethodError(f"Only classifiers are right or wrong; '{name}' is {run.task.name}.", "Give classifiers.")
    rows = run.rows(split)
    outputs = Outputs("logits", split=split)
    answers = run.task.decode(run.task.predict(run.gather([outputs])[outputs.name]))
    return pl.DataFrame(
        {
            "id": run.corpus.ids.gather(rows),
            "given": run.corpus.target.gather(rows).cast(pl.String),
            "said": answers.cast(pl.String),
        }
    ).sort("id")


def _said_elsewhere(answers: pl.DataFrame, name: str, shared: pl.DataFrame) -> pl.DataFrame:
    """The same, of a table of predicted labels."""
    if not {"id", "label"} <= set(answers.columns):
        raise EvidenceError(
            f"What '{name}' said has the columns {answers.columns}.", "Give id and label, a row for each test example."
        )
    found = answers.select(pl.col("id").cast(pl.String), pl.col("label").cast(pl.String).alias("said"))
    if len(found) != len(shared) or found["id"].n_unique() != len(found) or found["said"].null_count():
        raise EvidenceError(
            f"What '{name}' said are {found['id'].n_unique()} answers on {len(shared)} test examples.",
            "Give one label for each of them.",
        )
    _all_in(found["id"], shared, f"answers of '{name}' are of no test example")
    return shared.select("id", "given").join(found, on="id", how="left", maintain_order="left")


def _all_in(ids: Iterable[str], shared: pl.DataFrame, are: str) -> None:
    unknown = sorted(set(ids) - set(shared["id"]))
    if unknown:
        raise EvidenceError(
            f"{len(unknown)} {are}: {', '.join(map(repr, unknown[:3]))}.", "Give the ids of test examples."
        )


def _pair(
    labels: str, a: str, b: str, difference: np.ndarray, wrong: np.ndarray, here: float, z: float
) -> tuple[Any, ...]:
    """One row of the table; the leader first."""
    clean, errors = difference[~wrong], difference[wrong]
    c, e = float(clean.mean()), float(errors.mean())
    lead = (1 - here) * c + here * e
    if lead < 0:
        a, b, c, e, lead = b, a, -c, -e, -lead
    zone = undecided(c, e, float(clean.var()) / len(clean), float(errors.var()) / len(errors), z)
    decided = zone is None or not zone[0] <= here <= zone[1]
    low, high = zone or (None, None)
    return labels, a, b, lead, c, e, crossing(c, e), low, high, decided


def crossing(clean: float, errors: float) -> float | None:
    """The prevalence at which a lead of `clean` on clean examples and of `errors` on mislabelled ones is zero; None if there is none.

    >>> crossing(0.01, -0.09), crossing(0.01, 0.02), crossing(0.0, 0.0)
    (0.1, None, None)
    """
    if clean == errors:
        return None
    found = clean / (clean - errors) + 0.0  # no negative zero
    return found if 0 <= found <= 1 else None


def undecided(
    clean: float, errors: float, clean_variance: float, errors_variance: float, z: float
) -> tuple[float, float] | None:
    """First and last prevalence at which a lead is less than `z` of its standard errors from zero; None if it never is.

    The lead at p is `(1 - p) clean + p errors`, its variance `(1 - p)^2 clean_variance + p^2 errors_variance`: a quadratic in p says where.

    >>> undecided(0.1, -0.1, 0.0, 0.0, 1.96), undecided(0.1, 0.1, 1e-6, 1e-6, 1.96), undecided(0.0, 0.0, 1.0, 1.0, 1.96)
    ((0.5, 0.5), None, (0.0, 1.0))
    """
    slope = errors - clean
    square = slope**2 - z**2 * (clean_variance + errors_variance)
    linear = 2 * (clean * slope + z**2 * clean_variance)
    constant = clean**2 - z**2 * clean_variance
    inside = [p for p in (0.0, 1.0) if square * p**2 + linear * p + constant <= 0]
    inner = linear**2 - 4 * square * constant
    roots: list[float] = []
    if square == 0:
        roots = [-constant / linear] if linear else []
    elif inner >= -ROUNDING * linear**2:  # a double root may come out a little below zero
        roots = [(-linear + sign * math.sqrt(max(0.0, inner))) / (2 * square) for sign in (-1, 1)]
    inside += [p for p in roots if 0 <= p <= 1]
    return (min(inside), max(inside)) if inside else None
