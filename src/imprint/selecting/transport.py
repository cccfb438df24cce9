"""GOT-D: examples that pull the pool they come from towards a target, by the gradient of the optimal transport distance.

Moving the pool of examples onto the target costs

    OT(a, b) = min over plans P of sum P[i, j] c[i, j],      rows of P summing to a, columns to b,      c = 1 - cosine,

and its dual potentials (f, g) say what each example is charged: f[i] is the derivative of OT by the mass a[i]. Masses sum to one, so that
f is known up to a constant; calibrated, it is what happens as example i is given mass that is taken from all the others in equal parts
(LAVA, Just et al. 2023):

    gradient[i] = f[i] - sum over j != i of f[j] / (n - 1).

Where it is lowest, more of the example lowers the distance most: what the target has much of and the pool little. GOT-D takes these
(Kang et al. 2024). Examples like the target that the pool has enough of are not wanted, unlike in retrieval. It is one step of a descent:
meant for a small share of a large pool. Copies have equal gradients, so deduplicate first; and a large share only leaves out what is least
like the target.

Potentials are those of the entropic problem, by Sinkhorn's iteration on g alone: with f eliminated,

    P[i, :] = softmax over j of (g[j] - c[i, j]) / epsilon,      g[j] += epsilon log(b[j] / mean over i of P[i, j]),

one pass over all pairs. Epsilon falls from the spread of the costs to `EPSILON` of it, at first on a sample of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.methods import method
from imprint.neighbours import placed
from imprint.recording.needs import Features
from imprint.selecting.evidence import TARGET, Budget, Random
from imprint.selecting.picks import Picks, ranked, spaced

# Share of the standard deviation of the costs; adding a constant to them changes nothing, so that their mean is no measure. The ranks of
# 600 gradients are then those of the linear program's to a correlation of 0.995, of 0.996 at half of it (`benchmarks/transport.py`).
EPSILON = 0.05
# Share of the target's mass that the plan may put elsewhere. Going on to a hundredth of it brings that correlation to 0.997.
ERROR = 0.003
# The same while epsilon falls.
COARSE = 0.03
# Over-relaxation (Thibault et al. 2021, arXiv:1711.01851): of 1, 1.5 and 1.8 this took the fewest passes.
STEP = 1.5
# Passes at one epsilon.
PASSES = 300
# Targets beyond this many are left out, evenly: their mean potential has a standard error of 1/64 of its spread by then.
TARGETS = 4096
# Examples on which epsilon falls.
SAMPLE = 8192
# Cosines that are kept between passes (2 GiB); more are computed again.
KEPT = 2**29
# Cosines at a time: a block stays in a processor's cache.
BLOCK = 2**18

Cosines = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True, eq=False)
class Potentials:
    """Dual potentials of entropic transport from examples to a target, in units of the cost.

    Attributes:
        examples: f, the derivative of the distance by each example's mass, up to a constant.
        target: g, the same of the target.
        epsilon: The entropy's weight.
        error: Share of the target's mass that the plan puts elsewhere.
    """

    examples: Float[Tensor, " example"]
    target: Float[Tensor, " target"]
    epsilon: float
    error: float


def potentials(
    features: Float[Tensor, "example feature"], target_features: Float[Tensor, "target feature"], share: float = EPSILON
) -> Potentials:
    """Dual potentials of transport from examples to a target, all of equal mass.

    Args:
        features: Feature vectors of the examples.
        target_features: Of the target.
        share: Epsilon as a share of the standard deviation of the costs.

    >>> pool, target = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> potentials(pool, target).examples.argmin()
    tensor(2)
    """
    x, y = placed(features, features, "cosine"), placed(target_features, target_features, "cosine")
    some = x[spaced(len(x), SAMPLE)]
    spread = max(float((some @ y.T).std(correction=0)), 1e-6)  # where all costs are equal, any epsilon does
    epsilon = share * spread
    g, cosines = torch.zeros(len(y)), _cosines(some, y)
    for halving in range(max(0, math.ceil(-math.log2(share)))):
        g, _ = _balanced(cosines, g, spread * 0.5**halving, COARSE)
    g, error = _balanced(cosines, g, epsilon, ERROR)
    if len(some) < len(x):
        cosines = _cosines(x, y)
        g, error = _balanced(cosines, g, epsilon, ERROR)
    total = torch.cat([block.add(g).div_(epsilon).logsumexp(1) for block in cosines()])
    return Potentials(1 - epsilon * (total - math.log(len(y))), g, epsilon, error)


def _cosines(x: Float[Tensor, "example feature"], y: Float[Tensor, "target feature"]) -> Cosines:
    """Cosines of blocks of examples with the target, as often as asked: kept where they fit, else computed again."""
    height = max(1, BLOCK // len(y))
    if len(x) * len(y) <= KEPT:
        kept = torch.split(x @ y.T, height)
        return lambda: iter(kept)
    return lambda: (rows @ y.T for rows in torch.split(x, height))


def _balanced(
    cosines: Cosines, g: Float[Tensor, " target"], epsilon: float, error: float
) -> tuple[Float[Tensor, " target"], float]:
    """Potentials of the target with which the plan's columns have their mass, to an error; and the error that is left."""
    before = math.inf
    for _ in range(PASSES):
        received, examples = torch.zeros(len(g), dtype=torch.float64), 0
        for block in cosines():
            plan = block.add(g).div_(epsilon).softmax(1)
            received += plan.new_ones(len(plan)) @ plan
            examples += len(plan)
        received *= len(g) / examples  # as a multiple of what it should be
        left = float((received - 1).abs().mean()) / 2
        if left <= error:
            break
        # Far from the solution over-relaxation may overshoot; a step of 1 never does. What nothing reaches in float32 is raised bit by bit.
        step, before = (STEP if left < before else 1.0), left
        g = g - (step * epsilon) * received.clamp(min=torch.finfo(torch.float32).tiny).log().float()
    return g, left


def calibrated(f: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """What happens to the distance as an example is given mass that is taken from all the others in equal parts; float64.

    >>> calibrated(torch.tensor([1.0, 2.0, 6.0]))
    tensor([-3.0000, -1.5000,  4.5000], dtype=torch.float64)
    """
    f = f.double()
    return f - (f.sum() - f) / max(1, len(f) - 1)


@method(
    "select", "got-d", higher="more of it lowers the transport distance to the target more",
    needs=[Features(), Features("target_features", split=TARGET), Budget(), Random()],
    source="Kang et al. 2024 (GOT-D), arXiv:2405.02774; calibrated as in Just et al. 2023 (LAVA), arXiv:2305.00054",
)  # fmt: skip
def got_d(
    features: Float[Tensor, "example feature"], target_features: Float[Tensor, "target feature"], budget: int,
    generator: torch.Generator,
) -> Picks:  # fmt: skip
    """Examples of which more would bring the training set nearer to the target, in optimal transport distance.

    The value is minus the calibrated gradient, in units of 1 - cosine.

    >>> pool, target = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> got_d(pool, target, 1, torch.Generator()).order
    tensor([2])
    """
    used = spaced(len(target_features), TARGETS)
    found = potentials(features, target_features[used])
    notes = []
    if len(used) < len(target_features):
        notes.append(f"{len(used):,} of {len(target_features):,} targets were used, evenly spaced.")
    if found.error > ERROR:
        notes.append(f"The transport plan puts {found.error:.1%} of the target's mass elsewhere.")
    value = -calibrated(found.examples)
    return Picks(ranked(value, budget, generator), value=value.float(), note=" ".join(notes))
