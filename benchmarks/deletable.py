"""Trainings that examples can be taken back from: how many deletions they bear without training, and what accuracy is left after each.

    capacity      deletions of examples drawn at random until no shard has a stage left that never saw one of them; 2,000 streams, and in
                  closed form: D of N slices come first in some order, and N (1/1 + 1/2 + ... + 1/D) deletions hit all of them
    accuracy      on test examples after 1 to 50 random deletions; mean over streams, with their standard deviation
    training      seconds and examples visited, beside a training of one module on everything

Arms: a plain training; SISA, which repeats stages at each deletion; SISA that may not train (each shard falls back to its last stage that
never saw one of them); S3T of 1, 2 and 4 orders, and the mean over all orders of what is left of each in place of the longest.

    python benchmarks/deletable.py                             TREC-6 and Adult, some minutes
    python benchmarks/deletable.py trec6 --streams 20 --epochs 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from imbalance import corpus as texts
from label_audits import SHARED
from safetensors.torch import load_file
from torch import Tensor

import imprint
from imprint.fitting import predict, train
from imprint.fitting.adapters import added_all
from imprint.fitting.build import build
from imprint.fitting.sequenced import Prefix, Sequencing, stage_name, train_sequenced
from imprint.fitting.sharded import Sharded, train_sharded
from imprint.fleets import Shared, share

AFTER = (0, 1, 2, 5, 10, 20, 50)
GRID = ((2, 4, 1), (2, 4, 2), (2, 4, 4), (2, 4, 12), (5, 4, 1), (5, 4, 4), (5, 6, 6), (1, 8, 8))
SHARDS, SLICES = 2, 4


# ---------------------------------------------------------------------------------------------------------------------- capacity


def capacity(shards: int, slices: int, orders: int, streams: int) -> tuple[float, float, float]:
    """Mean and standard deviation of the deletions that spend all stages, and the mean in closed form."""
    first = {order[0] for order in Sequencing(shards, slices, orders).sequences()}
    needed = {shard * slices + one for shard in range(shards) for one in first}
    random = np.random.default_rng(0)
    found = []
    for _ in range(streams):
        hit, count = set(needed), 0
        while hit:
            hit.discard(int(random.integers(shards * slices)))
            count += 1
        found.append(count)
    closed = shards * slices * sum(1 / number for number in range(1, len(needed) + 1))
    return statistics.mean(found), statistics.stdev(found), closed


# ---------------------------------------------------------------------------------------------------------------------- accuracy


def adult() -> imprint.Corpus:
    """12,000 rows of Adult, a fifth to test on."""
    import lzma

    with lzma.open(SHARED / "tabular/adult/adult.csv.xz") as file:
        frame = pl.read_csv(file.read(), infer_schema_length=None)
    target = next(name for name in frame.columns if name.startswith("income"))
    return imprint.open(frame.sample(12_000, seed=0), target=target, split={"train": 0.8, "test": 0.2})


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Stages:
    """What each kept stage of a training says of the test examples, so that a stream of deletions is only a choice among them."""

    def __init__(self, shared: Shared, module: Sharded) -> None:
        self.shared, self.module = shared, module
        self.target = shared.data.target[shared.test]
        self.said: list[dict[Prefix, Tensor]] = [{} for _ in module.members]

    def add(self, shard: int, slices: Prefix, weights: dict[str, Tensor]) -> None:
        """A stage, by its weights."""
        member = self.module.members[shard]
        member.load_state_dict(weights, strict=False)
        data = self.shared.data
        self.said[shard][slices] = predict(member.eval(), self.shared.task, data.inputs, self.shared.test)

    def accuracy(self, left: list[list[Prefix]]) -> float:
        """Of the mean over shards of the mean of these stages; not a number where there are none."""
        means = [
            torch.stack([said[one] for one in some]).mean(0) for said, some in zip(self.said, left, strict=True) if some
        ]
        if not means:
            return float("nan")
        return self.shared.task.metrics(torch.stack(means).mean(0), self.target)["accuracy"]


def sequenced(shared: Shared, plan: Sequencing) -> Stages:
    """Train as S3T, and ask every stage."""
    learner = replace(
        shared.learner, deletable=f"s3t(shards={plan.shards}, slices={plan.slices}, orders={plan.orders})"
    )
    module = build(learner, shared.encoder, shared.task)
    assert isinstance(module, Sharded)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        done = train_sequenced(learner, module, shared.task, shared.data, folder=folder)
        found = Stages(shared, module)
        for shard, slices in done.stages:
            base = load_file(folder / f"shard-{shard:03d}-base.safetensors")
            changes = (load_file(folder / stage_name(shard, slices[: n + 1])) for n in range(len(slices)))
            found.add(shard, slices, added_all(base, changes))
    return found


def sisa(shared: Shared) -> Stages:
    """Train as SISA, and ask every stage."""
    learner = replace(shared.learner, deletable=f"sisa(shards={SHARDS}, slices={SLICES})")
    module = build(learner, shared.encoder, shared.task)
    assert isinstance(module, Sharded)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        train_sharded(learner, module, shared.task, shared.data, folder=folder)
        found = Stages(shared, module)
        for shard in range(SHARDS):
            for stage in range(SLICES):
                weights = load_file(folder / f"shard-{shard:03d}-slice-{stage:03d}.safetensors")
                found.add(shard, tuple(range(stage + 1)), weights)
    return found


def left(orders: Iterable[Prefix], dead: set[int], mean: bool = False) -> list[Prefix]:
    """The longest beginning of an order without a dead slice, or that of each order."""
    found = []
    for order in orders:
        length = next((place for place, one in enumerate(order) if one in dead), len(order))
        if length:
            found.append(order[:length])
    return found if mean else [max(found, key=len)] if found else []


def streams_of(shared: Shared, count: int) -> list[list[set[int]]]:
    """Slices hit after 0, 1, 2, ... random deletions, as `shard * slices + slice`."""
    assert shared.data.keys is not None
    shard, piece = Sequencing(SHARDS, SLICES).sharding.parts(shared.data.keys[shared.data.rows])
    place = (shard * SLICES + piece).numpy()
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        drawn = place[random.permutation(len(place))[: max(AFTER)]]
        found.append([set(drawn[:after].tolist()) for after in AFTER])
    return found


def row(
    name: str, stages: Stages, orders: tuple[Prefix, ...], streams: list[list[set[int]]], mean: bool = False
) -> None:
    """A line of the table: accuracy after so many deletions, and in brackets the share of streams in which anything is left."""
    cells = []
    for place in range(len(AFTER)):
        found = []
        for stream in streams:
            dead = [{one % SLICES for one in stream[place] if one // SLICES == shard} for shard in range(SHARDS)]
            found.append(stages.accuracy([left(orders, one, mean) for one in dead]))
        alive = [one for one in found if one == one]
        spread = statistics.pstdev(alive) if alive else 0.0
        share = "" if len(alive) == len(found) else f" ({len(alive) / len(found):.0%})"
        cells.append(f"{statistics.mean(alive):.3f} ±{spread:.3f}{share}" if alive else "-")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def again(name: str, shared: Shared, learner: imprint.Learner, seed: int = 0) -> None:
    """A line for what is trained at each deletion: one stream."""
    order = shared.data.rows[torch.randperm(len(shared.data.rows), generator=torch.Generator().manual_seed(seed))]
    cells, before, spent = [], None, 0.0
    with tempfile.TemporaryDirectory() as text:
        for number, after in enumerate(AFTER):
            data = shared.data.train_on(order[after:].sort().values)
            module = build(learner, shared.encoder, shared.task)
            began = time.perf_counter()
            if learner.deletable is None:
                module = train(module, shared.task, data, learner).module
            else:
                folder = Path(text) / str(number)
                module = train_sharded(learner, module, shared.task, data, folder=folder, found=before).module
                before = folder
            spent = time.perf_counter() - began if number == 1 else spent
            said = predict(module, shared.task, shared.data.inputs, shared.test)
            cells.append(f"{shared.task.metrics(said, shared.data.target[shared.test])['accuracy']:.3f}")
    print(f"| {name} ({spent:.1f} s for the first deletion) | " + " | ".join(cells) + " |", flush=True)


def measure(name: str, streams: int, epochs: int | None) -> None:
    """All tables of one data set."""
    corpus = adult() if name == "adult" else texts(name)
    shared = share(imprint.Learner("mlp", epochs=epochs).resolve(corpus), corpus)
    learner, rows = shared.learner, len(shared.data.rows)
    drawn = streams_of(shared, streams)
    print(
        f"\n{name}: {rows:,} training examples, {SHARDS} shards of {SLICES} slices, mlp, {learner.epochs} epochs, {streams} streams"
    )
    print("| after so many deletions | " + " | ".join(map(str, AFTER)) + " |\n|---" + "|---" * len(AFTER) + "|")
    again("plain, trained again", shared, learner)
    again("SISA, stages trained again", shared, replace(learner, deletable=f"sisa(shards={SHARDS}, slices={SLICES})"))
    seconds = {
        "plain": seconds_of(
            lambda: train(build(learner, shared.encoder, shared.task), shared.task, shared.data, learner)
        )
    }
    began = time.perf_counter()
    stages = sisa(shared)
    seconds["SISA"] = time.perf_counter() - began
    row("SISA, not trained", stages, (tuple(range(SLICES)),), drawn)
    for count in (1, 2, 4):
        plan = Sequencing(SHARDS, SLICES, count)
        began = time.perf_counter()
        stages = sequenced(shared, plan)
        seconds[f"S3T, {count}"] = time.perf_counter() - began
        row(f"S3T, {count} order" + "s" * (count > 1), stages, plan.sequences(), drawn)
    row("S3T, 4 orders, mean of orders", stages, plan.sequences(), drawn, mean=True)
    print(
        "\ntraining: " + "; ".join(f"{arm} {one:.1f} s, {one / seconds['plain']:.1f}x" for arm, one in seconds.items())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="*", default=["trec6", "adult"])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--epochs", type=int)
    asked = parser.parse_args()
    print(
        "capacity: deletions until no stage is left (2,000 streams)\n| shards x slices, orders | mean | deviation | closed form | visits |"
    )
    print("|---|---|---|---|---|")
    for shards, slices, orders in GRID:
        mean, spread, closed = capacity(shards, slices, orders, 2000)
        label = "as SISA that may not train" if orders == 1 else f"{orders} orders"
        cost = Sequencing(shards, slices, orders).cost
        print(f"| {shards} x {slices}, {label} | {mean:.1f} | {spread:.1f} | {closed:.1f} | {cost:.1f}x |")
    for one in asked.data:
        measure(one, asked.streams, asked.epochs)
