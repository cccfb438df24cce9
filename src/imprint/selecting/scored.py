"""Selecting by a score: the hardest examples, the easiest, or some of every hardness.

One recorded run says how hard each example was for it. Which end of the scale to keep is no matter of taste: with much data left the
hardest examples teach the most, with little left the easiest do (Sorscher et al. 2022, arXiv:2206.14486), and where labels are wrong,
the hardest examples are the wrong ones. `coverage` leaves those out and takes from all of the rest of the scale.

Each function takes the hardness of the examples, whatever it was measured by; every score of `HARDER` is registered with each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.clusters import equal
from imprint.methods import Scored, method
from imprint.selecting.evidence import Budget, Random
from imprint.selecting.picks import Picks, drawn, ranked

# Strata of the scale: that many in the authors' code.
STRATA = 50
# Of all examples this share less the budget's are the hardest ones that `coverage` leaves out. The authors leave out 30 % where 10 % are
# kept (CIFAR-10, ImageNet), 20 % where 20 % are (ImageNet); above 40 % kept, nothing.
LEFT_OUT = 0.4


def hardest(hardness: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
    """The hardest examples.

    >>> hardest(torch.tensor([0.1, 0.9, 0.5]), 2, torch.Generator()).order
    tensor([1, 2])
    """
    return Picks(ranked(hardness, budget, generator), value=hardness)


def easiest(hardness: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
    """The easiest examples.

    >>> easiest(torch.tensor([0.1, 0.9, 0.5]), 2, torch.Generator()).order
    tensor([0, 2])
    """
    return Picks(ranked(-hardness, budget, generator), value=-hardness)


def coverage(hardness: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
    """Some of every hardness but the hardest, which are often wrong labels: equal shares of equally wide ranges of the score.

    The hardest examples are left out: 40 % of all less the share that is kept (none if more is kept). The scores of the rest are
    parted into 50 equally wide strata, and the budget into as many equal shares; a stratum with fewer examples gives them all, and the
    others share what is left. Within a stratum the choice is random.

    >>> coverage(torch.tensor([0.0, 0.0, 0.0, 1.0]), 2, torch.Generator().manual_seed(0)).order.sort().values.tolist()[1]
    3
    """
    size = len(hardness)
    cut = max(0, round((LEFT_OUT - budget / size) * size))
    left = ranked(-hardness, size - cut, generator)
    known = hardness[left].double()
    low, high = known.nan_to_num(nan=torch.inf).min(), known.nan_to_num(nan=-torch.inf).max()
    width = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    strata = ((known - low) / width * STRATA).nan_to_num(nan=STRATA - 1).long().clamp(0, STRATA - 1)
    quotas = equal(torch.bincount(strata, minlength=STRATA), budget)
    note = f"the {cut:,} hardest of {size:,} examples were left out before the choice" if cut else ""
    return Picks(left[drawn(strata, quotas, generator)], note=note)


CLASSES, LABELS = ("classification",), ("classification", "multilabel")
ALL = (*LABELS, "regression")
PAUL, ZHENG = "Paul, Ganguli, Dziugaite 2021, arXiv:2107.07075", "Zheng et al. 2022 (CCS), arXiv:2210.15809"
# Score -> sign with which it says how hard an example is, the tasks that it serves, who kept the hardest examples by it.
HARDER: dict[str, tuple[int, tuple[str, ...], str]] = {
    "el2n": (1, CLASSES, PAUL),
    "grand": (1, ALL, PAUL),
    "forgetting": (1, LABELS, "Toneva et al. 2019, arXiv:1812.05159"),
    "margin": (-1, ALL, f"{PAUL} (their code)"),
    "aum": (-1, LABELS, ZHENG),
    "variability": (1, LABELS, "Swayamdipta et al. 2020 (ambiguous examples), arXiv:2009.10795"),
    "vog": (1, CLASSES, "Anand, Tan, Minakova 2023, arXiv:2311.16298"),
    "loss": (1, ALL, "after Loshchilov, Hutter 2016 (online), arXiv:1511.06343"),
}
# Policy -> what a value means, where it is from (None: where keeping the hardest by the score is from).
POLICIES: dict[str, tuple[Callable[..., Picks], str, str | None]] = {
    "top": (hardest, "harder", None),
    "bottom": (easiest, "easier", "Sorscher et al. 2022, arXiv:2206.14486"),
    "coverage": (coverage, "drawn earlier", ZHENG),
}


def by(score: str, sign: int, policy: Callable[..., Picks]) -> Callable[..., Picks]:
    """A policy that reads the values of a score."""

    def choose(scores: Float[Tensor, " example"], budget: int, generator: torch.Generator) -> Picks:
        return policy(sign * scores, budget, generator)

    said = (policy.__doc__ or "").split("\n", 1)
    choose.__doc__ = f"{said[0].rstrip('.')}, by the score `{score}`.\n{said[1]}"
    return choose


for _score, (_sign, _tasks, _kept) in HARDER.items():
    for _policy, (_function, _higher, _source) in POLICIES.items():
        method(
            "select", f"{_score}-{_policy}", higher=_higher, needs=[Scored(method=_score), Budget(), Random()], tasks=_tasks,
            source=_source or _kept,
        )(by(_score, _sign, _function))  # fmt: skip
