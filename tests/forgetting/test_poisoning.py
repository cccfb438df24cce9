"""Class forgetting by poisoned labels: concepts that are found, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.errors import MethodError
from imprint.forgetting import concept_poison, prepare
from imprint.forgetting.poisoning import gathered, key_evidence, linear_head, strongest
from imprint.recording import Run


def test_concepts_are_directions_around_which_examples_gather() -> None:
    random = torch.Generator().manual_seed(0)
    true = torch.eye(3)
    values = (
        (true.repeat_interleave(50, 0) + 0.05 * torch.randn(150, 3, generator=random))
        * torch.rand(150, 1, generator=random)
        * 9
    )
    found = gathered(values, 3, torch.Generator().manual_seed(1))
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert bool(((found @ values.T).argmax(0).view(3, 50) == (found @ true).argmax(0)[:, None]).all())


def test_there_are_no_more_concepts_than_directions() -> None:
    assert len(gathered(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), 5, torch.Generator().manual_seed(0))) == 2


def test_the_head_on_concepts_is_the_linear_map_of_the_logits() -> None:
    random = torch.Generator().manual_seed(0)
    activity, weight = torch.randn(200, 4, generator=random), torch.randn(4, 3, generator=random)
    assert torch.allclose(linear_head(activity, activity @ weight + 5), weight, atol=1e-2)


def test_examples_of_a_class_show_its_key_concepts(digits: Run, sevens: np.ndarray) -> None:
    job = prepare(digits, sevens)
    evidence = key_evidence(job, torch.tensor([7]), 16, 3)
    assert float((evidence > 0).float().mean()) > 0.9
    best = strongest(job.forget.target == 7, evidence, 0.25)
    assert len(best) == round(len(sevens) / 4)
    assert float(evidence[best].min()) >= float(evidence[[n for n in range(len(sevens)) if n not in best]].max())


@pytest.mark.parametrize("labels", ["random", "targeted"])
def test_two_classes_are_forgotten_together(digits: Run, labels: str) -> None:
    places = np.flatnonzero(np.isin(digits.target().numpy(), [3, 7]))
    job = prepare(digits, places)
    done = concept_poison(job, labels=labels, epochs=4)
    said = job.task.predict(job.outputs(job.forget, done.module))
    assert float(torch.isin(said, torch.tensor([3, 7])).float().mean()) < 0.5
    kept = job.task.correct(job.outputs(job.retain, done.module), job.retain.target)
    assert float(kept.float().mean()) > 0.97
    assert f"{len(places):,} of {len(places):,}" in done.notes[0]


def test_a_share_of_the_class_is_poisoned(digits: Run, sevens: np.ndarray) -> None:
    done = concept_poison(prepare(digits, sevens), share=0.5)
    assert done.notes[0].startswith(f"{round(len(sevens) / 2)} of {len(sevens)}")


def test_less_than_a_class_is_refused(digits: Run, sevens: np.ndarray) -> None:
    with pytest.raises(MethodError, match="some examples of 'c7' are retained"):
        concept_poison(prepare(digits, sevens[:-1]))


def test_two_classes_have_to_remain(digits: Run) -> None:
    places = np.flatnonzero(digits.target().numpy() != 7)
    with pytest.raises(MethodError, match="Less than two classes"):
        concept_poison(prepare(digits, places))


@pytest.mark.parametrize("settings", [{"labels": "wrong"}, {"concepts": 0}, {"keys": 1.5}, {"share": 0}])
def test_impossible_settings(digits: Run, sevens: np.ndarray, settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(MethodError, match=f"{name}="):
        concept_poison(prepare(digits, sevens), **settings)
