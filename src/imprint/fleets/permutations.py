"""Shapley values by random orders: many orders of the examples are walked through side by side, one example longer at each step.

At each step the prefixes of all orders that are still walking are the members of one fleet, so an executor that stacks members trains
them as one program; equal prefixes are trained once. An order is left when its metric has stayed within a tolerance of that of all
examples (truncation, Ghorbani and Zou 2019, arXiv:1904.02868): what comes later in it adds 0. All members have the learner's own
seed, so that the metric is a function of the set of examples and the values sum to what all of them add.

    RUN/fleets/permutations-32-0.01/manifest.json            orders, tolerance, split, metric of no example and of all
    RUN/fleets/permutations-32-0.01/metrics/00001.safetensors   metric [order, length] of some lengths, from that one on
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor

from imprint.engine import LOCAL, Engine
from imprint.errors import EvidenceError
from imprint.fitting import Progress, derive, silent
from imprint.fleets.choosing import steady
from imprint.fleets.executing import Executor, execute
from imprint.fleets.member import Member
from imprint.fleets.shared import Shared, share
from imprint.models import is_estimator
from imprint.recording.collect import COLLECTORS, SOURCES, Source
from imprint.recording.files import read_json, replacing, write_json
from imprint.recording.held_out import held_out
from imprint.recording.needs import Need, Permutations
from imprint.tasks import Classification, Task

if TYPE_CHECKING:
    from imprint.recording import Run

# With more examples than this an order is too many trainings, and values are too small to be told apart.
MOST = 1000
# An order is left after this many lengths in a row within the tolerance, as in the authors' code: one may be chance.
PATIENCE = 5
# What was found is written after this many seconds.
SECONDS = 20.0

# Sets of examples of one size `[set, example]`, each ascending -> the metric of a model of each.
Value = Callable[[np.ndarray], np.ndarray]


def draw(examples: int, orders: int, seed: int = 0) -> Int[np.ndarray, "order example"]:
    """Random orders of the examples; the first ones stay the same where more are drawn.

    >>> draw(3, 2).shape, sorted(draw(3, 2)[1].tolist())
    ((2, 3), [0, 1, 2])
    """
    return np.stack(
        [np.random.default_rng(derive(seed, "order", number)).permutation(examples) for number in range(orders)]
    )


def left(metric: Float[np.ndarray, "order length"], full: float, tolerance: float) -> Bool[np.ndarray, " order"]:
    """Which orders are left: their metric was within the tolerance of `full` for `PATIENCE` lengths in a row.

    >>> left(np.array([[0.0, 0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.1, 0.9, 0.9, 0.9]]), 0.9, 0.01)
    array([ True, False])
    """
    if not tolerance or metric.shape[1] < PATIENCE:
        return np.zeros(len(metric), dtype=bool)
    near = np.abs(metric - full) <= tolerance
    windows = np.lib.stride_tricks.sliding_window_view(near, PATIENCE, axis=1)
    return np.asarray(np.any(np.all(windows, axis=2), axis=1))


def walk(
    orders: Int[np.ndarray, "order example"],
    value: Value,
    empty: float,
    full: float,
    tolerance: float = 0.0,
    *,
    done: Float[np.ndarray, "order length"] | None = None,
    keep: Callable[[int, np.ndarray, int], None] = lambda *_: None,
) -> Float[np.ndarray, "order length"]:
    """The metric after each example of each order.

    Args:
        orders: Each row holds every example once.
        value: Gives the metric of models of several sets.
        empty: Metric of no example.
        full: Metric of all examples.
        tolerance: See `left`; 0 walks every order to its end.
        done: The metric after 1, 2, ... examples, where an earlier sitting found it.
        keep: Told each length, its metrics and how many sets were trained for them.

    Returns:
        `[order, examples + 1]`, from no example to all of them; NaN where an order was left.
    """
    count, total = orders.shape
    metric = np.full((count, total + 1), np.nan)
    metric[:, 0], metric[:, total] = empty, full
    first = 1
    if done is not None:
        first += done.shape[1]
        metric[:, 1:first] = done
    for length in range(first, total):
        walking = np.flatnonzero(~left(metric[:, 1:length], full, tolerance))
        if not len(walking):
            break
        sets, which = np.unique(np.sort(orders[walking, :length], axis=1), axis=0, return_inverse=True)
        metric[walking, length] = value(sets)[which.reshape(-1)]
        keep(length, metric[:, length], len(sets))
    return metric


def marginals(
    orders: Int[np.ndarray, "order example"], metric: Float[np.ndarray, "order length"]
) -> Float[np.ndarray, "order example"]:
    """What each example added in each order; 0 where the order had been left.

    >>> marginals(np.array([[1, 0]]), np.array([[0.5, 0.75, 0.5]]))
    array([[-0.25,  0.25]])
    """
    found = np.empty(orders.shape)
    np.put_along_axis(found, orders, np.nan_to_num(np.diff(metric, axis=1), nan=0.0), axis=1)
    return found


def constant(task: Task, target: Tensor) -> float:
    """Metric of the best constant answer to these targets: what a model of no example is taken to score, as in the authors' code.

    The largest class; the labels that most examples have; the mean.

    >>> constant(Classification(("a", "b")), torch.tensor([0, 1, 1, 1]))
    0.75
    """
    if isinstance(task, Classification):
        answer = torch.bincount(target, minlength=task.width).float()
    else:
        answer = target.double().mean(0, keepdim=target.dim() == 1) - (0.5 if target.dim() == 2 else 0.0)
    return float(task.credit(answer.expand(len(target), -1), target).double().mean())


class Trained:
    """The metric of sets of examples, by training a model on each.

    Args:
        shared: What the trainings have in common.
        rows: The examples that the sets are of.
        queries: Held-out rows that the metric is measured on.
        executor: How to train; None for what the rule says (`steady`): the same in every sitting, so that a walk which goes on ends
            as one that was not interrupted.
    """

    def __init__(self, shared: Shared, rows: Tensor, queries: Tensor, executor: Executor | None = None) -> None:
        self.shared, self.rows, self.queries = shared, rows, queries
        self.executor = executor or steady(shared)
        self.target = shared.data.target[queries]

    def __call__(self, sets: Int[np.ndarray, "set example"]) -> Float[np.ndarray, " set"]:
        """The metric of each set."""
        found = np.empty(len(sets))
        members = [Member(rows=self.rows[torch.from_numpy(one)]) for one in sets]
        plain = [number for number, one in enumerate(sets) if not self._one_class(one, found, number)]
        for finished in execute(self.shared, members, queries=self.queries, executor=self.executor, numbers=plain):
            for number, outputs in zip(finished.numbers, finished.outputs, strict=True):
                found[number] = float(self.shared.task.credit(outputs, self.target).double().mean())
        return found

    def _one_class(self, one: np.ndarray, found: np.ndarray, number: int) -> bool:
        """scikit-learn refuses to fit a single class: its model is the one that always answers it."""
        if not (is_estimator(self.shared.learner.model) and isinstance(self.shared.task, Classification)):
            return False
        seen = self.shared.data.target[self.rows[torch.from_numpy(one)]]
        if (seen != seen[0]).any():
            return False
        found[number] = float((self.target == seen[0]).double().mean())
        return True


# ---------------------------------------------------------------------------------------------------------------- as evidence of a run


def _folder(run: Run, need: Need) -> Path:
    return run.path / "fleets" / str(need.store)


def collect_permutations(run: Run, needs: Sequence[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Walk through the orders of each need, in this process whatever the engine: a walk is thousands of small fleets in turn."""
    for need in needs:
        _collect(run, need, progress)


def _collect(run: Run, need: Need, progress: Progress) -> None:
    """Walk through the orders of a need and write what was found, block by block; goes on where an earlier sitting stopped."""
    assert isinstance(need, Permutations)
    folder = _folder(run, need)
    split, queries = held_out(run)
    rows, examples = torch.from_numpy(run.rows()), len(run)
    value = Trained(share(run, progress=progress), rows, torch.from_numpy(queries))
    if not (folder / "manifest.json").exists():
        write_json(
            folder / "manifest.json",
            {
                "orders": need.members, "tolerance": need.tolerance, "examples": examples, "split": split,
                "metric": run.task.headline, "seed": run.learner.seed, "executor": value.executor.name,
                "empty": constant(run.task, value.target), "full": float(value(np.arange(examples)[None])[0]), "complete": False,
            },
        )  # fmt: skip
    about = read_json(folder / "manifest.json")
    done, _ = _read(folder, need.members)
    buffer: list[np.ndarray] = []
    trained, first, since = 0, done.shape[1] + 1, time.perf_counter()

    def write() -> None:
        nonlocal buffer, first, since, trained
        if buffer:
            with replacing(folder / "metrics" / f"{first:05d}.safetensors") as temporary:
                found = np.ascontiguousarray(np.stack(buffer, axis=1))
                save_file({"metric": found, "trainings": np.array([trained])}, temporary)
            first, buffer, trained, since = first + len(buffer), [], 0, time.perf_counter()

    def keep(length: int, metric: np.ndarray, sets: int) -> None:
        nonlocal trained
        buffer.append(metric.copy())
        trained += sets
        if time.perf_counter() - since > SECONDS:
            write()
        progress("orders", length, examples)

    orders = draw(examples, need.members, about["seed"])
    try:
        walk(orders, value, about["empty"], about["full"], need.tolerance, done=done, keep=keep)
    finally:
        write()
    write_json(folder / "manifest.json", {**about, "complete": True})


def _read(folder: Path, orders: int) -> tuple[Float[np.ndarray, "order length"], int]:
    """The metrics on disk, from length 1 on, and the trainings that they took beside that of all examples."""
    blocks: list[dict[str, Any]] = [load_file(path) for path in sorted((folder / "metrics").glob("*.safetensors"))]
    metric = np.concatenate([np.empty((orders, 0)), *(block["metric"] for block in blocks)], axis=1)
    return metric, sum(int(block["trainings"][0]) for block in blocks)


def _has(run: Run, need: Need) -> bool:
    manifest = _folder(run, need) / "manifest.json"
    return manifest.exists() and bool(read_json(manifest)["complete"])


def _check(run: Run, need: Need) -> None:
    held_out(run)
    if len(run) > MOST:
        orders = getattr(need, "members", 1)
        raise EvidenceError(
            f"Shapley values of {len(run)} examples along {orders} random orders take up to {orders * len(run):,} trainings; "
            f"more than {MOST} examples are not walked through.",
            "Use score('banzhaf'), which needs as many trainings as there are members, or value a part of the examples.",
        )


def _whole(run: Run, need: Need) -> Float[Tensor, "order example"]:
    about = read_json(_folder(run, need) / "manifest.json")
    orders = draw(about["examples"], about["orders"], about["seed"])
    found, _ = _read(_folder(run, need), about["orders"])
    metric = np.full((about["orders"], about["examples"] + 1), np.nan)
    metric[:, 0], metric[:, -1] = about["empty"], about["full"]
    metric[:, 1 : 1 + found.shape[1]] = found
    return torch.from_numpy(marginals(orders, metric))


def _value(run: Run, need: Need, block: slice) -> Float[Tensor, "order example"]:
    return _whole(run, need)[:, block]


def _spent(run: Run, need: Need) -> tuple[int, str]:
    about = read_json(_folder(run, need) / "manifest.json")
    trainings = 1 + _read(_folder(run, need), about["orders"])[1]
    found = _whole(run, need)
    error = found.std(0) / len(found) ** 0.5
    return trainings, (
        f"{need.store}: {trainings:,} trainings along {about['orders']} random orders, {about['metric']} on the split "
        f"'{about['split']}', {about['empty']:.4g} without examples and {about['full']:.4g} with all; standard error of a value: "
        f"{float(error.median()):.2g} (median), {float(error.max()):.2g} (largest)."
    )


COLLECTORS["permutations"] = collect_permutations
SOURCES["permutations"] = Source(_has, _check, _value, _spent)
