"""What recording costs, and how our loop stands beside a hand-written one: Fashion-MNIST, an MLP and a small CNN.

Three arms train the same module on the same tensors with the same batches per epoch, optimizer and schedule:

    recorded     our loop, which records order and dynamics of every epoch to disk
    unrecorded   our loop without an observer
    hand-written a plain PyTorch loop over a `DataLoader` of a `TensorDataset`, as in the tutorials

Repetitions are interleaved, and ratios are taken within a repetition, so that a slow moment of the machine hits all arms. Targets:
recorded / unrecorded <= 1.05, unrecorded / hand-written <= 1.

    python benchmarks/recording_overhead.py [--data ../shared/data] [--rows 60000] [--epochs 3] [--repetitions 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from imprint.fitting import Data, Learner, train
from imprint.models import module_for
from imprint.recording.recorder import Recorder
from imprint.tasks import Classification

ARMS = ("recorded", "unrecorded", "hand-written")


def fashion(folder: Path, rows: int) -> Data:
    """The training images as uint8 tensors."""
    spec = importlib.util.spec_from_file_location("shared_load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = torch.from_numpy(module.sprite(str(folder / "images/fashion_mnist/train60k.webp"))[:rows, None])
    labels = np.load(folder / "images/fashion_mnist/labels.npz")["y_train"][:rows]
    return Data(images, torch.from_numpy(labels.astype(np.int64)), None, {"train": torch.arange(len(images))})


def build(model: str, data: Data) -> torch.nn.Module:
    """The same module for each arm, which normalises bytes itself."""
    return module_for(model, data.shape, 10, seed=0, normalisation=(torch.tensor([72.9]), torch.tensor([90.0])))


def ours(model: str, data: Data, learner: Learner, record: bool) -> float:
    """Seconds of our loop."""
    task = Classification(tuple(range(10)))
    module = build(model, data)
    with tempfile.TemporaryDirectory() as folder:
        observers = [Recorder(Path(folder), task, data.target)] if record else []
        began = time.perf_counter()
        train(module, task, data, learner, observers=observers)
        return time.perf_counter() - began


def by_hand(model: str, data: Data, learner: Learner) -> float:
    """Seconds of a plain PyTorch loop."""
    torch.manual_seed(0)
    module = build(model, data)
    assert learner.epochs is not None
    assert learner.learning_rate is not None
    loader = DataLoader(TensorDataset(data.inputs, data.target), learner.batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learner.learning_rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learner.learning_rate, epochs=learner.epochs, steps_per_epoch=len(loader)
    )
    began = time.perf_counter()
    for _ in range(learner.epochs):
        for inputs, target in loader:
            loss = torch.nn.functional.cross_entropy(module(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - began


def summary(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):8.3f}  [{min(values):.3f}, {max(values):.3f}]"


def main() -> int:
    """Print times and ratios; the exit status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = fashion(arguments.data, arguments.rows)
    learner = Learner(
        epochs=arguments.epochs, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, augment="none", precision="float32", device="cpu"
    )  # fmt: skip
    print(f"{len(data.inputs)} images, {arguments.epochs} epochs, batch 128, {arguments.threads} threads")
    missed = False
    for model in arguments.models:
        arms: dict[str, Callable[[], float]] = {
            "recorded": lambda model=model: ours(model, data, learner, True),
            "unrecorded": lambda model=model: ours(model, data, learner, False),
            "hand-written": lambda model=model: by_hand(model, data, learner),
        }
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for repetition in range(arguments.repetitions + 1):
            turn = ARMS[repetition % 3 :] + ARMS[: repetition % 3]
            for arm in turn:
                took = arms[arm]()
                if repetition:  # the first is for warming up
                    seconds[arm].append(took)
        print(f"\n{model}: seconds, median [least, most]")
        for arm in ARMS:
            print(f"  {arm:<14} {summary(seconds[arm])}")
        recording = [a / b for a, b in zip(seconds["recorded"], seconds["unrecorded"], strict=True)]
        loop = [a / b for a, b in zip(seconds["unrecorded"], seconds["hand-written"], strict=True)]
        print(f"  recorded / unrecorded     {summary(recording)}   target <= 1.05")
        print(f"  unrecorded / hand-written {summary(loop)}   target <= 1.00")
        missed |= statistics.median(recording) > 1.05 or statistics.median(loop) > 1.0
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
