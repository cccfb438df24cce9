"""How sure a measured distance between two sets of models is, and how sure the rate of a membership attack is.

Three things could have come out otherwise: which models were drawn, which models judged them, and which examples they were asked about.

    KLoM        variance = that over our models (jackknife) + that over the judges (jackknife) + that over examples (of percentiles by
                bootstrap), of the mean less what these count twice; and Student's t with Welch-Satterthwaite degrees of freedom. Models
                are left out one at a time and not drawn again: a histogram of models that are drawn twice is narrower than one of as
                many different models, and its divergence larger. The jackknife of a histogram errs on the safe side.
    attacks     variance = that over the attacked models + that over members and others (bootstrap), and the same t; of a share at least
                as wide as Wilson's interval for that many members, as no draw of a sample without a hit has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from imprint.tasks.shares import wilson

# Bootstrap draws. An end of a 95 % interval then has about a twentieth of its width as standard error.
DRAWS = 400
QUANTILES = (0.95, 0.99)

Interval = tuple[float, float]
Measured = tuple[float, Interval]
Divergences = Callable[[Float[Tensor, "ours example"], Float[Tensor, "judge example"]], Float[Tensor, " example"]]


@dataclass(frozen=True)
class Spread:
    """A percentile of a distance over examples, with what it becomes without each model and on other examples.

    Attributes:
        value: The percentile.
        ours: Without one of our models.
        judges: Without one of the judges.
        examples: On examples drawn anew.
    """

    value: float
    ours: Float[Tensor, " model"]
    judges: Float[Tensor, " judge"]
    examples: Float[Tensor, " draw"]

    def __sub__(self, other: Spread) -> Spread:
        """The difference to the distance of as many models, from the same judges on the same examples."""
        return Spread(
            self.value - other.value, self.ours - other.ours, self.judges - other.judges, self.examples - other.examples
        )

    def measured(self, level: float) -> Measured:
        """The value and its interval."""
        # The jackknife's variance: (n - 1)/n times the sum of squares.
        parts = [((len(one) - 1) * float(one.var(correction=0)), len(one) - 1) for one in (self.ours, self.judges)]
        return self.value, around(self.value, [*parts, (float(self.examples.var()), DRAWS - 1)], level)


@dataclass(frozen=True)
class Mean:
    """The mean of a distance over examples, with what each example's becomes without each model.

    The chance that a model and an example have together is part of what differs between models and of what differs between examples. It
    is taken off where it is counted twice; what is left is never less than the largest of the parts.

    Attributes:
        examples: Of each example.
        ours: Without one of our models.
        judges: Without one of the judges.
    """

    examples: Float[Tensor, " example"]
    ours: Float[Tensor, "model example"]
    judges: Float[Tensor, "judge example"]

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.examples.mean())

    def __sub__(self, other: Mean) -> Mean:
        """The difference to the distance of as many models, from the same judges on the same examples."""
        return Mean(self.examples - other.examples, self.ours - other.ours, self.judges - other.judges)

    def measured(self, level: float) -> Measured:
        """The value and its interval."""
        count = len(self.examples)
        parts, shared = [], 0.0
        for one in (self.ours, self.judges):
            means = one.mean(1)
            parts.append(((len(one) - 1) * float(means.var(correction=0)), len(one) - 1))
            rest = one - one.mean(0) - means[:, None] + means.mean()
            shared += (len(one) - 1) / len(one) * float(rest.square().sum()) / count / max(1, count - 1)
        if count > 1:
            parts.append((float(self.examples.var()) / count, count - 1))
        low, high = around(self.value, parts, level, less=shared)
        return self.value, (low, high)


def distance(
    ours: Float[Tensor, "model example"],
    judges: Float[Tensor, "judge example"],
    divergence: Divergences,
    generator: torch.Generator,
) -> tuple[Mean, Spread, Spread]:
    """Distance of our models from the judges: mean, 95th and 99th percentile over examples.

    Args:
        ours: Their margins; two models or more.
        judges: Of the judges; two or more.
        divergence: Of each example, such as `imprint.forgetting.klom.klom`.
        generator: Draws examples. Distances whose difference is asked for have generators of the same seed.

    >>> shift = lambda ours, judges: (ours.mean(0) - judges.mean(0)).abs()
    >>> found = distance(torch.ones(3, 5), torch.zeros(4, 5), shift, torch.Generator())
    >>> [one.measured(0.95) for one in found][0]
    (1.0, (1.0, 1.0))
    """
    whole = divergence(ours, judges).double()
    less_ours = torch.stack([divergence(one, judges).double() for one in without_each(ours)])
    less_judges = torch.stack([divergence(ours, one).double() for one in without_each(judges)])
    drawn = torch.randint(len(whole), (DRAWS, len(whole)), generator=generator)
    values = (upper(one) for one in (whole[None], less_ours, less_judges, whole[drawn]))
    value, *parts = values
    first, second = (
        Spread(float(value[0, number]), *(part[:, number] for part in parts)) for number in range(len(QUANTILES))
    )
    return Mean(whole, less_ours, less_judges), first, second


def upper(values: Float[Tensor, "draw example"]) -> Float[Tensor, "draw quantile"]:
    """95th and 99th percentile over examples."""
    return torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype), dim=1).T


def without_each(values: Float[Tensor, "model example"]) -> list[Float[Tensor, "one_less example"]]:
    """All but one of the models, for each."""
    return [torch.cat([values[:number], values[number + 1 :]]) for number in range(len(values))]


def around(value: float, parts: Sequence[tuple[float, int]], level: float, *, less: float = 0.0) -> Interval:
    """A value's interval from parts of its variance with their degrees of freedom: Student's t, Welch-Satterthwaite.

    Args:
        value: The value.
        parts: Variances and degrees of freedom.
        level: Of the interval.
        less: What the parts count too often; no less than the largest part is left.

    >>> low, high = around(1.0, [(0.04, 9), (0.0, 3)], 0.95)
    >>> round(low, 3), round(high, 3)
    (0.548, 1.452)
    """
    total = sum(part for part, _ in parts)
    if not total > 0:
        return value, value
    variance = max(total - less, *(part for part, _ in parts))
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts if part > 0)
    reach = float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    return value - reach, value + reach


@dataclass(frozen=True)
class Rate:
    """A figure of an attack, of each attacked model, and what its mean becomes on examples drawn anew.

    Attributes:
        value: Its mean over models.
        models: Of each model.
        examples: Its mean, of each draw of examples.
        members: Of a share of so many members, which Wilson's interval holds for; None of any other figure.
    """

    value: float
    models: Float[Tensor, " model"]
    examples: Float[Tensor, " draw"]
    members: int | None = None

    def __sub__(self, other: Rate) -> Rate:
        """The difference, where examples were drawn by generators of the same seed."""
        return Rate(self.value - other.value, self.models - other.models, self.examples - other.examples)

    def measured(self, level: float) -> Measured:
        """The value and its interval."""
        parts = [(float(self.examples.var()), DRAWS - 1)]
        if len(self.models) > 1:
            parts.append((float(self.models.var()) / len(self.models), len(self.models) - 1))
        low, high = around(self.value, parts, level)
        if self.members is not None:
            wide = wilson(self.value, self.members, level)
            low, high = min(low, wide[0]), max(high, wide[1])
        return self.value, (low, high)


def attack_rates(
    members: Float[Tensor, "model member"],
    others: Float[Tensor, "model other"],
    false_alarms: Sequence[float],
    generator: torch.Generator,
) -> tuple[Rate, ...]:
    """The area under the ROC curve, then the share of members found at each rate of false alarms.

    Each is the mean over models of what `imprint.verifying.membership.auroc` and `tpr_at` give.

    Args:
        members: Scores of the forgotten examples, by each attacked model.
        others: Of examples that no model saw.
        false_alarms: Rates.
        generator: Draws members and others.

    >>> scores = torch.arange(20.0).expand(2, -1)
    >>> area, rate = attack_rates(scores + 10, scores, [0.1], torch.Generator())
    >>> area.value, rate.value
    (0.875, 0.6)
    """
    members, others = members.double(), others.double()
    drawn = torch.empty(DRAWS, 1 + len(false_alarms), dtype=torch.float64)
    for draw in range(DRAWS):
        some, rest = (torch.randint(one.shape[1], (one.shape[1],), generator=generator) for one in (members, others))
        drawn[draw] = _rates(members[:, some], others[:, rest], false_alarms).mean(1)
    return tuple(
        Rate(float(each.mean()), each, drawn[:, number], members.shape[1] if number else None)
        for number, each in enumerate(_rates(members, others, false_alarms))
    )


def _rates(
    members: Float[Tensor, "model member"], others: Float[Tensor, "model other"], false_alarms: Sequence[float]
) -> Float[Tensor, "rate model"]:
    """The area, then the share of members found at each rate of false alarms, of each model."""
    ordered, members = others.sort(1).values, members.contiguous()
    below = torch.searchsorted(ordered, members) + torch.searchsorted(ordered, members, right=True)
    count = others.shape[1]
    found = [below.double().mean(1) / (2 * count)]
    for rate in false_alarms:
        beyond = math.floor(rate * count * (1 + 1e-12))
        found.append((members > ordered[:, count - 1 - beyond, None]).double().mean(1))
    return torch.stack(found)
