"""Do values from fleets rank planted label errors? Memorisation, Banzhaf and data-OOB beside the free scores of one recorded training.

Labels of a share of the training examples are replaced by another class, drawn evenly; the test split keeps the truth. For each number of
members: AUROC of each method at ranking the planted examples, the seconds that its fleet took beyond the recorded training (one
fleet of subsets serves memorisation and Banzhaf, one of bootstrap samples data-OOB), and what memorisation would be from the 0/1 outcome
"the label was predicted" in place of the label's probability. The free scores come from the one recorded training.

    python benchmarks/memorisation.py                              Fashion-MNIST, 6000 training examples, 10 % planted
    python benchmarks/memorisation.py --set cifar10n --members 64  CIFAR-10N: human label errors, nothing planted
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score

import imprint
from imprint.fleets import Fleet
from imprint.recording.needs import Membership, Subsets
from imprint.scoring import memorisation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
# Sign with which a method's value grows with the suspicion that the label is wrong.
FREE = {"el2n": 1, "aum": -1, "confidence": -1, "loss": 1, "forgetting": 1}
FLEETS = {"memorisation": 1, "banzhaf": -1, "data-oob": -1}


def sprite(path: str) -> np.ndarray:
    sys.path.insert(0, str(SHARED))
    import load

    return load.sprite(str(SHARED / path))


def fashion(examples: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels `[row, 784]`, given labels, true labels."""
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    truth = labels[labels.files[0]][:examples].astype(int)
    pixels = sprite("images/fashion_mnist/train60k.webp")[:examples].reshape(examples, -1) / np.float32(255)
    rng = np.random.default_rng(seed)
    given = np.where(rng.random(examples) < rate, (truth + rng.integers(1, 10, examples)) % 10, truth)
    return pixels, given, truth


def cifar10n(examples: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of CIFAR-10, the labels of one annotator each (17 % wrong), true labels."""
    noisy = np.load(SHARED / "label_noise/cifar10n/cifar10n.npz")
    pixels = sprite("images/cifar10/train_first10k.webp")[:examples].reshape(examples, -1) / np.float32(255)
    return pixels, noisy["random_label1"][:examples].astype(int), noisy["clean_label"][:examples].astype(int)


SETS = {"fashion": fashion, "cifar10n": cifar10n}


def auroc(wrong: np.ndarray, value: np.ndarray, sign: int) -> float:
    return float(roc_auc_score(wrong, sign * value))


def spread(wrong: np.ndarray, value: np.ndarray, sign: int, draws: int = 200) -> tuple[float, float]:
    """Interval of the AUROC over bootstrap samples of the examples, 95 %."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        drawn = rng.integers(0, len(wrong), len(wrong))
        found.append(auroc(wrong[drawn], value[drawn], sign))
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one set."""
    held = max(1000, options.examples // 5)
    pixels, given, truth = SETS[options.set](options.examples + held, options.noise, options.seed)
    split = np.where(np.arange(len(truth)) < options.examples, "train", "test")
    frame = pl.DataFrame({"pixels": pl.Series(pixels, dtype=pl.Array(pl.Float32, pixels.shape[1]))}).with_columns(
        label=pl.Series([f"c{code}" for code in np.where(split == "test", truth, given)]), split=pl.Series(split)
    )
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    learner = imprint.Learner("mlp", epochs=options.epochs, seed=options.seed)
    began = time.perf_counter()
    run = imprint.fit(learner, corpus, folder / "run", progress=False)
    fit = time.perf_counter() - began
    wrong = (given != truth)[run.rows()]
    print(
        f"{options.set}: {len(wrong)} training examples, {wrong.mean():.1%} wrong labels, mlp for {options.epochs} epochs; test accuracy "
        f"{run.metrics('test')['accuracy']:.3f}; recorded training {fit:.1f} s; {torch.get_num_threads()} threads\n\n"
        "| method | members | AUROC of wrong labels | 95 % | seconds of the fleet |\n|---|---|---|---|---|",
        flush=True,
    )
    rows: list[dict[str, Any]] = []

    def add(method: str, members: int, value: np.ndarray, sign: int, seconds: float = 0.0) -> None:
        low, high = spread(wrong, value, sign)
        rows.append({
            "method": method, "members": members, "auroc": auroc(wrong, value, sign), "low": low, "high": high, "seconds": seconds,
        })  # fmt: skip
        taken = f"{seconds:.1f}" if seconds else "-"
        print(
            f"| {method} | {members or 'none'} | {rows[-1]['auroc']:.4f} | {low:.4f} to {high:.4f} | {taken} |",
            flush=True,
        )

    free = imprint.score(run, list(FREE), progress=False).frame()
    for name, sign in FREE.items():
        add(name, 0, free[name].to_numpy(), sign)
    for members in options.members:
        for names in (["memorisation", "banzhaf"], ["data-oob"]):
            began = time.perf_counter()
            scores = imprint.score(run, names, members=members, progress=None).frame()
            seconds = time.perf_counter() - began
            for name in names:
                add(name, members, scores[name].to_numpy(), FLEETS[name], seconds)
            if "memorisation" in names:
                values = run.gather([Subsets("correct", members=members), Membership(members=members)])
                value = memorisation(values["correct"].float(), values["membership"]).numpy()
                add("memorisation (0/1)", members, value, 1)
                fitted = float(values["correct"][values["membership"]].double().mean())
    executor = Fleet.load(run.path / "fleets" / f"subsets-{options.members[-1]}-0.5").manifest["executor"]
    print(f"\nMembers are right on {fitted:.1%} of what they saw; executor: {executor['name']}, {executor['why']}.")
    return {
        "set": options.set, "training": len(wrong), "wrong": float(wrong.mean()), "epochs": options.epochs, "fit_seconds": fit,
        "test_accuracy": run.metrics("test")["accuracy"], "fitted_by_members": fitted, "executor": executor,
        "threads": torch.get_num_threads(), "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="fashion")
    parser.add_argument("--examples", type=int, default=6000, help="training examples")
    parser.add_argument("--noise", type=float, default=0.1, help="share of planted label errors")
    parser.add_argument("--members", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--epochs", type=int, default=40, help="enough for members to fit what they saw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
