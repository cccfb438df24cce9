"""Tasks: what is predicted, and what a loss, a margin and a metric mean for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from imprint.errors import LearnerError, nearest
from imprint.tasks.base import Batch, Task
from imprint.tasks.classification import Classification
from imprint.tasks.multilabel import Multilabel
from imprint.tasks.regression import Regression

__all__ = ["Batch", "Classification", "Multilabel", "Regression", "Task", "fit", "from_spec", "infer"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Multilabel, Regression)}
# A float target, or an integer one with more distinct values than this, is taken for a quantity.
MOST_INTEGER_CLASSES = 100


def infer(target: pl.Series) -> str:
    """Name of the task that a raw target asks for: lists -> multilabel, fractions and many integers -> regression, else classification.

    >>> infer(pl.Series([0.5, 1.25, 3.0]))
    'regression'
    """
    if target.dtype == pl.List:
        return "multilabel"
    if target.dtype.is_float():
        values = target.drop_nulls()
        if (values != values.floor()).any() or values.n_unique() > MOST_INTEGER_CLASSES:
            return "regression"
        return "classification"
    if target.dtype.is_integer() and target.n_unique() > MOST_INTEGER_CLASSES:
        return "regression"
    return "classification"


def fit(name: str, target: pl.Series) -> Task:
    """Fit the task called `name` ("auto" infers it) on raw targets."""
    if name == "auto":
        name = infer(target)
    if name not in TASKS:
        raise LearnerError(f"Unknown task '{name}'.", nearest(name, TASKS))
    return TASKS[name].fit(target)


def from_spec(spec: Mapping[str, Any]) -> Task:
    """Rebuild a task from `Task.spec()`, as it stands in a run's manifest."""
    fields = dict(spec)
    task = TASKS[fields.pop("name")]
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return task(**known)
