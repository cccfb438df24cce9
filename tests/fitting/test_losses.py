"""Losses: closed forms, the authors' formulas written naively, gradients, and that a training without one is what it was."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import imprint
from imprint.errors import EvidenceError, LearnerError, RunError
from imprint.fitting import Data, Learner, SamplerState, Shuffled, derive, generator, train
from imprint.fitting.build import with_loss
from imprint.fitting.losses import (
    LOSSES,
    Dice,
    Focal,
    Loss,
    PositiveUnlabelled,
    WeakNegatives,
    loss_from,
    names,
)
from imprint.fitting.schedule import factor
from imprint.gradients import Capture
from imprint.tasks import Batch, Multilabel

from .conftest import TASK, network, resolved

LABELS = Multilabel(("a", "b", "c", "d"))


def batch(seed: int = 0, examples: int = 12, outputs: int = 4, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, class codes and labels."""
    random = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(examples, outputs, generator=random, dtype=torch.float64)
    codes = torch.randint(0, outputs, (examples,), generator=random)
    labels = (torch.rand(examples, outputs, generator=random) < 0.4).double()
    return logits, codes, labels


# ------------------------------------------------------------------------------------------------------------------ the formulas


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
def test_dice_is_the_papers_coefficient_of_classes_and_of_a_set_of_labels(alpha: float, square: bool) -> None:
    logits, codes, labels = batch()
    loss = Dice(alpha, 0.5, square)
    for example in range(len(logits)):
        total = 0.0
        for place, p in enumerate(logits[example].softmax(0).tolist()):
            y, q = float(codes[example] == place), (1 - p) ** alpha * p
            total += 1 - (2 * q * y + 0.5) / ((q**2 + y**2 if square else q + y) + 0.5)
        assert float(loss(logits, codes)[example]) == pytest.approx(total, rel=1e-12)
        above = below = 0.5
        for p, y in zip(logits[example].sigmoid().tolist(), labels[example].tolist(), strict=True):
            q = (1 - p) ** alpha * p
            above, below = above + 2 * q * y, below + (q**2 + y**2 if square else q + y)
        assert float(loss(logits, labels)[example]) == pytest.approx(1 - above / below, rel=1e-12)


def test_dice_of_a_sure_example_is_nothing_and_a_sure_negative_hardly_pulls() -> None:
    for square in (False, True):
        sure = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
        assert float(Dice(square=square)(sure, torch.tensor([0]))) == pytest.approx(0, abs=1e-12)
    # Of a negative with the probability p, the pull on its logit is 2 p^2 (1 - p) / (1 + p^2)^2 by dice and p by the cross-entropy.
    logit = torch.tensor([[math.log(0.1 / 0.9)]], dtype=torch.float64, requires_grad=True)
    Dice()(logit, torch.zeros(1, 1, dtype=torch.float64)).sum().backward()
    assert logit.grad is not None
    assert float(logit.grad) == pytest.approx(2 * 0.01 * 0.9 / 1.01**2, rel=1e-9)


def test_adaptive_dice_stops_to_push_where_its_weighted_probability_is_largest() -> None:
    """(1 - p)^alpha p rises up to p = 1 / (1 + alpha), which is why 0.01 is the default and not 1."""
    for alpha in (0.01, 0.5, 1.0):
        top = 1 / (1 + alpha)
        slopes = []
        for p in (top - 0.005, min(top + 0.005, 1 - 1e-6)):
            logit = torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64, requires_grad=True)
            Dice(alpha)(logit, torch.ones(1, 1, dtype=torch.float64)).sum().backward()
            assert logit.grad is not None
            slopes.append(float(logit.grad))
        assert slopes[0] < 0 < slopes[1]


def test_focal_is_a_weighted_log_likelihood_and_without_its_weight_the_cross_entropy() -> None:
    logits, codes, labels = batch(1)
    p = logits.softmax(1)[torch.arange(12), codes]
    torch.testing.assert_close(Focal()(logits, codes), -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(Focal(0.0)(logits, codes), F.cross_entropy(logits, codes, reduction="none"))
    right = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(Focal(1.5)(logits, labels), (-((1 - right) ** 1.5) * right.log()).mean(1))
    torch.testing.assert_close(
        Focal(0.0)(logits, labels), LABELS.loss(logits, Batch(torch.empty(0), labels)), rtol=1e-12, atol=1e-12
    )


def test_weak_negatives_weigh_what_is_absent() -> None:
    logits, _, labels = batch(2)
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(WeakNegatives(1.0)(logits, labels), each.mean(1))
    weight = torch.where(labels > 0, 1.0, 1 / 3)  # 1 / (labels - 1)
    torch.testing.assert_close(WeakNegatives()(logits, labels), (weight * each).mean(1))


def authors(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """The loss of TAKELAMAG/PU-MLC, label by label, as its formulas say; per label and not summed."""
    found = []
    for place in range(logits.shape[1]):
        f, y = logits[:, place], labels[:, place]
        deviation = (((f - f.mean()) ** 2).sum() / len(f)).sqrt()
        temperature = torch.clamp(alpha * deviation, max=1.0).detach()
        p = 1 / (1 + torch.exp(-f / temperature))
        balance = (1 - (1 - p).mean()).detach() ** gamma
        positive = torch.log(p[y > 0]).mean() if bool((y > 0).any()) else torch.zeros((), dtype=f.dtype)
        found.append(balance * torch.log(p.mean()) - positive)
    return torch.stack(found)


@pytest.mark.parametrize(("gamma", "alpha", "spread"), [(0.55, 1.0, 2.0), (0.85, 2.0, 0.2), (0.0, 0.5, 0.1)])
def test_positive_unlabelled_is_the_authors_loss_in_value_and_gradient(
    gamma: float, alpha: float, spread: float
) -> None:
    logits, _, labels = batch(3, spread=spread)
    labels[:, 2] = 0  # a label without positives in the batch
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    said = PositiveUnlabelled(gamma, alpha)(ours, labels)
    expected = authors(theirs, labels, gamma, alpha).mean()
    assert said.shape == (12,)
    torch.testing.assert_close(said.mean(), expected)
    said.mean().backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_positive_unlabelled_does_not_ask_what_is_absent() -> None:
    """Least where the probability is one on positives and as it likes elsewhere: a hidden positive is not pushed down alone."""
    logits = torch.tensor([[3.0], [3.0], [-3.0], [-3.0]], dtype=torch.float64)
    shown = torch.tensor(
        [[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64
    )  # the second is a positive that nobody wrote down
    pulls = {}
    for name, loss in (("pu", PositiveUnlabelled()), ("negatives", WeakNegatives(1.0))):
        leaf = logits.clone().requires_grad_()
        loss(leaf, shown).mean().backward()
        assert leaf.grad is not None
        pulls[name] = float(leaf.grad[1] / leaf.grad[0].abs())
    # Against the push on the positive that was written down, it is pushed down several times less than as a negative.
    assert 0 < pulls["pu"] < pulls["negatives"] / 4


def test_extreme_and_equal_logits_have_finite_losses_and_gradients() -> None:
    for make in LOSSES.values():
        loss = make()
        for logits in (
            torch.full((3, 4), 0.0),
            torch.tensor([[200.0, -200.0, 0.0, 1.0]] * 3),
            torch.tensor([[-200.0] * 4] * 3),
        ):
            for target in (torch.tensor([0, 1, 2]), torch.eye(3, 4)):
                if target.dim() == 1 and "classification" not in loss.tasks:
                    continue
                leaf = logits.clone().requires_grad_()
                said = loss(leaf, target)
                said.sum().backward()
                assert leaf.grad is not None
                assert said.isfinite().all(), loss
                assert leaf.grad.isfinite().all(), loss


@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(LOSSES)))
def test_an_examples_loss_is_its_own_where_a_loss_says_so(seed: int, name: str) -> None:
    loss = LOSSES[name]()
    logits, codes, labels = batch(seed, examples=6)
    for target in [codes, labels] if "classification" in loss.tasks else [labels]:
        whole = loss(logits, target)
        alone = torch.cat([loss(logits[place : place + 1], target[place : place + 1]) for place in range(6)])
        assert loss.by_example == torch.allclose(whole, alone, rtol=1e-9)
        if not loss.by_example:
            order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(loss(logits[order], target[order]), whole[order])


# ------------------------------------------------------------------------------------------------------------------- the learner


def test_names_are_known_and_an_unknown_one_says_the_nearest() -> None:
    for name in LOSSES:
        loss = loss_from(name)
        assert isinstance(loss, Loss)
        assert loss_from(loss.spec()) == loss
    assert [loss_from(name) for name in ("auto", "cross-entropy", "squared-error")] == [None] * 3
    assert set(names()) > set(LOSSES)
    with pytest.raises(LearnerError, match="Did you mean 'dice'"):
        Learner(loss="dyce")
    with pytest.raises(LearnerError, match="no such numbers"):
        loss_from({"loss": "focal", "beta": 1})
    with pytest.raises(LearnerError, match="is no loss"):
        Learner(loss=print)  # type: ignore[arg-type]
    for wrong in (
        lambda: Dice(smooth=0),
        lambda: Focal(-1),
        lambda: PositiveUnlabelled(alpha=0),
        lambda: WeakNegatives(math.inf),
    ):
        with pytest.raises(LearnerError):
            wrong()


def test_training_without_a_loss_is_bitwise_a_loop_on_the_cross_entropy(data: Data) -> None:
    """By default and by name, against a loop that knows nothing of losses."""
    learner = resolved(epochs=2)
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.0, fused=True)
    rows, step = data.rows, 0
    for epoch in (1, 2):
        order, _ = Shuffled().epoch(SamplerState(epoch, 2, len(rows), generator(0, "shuffle", epoch)))
        torch.manual_seed(derive(0, "dropout", epoch))
        for chosen in (rows[order][begin : begin + 15] for begin in range(0, 60, 15)):
            optimizer.param_groups[0]["lr"] = 0.05 * factor(learner.schedule, step / 8)
            optimizer.zero_grad()
            F.cross_entropy(module(data.inputs[chosen]), data.target[chosen]).backward()
            optimizer.step()
            step += 1
    for same in (learner, resolved(epochs=2, loss="cross-entropy")):
        trained = train(network(), with_loss(TASK, same), data, same).module.state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in module.state_dict().items())


def test_the_loop_makes_the_learners_loss_small_and_records_the_tasks_own(data: Data) -> None:
    seen: list[Tensor] = []

    class Watching:
        def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
            expected = F.cross_entropy(outputs, data.target[data.rows][indices], reduction="none")
            torch.testing.assert_close(loss, expected)
            seen.append(loss)

        def on_epoch(self, state: object, loss: float) -> None: ...

    learner = resolved(loss="dice", epochs=8)
    task = with_loss(TASK, learner)
    trained = train(network(), task, data, learner, observers=[Watching()])
    assert seen
    before, after = (
        float(Dice()(module(data.inputs[data.rows]), data.target[data.rows]).mean().detach())
        for module in (network(), trained.module)
    )
    assert after < 0.6 * before
    plain = train(network(), TASK, data, resolved(epochs=8)).module
    assert not torch.equal(plain[0].weight, trained.module[0].weight)


def test_one_step_is_a_step_on_the_loss(data: Data) -> None:
    learner = resolved(
        loss=Focal(1.0), epochs=1, batch_size=60, optimizer="sgd", schedule="constant", learning_rate=0.1
    )
    module = network()
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    Focal(1.0)(module(data.inputs[data.rows]), data.target[data.rows]).mean().backward()
    # The first step of Nesterov momentum 0.9 is 1.9 times the gradient.
    expected = {
        name: expected[name] - 0.19 * value.grad for name, value in module.named_parameters() if value.grad is not None
    }
    trained = train(network(), with_loss(TASK, learner), data, learner).module
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-6)


def test_gradients_are_of_the_loss_that_was_trained_with(data: Data) -> None:
    module = network().eval()
    inputs, target = data.inputs[:5], data.target[:5]
    for loss in (Dice(), Dice(0.01), Focal()):
        task = with_loss(TASK, resolved(loss=loss))
        layers = Capture(module, task)(inputs, target)
        for place in range(5):
            module.zero_grad()
            loss(module(inputs[place : place + 1]), target[place : place + 1]).sum().backward()
            for layer, linear in zip(layers, (module[0], module[3]), strict=True):
                assert linear.weight.grad is not None
                left, right = layer.inputs[place, :, : linear.in_features], layer.outputs[place]
                torch.testing.assert_close(right.T @ left, linear.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_loss_of_batches_has_no_gradient_of_an_example_but_a_margin_has() -> None:
    module = torch.nn.Linear(3, 4)
    task = Multilabel(LABELS.labels, criterion=PositiveUnlabelled())
    with pytest.raises(EvidenceError, match="whole batches"):
        Capture(module, task)
    assert len(Capture(module, task, of="margin")(torch.randn(2, 3), torch.eye(2, 4))) == 1


# ------------------------------------------------------------------------------------------------------------------ runs and fleets


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> imprint.Corpus:
    """Two classes, one of them rare."""
    random = torch.Generator().manual_seed(5)
    label = (torch.rand(160, generator=random) < 0.2).long()
    points = torch.randn(160, 3, generator=random) + 1.5 * label[:, None]
    frame = pl.DataFrame(
        {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "z": points[:, 2].tolist(), "kind": label.tolist()}
    )
    return imprint.open(frame, target="kind", store=tmp_path_factory.mktemp("flowers"))


def test_a_run_keeps_its_loss_and_resumes_only_with_it(flowers: imprint.Corpus, tmp_path: Path) -> None:
    learner = Learner("linear", loss="adaptive-dice", epochs=2)
    run = imprint.fit(learner, flowers, tmp_path / "run", progress=False)
    assert run.manifest["learner"]["loss"] == {"loss": "dice", "alpha": 0.01, "smooth": 1.0, "square": True}
    again = imprint.load(tmp_path / "run", flowers)
    assert again.learner.loss == Dice(0.01) == again.task.criterion
    assert again.task.spec() == {"name": "classification", "classes": [0, 1]}
    with pytest.raises(RunError, match=r"loss=Dice\(alpha=0.01.* there, 'cross-entropy' here"):
        imprint.fit(Learner("linear", epochs=2), flowers, tmp_path / "run", progress=False)
    plain = Learner("linear").resolve(flowers)
    assert plain.loss == "cross-entropy"
    assert plain.resolve(flowers) == plain
    assert Learner.from_spec(learner.resolve(flowers).spec()) == learner.resolve(flowers)


def test_losses_that_do_not_fit_the_task_or_the_model_are_refused(flowers: imprint.Corpus) -> None:
    for learner, said in (
        (Learner(loss="weak-negatives"), "for multilabel, not for classification"),
        (Learner(loss="squared-error"), "not one for classification"),
        (Learner("ridge", loss="dice"), "A ridge head is fitted at once"),
        (Learner(task="regression", loss="dice"), "not for regression"),
    ):
        with pytest.raises(LearnerError, match=said):
            learner.resolve(flowers)
    assert Learner("logistic").resolve(flowers).loss == "auto"


def test_members_of_a_fleet_are_trained_with_the_loss_side_by_side_as_alone(flowers: imprint.Corpus) -> None:
    from imprint.fleets import Member, share, train_member
    from imprint.fleets.batched import Batched

    for loss in ("dice", "focal"):
        shared = share(Learner("linear", loss=loss, epochs=2, batch_size=32), flowers)
        assert Batched().why_not(shared) is None
        queries = torch.arange(len(flowers))
        members = [Member(seed=seed) for seed in (1, 2)] + [Member(seed=1, settings={"loss": "cross-entropy"})]
        found = {
            number: one.outputs[place]
            for one in Batched().run(shared, members, [0, 1, 2], queries)
            for place, number in enumerate(one.numbers)
        }
        for number, member in enumerate(members):
            alone = train_member(shared, member, outputs_of=queries).outputs
            torch.testing.assert_close(found[number], alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0], found[2], atol=1e-2)


def test_a_loss_of_batches_is_trained_alone() -> None:
    from imprint.fleets import share
    from imprint.fleets.batched import Batched

    random = torch.Generator().manual_seed(0)
    points = torch.randn(80, 2, generator=random)
    tags = [[name for name, value in zip("ab", row, strict=True) if value > 0] for row in points.tolist()]
    frame = pl.DataFrame({"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "tags": tags})
    corpus = imprint.open(frame, target="tags")
    shared = share(Learner("linear", loss="positive-unlabelled", epochs=1), corpus)
    assert shared.task.criterion == PositiveUnlabelled()
    assert "whole batches" in str(Batched().why_not(shared))
