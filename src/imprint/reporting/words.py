"""Numbers and values as a person would write them."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from imprint.reporting.material import Comparison

# Metrics that are shares of examples: shown in percent, their differences in points.
SHARES = ("accuracy", "balanced_accuracy", "f1", "macro_f1", "precision", "recall", "exact_match", "error")


MINUS = "\u2212"

# Kind of finding -> (one, many), as the page calls them.
KINDS = {
    "label": ("suspect label", "suspect labels"),
    "duplicate": ("duplicate", "duplicates"),
    "leak": ("leak", "leaks"),
    "outlier": ("outlier", "outliers"),
    "imbalance": ("rare class", "rare classes"),
    "subgroup": ("weak subgroup", "weak subgroups"),
    "column": ("column problem", "column problems"),
    "broken": ("broken input", "broken inputs"),
    "alike": ("like a known bad one", "like known bad ones"),
}


def word(value: Any) -> str | None:
    """A value of a table as text; None stays None.

    >>> word(0.30000000000000004), word(["a", "b"]), word(None), word({"neighbour": "x", "distance": 0.25})
    ('0.3', 'a, b', None, 'neighbour x, distance 0.25')
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, (list, tuple)):
        return ", ".join(word(one) or "none" for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {word(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)


def texts(series: pl.Series) -> pl.Series:
    """A column of scalars as text, each distinct value written once.

    >>> texts(pl.Series([1.0, 0.5, None])).to_list()
    ['1', '0.5', None]
    """
    if series.dtype == pl.String:
        return series
    values = series.drop_nulls().unique()
    return series.replace_strict(
        values, pl.Series([word(value) for value in values], dtype=pl.String), default=None, return_dtype=pl.String
    )


def evidence(value: Any) -> str | None:
    """A finding's evidence as text; JSON objects are written out as words.

    >>> evidence('{"margin": -0.51, "epochs": 12}')
    'margin -0.51, epochs 12'
    """
    if isinstance(value, str) and value[:1] == "{":
        try:
            return word(json.loads(value))
        except ValueError:
            return value
    return word(value)


def count(number: int, one: str, many: str | None = None) -> str:
    """
    >>> count(1, "row"), count(12000, "row"), count(0, "class", "classes")
    ('1 row', '12,000 rows', '0 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float, digits: int = 1) -> str:
    """
    >>> percent(0.0834), percent(0.9)
    ('8.3 %', '90.0 %')
    """
    return f"{share * 100:.{digits}f} %"


def duration(seconds: float) -> str:
    """
    >>> duration(0.234), duration(42.4), duration(123), duration(7300)
    ('0.23 s', '42 s', '2 min 3 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def storage(size: int) -> str:
    """
    >>> storage(900), storage(2_500_000)
    ('900 B', '2.5 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


def metric_name(metric: str) -> str:
    return metric.replace("_", " ").replace("-", " ")


def change(value: float, metric: str) -> str:
    """A signed difference of a metric, with its unit.

    >>> change(0.0123, "accuracy"), change(-0.5, "rmse")
    ('+1.23 points', '−0.5')
    """
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    if metric in SHARES:
        return f"{sign}{abs(value) * 100:.2f} points"
    return f"{sign}{abs(value):.3g}"


def level(value: float, metric: str) -> str:
    """
    >>> level(0.8412, "accuracy"), level(3.14159, "rmse")
    ('84.12 %', '3.142')
    """
    return f"{value * 100:.2f} %" if metric in SHARES else f"{value:.4g}"


def edits(counts: dict[str, int]) -> str:
    """
    >>> edits({"drop": 12, "relabel": 300})
    '12 rows dropped and 300 rows relabelled'
    """
    past = {"drop": "dropped", "relabel": "relabelled", "reweight": "reweighted"}
    return " and ".join(f"{count(n, 'row')} {past.get(edit, edit)}" for edit, n in counts.items() if n)


def verdict(comparison: Comparison) -> dict[str, str]:
    """The verdict in plain words: `headline`, `sentence`, `control`.

    >>> verdict(Comparison("accuracy", 0.011, (0.004, 0.018), [0.80, 0.81], [0.81, 0.822]))["headline"]
    'The edits help'
    """
    low, high = comparison.interval
    name = metric_name(comparison.metric)
    clear = low > 0 or high < 0
    helps = comparison.effect * comparison.sign > 0
    headline = ("The edits help" if helps else "The edits do harm") if clear else "No clear effect"
    seeds = len(comparison.before)
    done = edits(dict(comparison.edits))
    moved = "rose" if comparison.effect > 0 else "fell" if comparison.effect < 0 else "did not move"
    by = f" by {change(comparison.effect, comparison.metric).lstrip('+' + MINUS)}" if comparison.effect else ""
    span = f"{change(low, comparison.metric).removesuffix(' points')} to {change(high, comparison.metric)}"
    sentence = (
        f"With {done or 'the suggested edits'}, test {name} {moved}{by}, from {level(_mean(comparison.before), comparison.metric)} "
        f"to {level(_mean(comparison.after), comparison.metric)} on average over {count(seeds, 'retraining')} of each "
        f"({percent(comparison.level, 0)} interval: {span})."
    )
    if not clear:
        sentence += " The interval includes zero: with this many retrainings the change cannot be told from chance."
    control = ""
    if comparison.controls:
        name, values = next(iter(comparison.controls.items()))
        moved_by = _mean(values) - _mean(comparison.before)
        control = (
            f"As many {name} edits changed it by {change(moved_by, comparison.metric)}: "
            "what the edits do beyond that is due to which rows were chosen."
        )
    return {"headline": headline, "sentence": sentence, "control": control, "interval": span}


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / max(len(values), 1)
