"""What a report is made of: plain frames and numbers, so that it can be built with or without a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from imprint.errors import ColumnError

FINDING_COLUMNS = ("id", "position", "kind", "severity", "suggestion", "suggested_value", "method", "evidence")
LOWER_IS_BETTER = ("loss", "rmse", "mse", "mae", "error", "log_loss", "nll", "brier", "hamming_loss", "ece")


@dataclass(frozen=True)
class Comparison:
    """What retraining without the suggested edits, with them, and with as many random edits gave.

    Attributes:
        metric: What was measured on the test split ("accuracy", "rmse", ...), in its own unit; shares are 0..1.
        effect: After less before, averaged over seeds.
        interval: Low and high end of the effect's confidence interval.
        before: The metric per seed, trained on the data as it was.
        after: The metric per seed, trained on the edited data; same order of seeds.
        controls: Name -> the metric per seed after a control edit ("random": as many random rows dropped or relabelled).
        level: Coverage of the interval.
        seeds: The seeds; their number is what the page shows.
        higher: What a higher metric means: "better" or "worse"; "" goes by the metric's name (`LOWER_IS_BETTER`).
        edits: What was done to the training rows, in counts: {"drop": 120, "relabel": 310}.
    """

    metric: str
    effect: float
    interval: tuple[float, float]
    before: Sequence[float]
    after: Sequence[float]
    controls: Mapping[str, Sequence[float]] = field(default_factory=dict)
    level: float = 0.95
    seeds: Sequence[int] = ()
    higher: str = ""
    edits: Mapping[str, int] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """1 where a higher metric is better, else -1."""
        return -1 if self.higher == "worse" or (not self.higher and self.metric in LOWER_IS_BETTER) else 1


def _nothing_to_read(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame()


@dataclass(frozen=True)
class Material:
    """Everything that the report shows. What is None or empty gets a sentence that says so instead of a chart.

    Attributes:
        name: The corpus' name, as a heading.
        examples: One row per example of the corpus: `id` (str), `position` (int or str), `split` (str), `label` (the target in
            the user's terms; a list for multilabel). For the data map, on the training rows and null elsewhere: `confidence`
            (mean probability of the given label over epochs), `variability` (its standard deviation), `correctness` (share of
            epochs in which the label was predicted), each 0..1. Optional: `predicted` (the final model's value).
        findings: The frame of `Findings`: id, position, kind, severity, suggestion, suggested_value, method, evidence.
            An id that is not in `examples`, or null, stands for a finding about the whole set (a column, a class).
        modality: "image", "text", "table" or "array".
        kinds: Input column -> "numeric", "categorical", "text", "datetime", "image" or "array". Image columns are read as
            encoded bytes, array columns as nested lists or Polars arrays.
        read: Gives the input columns of these ids, one row per id, in their order. Called in blocks.
        task: "classification", "multilabel" or "regression".
        classes: The class values in the order of the task; empty: those that occur, sorted.
        source: Where the data came from: a path, or words.
        splits: Split -> number of rows; empty: counted from `examples`.
        fingerprint: Of the corpus; also the key under which the page keeps the reader's decisions.
        roles: Role ("inputs", "target", "id", ...) -> column or columns; None is left out.
        notes: What was inferred, in words.
        set_aside: `position`, `reason` of rows that could not be read.
        curves: The frame of `Run.curves()`: `epoch`, `loss` (of training) and columns named SPLIT_MEASURE such as "test_loss",
            "train_accuracy", "test_accuracy". Columns of one measure share a chart; others (step, seconds) are passed over.
            Null where a measure was not taken.
        duplicates: `group`, `id` and optionally `similarity` (1 = exact). From findings:
            `findings.groups().with_row_index("group").select("group", id="ids").explode("id")`.
        predictions: On the test split, one row per example: `target`, `predicted`, `confidence` (probability of `predicted`).
        verdict: What retraining said.
        noise: Estimated share of wrong labels among the training rows, 0..1; None: the share of rows with a label finding
            is shown instead, and is called that.
        noise_interval: Low and high end of it.
        seconds: Stage -> seconds, in order.
        trainings: How many models were trained in all.
        disk: Bytes that the run takes on disk.
        machine: In words ("2 cores, CPU only").
        command: The command line that gives this report again.
        recipe: The recipe file's text (YAML).
        versions: Package -> version.
        seed: The seed of everything.
        created: When the audit ended; None leaves it out, so that the same material gives the same bytes.
    """

    name: str
    examples: pl.DataFrame
    findings: pl.DataFrame
    modality: str = "table"
    kinds: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[list[str]], pl.DataFrame] = _nothing_to_read
    task: str = "classification"
    classes: Sequence[Any] = ()
    source: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    roles: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)
    notes: Sequence[str] = ()
    set_aside: pl.DataFrame | None = None
    curves: pl.DataFrame | None = None
    duplicates: pl.DataFrame | None = None
    predictions: pl.DataFrame | None = None
    verdict: Comparison | None = None
    noise: float | None = None
    noise_interval: tuple[float, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    trainings: int | None = None
    disk: int | None = None
    machine: str = ""
    command: str = ""
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    created: datetime | None = None

    def __post_init__(self) -> None:
        for name, frame, wanted in (
            ("examples", self.examples, ("id", "position", "split", "label")),
            ("findings", self.findings, FINDING_COLUMNS),
            ("set_aside", self.set_aside, ("position", "reason")),
            ("curves", self.curves, ("epoch",)),
            ("duplicates", self.duplicates, ("group", "id")),
            ("predictions", self.predictions, ("target", "predicted", "confidence")),
        ):
            missing = [column for column in wanted if frame is not None and column not in frame.columns]
            if missing:
                raise ColumnError(
                    f"Material.{name} lacks the column '{missing[0]}'; it has {', '.join(frame.columns) or 'none'}.",  # type: ignore[union-attr]
                    f"Give the columns {', '.join(wanted)}.",
                )
