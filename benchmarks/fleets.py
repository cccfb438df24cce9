"""Fleets: many members as one program beside the same members trained one after the other in plain PyTorch.

Peers, in the same run, on the same members (seeds, batches, optimizer, epochs):

    plain        a hand-written PyTorch loop per member, over tensors in memory: batches by index, fused AdamW, nothing else
    sequential   our executor that trains one member after the other
    batched      our executor that trains members side by side

The plain loop trains a few of the members and is scaled up (they cost the same); repetitions are interleaved and ratios are
taken within a repetition. "loss gap" is the largest difference of a member's final training loss between the plain loop and the
batched executor: the same losses are reached. "of matmul" is the arithmetic of the training (6 operations per weight, example and
epoch) per second, as a share of what a product of 1024 x 1024 matrices reaches in the same run.

    python benchmarks/fleets.py [speed] [auto] [linear] [memory] [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import imprint
from imprint.fitting import SamplerState, Shuffled, generator
from imprint.fitting.build import build
from imprint.fitting.loop import batch_bounds
from imprint.fleets import Member, Sequential, Shared, execute, share
from imprint.fleets.batched import Batched
from imprint.fleets.choosing import choose

REPETITIONS = 5
# Members that the plain loop trains; the rest cost the same.
PLAIN = 4


def network(*sizes: int) -> Callable[..., nn.Module]:
    """A multilayer perceptron with ReLU; two sizes give one linear layer."""

    def factory(shape: tuple[int, ...], width: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return factory


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 real images of 8 x 8 pixels."""
    values, label = load_digits(return_X_y=True)
    # Three pixels never change, and an encoder drops what never changes; a trace of noise keeps the 64 inputs.
    noise = np.random.default_rng(0).normal(size=values.shape) / 100
    return (values / 8 - 1 + noise).astype(np.float32), label


def features(examples: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as a frozen backbone gives them: a cloud per class. What a step costs does not depend on the values."""
    random = np.random.default_rng(0)
    centres, label = random.normal(size=(classes, size)), random.integers(0, classes, examples)
    return (centres[label] + random.normal(size=(examples, size))).astype(np.float32), label


# name: data, sizes of the layers, members, batch size, target ratio
CASES: dict[str, tuple[Callable[[], tuple[np.ndarray, np.ndarray]], tuple[int, ...], int, int, float]] = {
    "64-64-10 digits": (digits, (64, 64, 10), 64, 32, 8),
    "64-64-10 digits, batch 64": (digits, (64, 64, 10), 64, 64, 4),
    "heads 384-10": (lambda: features(4000, 384, 10), (384, 10), 256, 64, 5),
    "heads 128-10": (lambda: features(4000, 128, 10), (128, 10), 256, 64, 12),
    "heads 384-77": (lambda: features(4000, 384, 77), (384, 77), 256, 64, 1.5),
    "784-128-10": (lambda: features(4000, 784, 10), (784, 128, 10), 64, 64, 1.8),
    "784-512-10, batch 256": (lambda: features(4000, 784, 10), (784, 512, 10), 16, 256, 1),
}


def shared_of(
    data: tuple[np.ndarray, np.ndarray], model: object, epochs: int, batch_size: int | None, folder: str
) -> Shared:
    """Everything that members have in common."""
    corpus = imprint.open(data, split={"train": 0.9, "test": 0.1}, store=folder)
    return share(imprint.Learner(model, epochs=epochs, batch_size=batch_size, schedule="constant"), corpus)


def plain(shared: Shared, seed: int) -> tuple[float, float]:
    """Seconds and final training loss of a hand-written loop: the batches that the executors give the member of this seed."""
    learner = shared.learner
    rows, epochs = shared.data.rows, int(learner.epochs or 1)
    inputs, target = shared.data.inputs[rows], shared.data.target[rows]
    orders = [
        Shuffled().epoch(SamplerState(e, epochs, len(rows), generator(seed, "shuffle", e)))[0]
        for e in range(1, epochs + 1)
    ]
    bounds = batch_bounds(len(rows), int(learner.batch_size or 1))
    began = time.perf_counter()
    module = build(learner, shared.encoder, shared.task, seed=seed)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learner.learning_rate, weight_decay=learner.weight_decay, fused=True
    )
    for order in orders:
        for begin, end in itertools.pairwise(bounds):
            index = order[begin:end]
            loss = F.cross_entropy(module(inputs[index]), target[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        return seconds, float(F.cross_entropy(module(inputs), target))


def timed(shared: Shared, executor: object, members: Sequence[Member], queries: Tensor) -> tuple[float, Tensor]:
    """Seconds, and what the members say of the queries."""
    began = time.perf_counter()
    found = {}
    for finished in execute(shared, members, queries=queries, executor=executor):
        found |= dict(zip(finished.numbers, finished.outputs, strict=True))
    return time.perf_counter() - began, torch.stack([found[number] for number in sorted(found)])


def matmul_rate() -> float:
    """Operations per second of a product of large matrices, the best of some."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        best = min(best, time.perf_counter() - began)
    return 4 * 2 * 1024**3 / best


def speed(quick: bool) -> None:
    """The table of ratios."""
    print(f"\n{'members':>7} {'case':<26} {'plain s':>8} {'batched s':>9} {'ratio [spread]':>20} {'target':>6} "
          f"{'sequential / plain':>18} {'loss gap':>9} {'of matmul':>9}")  # fmt: skip
    for name, (data, sizes, members, batch_size, target) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            shared = shared_of(data(), network(*sizes), 2 if quick else 5, batch_size, folder)
            all_members = [Member(seed=seed) for seed in range(members)]
            rows = shared.data.rows
            ratios, alone, rates, times = [], [], [], []
            plain(shared, 0)
            timed(shared, Batched(), all_members[:8], rows[:1])
            for _ in range(2 if quick else REPETITIONS):
                losses = [plain(shared, seed) for seed in range(PLAIN)]
                by_hand = sum(seconds for seconds, _ in losses) / PLAIN * members
                one_by_one, _ = timed(shared, Sequential(), all_members[:PLAIN], rows[:1])
                together, _ = timed(shared, Batched(), all_members, rows[:1])
                weights = sum(a * b for a, b in itertools.pairwise(sizes))
                # The first layer needs no gradient of its inputs: 4 operations per weight instead of 6.
                work = (6 * weights - 2 * sizes[0] * sizes[1]) * len(rows) * int(shared.learner.epochs or 1) * members
                rates.append(work / together / matmul_rate())
                ratios.append(by_hand / together)
                alone.append(one_by_one * members / PLAIN / by_hand)
                times.append((by_hand, together))
            _, said = timed(shared, Batched(), all_members[:PLAIN], rows)
            mine = [float(F.cross_entropy(one, shared.data.target[rows])) for one in said]
            gap = max(abs(a - loss) for a, (_, loss) in zip(mine, losses, strict=True))
            by_hand, together = (statistics.median(column) for column in zip(*times, strict=True))
            spread = f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"
            print(f"{members:>7} {name:<26} {by_hand:>8.2f} {together:>9.3f} {spread:>20} {target:>6} "
                  f"{statistics.median(alone):>18.2f} {gap:>9.1e} {statistics.median(rates):>9.0%}", flush=True)  # fmt: skip


def auto(quick: bool) -> None:
    """What "auto" chooses, and whether it was right: the seconds of both executors for the same members."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (1200, 28, 28)).astype(np.uint8), random.integers(0, 10, 1200)
    kinds = {
        "mlp with dropout on digits": (digits(), "mlp", 16),
        "linear on 384 features": (features(4000, 384, 10), "linear", 64),
        "cnn on 28 x 28 pixels": (pictures, "cnn", 8),
        "resnet on 28 x 28 pixels": (pictures, "resnet", 8),
    }
    print(f"\n{'members':<36} {'sequential s':>12} {'batched s':>9}  auto")
    for name, (data, model, members) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            shared = shared_of(data, model, 1 if quick else 4, None, folder)
            all_members = [Member(seed=seed) for seed in range(members)]
            chosen = choose(shared, all_members, range(members))
            times = [timed(shared, one, all_members, shared.test)[0] for one in (Sequential(), Batched())]
            print(
                f"{members:>3} x {name:<30} {times[0]:>12.2f} {times[1]:>9.2f}  {chosen.executor.name}: {chosen.why}",
                flush=True,
            )


def linear(quick: bool) -> None:
    """Seconds over members and over examples: the last column is seconds per member and example, which should not change."""
    for label, settings in (
        ("members", [(64, 2000), (128, 2000), (256, 2000), (512, 2000)]),
        ("examples", [(128, 1000), (128, 2000), (128, 4000), (128, 8000)]),
    ):
        print(
            f"\ncost over {label}: 128-64-10, batch 64, 5 epochs\n{'members':>7} {'examples':>8} {'seconds':>8} {'us each':>8}"
        )
        for members, examples in settings:
            with tempfile.TemporaryDirectory() as folder:
                shared = shared_of(features(examples * 10 // 9, 128, 10), network(128, 64, 10), 5, 64, folder)
                all_members = [Member(seed=seed) for seed in range(members)]
                timed(shared, Batched(), all_members[:16], shared.test)
                seconds = min(timed(shared, Batched(), all_members, shared.test)[0] for _ in range(1 if quick else 3))
                each = seconds / members / len(shared.data.rows) * 1e6
                print(f"{members:>7} {len(shared.data.rows):>8} {seconds:>8.2f} {each:>8.2f}", flush=True)


def memory(quick: bool) -> None:
    """Peak memory of a plan that does not fit: each limit in a process of its own."""
    members = 64 if quick else 256
    print(
        f"\nmemory: {members} members of 784-512-10 (parameters and optimizer state: {members * 4 * 4 * 407050 / 2**30:.1f} GiB in all)"
    )
    print(f"{'limit MiB':>9} {'peak above the start MiB':>25} {'seconds':>8}")
    for limit in (128, 512, 2048):
        done = subprocess.run(
            [sys.executable, __file__, "--one-memory", str(limit), str(members)], capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        print(done.stdout.strip(), flush=True)


def one_memory(limit: int, members: int) -> None:
    """Train under a limit, and print the peak of resident memory beyond what stood before."""
    import threading

    import psutil

    process, peak, over = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    with tempfile.TemporaryDirectory() as folder:
        shared = shared_of(features(2000, 784, 10), network(784, 512, 10), 1, 64, folder)
        timed(shared, Batched(wave=1), [Member(seed=0)], shared.test)
        before = process.memory_info().rss
        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds, _ = timed(
            shared, Batched(memory=limit * 2**20), [Member(seed=seed) for seed in range(members)], shared.test
        )
        over.set()
        watcher.join()
        print(f"{limit:>9} {(peak - before) / 2**20:>25.0f} {seconds:>8.2f}")


def main() -> None:
    """Run the asked parts; all if none is named."""
    parts = {"speed": speed, "auto": auto, "linear": linear, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(parts)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few epochs and repetitions")
    parser.add_argument("--one-memory", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one_memory:
        one_memory(*asked.one_memory)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; matmul {matmul_rate() / 1e9:.0f} GFLOP/s")
    for name in asked.parts or parts:
        parts[name](asked.quick)


if __name__ == "__main__":
    main()
