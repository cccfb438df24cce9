"""KLoM beside a naive reading of its definition: example by example, with NumPy's histograms and SciPy's entropy.

The definition is that of data-unlearning-bench (github.com/RoyRin/data-unlearning-bench, unlearning_bench/eval.py): margins are clipped to
[-100, 100] and counted in 20 bins from the least to the largest of both kinds; the judges' share of a bin where the models have something
is at least 1e-5; KL(models || judges) in nats, by `scipy.stats.entropy`, which scales both to sum to one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from imprint.forgetting.klom import klom
from imprint.forgetting.oracles import margins
from imprint.tasks import Classification


def naive(ours: np.ndarray, judges: np.ndarray, bins: int = 20) -> float:
    """Of one example. `numpy.histogram` counts what lies on the last edge in the last bin."""
    p, q = np.clip(ours, -100, 100), np.clip(judges, -100, 100)
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), bins + 1)
    p_share = np.histogram(p, edges)[0] / len(p)
    q_share = np.histogram(q, edges)[0] / len(q)
    q_share = np.array([max(b, 1e-5) if a > 0 else b for a, b in zip(p_share, q_share, strict=True)])
    return float(stats.entropy(p_share, q_share))


def open_bin(ours: np.ndarray, judges: np.ndarray) -> float:
    """As their code has it: by `digitize`, whose last bin is open, so that what equals the largest margin is in none."""
    p, q = np.clip(ours, -100, 100), np.clip(judges, -100, 100)
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 21)
    counts = [np.array([(np.digitize(one, edges) == bin_).sum() for bin_ in range(1, 21)]) for one in (p, q)]
    p_share, q_share = (one / one.sum() for one in counts)
    return float(stats.entropy(p_share, np.where(p_share > 0, np.maximum(q_share, 1e-5), q_share)))


@pytest.mark.parametrize(
    ("models", "judges", "shift", "scale"), [(8, 16, 0.0, 1.0), (4, 24, 2.0, 30.0), (100, 100, 1.0, 90.0)]
)
def test_the_definition_example_by_example(models: int, judges: int, shift: float, scale: float) -> None:
    random = np.random.default_rng(models)
    ours = random.normal(size=(models, 60)) * scale + shift
    others = random.normal(size=(judges, 60)) * scale
    wanted = [naive(ours[:, place], others[:, place]) for place in range(60)]
    found = klom(torch.from_numpy(ours), torch.from_numpy(others))
    assert np.allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_their_code_differs_by_the_largest_margin_alone() -> None:
    random = np.random.default_rng(0)
    ours, others = random.normal(size=(100, 40)), random.normal(size=(100, 40)) + 0.5
    # One more judge, far off to the right: in theirs it is the one that is in no bin, and here a judge too many.
    far = others.max(0, keepdims=True) + 3
    theirs = [open_bin(ours[:, place], np.concatenate([others, far])[:, place]) for place in range(40)]
    found = klom(torch.from_numpy(ours), torch.from_numpy(np.concatenate([others, far])))
    # q is 100/101 of theirs wherever both have something: log(101/100) more, but for bins where q is LEAST.
    assert np.abs(found.numpy() - np.array(theirs) - np.log(1.01)).max() < 1e-3


def test_margins_are_log_odds_of_the_target() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 50, 4) * 3, torch.randint(0, 4, (50,))
    p = logits.double().softmax(-1)[:, torch.arange(50), target]
    found = margins(Classification((0, 1, 2, 3)), logits, target)
    assert torch.allclose(found.double(), torch.logit(p), atol=1e-4)
