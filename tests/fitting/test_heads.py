"""Solved heads: equal to scikit-learn's, to explicit retraining, and a run like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

import imprint
from imprint.errors import EvidenceError, LearnerError
from imprint.fitting import Data, Learner, Shuffled
from imprint.fitting.heads import regressand, solve_head
from imprint.fitting.logistic import logistic
from imprint.fitting.ridge import factor, leave_one_out, ridge
from imprint.models import module_for, solver_of
from imprint.models.estimator import IMPOSSIBLE
from imprint.recording.needs import Dynamics, OutOfFold
from imprint.tasks import Classification, Multilabel, Regression

# Both sides are exact up to the oracle's own tolerance.
CLOSE = 1e-5
# Shapes with more examples than features, and with fewer.
SHAPES = [(60, 5), (25, 40)]


def problem(count: int, width: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs far from zero, class codes, and weights of which some are zero."""
    random = torch.Generator().manual_seed(seed)
    code = torch.arange(count) % classes
    inputs = torch.randn(count, width, generator=random) + torch.randn(classes, width, generator=random)[code] + 5
    weight = torch.rand(count, generator=random) + 0.1
    weight[::7] = 0
    return inputs, code, weight


@pytest.mark.parametrize("decay", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_ridge_is_that_of_scikit_learn(count: int, width: int, decay: float) -> None:
    inputs, code, weight = problem(count, width)
    target = torch.stack([torch.sin(code.double()), inputs.double().sum(1)], dim=1)
    W, b = ridge(inputs, target, weight, decay)
    theirs = Ridge(alpha=decay * float(weight.double().sum())).fit(
        inputs.double().numpy(), target.numpy(), sample_weight=weight.double().numpy()
    )
    said = inputs.double() @ W + b
    torch.testing.assert_close(said, torch.from_numpy(theirs.predict(inputs.double().numpy())), rtol=CLOSE, atol=CLOSE)


def test_ridge_without_a_penalty_is_least_squares() -> None:
    inputs, _, weight = problem(60, 5)
    target = inputs.double() @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]], dtype=torch.float64) + 7
    W, b = ridge(inputs, target, weight, 0.0)
    torch.testing.assert_close(W.flatten(), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(b, torch.tensor([7.0]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("decay", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("count", "width"), SHAPES)
@pytest.mark.parametrize("classes", [2, 3])
def test_softmax_is_that_of_scikit_learn(count: int, width: int, classes: int, decay: float) -> None:
    """Probabilities: of two classes scikit-learn has one column of weights, which halves the penalty of the two here."""
    inputs, code, weight = problem(count, width, classes)
    W, b = logistic(inputs, code, weight, decay, classes=classes)
    total = float(weight.double().sum())
    theirs = LogisticRegression(
        C=(2 if classes == 2 else 1) / (decay * total), tol=1e-12, max_iter=10_000, solver="newton-cg"
    ).fit(inputs.double().numpy(), code.numpy(), sample_weight=weight.double().numpy())
    said = (inputs.double() @ W + b).softmax(1)
    expected = torch.from_numpy(theirs.predict_proba(inputs.double().numpy()))
    torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)


def test_labels_are_solved_one_by_one() -> None:
    inputs, _, weight = problem(60, 5)
    labels = (torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    W, b = logistic(inputs, labels, weight, 1e-2)
    for label in range(3):
        theirs = LogisticRegression(
            C=1 / (1e-2 * float(weight.double().sum())), tol=1e-12, max_iter=10_000, solver="newton-cg"
        ).fit(inputs.double().numpy(), labels[:, label].numpy(), sample_weight=weight.double().numpy())
        said = inputs.double() @ W[:, label] + b[label]
        expected = torch.from_numpy(theirs.decision_function(inputs.double().numpy()))
        torch.testing.assert_close(said, expected, rtol=0, atol=CLOSE)


@given(
    count=st.integers(5, 40),
    width=st.integers(1, 40),
    classes=st.integers(2, 5),
    decay=st.sampled_from([1e-1, 1e-3, 1e-5]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25, deadline=None)
def test_a_logistic_head_is_where_the_gradient_of_the_loss_vanishes(
    count: int, width: int, classes: int, decay: float, seed: int
) -> None:
    """By automatic differentiation of the objective as it is written down."""
    inputs, code, weight = problem(count, width, classes, seed)
    code[0], weight[0] = classes - 1, 1.0  # every class is seen
    code, weight = torch.cat([code, torch.arange(classes)]), torch.cat([weight, torch.ones(classes)])
    inputs = torch.cat([inputs, inputs[:classes] if len(inputs) >= classes else inputs[:1].expand(classes, -1)])
    W, b = (part.requires_grad_() for part in logistic(inputs, code, weight, decay, classes=classes))
    losses = torch.nn.functional.cross_entropy(inputs.double() @ W + b, code, reduction="none")
    objective = (weight.double() * losses).sum() / weight.double().sum() + decay / 2 * W.square().sum()
    gradients = torch.autograd.grad(objective, (W, b))
    # The distance to the minimum is at most the gradient over the penalty; inputs of about 5 enlarge the intercept's part.
    assert gradients[0].norm() + gradients[1].norm() < max(1e-5 * decay, 1e-10)


def test_a_class_without_examples_is_impossible_and_changes_nothing_else() -> None:
    inputs, code, weight = problem(60, 5)
    two, three = code % 2, (code % 2) * 2  # the same two classes, called 0 and 2
    W, b = logistic(inputs, three, weight, 1e-2, classes=3)
    assert b[1] == IMPOSSIBLE
    assert W[:, 1].abs().max() == 0
    fewer = logistic(inputs, two, weight, 1e-2, classes=2)
    torch.testing.assert_close((W[:, [0, 2]], b[[0, 2]]), fewer, rtol=0, atol=CLOSE)


def test_a_label_that_is_always_there_is_certain() -> None:
    inputs, _, weight = problem(30, 4)
    labels = torch.stack([torch.ones(30), torch.zeros(30), (torch.arange(30) % 2).float()], dim=1)
    W, b = logistic(inputs, labels, weight, 1e-2)
    assert b[:2].tolist() == [-IMPOSSIBLE, IMPOSSIBLE]
    assert W[:, :2].abs().max() == 0
    assert W[:, 2].abs().max() > 0


def test_separable_classes_are_solved_thanks_to_the_penalty() -> None:
    inputs = torch.tensor([[-1.0], [1.0]]).repeat(10, 1)
    W, b = logistic(inputs, torch.arange(20) % 2, decay=1e-6)
    # d/dw of log(1 + exp(-2 w)) + decay w^2 (two classes, weights -w and w): 2 / (1 + exp(2 w)) = 2 decay w.
    w = float(W[0, 1])
    assert 1 / (1 + np.exp(2 * w)) == pytest.approx(1e-6 * w, rel=1e-3)
    assert b.abs().max() < 1e-9


def test_a_class_that_hardly_counts_does_not_lead_the_search_astray() -> None:
    """Plain Newton steps of its intercept go so far here that no part of them lowers the objective."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(40, 100, generator=generator) * 10
    code = torch.randint(0, 4, (40,), generator=generator)
    kept = (code != 0) | (torch.arange(40) < 1)
    inputs, code = inputs[kept], code[kept]
    weight = torch.rand(len(code), generator=generator)
    weight[code == 0] *= 1e-6
    W, b = (part.requires_grad_() for part in logistic(inputs, code, weight, 1e-5, classes=4))
    losses = torch.nn.functional.cross_entropy(inputs.double() @ W + b, code, reduction="none")
    loss = (weight * losses).sum() / weight.sum() + 1e-5 / 2 * W.square().sum()
    gradients = torch.autograd.grad(loss, (W, b))
    assert max(float(gradient.norm()) for gradient in gradients) < 1e-10


def test_what_cannot_be_solved_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.fitting.logistic.MOST_STEPS", 1)
    inputs, code, _ = problem(60, 5)
    with pytest.raises(LearnerError, match="not solved to the end") as caught:
        logistic(inputs, code, decay=1e-3)
    assert "weight_decay" in caught.value.remedy


# ------------------------------------------------------------------------------------------------------------------- leave-one-out


@given(
    count=st.integers(3, 30),
    width=st.integers(1, 40),
    outputs=st.integers(1, 3),
    decay=st.sampled_from([1.0, 1e-2, 1e-4]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_leaving_one_out_is_training_without_it(
    count: int, width: int, outputs: int, decay: float, weighted: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, width, generator=random) + 3
    target = torch.randn(count, outputs, generator=random, dtype=torch.float64)
    weight = torch.rand(count, generator=random) + 0.2 if weighted else None
    queries = torch.randn(4, width, generator=random) + 3
    seen = 0
    for part, found in leave_one_out(inputs, target, decay, queries, weight=weight, size=7):
        for place, said in zip(range(part.start, part.stop), found, strict=True):
            keep = torch.arange(count) != place
            W, b = ridge(inputs[keep], target[keep], None if weight is None else weight[keep], decay)
            torch.testing.assert_close(said, queries.double() @ W + b, rtol=0, atol=CLOSE)
            seen += 1
    assert seen == count


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_new_weights_and_targets_of_some_are_a_correction(count: int, width: int) -> None:
    inputs, code, _ = problem(count, width)
    target = torch.nn.functional.one_hot(code).double()
    places = torch.tensor([3, 8, 10])
    weight = torch.ones(count, dtype=torch.float64)
    new, turned = weight.clone(), target.clone()
    new[places] = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
    turned[10] = target[11]
    head = factor(inputs, target, weight)
    inverse = head.inverse(torch.tensor([1e-2]).double(), new.sum()[None])
    changed = head.coordinates(inputs[places])[None]
    push = (new[places, None] * (turned - target)[places])[None]
    found = head.correction(changed, target[places][None], (new - weight)[places][None], push, inverse)
    W, b = head.heads(changed, found, inverse)
    said = head.coordinates(inputs) @ W[0] + b[0]
    W, b = ridge(inputs, turned, new, 1e-2)
    torch.testing.assert_close(said, inputs.double() @ W + b, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------------- as a learner


def test_names() -> None:
    assert [solver_of(name) for name in ("ridge", "wordllama/logistic", "image:64/ridge", "linear", "auto", Ridge())] == [
        "ridge", "logistic", "ridge", None, None, None,
    ]  # fmt: skip
    assert isinstance(module_for("ridge", (5,), 3, 0)[-1], torch.nn.Linear)


def test_a_ridge_head_learns_minus_one_and_one() -> None:
    assert regressand(Multilabel(("a", "b")), torch.tensor([[0.0, 1.0]])).tolist() == [[-1.0, 1.0]]
    assert regressand(Regression(0.0, 1.0), torch.tensor([0.5])).tolist() == [[0.5]]


def learner(model: str, **changes: Any) -> Learner:
    usual: dict[str, Any] = {
        "task": "classification", "epochs": 1, "batch_size": 8, "learning_rate": 0.1, "weight_decay": 1e-2, "augment": "none",
        "precision": "float32", "device": "cpu", "record": "none",
    }  # fmt: skip
    return Learner(model, **{**usual, **changes})


def test_images_are_solved_behind_their_normalisation() -> None:
    inputs = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = torch.arange(40) % 2
    mean, deviation = inputs.double().mean((0, 2, 3)).float(), inputs.double().std((0, 2, 3)).float()
    data = Data(inputs, target, None, {"train": torch.arange(30), "test": torch.arange(30, 40)})
    for model in ("image/ridge", "image/logistic"):
        module = module_for(model, (3, 4, 4), 2, 0, (mean, deviation))
        solved = solve_head(learner(model), module, Classification((0, 1)), data)
        flat = ((inputs - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)).flatten(1)[:30]
        if model == "image/ridge":
            W, b = ridge(flat, 2.0 * torch.nn.functional.one_hot(target[:30]) - 1, None, 1e-2)
        else:
            W, b = logistic(flat, target[:30], None, 1e-2)
        torch.testing.assert_close(solved(inputs[:30]), (flat.double() @ W + b).float(), rtol=0, atol=CLOSE)


def test_impossible_settings_are_refused() -> None:
    data = Data(torch.randn(9, 2), torch.randn(9), None, {"train": torch.arange(9)})
    module = module_for("logistic", (2,), 1, 0)
    with pytest.raises(LearnerError, match="this target is a number"):
        solve_head(learner("logistic", task="regression"), module, Regression(0.0, 1.0), data)
    with pytest.raises(LearnerError, match="sampler"):
        solve_head(learner("ridge", sampler=Shuffled()), module, Regression(0.0, 1.0), data)
    with pytest.raises(LearnerError, match="not solved but trained"):
        solve_head(learner("linear"), module, Regression(0.0, 1.0), data)
    with pytest.raises(LearnerError, match="negative values"):
        solve_head(learner("ridge"), module, Regression(0.0, 1.0), replace(data, weight=-torch.ones(9)))


def table(kind: str, apart: float = 3.0) -> pl.DataFrame:
    random = np.random.default_rng(0)
    code = random.integers(0, 3, 150)
    values = random.normal(size=(150, 4)) + apart * random.normal(size=(3, 4))[code]
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(4)})
    target = {
        "classification": pl.Series([f"class {one}" for one in code]),
        "regression": pl.Series(values @ [1.0, 2.0, 0.0, -1.0] + random.normal(size=150)),
        "multilabel": pl.Series([["low", "high"][:one] for one in code.tolist()]),
        "text": pl.Series([f"class {one}" for one in code]),
    }[kind]
    if kind == "text":
        words = np.array([["red", "rose", "tulip"], ["blue", "sea", "sky"], ["green", "grass", "tree"]])
        frame = pl.DataFrame({"text": [" ".join(random.choice(words[one], 5)) for one in code]})
    return frame.with_columns(y=target)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("classification", "ridge"),
        ("classification", "logistic"),
        ("regression", "ridge"),
        ("multilabel", "ridge"),
        ("multilabel", "logistic"),
        ("text", "tfidf/ridge"),
        ("text", "tfidf/logistic"),
    ],
)
def test_a_run_of_a_solved_head(kind: str, model: str, tmp_path: Path) -> None:
    corpus = imprint.open(table(kind), target="y", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner(model), corpus, tmp_path / "run", progress=False)
    solver = model.rpartition("/")[2]
    assert run.status == "complete"
    assert run.manifest["solved"] == f"{solver} head"
    assert run.learner.model.endswith(f"/{solver}")
    assert (
        next(iter(run.metrics("test").values())) > 0.8
    )  # three clear clouds, or three vocabularies; guessing gives less than .5
    # Its weights are a checkpoint that any tool reads, and the model of a loaded run is the same.
    weights = load_file(tmp_path / "run" / "checkpoints" / "epoch-0001.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "1.weight": (run.task.width, run.encoder.shape[0]), "1.bias": (run.task.width,),
    }  # fmt: skip
    loaded = imprint.load(tmp_path / "run")
    assert torch.equal(loaded.model().outputs(corpus), run.model().outputs(corpus))
    # One row of curves, which agrees with the metrics of the evidence.
    assert run.curves().height == 1
    headline = run.task.headline
    assert run.curves()[f"test_{headline}"][0] == pytest.approx(run.metrics("test")[headline], abs=1e-6)
    # A second sitting has nothing to do; what has epochs cannot be asked for.
    assert imprint.fit(imprint.Learner(model), corpus, tmp_path / "run", progress=False).status == "complete"
    with pytest.raises(EvidenceError, match=f"a {solver} head, which has no epochs"):
        run.gather([Dynamics("loss")])


def test_the_verbs_take_such_a_run(tmp_path: Path) -> None:
    """Out-of-fold predictions find planted labels, and their correction can be verified."""
    right = table("classification", apart=10.0)  # far apart: a wrong label is beyond doubt
    wrong = np.arange(0, 150, 15)
    frame = right.with_columns(y=pl.when(pl.int_range(150).is_in(wrong)).then(pl.lit("class 0")).otherwise(pl.col("y")))
    planted = set(np.flatnonzero((frame["y"] != right["y"]).to_numpy()))
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("logistic"), corpus, tmp_path / "run", progress=False)
    held = run.gather([OutOfFold("logits")])["logits"]
    assert held.shape == (len(run), 3)
    findings = imprint.clean(run, ["confident-learning"])
    found = set(findings.frame().filter(pl.col("kind") == "label")["position"].to_list())
    positions = corpus.positions[run.rows()]
    training = {int(one) for one in np.asarray(positions) if int(one) in planted}
    # All that is found is wrong, and most of what is wrong is found (confident learning asks for more than a likely mistake).
    assert found <= planted
    assert len(found & training) > len(training) / 2
    verdict = imprint.verify(findings, seeds=2)
    assert verdict.examples == len(corpus.rows("test"))


def test_the_penalty_is_chosen_where_it_is_not_given(tmp_path: Path) -> None:
    corpus = imprint.open(table("classification"), target="y", store=tmp_path / "store")

    def chosen(model: str) -> Learner:
        return imprint.Learner(model).resolve(corpus)

    assert chosen("ridge").weight_decay == 1e-2
    assert chosen("logistic").weight_decay == 3e-3
    assert imprint.Learner("ridge", weight_decay=0.5).resolve(corpus).weight_decay == 0.5
    assert chosen("ridge").epochs == 1
    assert chosen("ridge").record == "none"
