"""Values of examples to a k-nearest-neighbour predictor in the feature space of the trained model: exact, and without a training.

What they measure is the share of the right label among the k nearest training examples of a held-out one (of a quantity: minus the
squared error of their mean). It stands in for the accuracy of the model as far as the model's features make neighbours of what it
treats alike. See `imprint.neighbours` for the formulas.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from imprint.errors import MethodError
from imprint.methods import method
from imprint.neighbours import Metric, nearest, shapley, values
from imprint.recording.needs import HELD_OUT, Features, Target

# As cleanlab.
K = 10
# The first is what tells soonest that a run holds nothing out.
NEEDS = (
    Target("held_out_target", split=HELD_OUT), Features("held_out_features", split=HELD_OUT), Features(), Target(),
)  # fmt: skip


@method(
    "score", "knn-shapley", higher="more valuable", needs=NEEDS, tasks=["classification", "regression"], rowwise=False,
    source="Jia et al. 2019, arXiv:1908.08619",
)  # fmt: skip
def knn_shapley(
    features: Float[Tensor, "example feature"],
    target: Shaped[Tensor, " example"],
    held_out_features: Float[Tensor, "query feature"] | None = None,
    held_out_target: Shaped[Tensor, " query"] | None = None,
    k: int = K,
    *,
    metric: Metric = "cosine",
    depth: int | None = None,
) -> Float[Tensor, " example"]:
    """Shapley value of the example to a 10-nearest-neighbour predictor on the model's features, exact, on the held-out examples.

    The values sum to the mean share of the right label among the k nearest training examples of a held-out one; of a quantity, to the
    fall of the mean squared error from the answer 0 (the mean of the target) to the mean of the k nearest. Below zero: the example
    stands among held-out ones of other classes, as wrong labels do. Float64.

    Time is that of sorting all training examples for each held-out one, some tens of nanoseconds per pair. Memory is bounded in blocks
    of held-out examples.

    Args:
        features: Of the training examples.
        target: Their class codes, or quantities (floating point).
        held_out_features: Of the held-out examples; None judges each training example by all others.
        held_out_target: Their targets.
        k: Neighbours of the predictor.
        metric: "cosine" or "euclidean".
        depth: Of classes, only so many nearest neighbours get a value, none of them off by more than 1 / depth (the paper's Theorem 2);
            None for all, which is exact. `cleanlab.data_valuation.data_shapley_knn` is the case `depth=k` without held-out examples, as
            `(1 + value) / 2`.

    Raises:
        MethodError: A depth was given for quantities, of which no bound is known.

    >>> features, target = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> knn_shapley(features, target, torch.tensor([[0.9, 0.0]]), torch.tensor([0]), k=1)
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    queries, query_target, own = _queries(features, target, held_out_features, held_out_target)
    total = torch.zeros(len(features), dtype=torch.float64)
    if depth is not None and target.is_floating_point():
        raise MethodError(f"depth={depth} is for classes, and the target is a quantity.", "Leave it out.")
    if depth is None or depth >= len(features) - (own is not None):
        for _, found in shapley(queries, query_target, features, target, k, metric, own):
            total += found.sum(0)
    else:
        index = nearest(queries, features, max(k, depth), metric, own)
        match = target[index] == query_target[:, None]
        total.index_add_(0, index.flatten(), values(match, k, whole=False).flatten())
    return total / len(queries)


@method(
    "score", "knn-loo", higher="more valuable", needs=NEEDS, tasks=["classification", "regression"], rowwise=False,
    source="Jia et al. 2019, arXiv:1908.08619 (leave-one-out, as its baseline)",
)  # fmt: skip
def knn_loo(
    features: Float[Tensor, "example feature"],
    target: Shaped[Tensor, " example"],
    held_out_features: Float[Tensor, "query feature"] | None = None,
    held_out_target: Shaped[Tensor, " query"] | None = None,
    k: int = K,
    *,
    metric: Metric = "cosine",
) -> Float[Tensor, " example"]:
    """What the held-out examples lose if a 10-nearest-neighbour predictor on the model's features does without the example.

    That is the share of the right label among the k nearest, with the example less without it (of a quantity, the squared error of
    their mean, without it less with it): where the example is one of the k, its place is taken by the next. 0 for an example that is
    among the k nearest of no held-out one; `knn-shapley` tells these apart. Float64.

    Args:
        features: Of the training examples.
        target: Their class codes, or quantities (floating point).
        held_out_features: Of the held-out examples; None judges each training example by all others.
        held_out_target: Their targets.
        k: Neighbours of the predictor.
        metric: "cosine" or "euclidean".

    >>> features, target = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> knn_loo(features, target, torch.tensor([[0.9, 0.0]]), torch.tensor([0]), k=1)
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    queries, query_target, own = _queries(features, target, held_out_features, held_out_target)
    index = nearest(queries, features, k + 1, metric, own)
    quantity = target.is_floating_point()
    worth = (target[index] if quantity else target[index] == query_target[:, None]).double() / k
    # Where there is no next one, nobody takes an example's place.
    lost = worth[:, :k] - (worth[:, k:] if worth.shape[1] > k else 0)
    if quantity:
        off = worth[:, :k].sum(1, keepdim=True) - query_target[:, None]
        lost = (off - lost).square() - off.square()
    total = torch.zeros(len(features), dtype=torch.float64)
    return total.index_add_(0, index[:, :k].flatten(), lost.flatten()) / len(queries)


def _queries(
    features: Tensor, target: Tensor, held_out_features: Tensor | None, held_out_target: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features and labels of the queries, and which examples they are if they are the examples themselves."""
    if held_out_features is None or held_out_target is None:
        return features, target, torch.arange(len(features))
    return held_out_features, held_out_target, None
