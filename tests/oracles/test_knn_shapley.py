"""KNN-Shapley against cleanlab, whose values are those of the k nearest examples alone, scaled to 0 to 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.scoring import knn_shapley

valuation = pytest.importorskip("cleanlab.data_valuation")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("examples", "width", "k"), [(1000, 32, 10), (300, 5, 1), (150, 64, 40)])
def test_cut_at_k_and_without_held_out_examples_it_is_cleanlab(examples: int, width: int, k: int, metric: str) -> None:
    """cleanlab takes each example as a query of the others, gives a value to its k nearest only, and divides by their number."""
    rng = np.random.default_rng(k)
    features, labels = rng.normal(size=(examples, width)), rng.integers(0, 4, examples)
    theirs = valuation.data_shapley_knn(labels, features=features, metric=metric, k=k)
    ours = knn_shapley(torch.from_numpy(features), torch.from_numpy(labels), k=k, depth=k, metric=metric)  # type: ignore[arg-type]
    np.testing.assert_allclose((1 + ours.numpy()) / 2, theirs, rtol=0, atol=1e-12)
    if k > 1:
        assert theirs.std() > 1e-6  # there is something to be equal to


def test_exact_values_tell_apart_what_the_cut_ones_do_not() -> None:
    """For k = 1 cleanlab gives every example the same value; the exact ones find the wrong labels."""
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 3
    features = np.eye(3)[truth] * 4 + rng.normal(size=(300, 3))
    labels = np.where(np.arange(300) < 30, (truth + 1) % 3, truth)
    cut = valuation.data_shapley_knn(labels, features=features, metric="euclidean", k=1)
    assert np.ptp(cut) == 0
    exact = knn_shapley(torch.from_numpy(features), torch.from_numpy(labels), k=1, metric="euclidean").numpy()
    below = exact[:30, None] < exact[None, 30:]
    assert below.mean() > 0.95  # area under the ROC curve
