"""MacroStd: how unevenly a model treats the groups within each class (Chiu, Chen, Ma 2023, arXiv:2212.08649).

With a[c, g] the accuracy on the examples of class c in group g and w[c, g] the share of the class's examples that are in the group,

    MacroStd = mean over classes of sqrt( sum over g of w[c, g] (a[c, g] - a[c])^2 ),    a[c] = sum over g of w[c, g] a[c, g]:

the macro average over classes of the weighted standard deviation of the groups' accuracies; 0 = each class is equally easy in every group.
The weights are the groups' shares of the class, without a factor for small samples. The paper gives it for backgrounds of images
(CIFAR10-B); any groups do.

Small groups differ by chance, so MacroStd is above 0 for the fairest model. What it would be if groups made no difference is found by
dealing the model's errors out anew among the examples of each class: its mean, and how often it is as large (a permutation test).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from imprint.cleaning.grouping import groups_of
from imprint.errors import MethodError
from imprint.recording.needs import HELD_OUT, Classes, Outputs, Rows, Target

if TYPE_CHECKING:
    import plotly.graph_objects as go

DEALT = 1000


@dataclass(frozen=True)
class MacroStd:
    """How unevenly a model treats groups.

    Attributes:
        by: What the groups are made by.
        value: MacroStd; lower = more even.
        chance: What it is on average when groups make no difference.
        p: How often it is at least as large then.
        table: class, group, examples, accuracy, gap (to the class's accuracy; below zero = worse).
        classes: class, examples, accuracy, std.
    """

    by: str
    value: float
    chance: float
    p: float
    table: pl.DataFrame = field(repr=False)
    classes: pl.DataFrame = field(repr=False)

    def frame(self) -> pl.DataFrame:
        """One row per class and group: class, group, examples, accuracy, gap."""
        return self.table

    def summary(self) -> str:
        """The figure beside what chance gives, and the worst group of enough examples."""
        said = f"MacroStd by {self.by}: {self.value:.4f}; {self.chance:.4f} if groups made no difference (p = {self.p:.3f})."
        large = self.table.filter((pl.col("examples") >= 30) & (pl.col("gap") < 0)).sort("gap")
        if self.p > 0.05:
            return f"{said} No difference between groups that chance would not make."
        if not len(large):
            return f"{said} No group of 30 examples or more is below its class."
        row = large.row(0, named=True)
        return (
            f"{said} Farthest below its class: {row['class']} in {row['group']}, accuracy {row['accuracy']:.2f} on {row['examples']} "
            f"examples, {-row['gap']:.2f} lower than the class's."
        )

    def plot(self) -> go.Figure:
        """Accuracy by class and group."""
        import plotly.graph_objects as go

        wide = self.table.pivot("group", index="class", values="accuracy", aggregate_function="first")
        figure = go.Figure(
            go.Heatmap(
                z=wide.drop("class").to_numpy(), x=wide.columns[1:], y=wide["class"].cast(pl.String).to_list(),
                colorscale="RdYlGn", zmin=0, zmax=1, colorbar={"title": "accuracy"},
            )
        )  # fmt: skip
        figure.update_layout(xaxis_title=self.by, yaxis_title="class")
        return figure


def macro(run: Any, by: str | None = None) -> MacroStd:
    """MacroStd of a run's model on its held-out examples.

    Args:
        run: A recorded run of a classification.
        by: What the groups are made by, see `imprint.cleaning.grouping`; None: the corpus's groups, else backgrounds or clusters.

    Raises:
        MethodError: No classification, or what makes no groups.
        EvidenceError: All rows are training rows.
    """
    if run.task.name != "classification":
        raise MethodError(f"MacroStd is of classes; this run is {run.task.name}.", "Ask clean for 'subgroups'.")
    found = run.gather([Outputs("logits", split=HELD_OUT), Target(split=HELD_OUT), Rows(split=HELD_OUT), Classes()])
    groups = groups_of(run, by)
    right = (found["logits"].argmax(1) == found["target"]).numpy()
    target, group = found["target"].numpy(), groups.code[found["rows"].numpy()]
    count, hits = cells(right, target, group, len(found["classes"]), len(groups.names))
    value = spread(count, hits)
    dealt = by_chance(count, hits.sum(1), DEALT)
    share = hits / np.maximum(count, 1)
    own = hits.sum(1) / np.maximum(count.sum(1), 1)
    code, column = np.nonzero(count)
    names = pl.Series("class", [str(one) for one in found["classes"]])
    table = pl.DataFrame(
        {
            "class": names.gather(code),
            "group": pl.Series(groups.names).gather(column),
            "examples": count[code, column],
            "accuracy": share[code, column],
            "gap": share[code, column] - own[code],
        }
    )
    there = np.flatnonzero(count.sum(1))
    classes = pl.DataFrame(
        {
            "class": names.gather(there),
            "examples": count.sum(1)[there],
            "accuracy": own[there],
            "std": class_spread(count, hits)[there],
        }
    )
    p = float((1 + (dealt >= value - 1e-12).sum()) / (1 + DEALT))
    return MacroStd(groups.by, value, float(dealt.mean()), p, table, classes)


def macro_std(
    right: Bool[np.ndarray, " example"], target: Int[np.ndarray, " example"], group: Int[np.ndarray, " example"]
) -> float:
    """MacroStd of predictions, see the module; classes and groups are numbered from 0.

    >>> macro_std(np.array([1, 1, 0, 0, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0, 1]))
    0.25
    """
    count, hits = cells(right, target, group, int(target.max()) + 1, int(group.max()) + 1)
    return spread(count, hits)


def cells(
    right: Bool[np.ndarray, " example"],
    target: Int[np.ndarray, " example"],
    group: Int[np.ndarray, " example"],
    classes: int,
    groups: int,
) -> tuple[Int[np.ndarray, "class group"], Int[np.ndarray, "class group"]]:
    """How many examples of each class are in each group, and how many of them are right."""
    place = target * groups + group
    count = np.bincount(place, minlength=classes * groups).reshape(classes, groups)
    hits = np.bincount(place[right], minlength=classes * groups).reshape(classes, groups)
    return count, hits


def class_spread(
    count: Int[np.ndarray, "*deal class group"], hits: Int[np.ndarray, "*deal class group"]
) -> Float[np.ndarray, "*deal class"]:
    """Weighted standard deviation of the groups' accuracies, by class."""
    total = np.maximum(count.sum(-1, keepdims=True), 1)
    away = hits / np.maximum(count, 1) - hits.sum(-1, keepdims=True) / total
    return np.sqrt((count / total * away**2).sum(-1))


def spread(count: Int[np.ndarray, "class group"], hits: Int[np.ndarray, "class group"]) -> float:
    """Macro average over the classes that occur."""
    return float(class_spread(count, hits)[count.sum(1) > 0].mean())


def by_chance(
    count: Int[np.ndarray, "class group"], right: Int[np.ndarray, " class"], deals: int, seed: int = 0
) -> Float[np.ndarray, " deal"]:
    """MacroStd when each class's right answers are dealt out among its examples at random."""
    rng = np.random.default_rng(seed)
    there = np.flatnonzero(count.sum(1))
    hits = np.stack(
        [rng.multivariate_hypergeometric(count[code], int(right[code]), size=deals) for code in there], axis=1
    )
    return class_spread(np.broadcast_to(count[there], hits.shape), hits).mean(-1)
