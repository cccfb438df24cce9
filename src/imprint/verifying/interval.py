"""The interval of a paired effect that was measured over several seeds on one test set.

Two things make a measured effect uncertain: another seed would have trained another model, and another test set would have
asked other questions. With `difference[seed, example]` both are visible, and

    variance(mean) <= variance of the seed means / seeds + variance of the example means / examples,

the sum counting their interaction twice, which errs on the safe side. The interval is Student's t with
Welch-Satterthwaite degrees of freedom.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from scipy import stats
from torch import Tensor


def crossed_interval(
    difference: Float[Tensor, "seed example"], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean effect and its confidence interval, for new seeds and new test examples from the same source.

    Args:
        difference: Credit after less credit before, of the same seed on the same test example.
        level: Confidence level.

    Returns:
        The effect, and (low, high). With one seed the spread over seeds is unknown and the interval covers test examples only.

    Example:
        >>> import torch
        >>> effect, (low, high) = crossed_interval(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]))
        >>> effect, low < 0 < high
        (0.375, True)
    """
    difference = difference.double()
    effect = float(difference.mean())
    parts = [
        (float(means.var()) / len(means), len(means) - 1)
        for means in (difference.mean(1), difference.mean(0))
        if len(means) > 1
    ]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return effect, (effect, effect)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    reach = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    return effect, (effect - reach, effect + reach)
