"""The price that was said of a fleet beside the price that was paid: seconds, memory and disk.

    python benchmarks/fleet_price.py                   all plans
    python benchmarks/fleet_price.py --quick           small data and few members: whether it works
    python benchmarks/fleet_price.py --only heads --repeat 3

For each plan one process says the price and another one, right after it, trains the fleet; packages are loaded, nothing else was done
before. `ratio` is paid / said; the aim is 0.75 to 1.33, and a star marks what is beyond. The lines below say how the seconds are made
up. Digits come with scikit-learn, Fashion-MNIST and Banking77 lie in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WITHIN = (0.75, 1.33)
# name: (data, settings of the learner, plan, executor), and the same with few members for --quick.
JOBS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "subsets-64 digits mlp": ("digits", {"model": "mlp"}, "subsets(64, 0.5)", "auto"),
    "subsets-256 digits mlp": ("digits", {"model": "mlp"}, "subsets(256, 0.5)", "auto"),
    "subsets-64 fashion mlp": ("fashion", {"model": "mlp", "epochs": 5}, "subsets(64, 0.5)", "auto"),
    "subsets-256 fashion mlp": ("fashion", {"model": "mlp", "epochs": 2}, "subsets(256, 0.5)", "auto"),
    "folds-5 fashion mlp": ("fashion", {"model": "mlp", "epochs": 5}, "folds(5)", "auto"),
    "seeds-16 digits sequential": ("digits", {"model": "mlp"}, "seeds(16)", "sequential"),
    "sizes x seeds fashion linear": ("fashion", {"model": "linear", "epochs": 10}, "sizes([500, 1000, 2000, 1.0]) * seeds(8)", "auto"),
    "cnn seeds-4 fashion": ("pixels", {"model": "cnn", "epochs": 1}, "seeds(4)", "auto"),
    "heads subsets-64 banking": ("banking", {"model": "logistic", "weight_decay": 0.01}, "subsets(64, 0.5)", "auto"),
    "heads ridge-256 banking": ("banking", {"model": "ridge"}, "subsets(256, 0.5)", "auto"),
    "heads trained banking": ("banking", {"model": "linear"}, "subsets(64, 0.5)", "auto"),
}  # fmt: skip
QUICK = {
    "subsets(256, 0.5)": "subsets(32, 0.5)",
    "subsets(64, 0.5)": "subsets(16, 0.5)",
    "seeds(16)": "seeds(4)",
    "seeds(4)": "seeds(2)",
}
ROWS = {"fashion": (12_000, 3000), "pixels": (6000, 1500), "banking": (13_083, 3000), "digits": (1797, 1797)}


def source(name: str, quick: bool) -> Any:
    """What `imprint.open` reads."""
    count = ROWS[name][quick]
    if name == "digits":
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    sys.path.insert(0, str(SHARED))
    import load

    if name == "banking":
        frame = pl.DataFrame(load.jsonl(str(SHARED / "text/banking77/banking77.jsonl.xz")))
        return frame.sample(count, seed=0)
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    target = labels[labels.files[0]][:count].astype(int)
    pixels = load.sprite(str(SHARED / "images/fashion_mnist/train60k.webp"))[:count]
    return (pixels if name == "pixels" else pixels.reshape(count, -1) / np.float32(255)), target


def opened(folder: str, name: str) -> Any:
    """The corpus of a job, from what `prepare` left in the folder."""
    import imprint

    options: dict[str, Any] = {"split": {"train": 0.8, "test": 0.2}, "store": Path(folder) / "store"}
    if name == "banking":
        return imprint.open(str(Path(folder) / "data.parquet"), target="label", inputs=["text"], **options)
    with np.load(Path(folder) / "data.npz") as arrays:
        return imprint.open((arrays["inputs"], arrays["target"]), **options)


def prepare(folder: str, name: str, quick: bool) -> None:
    """Put the data of a job where its processes find them, and the corpus into its store."""
    data = source(name, quick)
    if isinstance(data, pl.DataFrame):
        data.write_parquet(Path(folder) / "data.parquet")
    else:
        np.savez(Path(folder) / "data.npz", inputs=data[0], target=data[1])
    opened(folder, name)


def say(folder: str, job: str, plan: str) -> dict[str, Any]:
    """The price, in this process."""
    import imprint

    data, settings, _, executor = JOBS[job]
    said = imprint.price("fleet", imprint.Learner(**settings), opened(folder, data), plan=plan, executor=executor)
    return {"seconds": said.seconds, "memory": said.memory_bytes, "disk": said.disk_bytes, "basis": said.basis}


def pay(folder: str, job: str, plan: str) -> dict[str, Any]:
    """The fleet, in this process."""
    import time

    import imprint

    data, settings, _, executor = JOBS[job]
    corpus, fleet, learner = opened(folder, data), imprint.fleet, imprint.Learner(**settings)  # packages are loaded
    began = time.perf_counter()
    made = fleet(learner, corpus, plan, Path(folder) / "fleet", executor=executor, resume=False, progress=False)
    seconds = time.perf_counter() - began
    disk = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    chosen = made.manifest["executor"]
    return {
        "seconds": seconds, "memory": int(status["VmHWM"].split()[0]) * 1024, "disk": disk,
        "basis": f"executor {chosen['name']}: {chosen['why']}; training {made.metrics()['seconds'].sum():.1f} s",
    }  # fmt: skip


def process(part: str, *words: str) -> dict[str, Any]:
    """One part in a process of its own; idle threads sleep there, as on the command line."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and members")
    parser.add_argument("--only", default="", help="jobs whose name has this in it")
    parser.add_argument("--repeat", type=int, default=1, help="say and pay so often; the table has the medians")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, *words = options.part
        print(json.dumps({"say": say, "pay": pay}[part](*words)))
        return
    print(f"{'fleet':30} {'s said':>8} {'s paid':>8} {'ratio':>6}  {'MiB said':>8} {'MiB paid':>8} {'ratio':>6}  "
          f"{'disk said':>9} {'disk paid':>9} {'ratio':>6}", flush=True)  # fmt: skip
    for job, (data, _, plan, _) in JOBS.items():
        if options.only not in job:
            continue
        plan = " * ".join(QUICK.get(one, one) for one in plan.split(" * ")) if options.quick else plan
        with tempfile.TemporaryDirectory(prefix="imprint-fleet-price-") as folder:
            prepare(folder, data, options.quick)
            pairs = [
                (process("say", folder, job, plan), process("pay", folder, job, plan)) for _ in range(options.repeat)
            ]
        line = f"{job:30}"
        for unit, scale, digits in (("seconds", 1, 2), ("memory", 2**20, 0), ("disk", 2**20, 2)):
            said, paid = (statistics.median(pair[side][unit] for pair in pairs) / scale for side in (0, 1))
            ratio = statistics.median(pair[1][unit] / pair[0][unit] for pair in pairs)
            star = " " if WITHIN[0] <= ratio <= WITHIN[1] else "*"
            line += f" {said:>8.{digits}f} {paid:>8.{digits}f} {ratio:>6.2f}{star} "
        print(line, flush=True)
        for verb, one in zip(("said", "paid"), pairs[0], strict=True):
            print(f"    {verb}: {one['basis']}", flush=True)


if __name__ == "__main__":
    main()
