"""Penalties that drive weights to zero, and pruning that keeps them there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from imprint.errors import MethodError
from imprint.forgetting import l1_sparse, prepare, prune_fine_tune
from imprint.forgetting.sparse import largest
from imprint.recording import Run


def size(module: nn.Module) -> float:
    return float(torch.cat([one.detach().abs().flatten() for one in module.parameters()]).sum())


def test_the_penalty_drives_weights_to_zero(digits: Run, sevens: np.ndarray) -> None:
    sizes = [
        size(l1_sparse(prepare(digits, sevens), alpha=alpha, epochs=3).module) for alpha in (0.0, 1e-4, 1e-3, 1e-2)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.8 * sizes[0]


def test_a_penalty_beyond_all_loss_leaves_nothing(wave: Run) -> None:
    # Steps of Adam are as long as the rate: after more than (largest weight / rate) of them every weight has come to zero.
    module = nn.Sequential(nn.Flatten(), nn.Linear(wave.data.inputs.shape[1], 1))
    done = l1_sparse(prepare(wave, np.arange(5), module=module), alpha=1e6, epochs=40, learning_rate=0.01)
    assert size(done.module) < 0.1


def test_without_penalty_it_is_fine_tuning(digits: Run, sevens: np.ndarray) -> None:
    from imprint.forgetting import fine_tuned

    one, other = l1_sparse(prepare(digits, sevens), alpha=0.0).module, fine_tuned(prepare(digits, sevens)).module
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_smallest_hidden_weights_are_zero_and_stay_so(digits: Run, sevens: np.ndarray, sparsity: float) -> None:
    job = prepare(digits, sevens)
    before = [job.module[1].weight.detach().clone(), job.module[4].weight.detach().clone()]
    done = prune_fine_tune(job, sparsity=sparsity)
    after = [done.module[1].weight.detach(), done.module[4].weight.detach()]
    total = sum(one.numel() for one in before)
    zero = [one == 0 for one in after]
    assert sum(int(one.sum()) for one in zero) == round(sparsity * total)
    if sparsity:
        least = min(float(one[~gone].abs().min()) for one, gone in zip(before, zero, strict=True))
        most = max(float(one[gone].abs().max()) for one, gone in zip(before, zero, strict=True))
        assert most <= least
    assert not bool((done.module[7].weight == 0).any())  # the output layer
    assert f"{round(sparsity * total):,} of {total:,}" in done.notes[0]


def test_of_a_linear_model_its_own_layer_is_pruned() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    ((weight, kept),) = largest(module, 0.25)
    assert weight is module[1].weight
    assert int((~kept).sum()) == 2


def test_nothing_to_prune() -> None:
    with pytest.raises(MethodError, match="neither a linear layer nor a convolution"):
        largest(nn.Embedding(3, 2), 0.5)


def test_impossible_settings(digits: Run, sevens: np.ndarray) -> None:
    with pytest.raises(MethodError, match="sparsity=2"):
        prune_fine_tune(prepare(digits, sevens), sparsity=2)
    with pytest.raises(MethodError, match="alpha=-1"):
        l1_sparse(prepare(digits, sevens), alpha=-1)
