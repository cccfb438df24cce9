"""Scores from dynamics: against the authors' definitions, written as plain loops, and by properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from imprint.scoring import (
    aum,
    confidence,
    el2n,
    entropy,
    forgetting,
    last_margin,
    learning_time,
    mean_loss,
    variability,
)
from imprint.tasks.classification import Classification


def drawn(seed: int, epochs: int = 5, examples: int = 7, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(epochs, examples, classes, generator=generator)
    return logits, torch.randint(classes, (examples,), generator=generator)


def fields(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a run derives from recorded logits."""
    task = Classification(tuple(range(logits.shape[2])))
    return {
        "loss": torch.stack([cross_entropy(epoch, target, reduction="none") for epoch in logits]),
        "margin": torch.stack([task.margin(epoch, target) for epoch in logits]),
        "correct": logits.argmax(2) == target,
        "probabilities": logits.softmax(2),
    }


def all_scores(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    got = fields(logits, target)
    return {
        "loss": mean_loss(got["loss"]),
        "margin": last_margin(got["margin"]),
        "entropy": entropy(got["probabilities"]),
        "confidence": confidence(got["loss"]),
        "variability": variability(got["loss"]),
        "aum": aum(got["margin"]),
        "el2n": el2n(got["probabilities"], target),
        "forgetting": forgetting(got["correct"]),
        "learning-time": learning_time(got["correct"]),
    }


def test_data_map_as_in_cartography() -> None:
    """allenai/cartography, train_dy_filtering.py: np.mean and np.std of the gold probability over epochs."""
    logits, target = drawn(0)
    gold = logits.softmax(2).numpy()[:, np.arange(7), target.numpy()]
    got = all_scores(logits, target)
    np.testing.assert_allclose(got["confidence"], gold.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got["variability"], gold.std(0), rtol=1e-4, atol=1e-6)


def test_el2n_as_in_data_diet() -> None:
    """mansheej/data_diet, scores.py: norm(softmax(logits) - Y, ord=2)."""
    logits, target = drawn(1)
    expected = (logits.softmax(2) - one_hot(target, 3)).norm(dim=2).mean(0)
    torch.testing.assert_close(all_scores(logits, target)["el2n"], expected)


def test_aum_as_in_its_package() -> None:
    """asappresearch/aum, aum.py: running mean of target logit less the largest other."""
    logits, target = drawn(2)
    expected = [
        np.mean([epoch[i, t] - max(epoch[i, j] for j in range(3) if j != t) for epoch in logits.numpy()])
        for i, t in enumerate(target.tolist())
    ]
    np.testing.assert_allclose(all_scores(logits, target)["aum"], expected, rtol=1e-5)


def forgetting_events(accuracy: np.ndarray) -> tuple[int, int]:
    """mtoneva/example_forgetting, order_examples_by_forgetting.py, for one example: events, presentations needed to learn."""
    transitions = accuracy[1:] - accuracy[:-1]
    wrong = np.where(accuracy == 0)[0]
    needed = wrong[-1] + 1 if len(wrong) else 0
    if not accuracy.any():
        return len(accuracy), needed
    return int((transitions == -1).sum()), needed


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=1).map(lambda rows: rows[0]))
def test_forgetting_as_in_the_authors_code(trace: list[bool]) -> None:
    events, needed = forgetting_events(np.array(trace, int))
    correct = torch.tensor(trace)[:, None]
    assert forgetting(correct).item() == events
    assert learning_time(correct).item() == needed


@given(st.integers(0, 2**31), st.permutations(range(7)), st.permutations(range(3)))
def test_order_of_examples_and_names_of_classes_do_not_matter(seed: int, order: list[int], names: list[int]) -> None:
    logits, target = drawn(seed)
    before = all_scores(logits, target)
    moved = all_scores(logits[:, order], target[order])
    renamed = torch.tensor(names)  # new code of each old class
    permuted = torch.empty_like(logits)
    permuted[:, :, renamed] = logits
    relabelled = all_scores(permuted, renamed[target])
    for name, value in before.items():
        torch.testing.assert_close(moved[name], value[order])
        torch.testing.assert_close(relabelled[name], value, rtol=1e-4, atol=1e-5)


def test_an_epoch_without_the_example_does_not_count() -> None:
    logits, target = drawn(3)
    masked = logits.clone()
    masked[1, 2] = torch.nan
    seen = [0, 2, 3, 4]
    got, expected = fields(masked, target), fields(logits[seen], target)
    for score, needs in ((mean_loss, "loss"), (confidence, "loss"), (variability, "loss"), (aum, "margin")):
        torch.testing.assert_close(score(got[needs])[2], score(expected[needs])[2])


def test_bounds() -> None:
    logits, target = drawn(4, examples=50)
    got = all_scores(logits, target)
    assert got["el2n"].min() >= 0
    assert got["el2n"].max() <= 2**0.5
    assert got["entropy"].max() <= np.log(3) + 1e-6
    assert got["variability"].max() <= 0.5  # of anything between 0 and 1


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_wrong_label_scores_as_wrong(wrong: int) -> None:
    """Three sure and stable examples of which one has another label: every signed score puts it at its hard end."""
    sure = torch.eye(3)[None].expand(4, 3, 3) * 5
    target = torch.arange(3)
    target[wrong] = (wrong + 1) % 3
    got = all_scores(sure, target)
    for name in ("loss", "el2n", "forgetting", "learning-time"):
        assert got[name].argmax() == wrong
    for name in ("margin", "confidence", "aum"):
        assert got[name].argmin() == wrong
