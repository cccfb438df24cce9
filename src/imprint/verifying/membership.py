"""Membership attacks: can it be told from a model's outputs that an example was trained on?

Both attacks hold a model against shadow models, of which about half were trained on each candidate and the others were not. An attack
that cannot tell the forgotten examples from ones that were never seen has a score that says nothing: an area under the ROC curve
of 0.5, and a true positive rate equal to the false positive rate. All scores: higher = more likely a member.

    LiRA    log N(margin; mean, variance of models that saw it)  -  the same of models that did not
            (Carlini et al. 2022, arXiv:2112.03570)
    RMIA    share of population examples z with   [p(x | model) / p(x)] / [p(z | model) / p(z)] >= gamma
            (Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import MethodError
from imprint.verifying.removal import shares

# LiRA: with fewer models than this on either side of a candidate, a variance of its own is noise, and all share one.
# The authors' figure is 64 models in all.
OWN_VARIANCE = 32
# Of a probability; below it are the smallest numbers of float64.
LEAST_LOG = -700.0


def lira(
    margins: Float[Tensor, "model candidate"],
    inside: Bool[Tensor, "model candidate"],
    observed: Float[Tensor, "*attacked candidate"],
) -> Float[Tensor, "*attacked candidate"]:
    """Log likelihood ratio of a model's margin, in nats, under normal distributions of shadow models' margins; online LiRA.

    Means are each candidate's own. So are variances, if at least 32 shadow models saw every candidate and 32 did not; with fewer, all
    candidates share one variance inside and one outside, about their own means. (The authors' code takes medians for means, and shares a
    variance about one common mean: larger by what candidates differ, and the same on both sides.)

    Args:
        margins: Of shadow models, `log p(y) - log(1 - p(y))`.
        inside: Which model was trained on which candidate.
        observed: Margins of the attacked model, or of several.

    Returns:
        Higher = more likely a member; 0: both alike.

    Raises:
        MethodError: Some candidate is inside all models or none, or there are too few models for a variance.

    >>> margins = torch.tensor([[4.0, 3.0], [6.0, 1.0], [1.0, 5.0], [-1.0, 3.0]])
    >>> inside = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    >>> lira(margins, inside, torch.tensor([5.0, 2.0])).tolist()
    [6.25, -1.0]
    """
    margins, observed = margins.double(), observed.double()
    own = _fewest(inside) >= OWN_VARIANCE

    def side(chosen: Bool[Tensor, "model candidate"]) -> Float[Tensor, "*attacked candidate"]:
        count = chosen.sum(0)
        mean = (margins * chosen).sum(0) / count
        squares = ((margins - mean).square() * chosen).sum(0)
        # A shared variance has lost one degree of freedom to each candidate's mean.
        freedom = int((count - 1).sum())
        if not freedom:
            raise MethodError(
                f"{len(margins)} shadow models do not tell how far margins spread.",
                "Train 16 or more: verify(shadows=32).",
            )
        variance = squares / count if own else squares.sum() / freedom
        variance = variance.clamp(min=1e-12)
        return -0.5 * ((observed - mean).square() / variance + variance.log())

    return side(inside) - side(~inside)


def rmia(
    logp: Float[Tensor, "model candidate"],
    inside: Bool[Tensor, "model candidate"],
    observed_logp: Float[Tensor, "*attacked candidate"],
    population_logp: Float[Tensor, "model z"],
    population_observed: Float[Tensor, "*attacked z"],
    gamma: float = 2.0,
) -> Float[Tensor, "*attacked candidate"]:
    """Share of population examples that a candidate's likelihood ratio dominates by `gamma`; online RMIA.

    p(x) is the mean of two means: over shadow models that saw x and over those that did not. No model saw the population, and p(z) is
    the mean over all shadow models. So p(x) is raised by models that saw x, and p(z) is not; but a score grows with the candidate's own
    ratio alone, so that this moves where scores saturate, and not the order of candidates. (The authors' code trims both means by a
    fifth at either end; this does not.)

    Args:
        logp: Log-probability of each candidate's target by each shadow model, in nats.
        inside: Which model was trained on which candidate.
        observed_logp: By the attacked model, or by several.
        population_logp: Of examples z that no model was trained on, by the shadow models.
        population_observed: By the attacked model(s).
        gamma: How much larger the ratio has to be; 2 as the authors have it online.

    Returns:
        From 0 to 1; higher = more likely a member. Steps of one over the number of population examples.

    Raises:
        MethodError: Some candidate is inside all models or none, there is no population, or gamma is not above 0.

    >>> half, both = torch.tensor(0.5).log(), torch.tensor([[True], [False]])
    >>> rmia(half.expand(2, 1), both, torch.tensor([0.0]), half.expand(2, 3), torch.tensor([0.0, -2.0, -3.0])).tolist()
    [0.6666666666666666]
    """
    _fewest(inside)
    if not population_logp.shape[-1]:
        raise MethodError("RMIA compares with a population, and it is empty.", "Hold out examples that no model saw.")
    if not gamma > 0:
        raise MethodError(f"gamma={gamma!r} is not above 0.", "Give 1 or more; the authors take 2.")
    logp, population_logp = (one.double().clamp(min=LEAST_LOG) for one in (logp, population_logp))
    means = torch.stack([_log_mean(logp, chosen) for chosen in (inside, ~inside)])
    candidate = observed_logp.double().clamp(min=LEAST_LOG) - (means.logsumexp(0) - math.log(2))
    everyone = torch.ones_like(population_logp, dtype=torch.bool)
    population = population_observed.double().clamp(min=LEAST_LOG) - _log_mean(population_logp, everyone)
    ordered = population.sort(-1).values
    below = torch.searchsorted(ordered, (candidate - math.log(gamma)).contiguous(), right=True)
    return below.double() / ordered.shape[-1]


def auroc(member_scores: Float[Tensor, " member"], other_scores: Float[Tensor, " other"]) -> float:
    """Area under the ROC curve: how often a member's score is above a non-member's, a tie counting half.

    1 = members are told apart, 0.5 = chance; below 0.5, members look less like members than others do.

    Raises:
        MethodError: There is no member, or no other.

    >>> auroc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]))
    0.625
    """
    _both(member_scores, other_scores)
    scores = torch.cat([member_scores.double(), other_scores.double()])
    return float(shares(scores, torch.arange(len(scores)) < len(member_scores))[0].mean())


def tpr_at(member_scores: Float[Tensor, " member"], other_scores: Float[Tensor, " other"], fpr: float) -> float:
    """Share of members that are found, where at most a share `fpr` of the others is taken for members.

    No interpolation: the threshold is a score of the others, beyond which at most `floor(fpr x others)` of them lie, and a member that ties
    with it is not found.

    The finest false positive rate that n others can show is 1 / n. Below that (0.1 % with fewer than 1,000 others) none of them may lie
    beyond, and what is returned is the share of members above *all* others. It says that no false positive was seen, not that the rate is
    `fpr`: at 95 % confidence it may be as high as 3 / n.

    1 = all are found. Chance is `(floor(fpr x n) + 1) / (n + 1)`, which is about `fpr` from 1 / n on, and 1 / (n + 1) below.

    Raises:
        MethodError: There is no member, or no other, or `fpr` is no share.

    >>> members, others = torch.tensor([5.0, 3.0, 1.0]), torch.tensor([4.0, 2.0, 0.0, 0.0])
    >>> [round(tpr_at(members, others, fpr), 2) for fpr in (0.001, 0.25, 0.5)]
    [0.33, 0.67, 1.0]
    """
    _both(member_scores, other_scores)
    if not 0 <= fpr <= 1:
        raise MethodError(f"fpr={fpr!r} is no share.", "Give a false positive rate from 0 to 1.")
    allowed = math.floor(fpr * len(other_scores) * (1 + 1e-12))  # 0.07 x 100 is a little more than 7
    if allowed >= len(other_scores):
        return 1.0
    threshold = other_scores.double().topk(allowed + 1).values[-1]
    return float((member_scores.double() > threshold).double().mean())


def _fewest(inside: Bool[Tensor, "model candidate"]) -> int:
    """The fewest models inside or outside of which a candidate is.

    Raises:
        MethodError: There are none.
    """
    saw = inside.sum(0)
    least = torch.minimum(saw, len(inside) - saw)
    if not int(least.min() if least.numel() else 0):
        lacking = int((least == 0).sum())
        raise MethodError(
            f"{lacking} of {least.numel()} candidates are inside all of {len(inside)} shadow models, or none.",
            "Train more shadow models.",
        )
    return int(least.min())


def _log_mean(
    logp: Float[Tensor, "model candidate"], chosen: Bool[Tensor, "model candidate"]
) -> Float[Tensor, " candidate"]:
    """Log of the mean probability over the chosen models."""
    return logp.masked_fill(~chosen, -torch.inf).logsumexp(0) - chosen.sum(0).double().log()


def _both(members: Tensor, others: Tensor) -> None:
    """Raise `MethodError` unless there are members and others."""
    if not len(members) or not len(others):
        raise MethodError(
            f"{len(members)} members cannot be told from {len(others)} others.", "Give at least one of each."
        )
