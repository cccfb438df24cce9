"""How sure a share of some examples is."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (doi:10.1080/01621459.1927.10502953).

    Args:
        share: Of the examples, 0 to 1.
        count: How many examples.
        level: Of the interval.

    >>> [round(end, 3) for end in wilson(0.0, 100)]
    [0.0, 0.037]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)
