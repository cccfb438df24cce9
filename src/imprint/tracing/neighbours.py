"""Neighbours as attribution: what a nearest-neighbour predictor on the model's features would owe to each example.

Both methods are exact for that predictor, need no training and no gradient, and see the model through its features alone. An example
helps a query if it is near and has the query's label, and harms it if it is near and has another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from imprint.methods import method
from imprint.neighbours import PAIRS, shapley
from imprint.recording.needs import Features, Target
from imprint.tracing.evidence import QUERIES
from imprint.tracing.factors import BLOCK_QUERIES, BLOCK_SCORES, slices
from imprint.tracing.products import Blockwise

# Wu et al. weight a neighbour by exp(cosine / 0.07), and so do most that came after.
TEMPERATURE = 0.07
# As the score of this name.
K = 10
NEEDS = (
    Features("query_features", split=QUERIES), Target("query_target", split=QUERIES), Features(), Target(),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Weighted(Blockwise):
    """What each example does to the share of the query's label among its weighted neighbours.

    Attributes:
        query_features: Of length one.
        query_target: Labels of the queries.
        features: Of the examples, of length one.
        target: Labels of the examples.
        temperature: An example weighs exp(cosine / temperature).
    """

    query_features: Float[Tensor, "query feature"]
    query_target: Int[Tensor, " query"]
    features: Float[Tensor, "example feature"]
    target: Int[Tensor, " example"]
    temperature: float = TEMPERATURE

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.query_features), len(self.features)

    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        own, total = (side[queries, None] for side in self._sums)
        match, logits = self._pairs(queries, examples)
        return (logits - total).exp_().mul_(match - (own - total).exp())

    def _pairs(self, queries: slice, examples: slice) -> tuple[Tensor, Tensor]:
        """Which examples have the query's label, and the logarithms of their weights."""
        match = (self.query_target[queries, None] == self.target[examples]).float()
        return match, (self.query_features[queries] @ self.features[examples].T).div_(self.temperature)

    @cached_property
    def _sums(self) -> tuple[Float[Tensor, " query"], Float[Tensor, " query"]]:
        """Logarithms of the weight of the examples with the query's label, and of all."""
        count, total = self.shape
        own, everything = torch.full((count,), -torch.inf), torch.full((count,), -torch.inf)
        for queries in slices(count, BLOCK_QUERIES):
            for examples in slices(total, max(1, BLOCK_SCORES // BLOCK_QUERIES)):
                match, logits = self._pairs(queries, examples)
                everything[queries] = torch.logaddexp(everything[queries], logits.logsumexp(1))
                own[queries] = torch.logaddexp(own[queries], (logits + match.log()).logsumexp(1))
        return own, everything


@method(
    "trace", "knn", higher="helps the query", needs=NEEDS, tasks=["classification"],
    source="Wu et al. 2018 (weighted nearest neighbours), arXiv:1805.01978",
)  # fmt: skip
def knn(
    query_features: Float[Tensor, "query feature"],
    query_target: Int[Tensor, " query"],
    features: Float[Tensor, "example feature"],
    target: Int[Tensor, " example"],
) -> Weighted:
    """Nearest training examples, signed by whether they share the query's label: what each does to a weighted vote of neighbours.

        w[q, i] = exp(cosine[q, i] / 0.07) / sum over j of exp(cosine[q, j] / 0.07)         the vote of example i
        p[q]    = sum over i of w[q, i] [label of i = label of q]                            the share of the query's label
        score[q, i] = w[q, i] ([label of i = label of q] - p[q])

    The score is the derivative of p with respect to the logarithm of the example's weight: how much of the share is owed to it.
    Examples with the query's label score 0 or more, all others 0 or less, the nearest ones the most; the scores of a query sum to 0.

    >>> features, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1, 0])
    >>> knn(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), features, target).scores().round(decimals=3)
    tensor([[ 0.2500,  0.0000, -0.2500]])
    """
    return Weighted(normalize(query_features), query_target, normalize(features), target)


@dataclass(frozen=True, eq=False)
class Valued(Blockwise):
    """Shapley values of the examples for each query.

    Attributes:
        query_features: Features of the queries.
        query_target: Their labels or quantities.
        features: Features of the examples.
        target: Their labels or quantities.
        k: Neighbours of the predictor.
    """

    query_features: Float[Tensor, "query feature"]
    query_target: Shaped[Tensor, " query"]
    features: Float[Tensor, "example feature"]
    target: Shaped[Tensor, " example"]
    k: int = K

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.query_features), len(self.features)

    def queries_at_a_time(self) -> int:
        """As many as are sorted together."""
        return max(1, PAIRS // len(self.features))

    def scores(self, queries: slice = slice(None), examples: slice = slice(None)) -> Float[Tensor, "query example"]:
        asked, labels = self.query_features[queries], self.query_target[queries]
        found = torch.empty(len(asked), len(range(*examples.indices(self.shape[1]))))
        for some, values in shapley(asked, labels, self.features, self.target, self.k):
            found[some] = values[:, examples].float()
        return found

    def blocks(self, queries: slice) -> Iterator[tuple[slice, Float[Tensor, "query example"]]]:
        """All examples at once: a query's examples are sorted together."""
        yield slice(0, self.shape[1]), self.scores(queries)


@method(
    "trace", "knn-shapley", higher="helps the query", needs=NEEDS, tasks=["classification", "regression"],
    source="Jia et al. 2019, arXiv:1908.08619",
)  # fmt: skip
def knn_shapley(
    query_features: Float[Tensor, "query feature"],
    query_target: Shaped[Tensor, " query"],
    features: Float[Tensor, "example feature"],
    target: Shaped[Tensor, " example"],
) -> Valued:
    """Shapley value of the example for a 10-nearest-neighbour predictor's answer to the query, exact (see `imprint.neighbours`).

    The scores of a query sum to the share of its label among its 10 nearest training examples (of a quantity: to what their mean takes off
    the squared error of the answer 0). They weigh an example by its rank, where `knn` weighs it by its distance, so that no scale of
    distances has to be chosen; the mean over queries is the score `knn-shapley`.

    >>> found = knn_shapley(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.tensor([1, 0]))
    >>> found.scores()
    tensor([[0.1000, 0.0000]])
    """
    return Valued(query_features, query_target, features, target)
