"""What exact forgetting costs, beside training again in the same process: an analytic downdate, and stages of a sharded training.

    python benchmarks/forget_exact.py [--rows 50000] [--features 384] [--delete 1000]

The head: moments less those of the deleted rows, and one Cholesky factor, beside a refit on the rest; the distance of the two. The shards:
deletions one at a time, beside a sharded training of the rest; that they are bitwise equal. All on the CPU, from features in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from imprint.fitting import Data, Learner
from imprint.fitting.build import build
from imprint.fitting.heads import Summed
from imprint.fitting.ridge import ridge
from imprint.fitting.sharded import train_sharded
from imprint.forgetting import downdate
from imprint.tasks import Classification

CLASSES, DECAY = 10, 1e-2


def seconds(call: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median, least and greatest of some calls, after one that is not counted."""
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), min(taken), max(taken)


def analytic(rows: int, features: int, delete: int, repeats: int) -> None:
    """The ridge head."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=random)
    y = 2.0 * torch.nn.functional.one_hot(torch.randint(0, CLASSES, (rows,), generator=random), CLASSES).double() - 1
    whole = Summed.of(x, y)
    gone, left = slice(0, delete), slice(delete, rows)
    forgetting = seconds(lambda: downdate(whole, x[gone], y[gone]).head(DECAY), repeats)
    refit = seconds(lambda: ridge(x[left], y[left], decay=DECAY), repeats)
    mine, theirs = downdate(whole, x[gone], y[gone]).head(DECAY)[0], ridge(x[left], y[left], decay=DECAY)[0]
    print(f"analytic: {delete:,} of {rows:,} x {features} deleted, {repeats} repeats: median [least, greatest]")
    print(f"  downdate  {forgetting[0] * 1e3:8.1f} ms [{forgetting[1] * 1e3:.1f}, {forgetting[2] * 1e3:.1f}]")
    print(f"  refit     {refit[0] * 1e3:8.1f} ms [{refit[1] * 1e3:.1f}, {refit[2] * 1e3:.1f}]")
    print(
        f"  ratio {forgetting[0] / refit[0]:.3f}; largest difference of a weight {float((mine - theirs).abs().max()):.1e}"
    )


class Encoding:
    """Vectors as they are."""

    normalisation = None
    frozen_features = True

    def __init__(self, width: int) -> None:
        self.shape = (width,)


def sharded(rows: int, deletions: int) -> None:
    """An MLP in 5 shards of 4 slices, and one example at a time deleted."""
    import tempfile
    from pathlib import Path

    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=random)
    y = (x[:, :CLASSES] + torch.randn(rows, CLASSES, generator=random)).argmax(1)
    keys = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=random)
    data = Data(x, y, None, {"train": torch.arange(rows)}, keys)
    task = Classification(tuple(map(str, range(CLASSES))))
    learner = replace(
        Learner("mlp", "classification", epochs=10, batch_size=128, learning_rate=3e-3, weight_decay=1e-2),
        deletable="sisa(shards=5, slices=4)", device="cpu", precision="float32", augment="none",
    )  # fmt: skip

    def fresh() -> torch.nn.Module:
        return build(learner, Encoding(64), task)

    with tempfile.TemporaryDirectory() as text:
        folder, spent, stages = Path(text), [], []
        train_sharded(learner, fresh(), task, data, folder=folder / "base")
        for place in range(deletions):
            left = data.train_on(torch.cat([torch.arange(place), torch.arange(place + 1, rows)]))
            began = time.perf_counter()
            found = train_sharded(learner, fresh(), task, left, folder=folder / f"{place}", found=folder / "base")
            spent.append(time.perf_counter() - began)
            stages.append(len(found.trained))
        began = time.perf_counter()
        again = train_sharded(learner, fresh(), task, left)
        whole = time.perf_counter() - began
    same = all(
        torch.equal(a, b)
        for a, b in zip(found.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    )
    print(f"sisa: 5 shards of 4 slices, {rows:,} x 64, {deletions} deletions one at a time")
    print(f"  deletion  {statistics.mean(spent):8.2f} s [{min(spent):.2f}, {max(spent):.2f}], stages {stages} of 20")
    print(f"  training  {whole:8.2f} s; ratio {statistics.mean(spent) / whole:.3f}; bitwise equal: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, value in (("rows", 50_000), ("features", 384), ("delete", 1000), ("repeats", 5), ("deletions", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    analytic(asked.rows, asked.features, asked.delete, asked.repeats)
    sharded(min(asked.rows, 20_000), asked.deletions)
