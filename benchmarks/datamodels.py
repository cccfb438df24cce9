"""Trust in datamodels as their fleets grow: the linear datamodeling score (LDS) with its interval, beside controls.

One fleet of the most members is trained; datamodels are estimated from its first 32, 64, ... members. All are held against the same
models trained on other random halves, over the same test queries, as are the controls: random scores, the similarity of the trained
model's features (with and without regard to labels), and the distance of the inputs (pixels, BM25, columns).

`lead` is the LDS less that of `embedding-class`, the strongest of the controls, with the interval of the difference.

    python benchmarks/datamodels.py                                         Fashion-MNIST and banking texts
    python benchmarks/datamodels.py fashion --members 32,64 --train 500     smaller
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

import imprint
from imprint.tracing import datamodel, subset_influence

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BEST_CONTROL = "embedding-class"


def fashion(train: int, test: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Fashion-MNIST as flat pixels, for an MLP."""
    sys.path.insert(0, str(SHARED))
    import load

    images = load.sprite(str(SHARED / "images/fashion_mnist/train60k.webp"))
    labels = next(iter(np.load(SHARED / "images/fashion_mnist/labels.npz").values()))
    flat = images.reshape(len(images), -1)[: train + test].astype(np.float32) / 255
    target = [f"c{value}" for value in labels[: train + test]]
    return pl.DataFrame({"pixels": pl.Series(flat), "label": target}), imprint.Learner("mlp", epochs=12, batch_size=64)


def banking(train: int, test: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """The bundled banking questions, for the learner that suits texts."""
    frame = pl.read_csv(ROOT / "examples/data/banking.csv").sample(fraction=1, shuffle=True, seed=0)
    return frame.select("text", "label").head(train + test), imprint.Learner("auto")


SETS = {"fashion": fashion, "banking": banking}


def measure(name: str, sizes: list[int], train: int, test: int, judges: int, folder: Path) -> None:
    """The table of one set."""
    frame, learner = SETS[name](train, test)
    train = len(frame) - test
    frame = frame.with_columns(split=pl.Series(["train"] * train + ["test"] * test))
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    run = imprint.fit(learner, corpus, folder / "run", progress=False)
    print(f"\n{name}: {train:,} training examples, {test:,} queries, {judges} models to judge by; {run.learner.model}, "
          f"test {run.task.headline} {run.metrics('test')[run.task.headline]:.3f}")  # fmt: skip
    began = time.perf_counter()
    answer = imprint.trace(run, "test", members=max(sizes), progress=False)
    fleet = imprint.Fleet.load(run.path / "fleets" / f"subsets-{max(sizes)}-0.5")
    print(f"{max(sizes)} members in {time.perf_counter() - began:.1f} s, {fleet.manifest['executor']}\n")
    margin, seen = fleet.outcomes("margin", rows=run.rows("test")), fleet.weights.included()
    print(
        f"{'method':<18} {'members':>7} {'LDS':>7}  {'95 % interval':<16} {'lead':>7}  {'95 % interval':<16} {'fit, s':>6}"
    )
    for function, title in ((datamodel, "datamodel"), (subset_influence, "subset-influence")):
        for members in sizes:
            began = time.perf_counter()
            factors = function(margin[:members], seen[:members])
            seconds = time.perf_counter() - began
            told = replace(answer, methods=(title,), higher={title: "helps the query"}, factors=factors)
            trust = imprint.verify(told, run, members=judges, progress=False)
            lead, *ends = trust.leads[BEST_CONTROL]
            print(f"{title:<18} {members:>7} {trust.lds:>+7.3f}  {between(trust.interval):<16} {lead:>+7.3f}  "
                  f"{between(ends):<16} {seconds:>6.2f}", flush=True)  # fmt: skip
    for title, (value, *ends) in trust.controls.items():
        print(f"{title:<18} {'':>7} {value:>+7.3f}  {between(ends)}")


def between(ends: tuple[float, float] | list[float]) -> str:
    low, high = ends
    return f"{low:+.3f} {high:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=list(SETS))
    parser.add_argument("--members", default="32,64,128,256,512")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--judges", type=int, default=128)
    options = parser.parse_args()
    sizes = [int(one) for one in options.members.split(",")]
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, sizes, options.train, options.queries, options.judges, Path(folder))


if __name__ == "__main__":
    main()
