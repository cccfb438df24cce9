"""Do the suggested edits help? Retrain before and after them, over several seeds, beside as many edits at random.

The arms share everything but the training set: encoder, settings, seeds and test examples. The control does as many edits of
the same kinds to examples drawn at random: it drops as many, and gives as many the label that the recorded model says. So
the control shows what having less data, and trusting the model, do by themselves; what the findings add is the difference.

Test examples that a leak finding names are left out in all arms: after the edits a model no longer has their copies, and being
right on a copy was no merit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from imprint.answers import Findings, Verdict
from imprint.errors import MethodError
from imprint.fitting import Progress, reporter
from imprint.fleets import Member, Shared, share
from imprint.recording import Run, load
from imprint.recording.needs import Outputs
from imprint.verifying.interval import crossed_interval
from imprint.verifying.kept import Kept

# What no test set can show: with fewer examples than this an interval says more about the test set than about the edits.
FEWEST_TEST_EXAMPLES = 10


@dataclass(frozen=True)
class Edits:
    """Edits of a training set: which training rows to drop, and which to give another target."""

    drop: np.ndarray  # rows
    relabel: np.ndarray  # rows
    target: Tensor  # encoded targets of the relabelled rows

    def __len__(self) -> int:
        return len(self.drop) + len(self.relabel)

    def member(self, seed: int, rows: np.ndarray, target: Tensor) -> Member:
        """The training with these edits: `rows` are all training rows and `target` their encoded targets."""
        edited = target.clone()
        edited[torch.from_numpy(np.searchsorted(rows, self.relabel))] = self.target
        kept = ~np.isin(rows, self.drop)
        return Member(seed, rows[kept], edited[torch.from_numpy(kept)])


def verify(
    findings: Findings,
    run: Run | None = None,
    *,
    seeds: int | Sequence[int] = 5,
    kinds: Collection[str] | None = None,
    level: float = 0.95,
    path: str | Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Retrain before and after the suggested edits.

    Args:
        findings: What `clean` found; what it suggests to drop and to relabel is done, what it suggests to review is left alone.
        run: The run that the findings are about; None loads it from where the findings say it is.
        seeds: How many trainings per arm, or their seeds.
        kinds: Only the findings of these kinds.
        level: Level of the confidence interval.
        path: A folder in which finished trainings are kept, so that an interrupted verification goes on from there.
        progress: Told the trainings done.

    Returns:
        The verdict: `effect` is the mean change of the test metric, `interval` holds for new seeds and new test examples.

    Raises:
        MethodError: No finding suggests an edit of a training example, or there is no test split to measure on.
    """
    began = time.perf_counter()
    run = run or load(findings.run["path"])
    frame = findings.frame() if kinds is None else findings.frame().filter(pl.col("kind").is_in(list(kinds)))
    edits, control = plan(run, frame)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    with reporter(progress) as told:
        shared = share(run)
        test, left_out = test_rows(shared, run, findings)
        arms = {"before": Edits(*_nothing(edits)), "after": edits, "random": control}
        rows, target = run.rows(), run.target()
        keep = Kept(path, shared, test, run.fingerprint)
        credit: dict[str, list[Tensor]] = {arm: [] for arm in arms}
        table = []
        trainings = [(seed, arm) for seed in chosen for arm in arms]
        members = [arms[arm].member(seed, rows, target) for seed, arm in trainings]
        for (seed, arm), outputs in zip(trainings, keep.train(members, told), strict=True):
            table.append({"arm": arm, "seed": seed, **run.task.metrics(outputs, shared.data.target[test])})
            credit[arm].append(run.task.credit(outputs, shared.data.target[test]))
    effect, interval = crossed_interval(torch.stack(credit["after"]) - torch.stack(credit["before"]), level)
    return Verdict(
        verb="verify",
        methods=findings.methods,
        source={"retraining": "paired over seeds; interval over seeds and test examples (imprint.verifying.interval)"},
        higher={run.task.headline: "better"},
        run=findings.run,
        cost={"seconds": time.perf_counter() - began, "trainings": float(len(table))},
        table=pl.DataFrame(table),
        notes=(f"{left_out} leaked test examples were left out of the test set.",) if left_out else (),
        metric=run.task.headline,
        effect=effect,
        interval=interval,
        level=level,
        examples=len(test),
        edits={"drop": len(edits.drop), "relabel": len(edits.relabel)},
    )


def plan(run: Run, frame: pl.DataFrame) -> tuple[Edits, Edits]:
    """The suggested edits of training examples, and as many of the same kinds at random."""
    rows = run.rows()
    row_of = pl.DataFrame({"id": run.ids, "row": rows})
    known = frame.filter(pl.col("id").is_not_null()).join(row_of, on="id", how="inner", maintain_order="left")
    drop = known.filter(pl.col("suggestion") == "drop")["row"].unique().sort().to_numpy()
    change = known.filter((pl.col("suggestion") == "relabel") & ~pl.col("row").is_in(drop.tolist())).unique(
        "row", keep="first", maintain_order=True
    )
    if not len(drop) + len(change):
        raise MethodError(
            f"None of the {len(frame)} findings suggests to drop or relabel a training example; there is nothing to verify.",
            "Look at the findings, and set the suggestion of those that you agree with to drop or relabel.",
        )
    if len(drop) == len(rows):
        raise MethodError("The findings suggest to drop every training example.", "Reject some of them.")
    raw = run.corpus.target
    edits = Edits(drop, change["row"].to_numpy(), run.task.encode(suggested_values(change["suggested_value"], raw)))
    # The same random examples for each seed, as the findings are the same for each seed.
    order = np.random.default_rng(0).permutation(rows)
    other = np.sort(order[len(drop) : len(drop) + len(change)])
    said = run.gather([Outputs("predicted")])["predicted"][torch.from_numpy(np.searchsorted(rows, other))]
    return edits, Edits(np.sort(order[: len(drop)]), other, said.to(edits.target.dtype))


def suggested_values(values: pl.Series, target: pl.Series) -> pl.Series:
    """Suggested values, which findings hold as text (JSON for lists), in the type of the target."""
    if values.dtype == target.dtype:
        return values
    if target.dtype == pl.List:
        return pl.Series(target.name, [json.loads(value) for value in values], dtype=target.dtype)
    if target.dtype == pl.Boolean:
        return values.str.to_lowercase() == "true"
    return values.cast(target.dtype)


def test_rows(shared: Shared, run: Run, findings: Findings) -> tuple[Tensor, int]:
    """Rows to measure on, without those that a leak finding names; and how many of these there were."""
    leaks = findings.table.filter(pl.col("kind") == "leak")
    named = pl.concat([leaks["id"], leaks["related"]]).drop_nulls().unique()
    rows = pl.DataFrame({"row": shared.test.numpy()})
    leaked = rows.join(run.examples.select("row", "id"), on="row").filter(pl.col("id").is_in(named.to_list()))["row"]
    test = rows.filter(~pl.col("row").is_in(leaked.to_list()))["row"].to_torch()
    if len(test) < FEWEST_TEST_EXAMPLES:
        raise MethodError(
            f"There are {len(test)} test examples to measure on (leaked ones left out); a verdict needs {FEWEST_TEST_EXAMPLES}.",
            "Open the corpus with a test split, for example split={'train': 0.8, 'test': 0.2}.",
        )
    return test, len(leaked)


def _nothing(edits: Edits) -> tuple[np.ndarray, np.ndarray, Tensor]:
    return edits.drop[:0], edits.relabel[:0], edits.target[:0]
