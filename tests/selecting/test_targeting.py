"""LESS: influence beside a loop over pairs, and examples of the target's own kind found in a pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import imprint
import imprint.selecting.targeting as module
from imprint.gradients import full
from imprint.gradients.examples import examples_of
from imprint.gradients.moments import moments_of
from imprint.recording import Run
from imprint.selecting import less
from imprint.selecting.targeting import adam_influence, directions, influence


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_influence_is_the_weighted_mean_of_cosines_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, target = drawn(3, 7, 5), drawn(3, 6, 5, seed=1)
    subtasks, rates = torch.tensor([2, 9, 2, 9, 9, 4]), torch.tensor([1.0, 2.0, 5.0])
    expected = torch.zeros(7, 3)
    for column, code in enumerate((2, 4, 9)):
        for example in range(7):
            for checkpoint in range(3):
                own = [
                    F.cosine_similarity(gradients[checkpoint, example], target[checkpoint, place], 0)
                    for place in range(6)
                    if subtasks[place] == code
                ]
                expected[example, column] += rates[checkpoint] / 8 * sum(own) / len(own)
    assert torch.allclose(influence(gradients, target, subtasks, rates), expected, atol=1e-6)
    monkeypatch.setattr(module, "BLOCK", 2)
    assert torch.allclose(influence(gradients, target, subtasks, rates), expected, atol=1e-6)


def test_lengths_of_gradients_count_for_nothing() -> None:
    gradients, target, subtasks, rates = drawn(2, 9, 4), drawn(2, 3, 4, seed=1), torch.zeros(3), torch.ones(2)
    longer = gradients * torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(2)).add(0.1)
    one = influence(gradients, target, subtasks, rates)
    assert torch.allclose(one, influence(longer, 7 * target, subtasks, rates), atol=1e-6)
    assert float(one.abs().max()) <= 1.0


def test_a_gradient_of_zero_points_nowhere() -> None:
    found = directions(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    assert found.tolist() == [[0.5, 0.0]]
    assert influence(torch.zeros(1, 1, 2), torch.ones(1, 2, 2), torch.tensor([0, 1]), torch.ones(1)).tolist() == [
        [0, 0]
    ]


def test_serving_one_class_of_the_target_is_enough() -> None:
    """Two classes of the target pull apart: an example along either counts more than one between them."""
    target = torch.tensor([[[1.0, 0.0], [-1.0, 0.1]]])
    gradients = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    classes = less(target, gradients, torch.ones(1), torch.tensor([0, 1]), 3, torch.Generator())
    assert classes.order.tolist()[-1] == 1
    quantity = less(target, gradients, torch.ones(1), torch.tensor([0.0, 1.0]), 3, torch.Generator())
    assert quantity.order.tolist()[0] == 1


def test_the_targets_own_kind_is_found(run: Run) -> None:
    """Half of the pool is of the target's class; its examples move the last layer alike."""
    target = run.corpus.target
    zeros = [
        name
        for name, kind, split in zip(run.corpus.ids, target, run.corpus.split_names, strict=True)
        if (kind, split) == ("d0", "valid")
    ]
    whole = imprint.select(run, 1.0, "less", target=zeros, progress=False).frame()
    kinds = target.gather(run.corpus.rows_of(whole["id"].to_list())).to_numpy() == "d0"
    assert roc_auc_score(kinds, whole["value"]) > 0.95
    chosen = imprint.select(run, 40, "less", target=zeros, progress=False)
    assert chosen.ids == whole["id"][:40].to_list()
    scaled = imprint.select(run, 40, "less-adam", target=zeros, progress=False)
    assert np.mean(target.gather(run.corpus.rows_of(scaled.ids)).to_numpy() == "d0") > 0.95
    by_chance = imprint.select(run, 40, "random", progress=False)
    drawn_kinds = target.gather(run.corpus.rows_of(by_chance.ids)).to_numpy() == "d0"
    assert 0.25 < np.mean(drawn_kinds) < 0.75


def test_it_aims_at_the_validation_split_by_default(run: Run) -> None:
    chosen = imprint.select(run, 30, "less", progress=False)
    assert "aimed at the split 'valid', 40 examples" in chosen.notes
    assert chosen.ids == imprint.select(run, 30, "less", target="valid", progress=False).ids


def test_scaled_influence_is_the_mean_of_cosines_of_written_out_gradients(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run.rows("train")[:9], run.rows("valid")[:6]
    examples, target = (examples_of(run, some) for some in rows)
    moments, subtasks = moments_of(run), torch.tensor([0, 3, 3, 0, 0, 3])
    own = torch.cat([moments.scaled(layer) for layer in examples.layers()], 1)
    aims = torch.cat([full(layer).flatten(1) for layer in target.layers()], 1)
    cosines = F.cosine_similarity(own[:, None], aims[None], dim=2)
    expected = torch.stack([cosines[:, subtasks == code].mean(1) for code in (0, 3)], 1)
    assert torch.allclose(adam_influence(examples, target, subtasks, moments), expected, atol=1e-5)
    monkeypatch.setattr(module, "NUMBERS", 1)
    assert torch.allclose(adam_influence(examples, target, subtasks, moments), expected, atol=1e-5)
