"""Datamodels: what each training example does to a prediction, from many trainings on random subsets.

Both methods read the same evidence: `margin[member, query]`, what models trained on random subsets say of the queries, and
`membership[member, example]`, who saw what. They need no gradient, hold for any model, and are the truth that cheaper methods
estimate; their price is the trainings, and their precision grows with their number.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.methods import method
from imprint.recording.needs import Membership, Subsets
from imprint.tracing.evidence import QUERIES
from imprint.tracing.factors import Factors, slices

# Penalties that leave-one-out chooses from, in units of the mean eigenvalue of the Gram matrix: from hardly any to nearly all.
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 7))
# Examples of the membership that are numbers at a time.
BLOCK = 16_384
BLOCK_QUERIES = 1024


@method(
    "trace", "datamodel", higher="helps the query", needs=[Subsets("margin", split=QUERIES), Membership()],
    source="Ilyas et al. 2022, arXiv:2202.00622",
)  # fmt: skip
def datamodel(margin: Float[Tensor, "member query"], membership: Bool[Tensor, "member example"]) -> Factors:
    """Linear model of the query's margin on who was in the training set: ridge regression, its penalty by leave-one-out.

        margin[m, q] = constant[q] + sum over examples i of score[q, i] * membership[m, i] + noise

    Unit: logits that the example's presence adds to the query's margin (regression tasks: standard deviations of the target).

    The paper fits the lasso, from up to a million trainings. With fewer trainings than examples, which is the common case, ridge has
    a closed form in the trainings alone: with the centred Gram matrix `K = H X X^T H` (members x members), the scores are
    `X^T alpha` with `alpha = (K + penalty)^-1 (margin - mean)`, which is also why they need never be written out. The lasso's
    sparsity begins to pay when there are several times more trainings than examples that matter to a query. In the other extreme,
    very few trainings, K is nearly a multiple of the identity, and the ranking of examples that of `subset-influence`.

    The penalty is chosen for each query from a grid, by the exact leave-one-out error (as scikit-learn's `RidgeCV` does).

    >>> seen = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    >>> datamodel(seen.float() @ torch.tensor([[2.0], [0.0], [-1.0]]), seen).scores().argsort().tolist()
    [[2, 1, 0]]
    """
    gram = torch.zeros(len(membership), len(membership), dtype=torch.float64)
    for examples in slices(membership.shape[1], BLOCK):  # counts below 2**24 are exact in float32
        block = membership[:, examples].float()
        gram += block @ block.T
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    alpha = torch.cat(
        [dual_ridge(centred, margin[:, some].double()) for some in slices(margin.shape[1], BLOCK_QUERIES)], 1
    )
    return Factors(alpha.T.float().contiguous(), membership.T)


def dual_ridge(
    gram: Float[Tensor, "member member"], outcome: Float[Tensor, "member query"]
) -> Float[Tensor, "member query"]:
    """Dual coefficients of ridge regressions with an intercept, each with the penalty of the least leave-one-out error.

    With the eigenvectors V and eigenvalues s of the centred Gram matrix, the residuals are `V diag(p / (s + p)) V^T outcome`, and
    leaving out member m multiplies its residual by `1 / (1 - h[m])`, `1 - h = diag(V diag(p / (s + p)) V^T) - 1 / members`: the last
    term is the intercept, whose direction (all ones) has the eigenvalue 0.

    Args:
        gram: Centred in rows and columns.
        outcome: One column per query.

    Returns:
        Coefficients whose columns sum to 0; the score of an example is the sum of those of the members that saw it.
    """
    members = len(gram)
    value, vector = torch.linalg.eigh(gram)
    value = value.clamp(min=0)
    scale = float(value.mean())
    if scale == 0:  # every member saw the same examples
        return torch.zeros_like(outcome)
    outcome = outcome - outcome.mean(0)
    rotated = vector.T @ outcome
    least = torch.full((outcome.shape[1],), torch.inf, dtype=torch.float64)
    best = torch.full_like(least, PENALTIES[-1] * scale)
    for penalty in (scale * one for one in PENALTIES):
        shrink = penalty / (value + penalty)
        kept = vector.square() @ shrink - 1 / members
        error = ((vector @ (shrink[:, None] * rotated)) / kept[:, None]).square().mean(0)
        best = torch.where(error < least, penalty, best)
        least = torch.minimum(error, least)
    alpha = vector @ (rotated / (value[:, None] + best))
    return alpha - alpha.mean(0)


@method(
    "trace", "subset-influence", higher="helps the query", needs=[Subsets("margin", split=QUERIES), Membership()],
    source="Feldman, Zhang 2020, arXiv:2008.03703",
)  # fmt: skip
def subset_influence(margin: Float[Tensor, "member query"], membership: Bool[Tensor, "member example"]) -> Factors:
    """Mean margin of the models that saw the example less the mean of those that did not.

    Unit: logits. The paper takes the probability of being right; the margin carries more information per training. An example that
    every member saw, or none, has the score 0: nothing is known of it.

    >>> seen = torch.tensor([[True, False], [True, True], [False, True], [False, True]])
    >>> subset_influence(torch.tensor([[3.0], [1.0], [0.0], [2.0]]), seen).scores().round(decimals=3)
    tensor([[ 1., -2.]])
    """
    members = len(membership)
    saw = membership.sum(0)
    known = (saw > 0) & (saw < members)
    with_it = torch.where(known, 1 / saw.clamp(min=1), 0.0)
    without = torch.where(known, 1 / (members - saw).clamp(min=1), 0.0)
    examples = torch.where(membership.T, with_it[:, None], -without[:, None])
    return Factors((margin - margin.mean(0)).T.contiguous(), examples)
