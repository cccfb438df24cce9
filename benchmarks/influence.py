"""EK-FAC influence beside kronfluence: seconds to fit and to score, and whether they agree; and what the other influence methods cost.

    python benchmarks/influence.py --peer /tmp/venv-kron/bin/python        Fashion-MNIST, 784-256-10, 5,000 examples x 200 queries
    python benchmarks/influence.py --examples 1000 --queries 50            smaller, without the peer

kronfluence runs in an environment of its own (`benchmarks/kronfluence_scores.py` says how to make it), with the same network, the same
labels drawn for the Fisher matrix, its authors' settings and their damping rule, which is ours as well. Seconds are of the work alone:
no process start, no reading of data. Each side is run `--repeat` times; the table has the median and the range.

Rank correlations are Spearman's over the examples, one per query. `drawn anew` is how far EK-FAC scores agree with themselves when the
Fisher matrix takes other random labels (or signs) from the same model: no approximation needs to be finer than that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from imprint.gradients import Capture, Examples
from imprint.gradients.curvature_evidence import fitted
from imprint.gradients.fisher import blocks
from imprint.gradients.solving import TOLERANCE
from imprint.tasks import Classification
from imprint.tracing.influence import DAMPING, influence_cg, influence_exact, leading, preconditioned

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SCRIPT = Path(__file__).with_name("kronfluence_scores.py")
TASK = Classification(tuple(range(10)))


def data(examples: int, queries: int) -> tuple[Tensor, Tensor]:
    """Standardised pixels and labels of Fashion-MNIST; the queries stand behind the examples."""
    sys.path.insert(0, str(SHARED))
    import load

    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    target = torch.from_numpy(labels[labels.files[0]][: examples + queries].astype(np.int64))
    pixels = load.sprite(str(SHARED / "images/fashion_mnist/train60k.webp"))[: examples + queries]
    inputs = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32) / 255)
    return (inputs - inputs.mean()) / inputs.std(), target


def trained(inputs: Tensor, target: Tensor, hidden: int, epochs: int = 15) -> nn.Sequential:
    """The network after a short training."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 10))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    for _ in range(epochs):
        for some in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[some]), target[some]).backward()
            optimizer.step()
    return module.eval()


def examples_of(module: nn.Module, inputs: Tensor, target: Tensor) -> Examples:
    def read(places: np.ndarray) -> tuple[Tensor, Tensor]:
        some = torch.from_numpy(places)
        return inputs[some], target[some]

    return Examples(read, len(inputs), Capture(module, TASK), torch.device("cpu"))


def ranks(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Mean and least rank correlation over queries."""
    found = [float(spearmanr(one, two).statistic) for one, two in zip(ours, theirs, strict=True)]
    return f"{np.mean(found):.4f} (least {min(found):.4f})"


def shown(seconds: list[float]) -> str:
    return f"{np.median(seconds):8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


def peer(
    python: str, module: nn.Sequential, arrays: dict[str, Tensor], threads: int
) -> tuple[float, float, np.ndarray]:
    """(seconds to fit, seconds to score, scores) of kronfluence."""
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    arrays = arrays | {f"{name}_{k}": getattr(one, name) for k, one in enumerate(linear) for name in ("weight", "bias")}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **{name: one.detach().numpy() for name, one in arrays.items()})
        command = [python, str(SCRIPT), str(given), str(found), "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
        result = np.load(found)
        return float(result["fit"]), float(result["score"]), result["scores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peer-repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", help="a python that has kronfluence")
    parser.add_argument(
        "--iterative", action="store_true", help="also conjugate gradients, for as many queries as --cg-queries"
    )
    parser.add_argument("--cg-queries", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs, target = data(options.examples, options.queries)
    cut = options.examples
    module = trained(inputs[:cut], target[:cut], options.hidden)
    examples = examples_of(module, inputs[:cut], target[:cut])
    queries = examples_of(module, inputs[cut:], target[cut:])
    parameters = sum(one.numel() for one in module.parameters())
    print(
        f"784-{options.hidden}-10 ({parameters:,} parameters), {options.examples:,} examples x {options.queries} queries, "
        f"{options.threads} threads"
    )

    def run(
        kind: str = "ekfac", fisher: str = "drawn", damping: float = 0.1, tolerance: float = TOLERANCE, seed: int = 0
    ) -> tuple[float, float, np.ndarray]:
        began = time.perf_counter()
        curvature = fitted(kind, examples, fisher, seed)
        middle = time.perf_counter()
        scores = preconditioned(curvature, (queries,), (examples,), damping, tolerance).scores()
        return middle - began, time.perf_counter() - middle, scores.numpy()

    run()  # the first call pays for warming up
    ours = [run() for _ in range(options.repeat)]
    total = [fit + score for fit, score, _ in ours]
    print(f"imprint      fit {shown([one[0] for one in ours])}   score {shown([one[1] for one in ours])}")
    if options.peer:
        arrays = {"inputs": inputs[:cut], "target": target[:cut], "queries": inputs[cut:], "query_target": target[cut:]}
        arrays["drawn"] = torch.cat([labels for _, labels in blocks(examples, "drawn")])
        theirs = [peer(options.peer, module, arrays, options.threads) for _ in range(options.peer_repeat)]
        both = [fit + score for fit, score, _ in theirs]
        print(f"kronfluence  fit {shown([one[0] for one in theirs])}   score {shown([one[1] for one in theirs])}")
        print(
            f"fit and score together: {np.median(both) / np.median(total):.1f} times as fast "
            f"({min(both) / max(total):.1f} to {max(both) / min(total):.1f}); rank correlation {ranks(ours[0][2], theirs[0][2])}"
        )
    _, score, full = run(tolerance=0)
    print(f"inverse in full: score {score:.3f} s, rank correlation with the above {ranks(ours[0][2], full)}")
    for fisher, name in (("drawn", "labels"), ("true", "random signs")):
        agree = ranks(*(run(fisher=fisher, seed=seed)[2] for seed in (0, 1)))
        print(f"{name} drawn anew: rank correlation {agree}")
    print("\nAs the trace methods are set, with random signs in place of drawn labels and their own damping:")
    exact: np.ndarray | None = None
    print(f"{'':22}{'seconds':>9}   rank correlation with influence-exact")
    for name in ("influence-exact", "influence-ekfac", "influence-kfac", "influence-diagonal", "influence-arnoldi"):
        began = time.perf_counter()
        if name == "influence-exact":
            scores = exact = influence_exact((queries,), (examples,)).scores().numpy()
        elif name == "influence-arnoldi":
            scores = leading(queries, examples).scores().numpy()
        else:
            scores = run(name.removeprefix("influence-"), "true", DAMPING)[2]
        assert exact is not None
        print(f"{name:22}{time.perf_counter() - began:9.3f}   {ranks(scores, exact)}", flush=True)
    if options.iterative:
        assert exact is not None
        few = slice(cut, cut + options.cg_queries)
        asked = examples_of(module, inputs[few], target[few])
        began = time.perf_counter()
        scores = influence_cg((asked,), (examples,)).scores().numpy()
        print(
            f"{'influence-cg':22}{time.perf_counter() - began:9.3f}   {ranks(scores, exact[: len(scores)])}, {len(scores)} queries"
        )


if __name__ == "__main__":
    main()
