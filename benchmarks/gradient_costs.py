"""What gradients cost: seconds and peak memory over examples, queries and parameters, one of them varied at a time.

Each job and axis is measured in a process of its own: a first call of each size, smallest first, is for warming up and for its peak memory;
then `--repeats` rounds over all sizes in turn. For each size the table has the median seconds with their spread, the arithmetic
(multiplications and additions of the matrix products, convolutions and attention that were called, as torch counts them; sorting,
eigenvectors and elementwise work are not in it) and the peak of resident memory above what stood before the call. Inputs stand before it.

The second table has a line per job and axis, `seconds = a + b * size`, fitted to the medians with the least relative error:

    b                    the cost of one more unit (least to most: fitted to each round apart), and of it per parameter, per pair, or both
    MFLOP, of matmul     arithmetic of one more unit; and at the largest size, as a share of what a product of 1024 x 1024 matrices reaches
                         between the rounds of the same process
    off                  largest distance of a median from the line
    unit cost            seconds per unit at the largest size over those at the smallest; above 1.3 the row says "not linear". Below 1
                         what is paid once (`a`) is spread over more
    peak                 MiB at the smallest and at the largest size. Up to a point more examples or queries fill a block; where the last
                         doubling of them still adds more than 1.3 times and 16 MiB, the row says that memory grows, and why

Networks: 784-w-10 and a small convolutional network on Fashion-MNIST (the first after an epoch of training), and a GPT of 2 layers on
documents of 64 tokens. The axis of parameters varies w; of TRAK scoring, which sees projected gradients alone, the numbers of these; of
KNN-Shapley the features.

    python benchmarks/gradient_costs.py                                 all jobs and axes
    python benchmarks/gradient_costs.py --quick                         an eighth of the sizes, 2 rounds
    python benchmarks/gradient_costs.py --only exact trak --axes examples --json costs.json
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fleets import matmul_rate
from gpt_gradients import status
from gradient_products import Documents, Gpt, next_token
from influence import TASK, data, examples_of, trained
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imprint.gradients import Capture, Examples, project
from imprint.gradients.curvature_evidence import fitted
from imprint.scoring import knn_shapley
from imprint.tasks import Classification
from imprint.tracing import trak
from imprint.tracing.influence import preconditioned
from imprint.tracing.products import exact

MOST_GROWTH = 1.3
# A peak that grows by less is the allocator's.
LEAST_MIB = 16
NUMBERS = 512
MOST_EXAMPLES, MOST_QUERIES = 40_000, 800
AXES = ("examples", "queries", "width")


@dataclass(frozen=True)
class Sizes:
    """How large a job is; `width` is that of the network, or of the numbers that the job reads."""

    examples: int
    queries: int
    width: int


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        prepare: Sizes -> (what is timed, parameters of the model, or numbers per example that the job reads).
        usual: What the sizes are while one of them is varied.
        sizes: Of each axis.
        third: What the axis of width is called in the table.
        remark: Why a row is not linear, or grows.
    """

    prepare: Callable[[Sizes], tuple[Callable[[], Any], int]]
    usual: Sizes
    sizes: dict[str, tuple[int, ...]]
    third: str = "parameters"
    remark: str = ""


# ------------------------------------------------------------------------------------------------------------------ networks

images = functools.cache(data)


def perceptron(sizes: Sizes) -> tuple[Examples, Examples]:
    """Queries and examples of a 784-w-10 network."""
    inputs, target = images(MOST_EXAMPLES, MOST_QUERIES)
    module = trained(inputs[:2000], target[:2000], sizes.width, epochs=1)
    return cut(module, inputs, target, sizes)


def convolutional(sizes: Sizes) -> tuple[Examples, Examples]:
    """The same of two convolutions and a linear layer."""
    inputs, target = images(MOST_EXAMPLES, MOST_QUERIES)
    width = sizes.width
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 49, 10),
    ).eval()  # fmt: skip
    return cut(module, inputs.view(-1, 1, 28, 28), target, sizes)


def cut(module: nn.Module, inputs: Tensor, target: Tensor, sizes: Sizes) -> tuple[Examples, Examples]:
    """The queries are the last images, the examples the first."""
    some, asked = slice(sizes.examples), slice(len(inputs) - sizes.queries, None)
    return examples_of(module, inputs[asked], target[asked]), examples_of(module, inputs[some], target[some])


def documents(sizes: Sizes) -> tuple[Examples, Examples]:
    """The same of a GPT of 2 layers, 1,024 words, 64 tokens."""
    words, length = 1024, 64
    torch.manual_seed(0)
    module = Gpt(words, sizes.width, layers=2, positions=length).eval()
    total = sizes.examples + sizes.queries
    codes = next(Documents(total, words, length).batches(total))

    def examples(some: Tensor) -> Examples:
        def read(places: np.ndarray) -> tuple[Tensor, Tensor]:
            rows = some[torch.from_numpy(places)]
            return rows, rows

        return Examples(read, len(some), Capture(module, Classification((0, 1)), of=next_token), torch.device("cpu"))

    return examples(codes[sizes.examples :]), examples(codes[: sizes.examples])


def parameters(examples: Examples) -> int:
    return sum(one.numel() for one in examples.capture.module.parameters())


# ---------------------------------------------------------------------------------------------------------------------- jobs

Prepare = Callable[[Sizes], tuple[Callable[[], Any], int]]
Network = Callable[[Sizes], tuple[Examples, Examples]]


def products_of(network: Network) -> Prepare:
    """Exact products, from the model to the ten best and worst examples of each query."""

    def prepare(sizes: Sizes) -> tuple[Callable[[], Any], int]:
        queries, examples = network(sizes)
        return lambda: exact((queries,), (examples,)).top(10), parameters(examples)

    return prepare


def projected(network: Network, kind: str, loss: Callable[[Tensor, Tensor], Tensor], batch: int) -> Prepare:
    """Projected gradients of all examples, written to disk."""

    def prepare(sizes: Sizes) -> tuple[Callable[[], Any], int]:
        _, examples = network(replace(sizes, queries=1))
        module = examples.capture.module

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for begin in range(0, len(examples), batch):
                yield examples.read(np.arange(begin, min(begin + batch, len(examples))))

        def of(model: nn.Module, some: tuple[Tensor, Tensor]) -> Tensor:
            return loss(model(some[0]), some[1])

        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "gradients.lance"
                project(module, batches(), of, size=NUMBERS, kind=kind, path=path)  # type: ignore[arg-type]

        return run, parameters(examples)

    return prepare


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def trak_scores(sizes: Sizes) -> tuple[Callable[[], Any], int]:
    """TRAK from projected gradients that are in memory."""
    random = torch.Generator().manual_seed(0)
    examples = torch.randn(sizes.examples, sizes.width, generator=random)
    queries = torch.randn(sizes.queries, sizes.width, generator=random)
    margins = torch.randn(sizes.examples, generator=random)
    return lambda: trak(queries, examples, margins, TASK.classes).top(10), sizes.width


def ekfac_fit(sizes: Sizes) -> tuple[Callable[[], Any], int]:
    _, examples = perceptron(replace(sizes, queries=1))
    return lambda: fitted("ekfac", examples), parameters(examples)


def ekfac_scores(sizes: Sizes) -> tuple[Callable[[], Any], int]:
    """From the model and its curvature to the ten best and worst examples of each query."""
    queries, examples = perceptron(sizes)
    curvature = fitted("ekfac", examples_of(examples.capture.module, *examples.read(np.arange(2000) % len(examples))))
    return lambda: preconditioned(curvature, (queries,), (examples,)).top(10), parameters(examples)


def neighbours(sizes: Sizes) -> tuple[Callable[[], Any], int]:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(sizes.examples + sizes.queries, sizes.width, generator=random)
    labels = torch.randint(10, (len(features),), generator=random)
    count = sizes.examples
    return lambda: knn_shapley(features[:count], labels[:count], features[count:], labels[count:]), sizes.width


MANY = {
    "examples": (5000, 10_000, 20_000, MOST_EXAMPLES),
    "queries": (100, 200, 400, MOST_QUERIES),
    "width": (64, 128, 256, 512),
}
SOME = {"examples": (250, 500, 1000, 2000), "queries": (16, 32, 64, 128), "width": (4, 8, 16, 32)}
TEXTS = {"examples": (128, 256, 512, 1024), "queries": (8, 16, 32, 64), "width": (48, 96, 192, 384)}
BLOCKS = "up to a block of 64 MiB of factors; scores that fit in 1 GiB are kept"
JOBS = {
    "exact": Job(
        products_of(perceptron), Sizes(10_000, 200, 256), MANY, remark="factors that fit in 1 GiB are held"
    ),
    "exact, convolutions": Job(products_of(convolutional), Sizes(1000, 64, 8), SOME, remark=BLOCKS),
    "exact, text": Job(products_of(documents), Sizes(256, 16, 96), TEXTS, remark=BLOCKS),
    "projected, factored": Job(projected(perceptron, "factored", cross_entropy, 500), Sizes(10_000, 1, 256), MANY),
    "projected, paired": Job(projected(perceptron, "paired", cross_entropy, 500), Sizes(10_000, 1, 256), MANY),
    "projected, factored, text": Job(projected(documents, "factored", next_token, 16), Sizes(256, 1, 96), TEXTS),
    "projected, paired, text": Job(projected(documents, "paired", next_token, 16), Sizes(256, 1, 96), TEXTS),
    "trak": Job(
        trak_scores, Sizes(20_000, 200, 512),
        {"examples": (10_000, 20_000, 40_000, 80_000), "queries": (200, 400, 800, 1600), "width": (128, 256, 512, 1024)},
        "numbers", "a matrix of numbers x numbers is summed over the examples, whose weighted copy is held",
    ),
    "ekfac fit": Job(ekfac_fit, Sizes(10_000, 1, 256), MANY, remark="gradients of up to 256 MiB are kept between the passes"),
    "ekfac scores": Job(ekfac_scores, Sizes(10_000, 200, 256), MANY, remark=BLOCKS),
    "knn-shapley": Job(
        neighbours, Sizes(10_000, 1000, 128),
        {"examples": (5000, 10_000, 20_000, 40_000), "queries": (500, 1000, 2000, 4000), "width": (64, 128, 256, 512)},
        "features", "each query sorts the examples: N log N; up to a block of 2 million pairs",
    ),
}  # fmt: skip
# Axes that a job does not have.
WITHOUT = {"queries": {name for name in JOBS if name.startswith("projected")} | {"ekfac fit"}}


# ----------------------------------------------------------------------------------------------------------------- measuring


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that a call adds to the process at its height."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def measured(name: str, axis: str, sizes: tuple[int, ...], repeats: int, threads: int) -> dict[str, Any]:
    """Seconds, arithmetic and peak memory of a job at each size of an axis."""
    torch.set_num_threads(threads)
    job = JOBS[name]
    calls, found = [], []
    for size in sizes:
        run, numbers = job.prepare(replace(job.usual, **{axis: size}))
        # The peak of a second call: the first one pays for what the libraries keep.
        with FlopCounterMode(display=False) as counter:
            run()
        calls.append(run)
        found.append(
            {
                "size": size,
                "parameters": numbers,
                "flop": counter.get_total_flops(),
                "peak": peak_of(run),
                "seconds": [],
            }
        )
    rates = []
    for _ in range(repeats):
        rates.append(matmul_rate())
        for run, one in zip(calls, found, strict=True):
            began = time.perf_counter()
            run()
            one["seconds"].append(time.perf_counter() - began)
    return {"job": name, "axis": axis, "usual": vars(job.usual), "rates": rates, "sizes": found}


def line(x: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(a, b) of `a + b x` with the least squared relative error."""
    terms = np.stack([np.ones_like(x), x], 1) / seconds[:, None]
    a, b = np.linalg.lstsq(terms, np.ones_like(x), rcond=None)[0]
    return float(a), float(b)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The line through what was measured, and what is to be said of it."""
    sizes, wide = found["sizes"], found["axis"] == "width"
    x = np.array([one["parameters"] if wide else one["size"] for one in sizes], float)
    seconds = np.array([one["seconds"] for one in sizes])
    medians = np.median(seconds, 1)
    a, b = line(x, medians)
    slopes = [line(x, each)[1] for each in seconds.T]
    flop, peak = ([one[what] for one in sizes] for what in ("flop", "peak"))
    growth = float((medians[-1] / x[-1]) / (medians[0] / x[0]))
    grows = found["axis"] != "width" and peak[-1] > max(MOST_GROWTH * peak[-2], peak[-2] + LEAST_MIB * 2**20)
    return {
        "unit": {"examples": "example", "queries": "query"}.get(found["axis"], JOBS[found["job"]].third.rstrip("s")),
        "a": a,
        "b": b,
        "b least": min(slopes),
        "b most": max(slopes),
        "flop": (flop[-1] - flop[0]) / (x[-1] - x[0]),
        "share": flop[-1] / medians[-1] / float(np.median(found["rates"])),
        "off": float(np.abs((a + b * x) / medians - 1).max()),
        "growth": growth,
        "linear": growth <= MOST_GROWTH,
        "memory grows": grows,
        "bytes": (peak[-1] - peak[-2]) / (x[-1] - x[-2]),
    }


# ------------------------------------------------------------------------------------------------------------------ printing


def quantity(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e12:.3g} ps"


def each(found: dict[str, Any], b: float) -> str:
    """The cost of a unit divided by what was fixed."""
    usual, numbers, axis = found["usual"], found["sizes"][0]["parameters"], found["axis"]
    third = JOBS[found["job"]].third.rstrip("s")
    if axis == "queries":
        return f"{quantity(b / usual['examples'])} a pair"
    divided = f"{quantity(b / (usual['examples'] if axis == 'width' else numbers))} a {third} and example"
    return divided


def heading() -> None:
    print(
        f"{'job':26} {'axis':10} {'size':>9} {'seconds [least, most]':26} {'ns / unit':>12} {'GFLOP':>9} {'peak MiB':>8}"
    )


def details(found: dict[str, Any]) -> None:
    unit = JOBS[found["job"]].third if found["axis"] == "width" else found["axis"]
    for one in found["sizes"]:
        x = one["parameters"] if found["axis"] == "width" else one["size"]
        median, times = float(np.median(one["seconds"])), one["seconds"]
        spread = f"{median:.4f} [{min(times):.4f}, {max(times):.4f}]"
        print(
            f"{found['job']:26} {unit:10} {x:>9,} {spread:26} {median / x * 1e9:>12,.0f} {one['flop'] / 1e9:>9.2f} "
            f"{one['peak'] / 2**20:>8.0f}",
            flush=True,
        )


def summary(results: list[dict[str, Any]]) -> None:
    print(
        f"{'job':26} {'per':10} {'a':>8} {'b (least to most)':28} {'b, of one':38} {'MFLOP':>8} {'of matmul':>9} {'off':>5} "
        f"{'unit cost':>9} {'peak MiB':>13}  remarks"
    )
    for found in results:
        one, peaks = found["line"], [size["peak"] / 2**20 for size in found["sizes"]]
        b = f"{quantity(one['b'])} ({quantity(one['b least'])} to {quantity(one['b most'])})"
        said = ["not linear"] if not one["linear"] else []
        said += [f"memory grows by {one['bytes'] / 2**10:,.1f} KiB per {one['unit']}"] if one["memory grows"] else []
        said += [JOBS[found["job"]].remark] if said and JOBS[found["job"]].remark else []
        print(
            f"{found['job']:26} {one['unit']:10} {quantity(one['a']):>8} {b:28} {each(found, one['b']):38} {one['flop'] / 1e6:>8.3g} "
            f"{one['share']:>9.0%} {one['off']:>5.0%} {one['growth']:>9.2f} {f'{peaks[0]:.0f} to {peaks[-1]:.0f}':>13}  {'; '.join(said)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="JOB", help=f"names begin so: {', '.join(JOBS)}")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="an eighth of the sizes of examples and queries, 2 rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    if options.one:
        name, axis = options.one
        sizes = reduced(JOBS[name]).sizes[axis] if options.quick else JOBS[name].sizes[axis]
        if options.quick:
            JOBS[name] = reduced(JOBS[name])
        print(json.dumps(measured(name, axis, sizes, repeats, options.threads)))
        return
    chosen = [name for name in JOBS if not options.only or any(name.startswith(one) for one in options.only)]
    pairs = [(name, axis) for name in chosen for axis in options.axes if name not in WITHOUT.get(axis, ())]
    if not pairs:
        parser.error(f"no job begins with {' or '.join(options.only)}; there are {', '.join(JOBS)}")
    print(f"torch {torch.__version__}, {options.threads} threads, {repeats} rounds")
    heading()
    results = []
    for name, axis in pairs:
        words = [sys.executable, __file__, "--one", name, axis, "--repeats", str(repeats)]
        words += ["--threads", str(options.threads)] + ["--quick"] * options.quick
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}, {axis}:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        results.append({**found, "line": judged(found)})
        details(found)
    rates = [rate / 1e9 for found in results for rate in found["rates"]]
    print(f"\nA product of 1024 x 1024 matrices: {np.median(rates):.0f} GFLOP/s [{min(rates):.0f}, {max(rates):.0f}]")
    summary(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def reduced(job: Job) -> Job:
    """The same job, with an eighth of the examples and queries."""

    def eighth(count: int) -> int:
        return max(2, count // 8) if count > 1 else count

    usual = replace(job.usual, examples=eighth(job.usual.examples), queries=eighth(job.usual.queries))
    sizes = {axis: tuple(map(eighth, some)) if axis != "width" else some for axis, some in job.sizes.items()}
    return replace(job, usual=usual, sizes=sizes)


if __name__ == "__main__":
    main()
