"""Similarity as attribution: what a method that knows the model has to beat.

None of them knows what the model does with an example. They are methods like the others, so that they can be asked for by name, and
they are what `imprint.verify` sets beside an attribution.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from imprint.methods import method
from imprint.recording.needs import Features, Rows, Target
from imprint.tracing.evidence import QUERIES, Inputs
from imprint.tracing.factors import Factors

# Enough that the scores of different queries are as good as independent, and each nearly normal.
RANDOM_RANK = 256


@method(
    "trace", "random", higher="nothing", needs=[Rows("query_rows", split=QUERIES), Rows()],
    source="control",
)  # fmt: skip
def random(query_rows: Int[Tensor, " query"], rows: Int[Tensor, " example"]) -> Factors:
    """Random scores, the same ones each time: what no information looks like.

    >>> random(torch.arange(2), torch.arange(5)).shape
    (2, 5)
    """
    generator = torch.Generator().manual_seed(0)
    return Factors(
        torch.randn(len(query_rows), RANDOM_RANK, generator=generator),
        torch.randn(len(rows), RANDOM_RANK, generator=generator),
    )


@method(
    "trace", "embedding", higher="more similar", needs=[Features("query_features", split=QUERIES), Features()],
    source="control; Hanawa et al. 2021, arXiv:2006.04528",
)  # fmt: skip
def embedding(query_features: Float[Tensor, "query feature"], features: Float[Tensor, "example feature"]) -> Factors:
    """Cosine of the angle between the features that the trained model decides on; between -1 and 1.

    It does not see labels: a similar example of another class scores high as well, though training on it hurts. `embedding-class`
    does.

    >>> embedding(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])).scores()
    tensor([[1., 0.]])
    """
    return Factors(normalize(query_features), normalize(features))


@method(
    "trace", "embedding-class", higher="more similar and of the same class",
    needs=[
        Features("query_features", split=QUERIES), Target("query_target", split=QUERIES), Features(), Target(),
    ],
    tasks=["classification"], source="control; Hanawa et al. 2021, arXiv:2006.04528",
)  # fmt: skip
def embedding_class(
    query_features: Float[Tensor, "query feature"],
    query_target: Int[Tensor, " query"],
    features: Float[Tensor, "example feature"],
    target: Int[Tensor, " example"],
) -> Factors:
    """Cosine of the angle between features for examples with the query's label, 0 for all others.

    The strongest control: that more examples of a class raise the margins of its queries, the most of similar ones, explains much of
    what retrained models say, and takes no training to know. It has no harmful end but examples that have nothing to do with the
    query.

    The factors are sparse: the features of an example stand in the columns of its class.

    >>> same = embedding_class(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1]))
    >>> same.scores()
    tensor([[0., 1., 0.]])
    """
    classes = int(max(query_target.max(), target.max())) + 1
    return Factors(by_class(query_features, query_target, classes), by_class(features, target, classes))


def by_class(
    features: Float[Tensor, "example feature"], target: Int[Tensor, " example"], classes: int
) -> sparse.csr_array:
    """Normalised features in the columns of the example's class: `[example, class x feature]`."""
    count, width = features.shape
    columns = target[:, None] * width + torch.arange(width)
    return sparse.csr_array(
        (normalize(features).numpy().reshape(-1), columns.numpy().reshape(-1), np.arange(count + 1) * width),
        shape=(count, classes * width),
    )


@method(
    "trace", "pixels", higher="nearer", needs=[Inputs("query_inputs", split=QUERIES), Inputs()],
    modalities=["image", "array"], source="control",
)  # fmt: skip
def pixels(query_inputs: Float[Tensor, "query pixel"], inputs: Float[Tensor, "example pixel"]) -> Factors:
    """Minus the squared distance between the encoded inputs.

    `-|x - y|^2 = 2 x.y - |x|^2 - |y|^2` is an inner product of vectors with two more entries.

    >>> pixels(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, 5.0]])).scores()
    tensor([[ 0., -9.]])
    """
    middle = inputs.mean(0)  # small numbers cancel with less error
    left, right = query_inputs - middle, inputs - middle
    ones = torch.ones(len(left), 1), torch.ones(len(right), 1)
    return Factors(
        torch.cat([2 * left, -left.square().sum(1, keepdim=True), -ones[0]], 1),
        torch.cat([right, ones[1], right.square().sum(1, keepdim=True)], 1),
    )


@method(
    "trace", "columns", higher="nearer", needs=[Inputs("query_inputs", split=QUERIES), Inputs()],
    modalities=["table"], source="control",
)  # fmt: skip
def columns(query_inputs: Float[Tensor, "query column"], inputs: Float[Tensor, "example column"]) -> Factors:
    """Minus the squared distance between rows of the table, with columns scaled and categories spread out as the model sees them.

    >>> columns(torch.tensor([[0.0]]), torch.tensor([[0.5], [-2.0]])).scores()
    tensor([[-0.2500, -4.0000]])
    """
    return pixels(query_inputs, inputs)
