"""Conflict rows: what every verdict says of an example, side by side, and first those rows on which the verdicts disagree.

Verdicts answer different questions, and an example is acted upon by one of them at a time: a label check would drop what is merely
rare, a copy finder what is harmless. Where all agree there is nothing to decide. But some verdicts have little to do with each other, and a
copy that is no outlier is no conflict. What is a conflict is that two verdicts differ which go together on other examples:

    disagreement = mean over pairs of verdicts of |difference|, weighted by their correlation over all examples (below 0 is 0),

of verdicts between 0 (no objection) and 1. It is 0 where all say the same, and high for a label that is flagged and yet has no
influence, or an example with influence whose label is not doubted. The table is sorted by it.

| verdict | what it says |
|---|---|
| mislabelled, duplicate, leaking, outlier | severity of the worst finding of that kind, 0 = not flagged |
| memorised | probability of the given label with the example in the training set, less that without it; below 0 is 0 |
| influential | 0 up to the 90th percentile of self-influence, from there evenly to 1 at the highest |

Without the example is, the best that the run holds: the models of its fleet that did not see it (Feldman, Zhang 2020), out-of-fold models,
or what the model said in the epochs before it had memorised the label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.answers import Findings
from imprint.cleaning.folds import folds_of
from imprint.cleaning.multilabel import own_probabilities
from imprint.cleaning.trajectories import AVERAGE
from imprint.errors import ImprintError, MethodError
from imprint.methods import Method, evaluate, lookup
from imprint.recording.needs import Need, OutOfFold, Outputs, Subsets, Target

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Verdict of a finding -> its kind.
KINDS = {"mislabelled": "label", "duplicate": "duplicate", "leaking": "leak", "outlier": "outlier"}
VERDICTS = ("mislabelled", "duplicate", "memorised", "leaking", "outlier", "influential")
# From this share of the examples on, self-influence counts as high.
HIGH = 0.9
# A verdict is named among those that object from this value on.
OBJECTS = 0.5


@dataclass(frozen=True)
class Conflicts:
    """What every verdict says of every training example.

    Attributes:
        table: What `frame` gives.
        notes: Where the verdicts are from, and which the run has none of.
    """

    table: pl.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The verdicts that the run answers."""
        return tuple(name for name in VERDICTS if self.table[name].null_count() < len(self.table))

    def frame(self) -> pl.DataFrame:
        """One row per training example, the greatest disagreement first.

        `id, position, label`; one column per verdict, between 0 and 1, null where the run does not answer it; `objections`: how
        many of them are at least 0.5; `disagreement`; `suggested_value`: another label, where a finding suggests one; `verdict`: in words.
        """
        return self.table

    def summary(self) -> str:
        """How many examples are objected to, by how many verdicts, and the rows on which these disagree most."""
        counts = ", ".join(f"{int((self.table[name] >= OBJECTS).sum())} {name}" for name in self.verdicts)
        once, more = (int((self.table["objections"] >= least).sum()) for least in (1, 2))
        first = "; ".join(
            f"{row['id']} ({row['verdict']})"
            for row in self.table.head(3).iter_rows(named=True)
            if row["disagreement"] > 0
        )
        text = (
            f"{len(self.table)} training examples: {counts}; {once} with an objection, {more} with several. "
            f"Greatest disagreement: {first or 'none'}."
        )
        return " ".join([text, *self.notes])

    def plot(self) -> go.Figure:
        """The sixty rows with the greatest disagreement, verdict by verdict."""
        import plotly.graph_objects as go

        shown = self.table.head(60)
        names = list(self.verdicts)
        heat = go.Heatmap(
            z=shown.select(names).to_numpy().tolist(), x=names, y=shown["id"].to_list(), zmin=0, zmax=1, colorscale="Reds",
            customdata=shown["verdict"].to_list(), hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        )  # fmt: skip
        figure = go.Figure(heat)
        figure.update_layout(
            height=120 + 14 * len(shown), yaxis={"autorange": "reversed", "type": "category"}, xaxis={"side": "top"}
        )
        return figure


def conflicts(run: Any, findings: Findings | None = None) -> Conflicts:
    """One row per training example with what every verdict says of it, the rows first on which they disagree most.

    Nothing is trained: each verdict is the best that the run's record and its fleets give.

    Args:
        run: A recorded run.
        findings: What `imprint.clean` found, if at hand; else the answer that the run keeps, else it is asked now.
    """
    notes: list[str] = []
    if findings is None:
        kept = run.answer("findings") if "findings" in run.answers() else None
        findings = kept if isinstance(kept, Findings) else _cleaned(run)
    asked = _kinds(findings)
    base = run.examples.select("id", "position")[run.rows("train")].with_columns(
        run.corpus.target.gather(run.rows("train")).alias("label")
    )
    columns = {}
    for name, kind in KINDS.items():
        if kind in asked:
            columns[name] = _severity(findings, kind, base["id"])
        else:
            notes.append(f"{name}: no method of the findings looks for it.")
    for name, ask in (("memorised", _memorised), ("influential", _influential)):
        try:
            columns[name], note = ask(run)
            notes.append(f"{name}: {note}.")
        except ImprintError as error:
            notes.append(f"{name}: {error.problem}")
    return Conflicts(_table(base, columns, findings), tuple(notes))


def disagreement(values: Float[np.ndarray, "example verdict"]) -> Float[np.ndarray, " example"]:
    """Mean difference of pairs of verdicts, weighted by their correlation; where none go together, all pairs weigh the same.

    >>> disagreement(np.array([[1.0, 1.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]))
    array([0. , 1. , 0.5, 0. ])
    """
    one, other = np.triu_indices(values.shape[1], 1)
    if not len(one):
        return np.zeros(len(values))
    centred = values - values.mean(0)
    length = np.sqrt((centred**2).sum(0))
    scaled = centred / np.where(length > 0, length, np.inf)
    weight = np.maximum((scaled.T @ scaled)[one, other], 0)
    weight = weight / weight.sum() if weight.sum() > 0 else np.full(len(one), 1 / len(one))
    return np.abs(values[:, one] - values[:, other]) @ weight


def _table(base: pl.DataFrame, columns: dict[str, pl.Series], findings: Findings) -> pl.DataFrame:
    """The columns side by side, with their disagreement and in words."""
    names = [name for name in VERDICTS if name in columns]
    values = np.stack([columns[name].to_numpy() for name in names], axis=1)
    objects = pl.concat_list(
        pl.when(pl.col(name) >= OBJECTS).then(pl.lit(name)) for name in names
    ).list.drop_nulls().list.join(", ")  # fmt: skip
    passes = pl.concat_list(
        pl.when(pl.col(name) < OBJECTS).then(pl.lit(name)) for name in names
    ).list.drop_nulls().list.join(", ")  # fmt: skip
    relabel = (
        findings.frame()
        .filter((pl.col("kind") == "label") & (pl.col("suggestion") == "relabel") & pl.col("id").is_not_null())
        .sort("severity", descending=True)
        .unique("id", keep="first", maintain_order=True)
        .select("id", "suggested_value")
    )
    table = base.with_columns(
        columns.get(name, pl.Series([None] * len(base), dtype=pl.Float64)).alias(name) for name in VERDICTS
    )
    return (
        table.with_columns(
            pl.Series("objections", (values >= OBJECTS).sum(1)), pl.Series("disagreement", disagreement(values))
        )
        .join(relabel, on="id", how="left", maintain_order="left")
        .with_columns(
            pl.when(objects == "")
            .then(pl.lit("no objection"))
            .when(passes == "")
            .then(objects)
            .otherwise(pl.concat_str(objects, pl.lit("; not "), passes))
            .alias("verdict")
        )
        .sort("disagreement", "objections", descending=True, maintain_order=True)
    )


def _cleaned(run: Any) -> Findings:
    """What `clean` finds without further trainings, with the folds that the run holds."""
    from imprint.cleaning import clean

    return clean(run, folds=folds_of(run))


def _kinds(findings: Findings) -> set[str]:
    """The kinds that the methods of the findings look for."""
    kinds = set(findings.frame()["kind"])
    for name in findings.methods:
        one = lookup("clean", name)
        kinds |= {one.kind} if one.kind else set()
        kinds |= {"leak"} if one.kind == "duplicate" else set()  # a copy in another split
    return kinds


def _severity(findings: Findings, kind: str, ids: pl.Series) -> pl.Series:
    """Severity of the worst finding of a kind of each example; 0 = none."""
    worst = (
        findings.frame().filter(pl.col("kind") == kind).group_by("id").agg(pl.col("severity").max().cast(pl.Float64))
    )
    return pl.DataFrame({"id": ids}).join(worst, on="id", how="left", maintain_order="left")["severity"].fill_null(0.0)


def _memorised(run: Any) -> tuple[pl.Series, str]:
    """How far the label is known by heart, and whence."""
    fleet = next((need for need in (Subsets("confidence"),) if run.has(need)), None)
    if run.task.name not in ("classification", "multilabel"):
        raise MethodError(f"A label of {run.task.name} has no probability.", "Read the other verdicts.")
    if fleet is not None:
        value = evaluate(lookup("score", "memorisation"), run)
        return pl.Series(
            value.clamp(0, 1).double().numpy()
        ), f"models of the fleet that did not see it ({fleet.members} trainings)"
    folds = folds_of(run)
    without: Need = OutOfFold("probabilities", folds=folds) if folds else AVERAGE

    def contrast(confidence: Tensor, target: Tensor, **of: Tensor) -> Tensor:
        (said,) = of.values()
        if target.ndim == 2:
            unseen = own_probabilities(said, target).clamp(min=1e-12).log().mean(1).exp()  # as `confidence` is
        else:
            unseen = said.gather(1, target[:, None]).squeeze(1)
        return (confidence - unseen).clamp(0, 1)

    asked = Method("clean", "memorised", contrast, "", (Outputs("confidence"), Target(), without), "")
    how = (
        f"out-of-fold models ({folds} trainings)" if folds else "the model in the epochs before it had memorised labels"
    )
    return pl.Series(evaluate(asked, run).double().numpy()), f"the final model against {how}"


def _influential(run: Any) -> tuple[pl.Series, str]:
    """How high the self-influence is among all examples, and whence."""
    value = evaluate(lookup("score", "self-influence"), run)
    return pl.Series(exceedance(value).double().numpy()), "self-influence over the checkpoints"


def exceedance(value: Float[Tensor, " example"], high: float = HIGH) -> Float[Tensor, " example"]:
    """0 up to a percentile of the values, from there evenly by rank to 1 at the highest; equal values are equal.

    >>> exceedance(torch.tensor([3.0, 1.0, 2.0, 4.0, 4.0]), high=0.5)
    tensor([0.3333, 0.0000, 0.0000, 1.0000, 1.0000])
    """
    order, place, counts = torch.unique(value, return_inverse=True, return_counts=True)
    if len(order) < 2:
        return torch.zeros_like(value)
    below = (counts.cumsum(0) - counts).to(value.dtype)[place]  # how many examples are lower
    share = below / (len(value) - counts[-1])  # 1 of the highest
    return ((share - high) / (1 - high)).clamp(0, 1)
