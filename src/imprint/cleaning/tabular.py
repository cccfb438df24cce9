"""Columns of a table that carry nothing, that name rows, or that give the target away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float

from imprint.cleaning.flags import Flags
from imprint.methods import method
from imprint.recording.needs import Table
from imprint.tasks import infer

if TYPE_CHECKING:
    from imprint.corpus import Corpus

CONSTANT, ID, MISSING, LEAKING = 0.3, 0.5, 0.4, 0.9
# A column with fewer values present than this fraction carries next to nothing.
PRESENT = 0.05
# Fewer rows than this can differ in every row by chance.
ENOUGH = 100
# The target is given away when one column alone predicts held-out rows this much of the way from chance to perfection.
SKILL = 0.95
# Rows that the leak check learns from, and is tested on.
SAMPLE = 20_000


@method(
    "clean", "columns", kind="column", modalities=["table"], needs=[Table()],
    higher="constant (0.3), mostly missing (0.4), unique in every row (0.5)", source="as data linters, Hynes et al. 2017",
)  # fmt: skip
def columns(corpus: Corpus) -> Flags:
    """Input columns that are constant, at least 95 % missing, or different in every row like an id."""
    found = []
    for name, kind in corpus.kinds.items():
        if kind in ("image", "array"):
            continue
        values = pl.concat([frame for _, frame in corpus.batches(None, [name])]).to_series()
        present = values.drop_nulls()
        if values.dtype.is_float():
            present = present.drop_nans()
        share = len(present) / max(1, len(values))
        distinct = present.n_unique()
        if distinct <= 1:
            value = f"{present[0]!r}" if distinct else "missing"
            found.append((name, CONSTANT, f"column '{name}' is {value} in every row in which it has a value"))
        elif share < PRESENT:
            found.append((name, MISSING, f"column '{name}' is missing in {1 - share:.1%} of the rows"))
        elif len(values) >= ENOUGH and distinct == len(values) and _names_rows(present, kind):
            found.append((name, ID, f"column '{name}' is different in each of the {len(values)} rows, like an id"))
    return Flags.about_columns(found)


def _names_rows(values: pl.Series, kind: str) -> bool:
    """Whether a column of distinct values is an id: short strings without spaces, or integers that count up."""
    if values.dtype.is_integer():
        step = values.cast(pl.Int64).diff().drop_nulls()
        return bool(
            (step > 0).all() or (step < 0).all() or values.n_unique() > 0.5 * (float(np.ptp(values.to_numpy())) + 1)
        )
    if values.dtype == pl.String and kind != "datetime":
        return not values.head(1000).str.strip_chars().str.contains(r"\s").any()
    return False


@method(
    "clean", "leaking-columns", kind="column", tasks=["classification", "regression"], modalities=["table"], needs=[Table()],
    higher="the column alone predicts the target more perfectly", source="Kaufman et al. 2012, ACM TKDD 6(4)",
)  # fmt: skip
def leaking_columns(corpus: Corpus) -> Flags:
    """Columns that predict the target almost perfectly by themselves, as what is written down after the fact does.

    A one-column model (a shallow tree for numbers, the commonest class or mean per value for the rest) learns from at most 20,000
    training rows and predicts held-out rows. Skill is 0 at chance and 1 at perfection: (balanced accuracy - 1/classes) /
    (1 - 1/classes), or R2. Flagged when the lower end of its 95 % interval is at least 0.95, so that a small test split alone
    convicts no column; severity 0.9 + 0.1 x skill.
    """
    held = [name for name in corpus.splits if name != "train"]
    if not held or not corpus.splits.get("train"):
        return Flags.none()
    rng = np.random.default_rng(0)
    train, test = (
        np.sort(rng.choice(rows, min(len(rows), SAMPLE), replace=False))
        for rows in (corpus.rows("train"), corpus.rows("test" if "test" in held else held[-1]))
    )
    regression = infer(corpus.target) == "regression"
    target = corpus.target.cast(pl.Float64) if regression else corpus.target.rank("dense").cast(pl.Int64) - 1
    learn, check = target.gather(train).to_numpy(), target.gather(test).to_numpy()
    names = [name for name, kind in corpus.kinds.items() if kind not in ("image", "array", "text")]
    learned, checked = corpus.read(train, names), corpus.read(test, names)
    found = []
    for name in names:
        skill, least = held_out_skill(learned[name], learn, checked[name], check, regression)
        if least >= SKILL:
            how = "R2" if regression else "skill over chance"
            found.append(
                (
                    name,
                    LEAKING + 0.1 * min(skill, 1),
                    f"column '{name}' alone predicts held-out targets at {skill:.3f} ({how}): is it known beforehand?",
                )
            )
    return Flags.about_columns(found)


def held_out_skill(
    learned: pl.Series, target: np.ndarray, checked: pl.Series, truth: np.ndarray, regression: bool
) -> tuple[float, float]:
    """Skill of a one-column model on held-out rows, and the lower end of its 95 % interval."""
    said = one_column(learned, target, checked, regression)
    if regression:
        left, spread = (truth - said) ** 2, (truth - target.mean()) ** 2
        skill = 1 - left.mean() / max(spread.mean(), 1e-12)
        error = 1.96 * left.std() / np.sqrt(len(left)) / max(spread.mean(), 1e-12)
        return float(skill), float(skill - error)
    return class_skill(said, truth)


def class_skill(said: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(balanced accuracy - 1/classes) / (1 - 1/classes) of predicted classes, and the lower end of its 95 % interval."""
    hit = (said == truth).astype(float)
    classes, code, counts = np.unique(truth, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return 0.0, 0.0
    recall = np.bincount(code, hit) / counts
    # The variance with two successes and two failures added (Agresti, Coull 1998), so that a few perfect rows are no certainty.
    shrunk = (np.bincount(code, hit) + 2) / (counts + 4)
    error = 1.96 * np.sqrt((shrunk * (1 - shrunk) / (counts + 4)).sum()) / len(classes)
    chance = 1 / len(classes)
    return float((recall.mean() - chance) / (1 - chance)), float((recall.mean() - error - chance) / (1 - chance))


def one_column(
    learned: pl.Series, target: np.ndarray, checked: pl.Series, regression: bool, leaves: int = 256, least: int = 5
) -> np.ndarray:
    """Predictions from one column: by a tree for numbers and dates, else by the commonest class (or mean) of each value.

    Args:
        leaves, least: Most leaves of the tree, and fewest examples in one.
    """
    if learned.dtype.is_numeric() or learned.dtype.is_temporal():
        return _tree(_numbers(learned), target, _numbers(checked), regression, leaves, least)
    return _by_value(learned, target, checked, regression)


def _numbers(values: pl.Series) -> Float[np.ndarray, "row one"]:
    values = values.to_physical() if values.dtype.is_temporal() else values
    numbers = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)[:, None]


def _tree(
    learned: np.ndarray, target: np.ndarray, checked: np.ndarray, regression: bool, leaves: int, least: int
) -> np.ndarray:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeRegressor if regression else DecisionTreeClassifier
    tree = kind(max_leaf_nodes=leaves, min_samples_leaf=least, random_state=0)
    return tree.fit(learned, target).predict(checked)


def _by_value(learned: pl.Series, target: np.ndarray, checked: pl.Series, regression: bool) -> np.ndarray:
    """Commonest class (or mean) of each value; of all training rows for a value that was not seen."""
    frame = pl.DataFrame({"value": learned.cast(pl.String), "target": target})
    best = pl.col("target").mean() if regression else pl.col("target").mode().min()
    table = frame.group_by("value").agg(best.alias("said"))
    overall = frame.select(best).item()
    asked = pl.DataFrame({"value": checked.cast(pl.String)})
    joined = asked.join(table, on="value", how="left", nulls_equal=True, maintain_order="left")
    return joined["said"].fill_null(overall).to_numpy()
