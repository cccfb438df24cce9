"""Solved heads together and one after the other: leave-one-out in one solve, and fleets of random halves.

    python benchmarks/ridge_leave_one_out.py                    10,000 examples x 384 features, 10 classes, 1,000 queries
    python benchmarks/ridge_leave_one_out.py --examples 2000    smaller

Inputs are Gaussian clouds. The peer is `Sequential`: the same exact solution of every member on its own. It is timed on some members
(`timed`), spread over all, and multiplied up; together, all members are timed. `apart` is the largest difference between the two of any
output of the timed members, relative to the output where that is above one: outputs are float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from imprint.fitting import Data, Learner
from imprint.fleets import Member, Sequential, Shared
from imprint.fleets.solving import Solved
from imprint.tasks import Classification


class Encoded:
    """Inputs that are vectors already."""

    normalisation = None
    frozen_features = True

    def __init__(self, width: int) -> None:
        self.shape = (width,)


def problem(model: str, examples: int, width: int, classes: int, queries: int) -> Shared:
    """Clouds that overlap: a linear head is right on most of the examples, but not on all."""
    random = torch.Generator().manual_seed(0)
    total = examples + queries
    code = torch.randint(0, classes, (total,), generator=random)
    inputs = torch.randn(total, width, generator=random) + 0.15 * torch.randn(classes, width, generator=random)[code]
    learner = Learner(
        f"array/{model}", task="classification", epochs=1, batch_size=64, learning_rate=0.01, device="cpu", augment="none",
        precision="float32", record="none", weight_decay={"ridge": 1e-2, "logistic": 3e-3}[model],
    )  # fmt: skip
    splits = {"train": torch.arange(examples), "test": torch.arange(examples, total)}
    return Shared(learner, Classification(tuple(range(classes))), Encoded(width), Data(inputs, code, None, splits))


class LeaveOneOut(Sequence[Member]):
    """All but one example, in turn; a member is made when it is asked for."""

    def __init__(self, examples: int) -> None:
        self.rows = np.arange(examples)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Member:  # type: ignore[override]
        return Member(rows=np.delete(self.rows, number))


def compare(name: str, shared: Shared, members: Sequence[Member], some: int) -> None:
    """Time both, hold one against the other, and print a line."""
    chosen = np.linspace(0, len(members) - 1, min(some, len(members))).astype(int).tolist()
    alone = list(Sequential().run(shared, members, chosen, shared.test))
    seconds = np.array([one.seconds[0] for one in alone])
    expected = {one.numbers[0]: one.outputs[0] for one in alone}
    apart, done = 0.0, 0
    began = time.perf_counter()
    for part in Solved().run(shared, members, range(len(members)), shared.test):
        done += len(part.numbers)
        for place, number in enumerate(part.numbers):
            if number in expected:
                said, alike = part.outputs[place], expected[number]
                apart = max(apart, float(((said - alike).abs() / alike.abs().clamp(min=1)).max()))
    together = time.perf_counter() - began
    assert done == len(members)
    every = float(seconds.mean()) * len(members)
    print(
        f"{name:34} {len(members):8,} {together:10.2f} {seconds.mean():10.4f} ±{seconds.std() / len(seconds) ** 0.5:.4f}"
        f" {len(chosen):6} {every:11.1f} {every / together:8.1f} {apart:9.1e}",
        flush=True,
    )
    if apart > 1e-5:
        raise SystemExit(f"{name}: the two disagree by {apart:.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--timed", type=int, default=20)
    options = parser.parse_args()
    size = (options.examples, options.width, options.classes, options.queries)
    print(
        f"{size[0]:,} examples x {size[1]} features, {size[2]} classes, {size[3]:,} queries, {torch.get_num_threads()} threads"
    )
    print(
        f"{'fleet':34} {'members':>8} {'together s':>10} {'each alone s':>18} {'timed':>6} {'all alone s':>11} {'ratio':>8} {'apart':>9}"
    )
    ridge = problem("ridge", *size)
    list(Sequential().run(ridge, [Member()], [0], ridge.test))  # the first call pays for warming up
    compare("ridge, leave one out", ridge, LeaveOneOut(options.examples), options.timed)
    random = torch.Generator().manual_seed(1)
    for examples, width in ((options.examples, options.width), (1_000, 64)):
        halves = [
            Member(rows=(torch.rand(examples, generator=random) < 0.5).nonzero().flatten())
            for _ in range(options.members)
        ]
        for model, timed in (("ridge", options.timed), ("logistic", max(2, options.timed // 4))):
            one = problem(model, examples, width, *size[2:])
            few = halves if model == "ridge" or width == 64 else halves[: 4 * timed]
            compare(f"{model}, random halves, {examples:,} x {width}", one, few, timed)


if __name__ == "__main__":
    main()
