"""Confident learning beside cleanlab: time, peak memory and agreement on the same probabilities.

Each arm runs in a process of its own, which loads the probabilities from one float32 file, and reports the seconds of the call
and the peak resident memory of the process; the memory that loading alone takes is an arm too. Arms alternate over
`--repeats`, and the smallest time of each is compared (other work on the machine only adds).

    python benchmarks/label_issues.py                     # 1M x 100, the target: at most half the time, no more memory
    python benchmarks/label_issues.py --examples 50000    # a quick look

cleanlab reads the file whole (it needs an array); ours is measured on the array and on a memory map, which it streams.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ARMS = ("load only", "imprint", "imprint memory map", "cleanlab n_jobs=1", "cleanlab default")
RULES = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning")


def make(folder: Path, examples: int, classes: int, noise: float, seed: int) -> None:
    """Probabilities of a model that is right about nine times in ten, uneven classes, and labels flipped to similar classes."""
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, examples, p=rng.dirichlet(np.full(classes, 5.0)))
    given = true.copy()
    flipped = rng.random(examples) < noise
    given[flipped] = (true[flipped] + rng.integers(1, 4, flipped.sum())) % classes
    np.save(folder / "target.npy", given)
    out = np.lib.format.open_memmap(
        folder / "probabilities.npy", mode="w+", dtype=np.float32, shape=(examples, classes)
    )
    for start in range(0, examples, 50_000):
        rows = true[start : start + 50_000]
        logits = rng.normal(size=(len(rows), classes)).astype(np.float32) * 1.5
        logits[np.arange(len(rows)), rows] += 5.5
        logits[np.arange(len(rows)), (rows + 1) % classes] += 1.5
        np.exp(logits, out=logits)
        out[start : start + len(rows)] = logits / logits.sum(1, keepdims=True)
    out.flush()


def measure(arm: str, rule: str, folder: Path) -> None:
    """Run one arm in this process, save its flags, and print what it took as JSON."""
    probabilities = np.load(folder / "probabilities.npy", mmap_mode="r" if arm == "imprint memory map" else None)
    target = np.load(folder / "target.npy")
    flags = np.zeros(0, bool)
    began = time.perf_counter()
    if arm.startswith("imprint"):
        from imprint.cleaning.confident import find_label_issues

        began = time.perf_counter()
        flags = find_label_issues(probabilities, target, rule)
    elif arm.startswith("cleanlab"):
        from cleanlab.filter import find_label_issues as peer

        began = time.perf_counter()
        flags = peer(target, probabilities, filter_by=rule, n_jobs=1 if arm.endswith("1") else None)
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    np.save(folder / f"flags {arm}.npy", np.flatnonzero(flags))
    print(json.dumps({"seconds": seconds, "peak_mib": usage / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["prune_by_noise_rate"])
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        measure(options.arm, options.rules[0], options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.examples, options.classes, options.noise, options.seed)
        for rule in options.rules:
            report(rule, folder, options)


def report(rule: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure all arms for one rule and print them beside each other."""
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(options.repeats):
        for arm in ARMS:
            command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), "--rules", rule]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[arm].append(json.loads(output.splitlines()[-1]))
    peer = set(np.load(folder / "flags cleanlab n_jobs=1.npy").tolist())
    best = min(min(run["seconds"] for run in results[arm]) for arm in ARMS if arm.startswith("cleanlab"))
    print(f"{rule}: {options.examples} x {options.classes} float32, {options.repeats} runs of each arm")
    print(
        f"{'arm':22}{'seconds (least .. most)':>26}{'of the faster cleanlab':>24}{'peak MiB':>10}{'flagged':>10}{'Jaccard':>9}"
    )
    for arm, runs in results.items():
        seconds = sorted(run["seconds"] for run in runs)
        flags = set(np.load(folder / f"flags {arm}.npy").tolist())
        agree = f"{len(flags & peer) / max(1, len(flags | peer)):.4f}" if flags else "-"
        spread = f"{seconds[0]:.2f} .. {seconds[-1]:.2f}"
        peak = max(run["peak_mib"] for run in runs)
        print(f"{arm:22}{spread:>26}{seconds[0] / best:>24.3f}{peak:>10.0f}{len(flags):>10}{agree:>9}")


if __name__ == "__main__":
    main()
