"""LiRA, RMIA and CKA against plain implementations of their papers, in loops and with every matrix written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from imprint.verifying.membership import lira, rmia
from imprint.verifying.representation import cka


def drawn(models: int, candidates: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins of shadow models, who is inside (half of the models, for each candidate), and margins of an attacked model."""
    rng = np.random.default_rng(seed)
    inside = rng.random((models, candidates)).argsort(0) < models // 2
    margins = 3 * rng.normal(size=candidates) + inside + rng.normal(size=(models, candidates))
    return margins, inside, 3 * rng.normal(size=candidates)


@pytest.mark.parametrize("models", [64, 100])
def test_lira_is_algorithm_1_of_carlini_et_al(models: int) -> None:
    """mu_in <- mean(confs_in), var_in <- var(confs_in), ...; return p(conf | N(in)) / p(conf | N(out)); here its logarithm."""
    margins, inside, observed = drawn(models, 12)
    expected = []
    for candidate in range(12):
        confs_in = [margins[model, candidate] for model in range(models) if inside[model, candidate]]
        confs_out = [margins[model, candidate] for model in range(models) if not inside[model, candidate]]
        expected.append(
            norm.logpdf(observed[candidate], np.mean(confs_in), np.std(confs_in))
            - norm.logpdf(observed[candidate], np.mean(confs_out), np.std(confs_out))
        )
    found = lira(*(torch.from_numpy(one) for one in (margins, inside, observed)))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_lira_of_few_models_shares_the_variance_about_the_candidates_means() -> None:
    margins, inside, observed = drawn(16, 12)
    deviations: dict[bool, list[float]] = {True: [], False: []}
    means: dict[bool, list[float]] = {True: [], False: []}
    for candidate in range(12):
        for side in (True, False):
            values = [margins[model, candidate] for model in range(16) if inside[model, candidate] == side]
            means[side].append(np.mean(values))
            deviations[side] += [value - np.mean(values) for value in values]
    # 8 models on either side of 12 candidates, and a mean for each: 12 x 7 degrees of freedom.
    spread = {side: math.sqrt(sum(one**2 for one in found) / (12 * 7)) for side, found in deviations.items()}
    expected = [
        norm.logpdf(observed[candidate], means[True][candidate], spread[True])
        - norm.logpdf(observed[candidate], means[False][candidate], spread[False])
        for candidate in range(12)
    ]
    found = lira(*(torch.from_numpy(one) for one in (margins, inside, observed)))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_is_the_likelihood_ratio_test_of_zarifzadeh_et_al(gamma: float) -> None:
    """Score(x) = Pr over z of [ (Pr(x | model) / Pr(x)) / (Pr(z | model) / Pr(z)) >= gamma ], with Pr(x) the mean of the means over
    models in and out."""
    margins, inside, observed = drawn(16, 20)
    rng = np.random.default_rng(1)
    z, z_observed = rng.normal(size=(16, 50)), rng.normal(size=50)

    def probability(margin: float) -> float:
        return 1 / (1 + math.exp(-margin))

    expected = []
    for x in range(20):
        inner = np.mean([probability(margins[model, x]) for model in range(16) if inside[model, x]])
        outer = np.mean([probability(margins[model, x]) for model in range(16) if not inside[model, x]])
        ratio_x = probability(observed[x]) / (0.5 * (inner + outer))
        dominated = 0
        for other in range(50):
            mean = np.mean([probability(z[model, other]) for model in range(16)])
            dominated += ratio_x / (probability(z_observed[other]) / mean) >= gamma
        expected.append(dominated / 50)
    arguments = [torch.nn.functional.logsigmoid(torch.from_numpy(one)) for one in (margins, observed, z, z_observed)]
    found = rmia(arguments[0], torch.from_numpy(inside), *arguments[1:], gamma=gamma)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(set(expected)) > 5  # there is something to be equal to


@pytest.mark.parametrize(("rows", "widths"), [(40, (7, 3)), (12, (30, 20)), (3, (1, 1))])
def test_cka_is_the_alignment_of_centred_kernels(rows: int, widths: tuple[int, int]) -> None:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of Kornblith et al., with the kernels of all pairs of rows."""
    rng = np.random.default_rng(rows)
    a = rng.normal(size=(rows, widths[0])) + 5
    b = a[:, :1] + rng.normal(size=(rows, widths[1])) - 3
    centring = np.eye(rows) - np.ones((rows, rows)) / rows

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        return float(np.trace(k @ centring @ l @ centring)) / (rows - 1) ** 2

    k, l = a @ a.T, b @ b.T  # noqa: E741
    expected = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    assert cka(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)
