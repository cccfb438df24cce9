"""Fine-tuning, ascent, relabelling and NPO: their formulas, and a class that a small network of digits forgets."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.naive_bayes import GaussianNB

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError, MethodError
from imprint.forgetting import Forgetting, prepare
from imprint.forgetting.descent import other_classes, preference
from imprint.forgetting.stepping import blocks, cycled, epochs_of, some, within
from imprint.methods import lookup, registered
from imprint.recording import Run

APPROXIMATE = (
    "blindspot", "concept-poison", "datamodel-matching", "fine-tune", "gaussian", "gradient-ascent", "gradient-difference",
    "influence", "l1-sparse", "laf", "npo", "prune-fine-tune", "random-labels", "scrub", "ssd",
)  # fmt: skip


def accuracy(job: Forgetting, part: object, module: torch.nn.Module | None = None) -> float:
    return float(job.task.correct(job.outputs(part, module), part.target).double().mean())


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in module.parameters()])


@given(st.floats(-5, 5), st.floats(0.01, 3))
def test_npo_has_the_gradient_of_ascent_times_a_factor_that_fades(rise: float, beta: float) -> None:
    one = torch.tensor([rise], dtype=torch.float64, requires_grad=True)
    preference(one, beta).sum().backward()
    now, before = np.exp(-beta * rise), 1.0  # p^beta of the target, in units of the parent's
    assert float(one.grad) == pytest.approx(-2 * now / (now + before), rel=1e-9)
    assert -2 <= float(one.grad) <= 0


def test_npo_is_ascent_as_beta_goes_to_zero() -> None:
    rise = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    preference(rise, 1e-6).sum().backward()
    assert torch.allclose(rise.grad, -torch.ones_like(rise), atol=1e-5)


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_a_random_label_is_never_the_own_one(classes: int, seed: int) -> None:
    own = torch.arange(classes).repeat(40)
    drawn = other_classes(own, classes, torch.Generator().manual_seed(seed))
    assert bool((drawn != own).all())
    assert bool(((drawn >= 0) & (drawn < classes)).all())


# A retrained model knows nothing of the class (0.0). The network is so small that a tenth of its epochs is one or two: some take more.
@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("gradient-ascent", {"epochs": 15}, 0.8), ("gradient-difference", {"epochs": 6}, 0.5), ("random-labels", {"epochs": 4}, 0.5),
        ("npo", {"epochs": 20}, 0.7), ("scrub", {"epochs": 4, "ascents": 3}, 0.4), ("ssd", {}, 0.5),
        ("prune-fine-tune", {"sparsity": 0.9}, 0.4), ("concept-poison", {"epochs": 4}, 0.4), ("laf", {}, 0.5),
    ],
)  # fmt: skip
def test_a_class_is_forgotten_and_the_others_are_kept(
    digits: Run, sevens: np.ndarray, name: str, settings: dict[str, object], most: float
) -> None:
    before = prepare(digits, sevens)
    assert accuracy(before, before.forget) > 0.9
    job = prepare(digits, sevens)
    done = lookup("forget", name).function(job, **settings)
    assert accuracy(job, job.forget, done.module) <= most
    assert accuracy(job, job.retain, done.module) >= accuracy(before, before.retain) - 0.03
    assert done.exact is False
    assert not done.module.training


@pytest.mark.parametrize("name", ["fine-tune", "l1-sparse", "influence"])
def test_margins_of_a_class_fall_towards_those_of_a_retrained_model(digits: Run, sevens: np.ndarray, name: str) -> None:
    before = prepare(digits, sevens)
    job = prepare(digits, sevens)
    module = lookup("forget", name).function(job).module

    def fall(part: object) -> float:
        gap = job.task.margin(before.outputs(part), part.target) - job.task.margin(
            job.outputs(part, module), part.target
        )
        return float(gap.median())

    assert fall(job.forget) > fall(job.retain) + 0.5
    assert accuracy(job, job.retain, module) >= accuracy(before, before.retain) - 0.03


@pytest.mark.parametrize("name", ["gradient-difference", "random-labels", "npo", "scrub", "laf", "concept-poison"])
def test_the_same_request_gives_the_same_weights(digits: Run, sevens: np.ndarray, name: str) -> None:
    found = []
    for state, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(state)  # nothing is drawn from the caller's random numbers, and they are as before
        short = {"epochs": 1}
        found.append(weights(lookup("forget", name).function(prepare(digits, sevens, seed=seed), **short).module))
        assert torch.initial_seed() == state
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_steps_that_diverge_name_the_remedy(digits: Run, sevens: np.ndarray) -> None:
    with pytest.raises(LearnerError, match="Lower it, learning_rate=") as raised:
        lookup("forget", "gradient-ascent").function(prepare(digits, sevens), learning_rate=1e38)
    assert "diverged" in raised.value.problem


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"epochs": 1.5}, {"learning_rate": -1.0}, {"learning_rate": float("nan")}, {"alpha": 2.0}]
)  # fmt: skip
def test_impossible_settings_are_refused(digits: Run, sevens: np.ndarray, settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(MethodError, match=f"{name}="):
        lookup("forget", "gradient-difference").function(prepare(digits, sevens), **settings)


def test_a_run_gives_a_child_that_says_what_was_not_proved(run: Run, tmp_path) -> None:
    child = imprint.forget(
        run, ids=run.ids[:5].to_list(), method="npo", path=tmp_path / "gone", progress=False, epochs=2
    )
    assert len(child) == len(run) - 5
    assert child.manifest["forgot"]["exact"] is False
    assert child.manifest["forgot"]["settings"] == {"beta": 0.1, "retain": 1.0, "epochs": 2, "learning_rate": None}
    assert "None is proved" in child.manifest["forgot"]["guarantee"]
    with pytest.raises(MethodError, match="no setting 'gamma'"):
        imprint.forget(run, ids=run.ids[:5].to_list(), method="npo", path=tmp_path / "other", progress=False, gamma=1)


def test_quantities_are_forgotten_as_well(wave: Run) -> None:
    places = np.flatnonzero(wave.target().numpy() > 1)
    before = prepare(wave, places)
    loss = [float(before.loss(before.outputs(part), part.target).mean()) for part in (before.forget, before.retain)]
    for name in ("gradient-difference", "npo", "random-labels", "scrub"):
        job = prepare(wave, places)
        module = lookup("forget", name).function(job).module
        after = [float(job.loss(job.outputs(part, module), part.target).mean()) for part in (job.forget, job.retain)]
        assert after[0] > loss[0], name
        assert after[0] - loss[0] > after[1] - loss[1], name


def test_every_method_documents_its_settings_and_gives_them_defaults() -> None:
    known = {one.name: one for one in registered("forget")}
    for name in APPROXIMATE:
        one = known[name]
        assert one.exact is False
        assert one.source
        for setting, parameter in list(inspect.signature(one.function).parameters.items())[1:]:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is not inspect.Parameter.empty
            assert f"{setting}: " in (one.function.__doc__ or ""), (name, setting)
    assert known["blindspot"].tasks == known["gaussian"].tasks == ("regression",)
    assert known["concept-poison"].tasks == ("classification",)


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own(run: Run) -> None:
    job = prepare(run, np.arange(7))
    orders = [torch.cat([one.places for one in blocks(job, job.retain, epoch)]) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, job.retain.places)
    assert not torch.equal(*orders)
    source = cycled(job, job.forget, size=7)
    assert [len(next(source)) for _ in range(3)] == [7, 7, 7]


def test_blocks_bring_the_targets_and_weights_of_their_examples(run: Run) -> None:
    job = prepare(run, np.arange(7))
    weight = torch.arange(1.0, 1 + len(job.data.target))
    job = replace(job, retain=replace(job.retain, data=replace(job.data, weight=weight)))
    named = torch.arange(len(job.retain))
    total = 0.0
    for block in blocks(job, job.retain, 0, size=16, target=named):
        assert torch.equal(job.retain.places[block.target], block.places)
        own = weight[job.retain.split[block.places]]
        assert torch.allclose(block.weight / block.weight[0], own / own[0])
        assert torch.equal(block.inputs, job.retain.inputs(block.places))
        total += float(block.weight.sum())
    assert total / len(job.retain) == pytest.approx(1, rel=1e-5)


def test_small_helpers(run: Run) -> None:
    job = prepare(run, np.arange(7))
    assert epochs_of(job, None) == 1  # a tenth of 3 is none, and one is the least
    assert epochs_of(job, 4) == 4
    drawn = some(job.retain, 10, torch.Generator().manual_seed(0)).places
    assert len(drawn) == 10
    assert bool(torch.isin(drawn, job.retain.places).all())
    assert torch.equal(drawn, drawn.sort().values)
    assert within("x", 1, 0, 1) == 1.0
    with pytest.raises(MethodError, match="x=0 is not a number above 0"):
        within("x", 0, 0, 1, open_low=True)


@pytest.mark.parametrize("name", sorted(set(APPROXIMATE) - {"blindspot", "gaussian"}))
def test_what_has_no_gradients_is_refused(estimated: Run, name: str) -> None:
    job = prepare(estimated, np.flatnonzero(estimated.target().numpy() == 0))
    with pytest.raises((MethodError, EvidenceError), match=r"no weights that gradients could change|has no gradients"):
        lookup("forget", name).function(job)
    assert not (estimated.path / "fleets").exists()


@pytest.fixture(scope="module")
def estimated(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("estimated")
    return imprint.fit(imprint.Learner(GaussianNB()), corpus, folder / "base", progress=False)


def test_a_solved_head_can_be_fine_tuned(logistic: Run) -> None:
    job = prepare(logistic, np.arange(5))
    before = [one.detach().clone() for one in job.module.parameters()]
    done = lookup("forget", "fine-tune").function(job)
    assert done.trained > 0
    assert not all(torch.equal(one, other) for one, other in zip(done.module.parameters(), before, strict=True))
