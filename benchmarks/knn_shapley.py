"""KNN-Shapley values of all examples of a set, each judged by the others: this library beside cleanlab, in one run and taking turns.

cleanlab gives a value to the k nearest examples of each query only. Three figures are timed: cleanlab's `data_shapley_knn`; ours cut at k,
which is the same number (the largest difference is printed, on the scale of 0 to 1); and ours exact, with the value of every
example, sorted by distance in full, which cleanlab does not offer. Features are drawn around one centre per class, and a tenth of the
labels is wrong; the AUROC of ranking them says what the exact values are worth beside the cut ones.

    python benchmarks/knn_shapley.py                                    20,000 examples, 128 features, k = 10, 3 rounds
    python benchmarks/knn_shapley.py --examples 2000 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cleanlab.data_valuation import data_shapley_knn
from sklearn.metrics import roc_auc_score

from imprint.scoring import knn_loo, knn_shapley


def drawn(
    examples: int, width: int, classes: int, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features in float64 (what cleanlab computes distances in), given labels, and which are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, examples)
    # Centres as far apart as leaves a kNN classifier about one error in ten.
    features = rng.normal(size=(classes, width))[truth] * 0.5 + rng.normal(size=(examples, width))
    wrong = rng.random(examples) < noise
    given = np.where(wrong, (truth + rng.integers(1, classes, examples)) % classes, truth)
    return features, given, wrong


def timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--noise", type=float, default=0.1, help="share of wrong labels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    features, labels, wrong = drawn(options.examples, options.width, options.classes, options.noise, options.seed)
    x, y, k = torch.from_numpy(features), torch.from_numpy(labels), options.k
    calls: dict[str, Callable[[], np.ndarray]] = {
        "imprint, cut at k": lambda: knn_shapley(x, y, k=k, depth=k).numpy(),
        "imprint, leave-one-out": lambda: knn_loo(x, y, k=k).numpy(),
        "imprint, exact": lambda: knn_shapley(x, y, k=k).numpy(),
        # Last: it holds a matrix of examples x examples, which the peak of memory shows.
        "cleanlab": lambda: data_shapley_knn(labels, features=features, metric="cosine", k=k),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    values: dict[str, np.ndarray] = {}
    peak: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, call in calls.items():
            values[name], took = timed(call)
            seconds[name].append(took)
            peak.setdefault(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    difference = float(np.abs((1 + values["imprint, cut at k"]) / 2 - values["cleanlab"]).max())
    rows = []
    print(
        f"{options.examples:,} examples x {options.width}, {options.classes} classes, k = {k}, {options.noise:.0%} wrong labels, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds\n"
    )
    print(
        "| | seconds, median | least to most | times faster than cleanlab | peak memory so far, GiB | AUROC of wrong labels |"
    )
    print("|---|---|---|---|---|---|")
    for name, took in seconds.items():
        faster = sorted(one / other for one, other in zip(seconds["cleanlab"], took, strict=True))
        auroc = roc_auc_score(wrong, -values[name])
        rows.append({"name": name, "seconds": took, "faster": faster, "peak_gib": peak[name], "auroc": auroc})
        print(
            f"| {name} | {np.median(took):.2f} | {min(took):.2f} to {max(took):.2f} | "
            f"{np.median(faster):.1f} ({faster[0]:.1f} to {faster[-1]:.1f}) | {peak[name]:.2f} | {auroc:.3f} |"
        )
    print(f"\nLargest difference between ours, cut at k, and cleanlab: {difference:.1e}")
    if options.json:
        options.json.write_text(json.dumps({"difference": difference, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
