"""k-center and facility location: this library beside apricot, submodlib and plain PyTorch, in one run and taking turns.

All are given the same features, of length one around centres of unequal weight, and are judged by the same objective, computed here: the
covering radius (less is better), and the mean similarity (1 + cosine) / 2 to the most similar chosen example (more is better).

- plain PyTorch, k-center: distances to the last pick of all examples, and their running minimum.
- plain PyTorch, facility location: the gains of all examples from the whole matrix, for each pick.
- lazy PyTorch, facility location: gains of the candidates with the highest bounds, 256 at a time, until one is above all other bounds.
- apricot: its lazy greedy on the matrix of cosines (8 bytes a pair), and on those of 100 neighbours, which it makes sparse.
- submodlib: its lazy greedy on the matrix.

Those that hold a matrix are left out above `--matrix` examples, and plain PyTorch's cube of examples above `--cube`. A peer that is not
installed is said to be so. Compilation by numba is over before time is taken.

    python benchmarks/covering.py                                        50,000 examples of 128 features, 10 % of them, 3 rounds
    python benchmarks/covering.py --examples 5000                        with all that hold a matrix
    python benchmarks/covering.py --examples 2000 --rounds 1

Peers need an environment with this library: pip install apricot-select submodlib-py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from imprint.selecting.facility import greedy, objective
from imprint.selecting.kcenter import covering_radius, farthest_first

NEIGHBOURS = 100
CANDIDATES = 256
Chooser = Callable[[Tensor, int], Tensor]


def drawn(examples: int, width: int, centres: int, seed: int) -> Tensor:
    """Features of length one: the spread about a centre is as long as the centre."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(centres, generator=generator) + 0.1
    kind = torch.multinomial(weights, examples, replacement=True, generator=generator)
    centre = torch.randn(centres, width, generator=generator)
    return normalize(centre[kind] + torch.randn(examples, width, generator=generator), dim=1)


def plain_center(x: Tensor, budget: int) -> Tensor:
    order = [int((x - x.mean(0)).square().sum(1).argmin())]
    square, near = x.square().sum(1), torch.full((len(x),), torch.inf)
    while len(order) < budget:
        near = torch.minimum(near, square + square[order[-1]] - 2 * (x @ x[order[-1]]))
        near[order[-1]] = -1
        order.append(int(near.argmax()))
    return torch.tensor(order)


def plain_facility(x: Tensor, budget: int) -> Tensor:
    similarity, order = x @ x.T, []
    best = torch.full((len(x),), -1.0)
    for _ in range(budget):
        gains = (similarity - best[:, None]).clamp_(min=0).sum(0)
        gains[order] = -1
        order.append(int(gains.argmax()))
        best = torch.maximum(best, similarity[:, order[-1]])
    return torch.tensor(order)


def lazy_facility(x: Tensor, budget: int) -> Tensor:
    bounds = x @ x.sum(0) + len(x)
    order, best = [], torch.full((len(x),), -1.0)
    fresh = torch.ones(len(x), dtype=torch.bool)
    while len(order) < budget:
        place = int(bounds.argmax())
        if not fresh[place]:
            some = torch.where(fresh, -torch.inf, bounds).topk(min(CANDIDATES, len(x))).indices
            bounds[some] = (x[some] @ x.T).sub_(best).clamp_(min=0).sum(1).minimum(bounds[some])
            fresh[some] = True
            continue
        order.append(place)
        best = torch.maximum(best, x @ x[place])
        bounds[place] = -torch.inf
        fresh[:] = False
    return torch.tensor(order)


def apricot_matrix(x: Tensor, budget: int) -> Tensor:
    from apricot import FacilityLocationSelection

    model = FacilityLocationSelection(budget, metric="cosine", optimizer="lazy").fit(x.double().numpy())
    return torch.from_numpy(np.asarray(model.ranking).astype(np.int64))


def apricot_neighbours(x: Tensor, budget: int) -> Tensor:
    from apricot import FacilityLocationSelection
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import kneighbors_graph

    # Its own n_neighbors= makes 64-bit places with this scipy, which its compiled loop refuses: the same, in 32 bits.
    near = kneighbors_graph(x.numpy(), min(NEIGHBOURS, len(x) - 1), mode="distance", metric="cosine", include_self=True)
    cosine = csr_matrix(
        (np.maximum(1 - near.data, 0), near.indices.astype(np.int32), near.indptr.astype(np.int32)), near.shape
    )
    model = FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(cosine)
    return torch.from_numpy(np.asarray(model.ranking).astype(np.int64))


def submodlib_matrix(x: Tensor, budget: int) -> Tensor:
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(x), mode="dense", data=x.numpy(), separate_rep=False, metric="cosine")
    return torch.tensor([place for place, _ in function.maximize(budget, optimizer="LazyGreedy", show_progress=False)])


def measure(
    choosers: dict[str, Chooser], x: Tensor, budget: int, rounds: int, judge: Callable[[Tensor, Tensor], float]
) -> list[dict]:
    """Seconds and objective of each, taking turns; the first is ours."""
    for choose in choosers.values():
        choose(x[:200], 20)
    seconds: dict[str, list[float]] = {name: [] for name in choosers}
    value: dict[str, float] = {}
    for _ in range(rounds):
        for name, choose in choosers.items():
            began = time.perf_counter()
            order = choose(x, budget)
            seconds[name].append(time.perf_counter() - began)
            value[name] = judge(x, order)
    ours = next(iter(choosers))
    rows = []
    print("| | seconds, median | least to most | times slower than ours | objective | of ours |")
    print("|---|---|---|---|---|---|")
    for name, took in seconds.items():
        slower = sorted(other / one for one, other in zip(seconds[ours], took, strict=True))
        rows.append({"name": name, "seconds": took, "slower": slower, "objective": value[name]})
        print(
            f"| {name} | {np.median(took):.2f} | {min(took):.2f} to {max(took):.2f} | {np.median(slower):.1f} "
            f"({slower[0]:.1f} to {slower[-1]:.1f}) | {value[name]:.5f} | {value[name] / value[ours]:.4f} |",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--centres", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.1, help="budget as a share of the examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--matrix", type=int, default=10_000, help="most examples of those that hold a matrix")
    parser.add_argument("--cube", type=int, default=3_000, help="most examples of plain PyTorch's facility location")
    parser.add_argument(
        "--lazy", type=int, default=20_000, help="most examples of lazy PyTorch's, which takes minutes above"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    x = drawn(options.examples, options.width, options.centres, options.seed)
    budget = max(1, round(options.share * options.examples))
    print(
        f"{options.examples:,} examples x {options.width}, {options.centres} centres, budget {budget:,}, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds\n\nk-center (covering radius)\n"
    )
    center = measure(
        {"imprint": farthest_first, "plain PyTorch": plain_center}, x, budget, options.rounds, covering_radius
    )
    choosers: dict[str, Chooser] = {"imprint": greedy}
    left_out = []
    for name, choose, most in (
        ("lazy PyTorch", lazy_facility, options.lazy),
        ("plain PyTorch", plain_facility, options.cube),
    ):
        if options.examples <= most:
            choosers[name] = choose
        else:
            left_out.append(f"{name} (more than {most:,} examples)")
    for package, peers in {
        "apricot": {"apricot, matrix": apricot_matrix, f"apricot, {NEIGHBOURS} neighbours": apricot_neighbours},
        "submodlib": {"submodlib, matrix": submodlib_matrix},
    }.items():
        for name, choose in peers.items():
            if importlib.util.find_spec(package) is None:
                left_out.append(f"{name} (not installed)")
            elif name.endswith("matrix") and options.examples > options.matrix:
                left_out.append(f"{name} (more than {options.matrix:,} examples)")
            else:
                choosers[name] = choose
    print("\nFacility location (mean similarity)\n")
    facility = measure(choosers, x, budget, options.rounds, objective)
    print("\nLeft out: " + ("; ".join(left_out) or "none"))
    if options.json:
        options.json.write_text(json.dumps({"k-center": center, "facility location": facility}, indent=2))


if __name__ == "__main__":
    main()
