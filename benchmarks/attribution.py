"""Which attribution can be believed? The linear datamodeling score (LDS) of every trace method that serves a run, beside the controls.

All methods are judged by the same models, trained on random halves that no method has seen, over the same test queries; intervals are
bootstraps over queries and models, paired between methods. A method that does not beat `embedding` (the similarity of the trained model's
features) has not shown that it knows more than that; `embedding-class`, which also looks at labels, is the stronger control. Which
methods beat neither is said in words below each table.

`evidence` is what collecting the method's evidence takes if nothing is there yet; `scores` is what scoring all queries takes after that.
A method that would take longer than `--limit` seconds for either is not run; what it would take is extrapolated from a few queries.

    python benchmarks/attribution.py                                              all five settings
    python benchmarks/attribution.py fashion-mlp --train 1000 --queries 100 --judges 32 --members 32 --limit 30      smaller
    python benchmarks/attribution.py fashion-mlp --methods influence-ekfac trak --removal 50     also retrain without the best 50 examples
    python benchmarks/attribution.py --memory                                     50,000 x 5,000 pairs: seconds and peak memory
"""

from __future__ import annotations

import argparse
import lzma
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from label_audits import SHARED, lines, sprite

import imprint
from imprint.errors import ImprintError
from imprint.methods import Method, lookup, registered
from imprint.recording import Run, load
from imprint.tracing import chosen, factors_of
from imprint.tracing.datamodeling import percentiles, resampled, spearman
from imprint.tracing.evidence import asks_queries, bytes_read
from imprint.tracing.judges import held_out
from imprint.verifying.removal import intervals, remove

LEVEL = 0.95
EMBEDDINGS = ("embedding", "embedding-class")
# A method is priced on so many queries, and on more where these say that all of them may take too long.
FEW, MORE = 2, 6
# Of the job that shows how much memory a trace takes, and what it may take.
EXAMPLES, QUERIES, TARGET = 50_000, 5_000, 4 * 2**30


# ------------------------------------------------------------------------------------------------------------------- settings


def fashion_mlp(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Fashion-MNIST as flat pixels, for an MLP."""
    pixels, label = fashion(count)
    flat = pl.Series(pixels.reshape(count, -1), dtype=pl.Array(pl.Float32, 784))
    return pl.DataFrame({"pixels": flat, "label": label}), imprint.Learner("mlp", epochs=12, batch_size=64)


def fashion_cnn(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Fashion-MNIST as arrays of one channel, for a CNN."""
    pixels, label = fashion(count)
    planes = pl.Series(pixels[:, None], dtype=pl.Array(pl.Float32, (1, 28, 28)))
    return pl.DataFrame({"pixels": planes, "label": label}), imprint.Learner("cnn", epochs=8, batch_size=64)


def text(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """TREC-6 questions, for the head on word vectors and words that suits texts."""
    rows = lines("text/trec6/trec6.jsonl.xz")
    frame = pl.DataFrame({"text": [row["text"] for row in rows], "label": [f"c{row['label']}" for row in rows]})
    return shuffled(frame, count), imprint.Learner("auto")


def transformer(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """TREC-6 questions, for a small transformer that is trained from nothing on their words."""
    return text(count)[0], imprint.Learner("transformer")


def table(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Adult income."""
    with lzma.open(SHARED / "tabular/adult/adult.csv.xz") as file:
        frame = pl.read_csv(file.read())
    return shuffled(frame.rename({"income": "label"}).drop("split"), count), imprint.Learner("auto")


def fashion(count: int) -> tuple[np.ndarray, list[str]]:
    """Pixels between 0 and 1 `[row, 28, 28]`, and labels."""
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    pixels = sprite("images/fashion_mnist/train60k.webp")[:count].astype(np.float32) / 255
    return pixels, [f"c{code}" for code in labels[labels.files[0]][:count]]


def shuffled(frame: pl.DataFrame, count: int) -> pl.DataFrame:
    return frame.sample(min(count, len(frame)), shuffle=True, seed=0)


SETTINGS = {
    "fashion-mlp": fashion_mlp,
    "fashion-cnn": fashion_cnn,
    "text": text,
    "transformer": transformer,
    "table": table,
}


def fitted(setting: str, train: int, queries: int, folder: Path, epochs: int | None = None) -> Run:
    """A recorded run of a setting, whose last rows are the queries."""
    frame, learner = SETTINGS[setting](train + queries)
    split = pl.Series(["train"] * (len(frame) - queries) + ["test"] * queries)
    corpus = imprint.open(frame.with_columns(split=split), target="label", split="split", store=folder / "store")
    learner = replace(learner, epochs=epochs or learner.epochs)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


# --------------------------------------------------------------------------------------------------------- time limit of a method


class TooLong(Exception):
    """A method has taken longer than it may."""


@contextmanager
def limited(seconds: float, what: str, limit: float | None = None) -> Iterator[None]:
    """Raise `TooLong` in what runs within, after so many seconds; told as the limit that they are left of."""

    def stop(*_: object) -> None:
        raise TooLong(f"{what} takes more than {limit or seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Scored:
    """What a method says of the judges, and what that cost.

    Attributes:
        found: Its scores (`imprint.tracing.Factors` or its like).
        predicted: Sum of the scores of the examples that each judge saw: `[query, judge]`.
        evidence: Seconds to collect what it reads.
        scores: Seconds to score all queries.
        stored: Bytes of its evidence on disk.
    """

    found: Any
    predicted: torch.Tensor
    evidence: float
    scores: float
    stored: int


def scored(
    run: Run, one: Method, rows: np.ndarray, seen: torch.Tensor, limit: float, known: dict[str, float]
) -> Scored:
    """Ask a method about the queries, within the limit.

    Args:
        run: The run.
        one: The method.
        rows: Rows of the queries.
        seen: Who saw what, of the judges.
        limit: Seconds.
        known: What collecting each store took; added to.

    Raises:
        TooLong: With what it takes or would take.
    """

    def ask(some: np.ndarray) -> tuple[Any, torch.Tensor, float]:
        began = time.perf_counter()
        found = factors_of(run, some, one, False)
        return found, found.predict(seen), time.perf_counter() - began

    evidence = collected(run, one, limit, known)
    with limited(limit, f"scoring {FEW} of {len(rows)} queries alone"):
        first = ask(rows[:FEW])[2]
    if first / FEW * len(rows) > limit:
        with limited(limit, f"scoring {MORE} of {len(rows)} queries alone"):
            second = ask(rows[:MORE])[2]
        each = max(0.0, second - first) / (MORE - FEW)
        total = second + each * (len(rows) - MORE)
        if total > limit:
            raise TooLong(f"would take about {total:.0f} s, {each:.2g} s per query")
    with limited(limit, "scoring all queries"):
        found, predicted, seconds = ask(rows)
    return Scored(found, predicted, evidence, seconds, bytes_read(run, one.needs))


def collected(run: Run, one: Method, limit: float, known: dict[str, float]) -> float:
    """Collect the evidence of a method, store by store; seconds that its stores took, whichever method asked for them first.

    What was stopped for one method goes on for the next that reads the same, and both are told what it took in all.
    """
    stores: dict[str, list[Any]] = {}
    for need in one.needs:
        if need.kind is not None:
            whole = replace(need, split=None) if asks_queries(need) else need
            stores.setdefault(str(need.store or need), []).append(whole)
    for store, needs in stores.items():
        left = limit - sum(known.get(name, 0.0) for name in stores)
        if left <= 0:
            raise TooLong(f"its evidence alone takes more than {limit:g} s")
        began = time.perf_counter()
        try:
            with limited(left, "its evidence alone", limit):
                run.collect(needs)
        finally:
            known[store] = known.get(store, 0.0) + time.perf_counter() - began
    return sum(known[store] for store in stores)


# ---------------------------------------------------------------------------------------------------------------------- the tables


def measure(setting: str, options: argparse.Namespace, folder: Path) -> None:
    """The tables of one setting."""
    began = time.perf_counter()
    run = fitted(setting, options.train, options.queries, folder)
    fit = time.perf_counter() - began
    rows = run.rows("test")
    began = time.perf_counter()
    truth = held_out(run, options.judges)
    judging = time.perf_counter() - began
    print(
        f"\n## {setting}\n\n{len(run):,} training examples, {len(rows)} queries; {run.learner.model}, "
        f"{sum(one.numel() for one in run.model().module.parameters()):,} parameters, test {run.task.headline} "
        f"{run.metrics('test')[run.task.headline]:.3f}; recorded training {fit:.1f} s; {options.judges} models to judge by, "
        f"{judging:.1f} s ({truth.manifest['executor']['name']}); {torch.get_num_threads()} threads\n",
        flush=True,
    )
    found, left_out = scored_by_all(run, rows, truth.weights.included(), options)
    margin = truth.outcomes("margin", rows=rows).T.double()
    predicted = {name: one.predicted for name, one in found.items()}
    print_scores(found, left_out, predicted, margin)
    if options.removal:
        print_removal(run, rows, {name: one.found for name, one in found.items()}, options)


def scored_by_all(
    run: Run, rows: np.ndarray, seen: torch.Tensor, options: argparse.Namespace
) -> tuple[dict[str, Scored], dict[str, str]]:
    """What each method says; and why others could not be asked."""
    asked = options.methods or [one.name for one in registered("trace")]
    found: dict[str, Scored] = {}
    left_out: dict[str, str] = {}
    known: dict[str, float] = {}
    for name in dict.fromkeys([*EMBEDDINGS, "random", *asked]):
        one = lookup("trace", name)
        if not one.serves(run):
            continue
        one = chosen(name, options.members if one.members else None)
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            with warnings.catch_warnings():  # what a method has to say of itself, the table says better
                warnings.simplefilter("ignore")
                found[name] = scored(run, one, rows, seen, options.limit, known)
        except TooLong as error:
            left_out[name] = f"not run: {error}"
        except ImprintError as error:
            left_out[name] = f"not run: {error.problem}"
    return found, left_out


def print_scores(
    found: dict[str, Scored], left_out: dict[str, str], predicted: dict[str, torch.Tensor], margin: torch.Tensor
) -> None:
    """LDS and leads, best first; then which methods beat the controls."""
    lds = {name: float(spearman(values, margin).mean()) for name, values in predicted.items()}
    drawn = resampled(predicted, margin)
    controls = [name for name in EMBEDDINGS if name in found]
    leads = {
        (name, control): (lds[name] - lds[control], *percentiles(drawn[name] - drawn[control], LEVEL))
        for name in found
        for control in controls
    }
    heads = "".join(f" over {control} | 95 % |" for control in controls)
    print(
        f"| method | LDS | 95 % |{heads} evidence, s | scores, s | evidence, MiB |\n|{'---|' * (6 + 2 * len(controls))}"
    )
    for name in sorted(found, key=lambda one: -lds[one]):
        one = found[name]
        cells = [name, f"{lds[name]:+.3f}", between(*percentiles(drawn[name], LEVEL))]
        for control in controls:
            value, *ends = leads[name, control]
            cells += ["", ""] if name == control else [f"{value:+.3f}", between(*ends)]
        print(f"| {' | '.join([*cells, f'{one.evidence:.2f}', f'{one.scores:.2f}', f'{one.stored / 2**20:.1f}'])} |")
    for name, why in left_out.items():
        print(f"\n{name}: {why}.")
    for control in controls:
        others = sorted((name for name in found if name not in (control, "random")), key=lambda one: -lds[one])
        better = [name for name in others if leads[name, control][1] > 0]
        worse = [name for name in others if leads[name, control][2] < 0]
        equal = [name for name in others if name not in better + worse]
        print(
            f"\nBeat {control} (the interval of the lead is above zero): {', '.join(better) or 'none'}.\n"
            f"Do NOT beat {control}: {', '.join(equal) or 'none'} (no clear difference); {', '.join(worse) or 'none'} (worse).",
            flush=True,
        )


def print_removal(run: Run, rows: np.ndarray, scores: dict[str, Any], options: argparse.Namespace) -> None:
    """What becomes of right predictions without the examples that each method names first."""
    began = time.perf_counter()
    kept = {name: one for name, one in scores.items() if name != "random"}
    took = remove(run, rows, kept, options.removal, queries=options.removed_queries, seeds=options.seeds)
    flips, more_flips = intervals(took.flips, "random", LEVEL)
    drops, more_drops = intervals(took.drops, "random", LEVEL)
    print(
        f"\nWithout the {took.removed} examples that help a query the most: {len(took.queries)} queries that models trained on everything "
        f"get right, {options.seeds} seeds, {took.trainings:,} trainings in {time.perf_counter() - began:.1f} s\n\n"
        "| removed by | flipped | 95 % | more than random | margin fell by | 95 % | more than random |\n|---|---|---|---|---|---|---|"
    )
    for name in sorted(flips, key=lambda one: (-flips[one][0], -drops[one][0])):
        flip, *flip_ends = flips[name]
        drop, *drop_ends = drops[name]
        # `intervals` gives random less the others.
        more = [
            "" if name == "random" else between(-leads[name][2], -leads[name][1]) for leads in (more_flips, more_drops)
        ]
        print(
            f"| {name} | {flip:.1%} | {flip_ends[0]:.1%} to {flip_ends[1]:.1%} | {more[0]} "
            f"| {drop:+.3f} | {between(*drop_ends)} | {more[1]} |"
        )
    for note in took.notes:
        print(f"\n{note}")


def between(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}"


# -------------------------------------------------------------------------------------------------------------------------- memory


def memory(methods: list[str], examples: int, queries: int) -> None:
    """Seconds and peak memory of whole traces, each in a process of its own."""
    print(
        f"{examples:,} x {queries:,} pairs: Fashion-MNIST, MLP after one epoch; the best and worst 10 examples of each query\n"
    )
    print("| step | seconds | peak RSS, GiB | below 4 GiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for step in ("fit", *methods):
            command = [sys.executable, __file__, "--memory-step", step, "--folder", folder]
            command += ["--train", str(examples), "--queries", str(queries)]
            done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, peak = done.split()[-2:]
            print(f"| {step} | {float(seconds):.1f} | {int(peak) / 2**30:.2f} | {int(peak) < TARGET} |", flush=True)


def memory_step(step: str, folder: Path, options: argparse.Namespace) -> None:
    """Fit, or trace by one method, and print seconds and the peak of this process in bytes."""
    began = time.perf_counter()
    if step == "fit":
        fitted("fashion-mlp", options.train, options.queries, folder, epochs=1)
    else:
        run = load(folder / "run")
        answer = imprint.trace(run, "test", step, k=10, progress=False)
        if len(answer.frame()) != 20 * options.queries:
            raise SystemExit(f"{step} answered {len(answer.frame())} rows.")
    print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; all where none is named")
    parser.add_argument("--train", type=int, help="training examples (2000; with --memory 50000)")
    parser.add_argument("--queries", type=int, help="test queries (300; with --memory 5000)")
    parser.add_argument("--judges", type=int, default=64, help="held-out models to judge by")
    parser.add_argument("--members", type=int, default=64, help="trainings of the fleets that methods read")
    parser.add_argument("--methods", nargs="+", help="trace methods; all that serve where none is named")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a method may take")
    parser.add_argument("--removal", type=int, default=0, help="also retrain without so many of the best examples")
    parser.add_argument("--removed-queries", type=int, default=30, help="queries that examples are removed for")
    parser.add_argument("--seeds", type=int, default=3, help="trainings for each removal")
    parser.add_argument("--memory", action="store_true", help="only measure the memory of a large trace")
    parser.add_argument("--memory-step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.settings if name not in SETTINGS]
    if unknown:
        parser.error(f"no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    large = options.memory or options.memory_step
    options.train = options.train or (EXAMPLES if large else 2000)
    options.queries = options.queries or (QUERIES if large else 300)
    if options.memory_step:
        memory_step(options.memory_step, options.folder, options)
    elif options.memory:
        memory(options.methods or ["gradient-dot", "trak"], options.train, options.queries)
    else:
        for setting in options.settings or SETTINGS:
            with tempfile.TemporaryDirectory() as folder:
                measure(setting, options, Path(folder))


if __name__ == "__main__":
    main()
