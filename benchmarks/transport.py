"""GOT-D: seconds and memory of the transport gradient, its rank correlation with the exact one, and POT beside it.

The pool is drawn around centres of equal weight, and of the target six of seven examples are of a third of them, so that what should be
chosen is known: the share of the chosen examples that are of these kinds is printed (it is a third in the pool).

1. Full size: median seconds over rounds and the peak of the process's memory.
2. Exactness: potentials of `--exact` examples beside those of the linear program, for several epsilons: the rank correlation and the
   share of the 10 % with the lowest gradients that are the same; and both for an iteration that goes on to an error of 1e-5.
3. POT, if it is installed, on `--peer` examples: its exact solver, and its Sinkhorn iteration in logarithms with this epsilon and error.

    python benchmarks/transport.py                                       100,000 x 384 towards 5,000
    python benchmarks/transport.py --examples 10000 --rounds 1 --peer 1000
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

import imprint.selecting.transport as module
from imprint.selecting.transport import got_d, potentials

CENTRES = 30
SHARES = (0.2, 0.1, 0.05, 0.025, 0.01)


def drawn(examples: int, targets: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of pool and target of length one, with a spread about the centres that is wider in some directions; kinds of the pool."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(CENTRES, width, generator=generator)
    spread = torch.logspace(0, -1.5, width)
    spread *= (width / spread.square().sum()).sqrt()
    weights = torch.ones(CENTRES)
    of_pool = torch.multinomial(weights, examples, replacement=True, generator=generator)
    weights[: CENTRES // 3] = 12
    of_target = torch.multinomial(weights, targets, replacement=True, generator=generator)
    pool, target = (
        normalize(centre[kind] + spread * torch.randn(len(kind), width, generator=generator), dim=1)
        for kind in (of_pool, of_target)
    )
    return pool, target, of_pool


def agreement(exact: np.ndarray, found: Tensor) -> dict[str, float]:
    """Rank correlation, and the share of the lowest tenth that is the same."""
    tenth = max(1, len(exact) // 10)
    same = np.intersect1d(np.argsort(exact)[:tenth], np.argsort(found.numpy())[:tenth])
    return {"spearman": float(spearmanr(exact, found).statistic), "tenth": len(same) / tenth}


def by_program(pool: Tensor, target: Tensor) -> np.ndarray:
    cost = (1 - pool.double() @ target.double().T).numpy()
    rows, columns = cost.shape
    constraints = sparse.vstack(
        [sparse.kron(sparse.eye(rows), np.ones((1, columns))), sparse.kron(np.ones((1, rows)), sparse.eye(columns))]
    ).tocsr()
    sums = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    return linprog(cost.ravel(), A_eq=constraints, b_eq=sums, method="highs").eqlin.marginals[:rows]


def full(examples: int, targets: int, width: int, rounds: int, seed: int) -> dict[str, Any]:
    pool, target, kind = drawn(examples, targets, width, seed)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        picks = got_d(pool, target, examples // 10, torch.Generator().manual_seed(0))
        seconds.append(time.perf_counter() - began)
    wanted = float((kind[picks.order] < CENTRES // 3).float().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"GOT-D of {examples:,} x {width} towards {targets:,}: {np.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
        f"peak {peak:.2f} GiB with the features, {wanted:.1%} of the tenth that is chosen of the wanted kinds. {picks.note}\n",
        flush=True,
    )
    return {"seconds": seconds, "peak_gib": peak, "wanted": wanted}


def exactness(examples: int, width: int, seed: int) -> list[dict[str, float]]:
    pool, target, _ = drawn(examples, examples // 4 + 1, width, seed)
    exact = by_program(pool, target)
    print(f"Beside the linear program, {examples:,} examples towards {len(target):,}:\n")
    print(
        "| epsilon / spread | error | seconds | rank correlation | same of the lowest tenth | both at an error of 1e-5 |"
    )
    print("|---|---|---|---|---|---|")
    rows = []
    stated = module.ERROR, module.PASSES
    for share in SHARES:
        began = time.perf_counter()
        found = potentials(pool, target, share)
        took = time.perf_counter() - began
        row = {"share": share, "error": found.error, "seconds": took, **agreement(exact, found.examples)}
        module.ERROR, module.PASSES = 1e-5, 100_000
        on = agreement(exact, potentials(pool, target, share).examples)
        module.ERROR, module.PASSES = stated
        print(
            f"| {share} | {row['error']:.4f} | {took:.2f} | {row['spearman']:.4f} | {row['tenth']:.3f} "
            f"| {on['spearman']:.4f}, {on['tenth']:.3f} |",
            flush=True,
        )
        rows.append(row)
    return rows


def beside_pot(examples: int, width: int, rounds: int, seed: int) -> dict[str, Any]:
    import ot

    pool, target, _ = drawn(examples, examples // 4 + 1, width, seed)
    a, b = (np.full(len(side), 1 / len(side)) for side in (pool, target))
    seconds: dict[str, list[float]] = {"imprint": [], "POT, exact": [], "POT, Sinkhorn": []}
    for _ in range(rounds):
        began = time.perf_counter()
        found = potentials(pool, target)
        seconds["imprint"].append(time.perf_counter() - began)
        began = time.perf_counter()
        cost = (1 - pool.double() @ target.double().T).numpy()
        exact = ot.lp.emd(a, b, cost, numItermax=10_000_000, log=True)[1]["u"]
        seconds["POT, exact"].append(time.perf_counter() - began)
        began = time.perf_counter()
        cost = (1 - pool.double() @ target.double().T).numpy()
        # Its threshold is the length of the error of the columns, of which ours is half the sum: equal if all are equally off.
        stop = 2 * module.ERROR / len(b) ** 0.5
        log = ot.bregman.sinkhorn_log(a, b, cost, found.epsilon, numItermax=10_000, stopThr=stop, log=True)[1]
        seconds["POT, Sinkhorn"].append(time.perf_counter() - began)
    value = {
        "imprint": found.examples,
        "POT, exact": torch.from_numpy(exact),
        "POT, Sinkhorn": torch.from_numpy(log["log_u"]),
    }
    print(f"\nBeside POT {ot.__version__}, {examples:,} examples towards {len(target):,}:\n")
    print("| | seconds, median | least to most | rank correlation with the exact | same of the lowest tenth |")
    print("|---|---|---|---|---|")
    rows = {}
    for name, took in seconds.items():
        rows[name] = {"seconds": took, **agreement(exact, value[name])}
        print(
            f"| {name} | {np.median(took):.2f} | {min(took):.2f} to {max(took):.2f} | {rows[name]['spearman']:.4f} "
            f"| {rows[name]['tenth']:.3f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--targets", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", type=int, default=600, help="examples beside the linear program")
    parser.add_argument("--peer", type=int, default=5_000, help="examples beside POT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds\n")
    figures: dict[str, Any] = {
        "full": full(options.examples, options.targets, options.width, options.rounds, options.seed)
    }
    figures["exact"] = exactness(options.exact, options.width, options.seed)
    if importlib.util.find_spec("ot") is None:
        print("\nPOT is not installed.")
    else:
        figures["pot"] = beside_pot(options.peer, options.width, options.rounds, options.seed)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
