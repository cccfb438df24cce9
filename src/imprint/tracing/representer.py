"""Representer points: a prediction taken apart into the training examples that hold the last layer where it is.

A linear head with a penalty, at the minimum of `mean of losses + decay/2 |W|^2`, has the gradient zero, so that its weights are a sum
over the training examples:

    W = sum over i of alpha[i] f[i]^T,        alpha[i, c] = ([label of i = c] - p[i, c]) / (n decay),

and its logits are a sum of one term per example, `logit[q, c] = intercept[c] + sum over i of alpha[i, c] (f[i] . f[q])`. (The paper's
lambda is decay / 2, and it has the intercept among the penalised weights, as a feature of ones.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from imprint.fitting.learner import WEIGHT_DECAY
from imprint.fitting.logistic import logistic
from imprint.gradients import LayerGradient
from imprint.methods import method
from imprint.recording.needs import Features, Target
from imprint.tracing.evidence import QUERIES
from imprint.tracing.products import Products, Term

BLOCK = 65_536


@method(
    "trace", "representer", higher="raises the logit of the query's label",
    needs=[Features("query_features", split=QUERIES), Target("query_target", split=QUERIES), Features(), Target()],
    tasks=["classification"], source="Yeh et al. 2018, arXiv:1811.09720",
)  # fmt: skip
def representer(
    query_features: Float[Tensor, "query feature"],
    query_target: Int[Tensor, " query"],
    features: Float[Tensor, "example feature"],
    target: Int[Tensor, " example"],
    decay: float = WEIGHT_DECAY["logistic"],
) -> Products:
    """What the example adds to the logit of the query's label, in a logistic head on the model's features (representer points).

    The head is solved to its minimum, as the theorem asks, with the penalty of a "logistic" learner and on features scaled to a mean
    square of one; of a network, it stands in for the last layer, on the network's own features. The scores of a query and the head's
    intercept sum to the logit.

    >>> features, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> scores = representer(features, target, features, target).scores()
    >>> bool(scores[0, 0] > 0), abs(float(scores[0, 1])) < 1e-9
    (True, True)
    """
    scale = features.square().mean(dtype=torch.float64).sqrt().clamp(min=1e-12).float()
    features, query_features = features / scale, query_features / scale
    classes = 1 + int(max(target.max(), query_target.max()))
    weights, intercept = logistic(features, target, decay=decay, classes=classes)
    alpha = torch.empty(len(features), classes)
    for begin in range(0, len(features), BLOCK):
        some = slice(begin, begin + BLOCK)
        wrong = one_hot(target[some], classes) - (features[some].double() @ weights + intercept).softmax(1)
        alpha[some] = (wrong / (len(features) * decay)).float()
    asked = one_hot(query_target, classes).float()
    # The same form as the gradient of a linear layer: the features go in, and what comes out of the other side is multiplied.
    queries = LayerGradient("head", "linear", query_features[:, None], asked[:, None])
    return Products((Term([queries], [LayerGradient("head", "linear", features[:, None], alpha[:, None])]),))
