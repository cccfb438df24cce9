"""Kill -9 at random moments of a fit: does each run open, resume, and end in bitwise the weights of the uninterrupted training?

One uninterrupted fit is the reference. Each trial starts the same fit in a process of its own, kills it (SIGKILL) after a random
time between its first and last moment, opens what is left, resumes, and compares weights, order, dynamics and curves with the reference.
Checkpoints are also taken within epochs, every 0.2 s, so that kills fall inside epochs, inside saves and between the two.

    python benchmarks/kill_resume.py [--trials 20] [--rows 20000] [--epochs 6] [--ema 0.99]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

import imprint
from imprint.recording.needs import Dynamics

CHECKPOINT_SECONDS = 0.2


def corpus(rows: int, store: Path) -> imprint.Corpus:
    """Clouds in 20 dimensions with a tenth of the labels wrong, so that the loss never vanishes."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, rows)
    values = rng.normal(size=(10, 20))[label] + rng.normal(size=(rows, 20))
    label = np.where(rng.random(rows) < 0.1, rng.integers(0, 10, rows), label)
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(20)}).with_columns(label=pl.Series(label))
    return imprint.open(frame, target="label", store=store)


def fit(arguments: argparse.Namespace, store: Path, path: Path) -> imprint.Run:
    """The fit that is killed; the same everywhere."""
    learner = imprint.Learner("mlp", epochs=arguments.epochs, batch_size=128, ema=arguments.ema, seed=3)
    data = corpus(arguments.rows, store)
    return imprint.fit(learner, data, path, progress=False, checkpoint_seconds=CHECKPOINT_SECONDS)


def differences(run: imprint.Run, reference: imprint.Run) -> list[str]:
    """What is not bitwise equal."""
    found = []
    ours, theirs = (one.checkpoints.named("last").weights() for one in (run, reference))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        found.append("weights")
    ours, theirs = (one.gather([Dynamics("logits")])["logits"] for one in (run, reference))
    if not torch.equal(ours, theirs):
        found.append("dynamics")
    orders = [pl.from_arrow(one.evidence("order").table.to_table()) for one in (run, reference)]
    if not orders[0].equals(orders[1]):
        found.append("order")
    if not run.curves().drop("seconds").equals(reference.curves().drop("seconds")):
        found.append("curves")
    return found


def main() -> int:
    """Run the trials and print one line each; the exit status is 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--ema", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("STORE", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        store, path = Path(arguments.child[0]), Path(arguments.child[1])
        with (
            tempfile.TemporaryDirectory() as warm
        ):  # load the libraries first, so that the kill falls into the fit itself
            imprint.fit(imprint.Learner("mlp", epochs=1), corpus(arguments.rows, store), warm, progress=False)
        print("fitting", flush=True)
        fit(arguments, store, path)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="imprint-kill-"))
    store = folder / "store"
    moments = random.Random(arguments.seed)
    fit(arguments, store, folder / "warm")  # the store is made once, the libraries are loaded
    began = time.perf_counter()
    reference = fit(arguments, store, folder / "reference")
    whole = time.perf_counter() - began
    print(
        f"uninterrupted fit: {whole:.2f} s, {arguments.rows} rows, {arguments.epochs} epochs, {torch.get_num_threads()} threads"
    )
    print(f"{'trial':>5} {'killed at':>10} {'left behind':<40} {'resumed':<9} differs")
    failures = 0
    for trial in range(arguments.trials):
        path = folder / f"run-{trial}"
        command = [sys.executable, __file__, "--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
        command += ["--ema", str(arguments.ema)] if arguments.ema else []
        child = subprocess.Popen([*command, "--child", str(store), str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        after = moments.uniform(0, whole)
        time.sleep(after)
        ended = child.poll() is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        left = "nothing yet"
        if (path / "manifest.json").exists():
            run = imprint.load(path)
            known = run.checkpoints.all()
            left = f"{run.status}, {known[-1].name if known else 'no checkpoint'}"
            if known:
                run.model()
        try:
            wrong = differences(fit(arguments, store, path), reference)
        except imprint.ImprintError as error:
            wrong = [str(error)]
        failures += bool(wrong)
        said = (json.dumps(wrong) if wrong else "nothing") + (" (had ended)" if ended else "")
        print(
            f"{trial:>5} {after:>8.2f} s {left:<40} {'complete' if not wrong else 'FAILED':<9} {said}",
            flush=True,
        )
        shutil.rmtree(path, ignore_errors=True)
    print(f"{arguments.trials - failures} of {arguments.trials} bitwise equal to the uninterrupted run")
    shutil.rmtree(folder, ignore_errors=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
