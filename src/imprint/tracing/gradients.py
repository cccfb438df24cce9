"""Gradients as attribution: an example helps a query if a step on it lowers the query's loss.

All of them are inner products of the query's gradient with the example's, under a metric and at one or several checkpoints; positive =
training on the example helps the query. `gradient-dot`, `gradient-cosine` and `tracin` are exact; `trak` and `logra` read projected
gradients, which are collected once and then serve any number of queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.gradients import Examples
from imprint.methods import method
from imprint.recording.needs import Classes, GradientBlocks, Gradients, GradientValues, LayerGradients, LearningRates
from imprint.tracing.evidence import QUERIES
from imprint.tracing.factors import Factors
from imprint.tracing.products import Products, Streamed, exact

# In units of the mean eigenvalue of the kernel; see `trak`.
TRAK_DAMPING = 1.0
# The rule of the authors' own code (LogIX).
LOGRA_DAMPING = 0.1
# Examples whose gradients are in float64 at a time: 16 MiB for 512 numbers each.
MOMENT_EXAMPLES = 4096


@method(
    "trace", "gradient-dot", higher="helps the query", needs=[LayerGradients("queries", split=QUERIES), LayerGradients()],
    source="Charpiat et al. 2019, arXiv:2102.05262",
)  # fmt: skip
def gradient_dot(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Products | Streamed:
    """Inner product of the gradients of both losses at the last checkpoint, exact, over all trained weights.

    Unit: the fall of the query's loss in a gradient step on the example, per unit of learning rate. It is dominated by examples with
    large gradients, which are few and the same for all queries: where that is in the way, take `gradient-cosine`.
    """
    return exact(queries, examples)


@method(
    "trace", "gradient-cosine", higher="helps the query",
    needs=[LayerGradients("queries", split=QUERIES), LayerGradients()],
    source="Charpiat et al. 2019, arXiv:2102.05262; Hanawa et al. 2021, arXiv:2006.04528",
)  # fmt: skip
def gradient_cosine(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Products | Streamed:
    """Cosine of the angle between the gradients of both losses at the last checkpoint, exact; between -1 and 1."""
    return exact(queries, examples, cosine=True)


@method(
    "trace", "tracin", higher="helps the query",
    needs=[LayerGradients("queries", split=QUERIES, checkpoint="kept"), LayerGradients(checkpoint="kept")],
    source="Pruthi et al. 2020 (TracInCP), arXiv:2002.08484",
)  # fmt: skip
def tracin(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Products | Streamed:
    """Inner products of gradients at the kept checkpoints, summed with the learning rates that these checkpoints stand for.

        score[q, i] = sum over checkpoints c of learning_rate[c] * gradient[c, q] . gradient[c, i]

    Unit: nats that steps on the example took off the query's loss, were each step plain gradient descent on it alone. Where the record
    keeps fewer checkpoints than epochs, a checkpoint stands for the epochs since the one before it.
    """
    return exact(queries, examples)


@method(
    "trace", "tracin-projected", higher="helps the query",
    needs=[
        Gradients("query_gradients", split=QUERIES, checkpoint="kept", projection="paired"),
        Gradients(checkpoint="kept", projection="paired"), LearningRates(),
    ],
    source="Pruthi et al. 2020 (TracInCP with random projections), arXiv:2002.08484",
)  # fmt: skip
def tracin_projected(
    query_gradients: Float[Tensor, "checkpoint query k"],
    gradients: Float[Tensor, "checkpoint example k"],
    rates: Float[Tensor, " checkpoint"],
) -> Factors:
    """`tracin` from projected gradients: an unbiased estimate of it, for many queries or large models."""
    return Factors(_side_by_side(rates[:, None, None] * query_gradients), _side_by_side(gradients))


@method(
    "trace", "trak", higher="helps the query",
    needs=[
        Gradients("query_gradients", split=QUERIES, of="margin", projection="paired"),
        Gradients(of="margin", projection="paired"), GradientValues(of="margin", projection="paired"), Classes(),
    ],
    source="Park et al. 2023, arXiv:2303.14186",
)  # fmt: skip
def trak(
    query_gradients: Float[Tensor, "*checkpoint query k"],
    gradients: Float[Tensor, "*checkpoint example k"],
    values: Float[Tensor, "*checkpoint example"],
    classes: tuple[object, ...],
) -> Factors:
    """TRAK: the model as a linear one in its projected gradients, whose kernel says what each example adds to a margin.

        score[q, i] = phi[q] (Phi^T Phi + damping)^-1 phi[i] * (1 - p[i])

    with the projected gradients `phi` of `log p/(1-p)`, and the probability `p` that the model gives the example's target. Of several
    checkpoints, kernels and weights are averaged apart, as in the paper. Of a quantity, the margin is minus the absolute error, which
    also takes the place of `1 - p`: the derivative of the loss by the margin.

    Damping is the mean eigenvalue of the kernel (the authors' default is none): with few examples per projected number the smallest
    eigenvalues are noise, and their inverses would rule the scores.

    >>> phi = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> trak(phi, phi, torch.zeros(2), ("no", "yes")).scores().round(decimals=3)
    tensor([[0.3080, 0.0000],
            [0.0000, 0.1430]])
    """
    if gradients.dim() == 2:
        query_gradients, gradients, values = query_gradients[None], gradients[None], values[None]
    weight = (torch.sigmoid(-values) if classes else -values).mean(0)
    queries = torch.stack(
        [inverted(mine, theirs, TRAK_DAMPING) for mine, theirs in zip(query_gradients, gradients, strict=True)]
    )
    return Factors(_side_by_side(queries) / len(gradients), weight[:, None] * _side_by_side(gradients))


@method(
    "trace", "trak-checkpoints", higher="helps the query",
    needs=[
        Gradients("query_gradients", split=QUERIES, of="margin", projection="paired", checkpoint="kept"),
        Gradients(of="margin", projection="paired", checkpoint="kept"),
        GradientValues(of="margin", projection="paired", checkpoint="kept"), Classes(),
    ],
    source="Park et al. 2023, arXiv:2303.14186",
)  # fmt: skip
def trak_checkpoints(
    query_gradients: Float[Tensor, "checkpoint query k"],
    gradients: Float[Tensor, "checkpoint example k"],
    values: Float[Tensor, "checkpoint example"],
    classes: tuple[object, ...],
) -> Factors:
    """`trak`, averaged over the kept checkpoints of the training."""
    return trak(query_gradients, gradients, values, classes)


@method(
    "trace", "logra", higher="helps the query",
    needs=[Gradients("query_gradients", split=QUERIES), Gradients(), GradientBlocks()],
    source="Choe et al. 2024, arXiv:2405.13954",
)  # fmt: skip
def logra(
    query_gradients: Float[Tensor, "query k"], gradients: Float[Tensor, "example k"], blocks: Mapping[str, slice]
) -> Factors:
    """LoGra: influence with factored projections of each layer's gradient, preconditioned by their own Fisher matrix.

        score[q, i] = sum over layers of g[q] (G^T G / n + damping)^-1 g[i]

    with the projected loss gradients `g` of that layer. Damping is a tenth of the matrix's mean eigenvalue, as in the authors' code.

    >>> g = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> logra(g, g, {"one": slice(0, 1), "two": slice(1, 2)}).scores().round(decimals=3)
    tensor([[2.7270, 0.9090],
            [0.9090, 0.9090]])
    """
    parts = [inverted(query_gradients[:, one], gradients[:, one], LOGRA_DAMPING, mean=True) for one in blocks.values()]
    kept = [gradients[:, one] for one in blocks.values()]
    return Factors(torch.cat(parts, 1), torch.cat(kept, 1))


def inverted(
    queries: Float[Tensor, "query k"], gradients: Float[Tensor, "example k"], damping: float, mean: bool = False
) -> Float[Tensor, "query k"]:
    """Queries times the inverse of the damped second moment of the gradients.

    Args:
        queries: What is multiplied.
        gradients: Of the training examples.
        damping: In units of the mean eigenvalue.
        mean: Whether the moment is a mean over the examples; else a sum.
    """
    width = gradients.shape[1]
    moment = torch.zeros(width, width, dtype=torch.float64)
    for block in torch.split(gradients, MOMENT_EXAMPLES):
        precise = block.double()
        moment.addmm_(precise.T, precise)
    if mean:
        moment /= len(gradients)
    typical = float(moment.diagonal().mean())
    if typical == 0:  # no example has a gradient here
        return torch.zeros_like(queries)
    moment.diagonal().add_(damping * typical)
    return torch.cholesky_solve(queries.double().T, torch.linalg.cholesky(moment)).T.float()


def _side_by_side(values: Float[Tensor, "checkpoint example k"]) -> Float[Tensor, "example both"]:
    return values.transpose(0, 1).flatten(1)
