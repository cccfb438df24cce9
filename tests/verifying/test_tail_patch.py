"""Tail-patch: one step on what an attribution names first, in closed form for a linear model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import imprint
from imprint.answers import Attribution, Trust, load_answer
from imprint.errors import EvidenceError, MethodError
from imprint.recording import Run
from imprint.tasks import Classification
from imprint.tracing import Factors
from imprint.verifying.tail_patch import STEP, Stepped, length, tail_patch

EXAMPLES, WIDTH, CLASSES, K = 80, 5, 3, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A linear classifier of overlapping groups, so that every example has a gradient."""
    folder = tmp_path_factory.mktemp("tail-patch")
    random = np.random.default_rng(0)
    label = np.arange(EXAMPLES) % CLASSES
    values = random.normal(size=(EXAMPLES, WIDTH)) + np.eye(WIDTH)[label]
    columns = {f"x{place}": values[:, place] for place in range(WIDTH)}
    split = ["test" if number % 4 == 0 else "train" for number in range(EXAMPLES)]
    frame = pl.DataFrame({**columns, "y": [f"class {one}" for one in label], "split": split})
    corpus = imprint.open(frame, target="y", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("linear", epochs=5), corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def attribution(run: Run) -> Attribution:
    return imprint.trace(run, "test", "gradient-dot", k=3, progress=False)


@pytest.fixture(scope="module")
def trust(run: Run, attribution: Attribution) -> Trust:
    return imprint.verify(attribution, run, members=0, tail_patch=K, progress=False)


def encoded(run: Run, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(rows)
    return run.encoder.encode(run.corpus.read(rows)).double(), run.target(None)[order]


def margin(logits: Tensor, target: Tensor) -> Tensor:
    others = logits.masked_fill(one_hot(target, CLASSES).bool(), -torch.inf)
    return logits.gather(1, target[:, None])[:, 0] - others.amax(1)


def closed_form(run: Run, query: int, chosen: np.ndarray, rate: float) -> float:
    """The rise of a query's margin: a step changes its logits by `-rate * mean of (p - y) (x . x_query + 1)`."""
    layer = next(one for one in run.model().module.modules() if isinstance(one, nn.Linear))
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    x, y = encoded(run, chosen)
    asked, label = encoded(run, np.array([query]))
    surprise = (x @ weight.T + bias).softmax(1) - one_hot(y, CLASSES)
    change = -rate * (surprise * (x @ asked[0] + 1)[:, None]).mean(0)
    before = asked @ weight.T + bias
    return float(margin(before + change, label) - margin(before, label))


def test_a_step_on_a_linear_model_has_a_closed_form(run: Run, attribution: Attribution, trust: Trust) -> None:
    rows = run.rows("test")
    best = attribution.factors.top(K)[0].examples
    expected = [
        closed_form(run, int(row), run.rows()[places.numpy()], trust.rate)
        for row, places in zip(rows, best, strict=True)
    ]
    own = trust.frame().filter(pl.col("method") == "gradient-dot")
    assert own["query"].to_list() == attribution.queries
    # float32: a margin of a few units is known to 1e-6.
    np.testing.assert_allclose(own["gain"].to_numpy(), expected, rtol=1e-3, atol=2e-6)
    assert trust.gains["gradient-dot"][0] == pytest.approx(np.mean(expected), rel=1e-3)


def test_what_is_named_first_helps_more_and_what_is_named_last_harms(
    run: Run, attribution: Attribution, trust: Trust
) -> None:
    assert trust.patched == K
    assert set(trust.gains) == {"gradient-dot", "random", "same-class", "embedding", "embedding-class"}
    assert set(trust.gain_leads) == set(trust.gains) - {"gradient-dot"}
    # To first order a step on these lowers the query's loss the most of all steps on six examples.
    assert all(low > 0 for _, low, _ in trust.gain_leads.values())
    value, low, high = trust.gains["gradient-dot"]
    assert 0 < low < value < high
    turned = replace(attribution, factors=Factors(-attribution.matrix(), torch.eye(len(run))))
    harmful = imprint.verify(turned, run, members=0, tail_patch=K, progress=False)
    assert harmful.gains["gradient-dot"][2] < 0


def test_examples_at_random_do_what_random_examples_do(run: Run) -> None:
    """The scores of the method `random` are no better than the random sets that every query is held against."""
    nothing = imprint.trace(run, "test", "random", k=3, progress=False)
    trust = imprint.verify(nothing, run, members=0, tail_patch=K, progress=False)
    # The method's own name is also that of the control, which is dropped for it.
    assert trust.gains["random"][0] < trust.gains["same-class"][0]
    assert trust.gain_leads["same-class"][2] < 0


def test_random_steps_have_the_length_of_the_rule(run: Run, attribution: Attribution) -> None:
    found = tail_patch(run, run.rows("test"), {"own": attribution.factors}, K)
    module = run.model().module
    stepped = Stepped(module, run.task)
    random = np.random.default_rng(0)
    random.choice(20, 20, replace=False)  # the queries are drawn first
    inputs, target = encoded(run, run.rows())
    norms = []
    for _ in range(10):
        places = torch.from_numpy(random.choice(len(run), K, replace=False))
        norms.append(length(stepped.gradient(inputs[places].float(), target[places])))
    moved = found.rate * np.sqrt(np.mean(np.square(norms)))
    assert moved == pytest.approx(STEP * length(stepped.weights), rel=1e-5)


@given(st.integers(0, 2**16), st.floats(0.01, 1.0))
def test_a_step_is_that_of_the_optimizer(seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    module[0].bias.requires_grad_(False)  # does not train, and does not move
    inputs, target = torch.randn(7, 4), torch.randint(3, (7,))
    asked, label = torch.randn(2, 4), torch.randint(3, (2,))
    stepped = Stepped(module, Classification(("a", "b", "c")))
    found = stepped.margins(asked, label, stepped.gradient(inputs, target), rate)
    before = stepped.margins(asked, label)
    torch.testing.assert_close(before, margin(module(asked).detach(), label).double())
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], rate)
    cross_entropy(module(inputs), target).backward()
    optimizer.step()
    torch.testing.assert_close(found, margin(module(asked).detach(), label).double(), rtol=1e-4, atol=1e-5)


def test_it_is_said_saved_and_drawn(trust: Trust, tmp_path: Path) -> None:
    assert trust.members == 0
    assert trust.cost["trainings"] == 0
    assert trust.queries == 20
    said = str(trust)
    assert said.startswith("gradient-dot, without models trained on other subsets.")
    assert "After one step on the 6 examples that it names first" in said
    assert "clearly more than all of these" in said
    assert "by same-class" in said
    saved = load_answer(trust.save(tmp_path / "trust"))
    assert isinstance(saved, Trust)
    for name in ("patched", "rate", "gains", "gain_leads", "members"):
        assert getattr(saved, name) == getattr(trust, name)
    assert saved.summary() == said
    assert saved.frame().equals(trust.frame())
    assert saved.plot().layout.xaxis.title.text == "gain of a query"


def test_beside_the_datamodeling_score_it_changes_nothing(run: Run, attribution: Attribution, trust: Trust) -> None:
    both = imprint.verify(attribution, run, members=8, tail_patch=K, progress=False)
    assert both.gains == trust.gains
    assert set(both.frame().columns) == {"method", "query", "lds", "gain"}
    assert both.frame().filter(pl.col("method") == "same-class")["lds"].null_count() == 20
    assert both.queries == 20
    alone = imprint.verify(attribution, run, members=8, progress=False)
    assert (alone.lds, alone.interval, alone.leads) == (both.lds, both.interval, both.leads)
    assert not alone.gains
    assert "After one step" not in str(alone)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tail_patch": 0}, "tail_patch=0"),
        ({"tail_patch": 31}, "tail_patch=31"),
        ({"tail_patch": 2.5}, r"tail_patch=2\.5"),
        ({"tail_patch": 3, "rate": -1.0}, r"rate -1\.0"),
        ({"tail_patch": 3, "rate": float("nan")}, "rate nan"),
        ({}, "0 subset models"),
    ],
)
def test_what_cannot_be_asked_says_why(
    run: Run, attribution: Attribution, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(MethodError, match=problem):
        imprint.verify(attribution, run, members=0, progress=False, **settings)


def test_too_few_queries_and_models_without_gradients_say_so(run: Run, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    few = imprint.trace(run, run.rows("test")[:3], "gradient-dot", progress=False)
    with pytest.raises(MethodError, match="There are 3 queries"):
        imprint.verify(few, run, members=0, tail_patch=3, progress=False)
    other = imprint.fit(imprint.Learner(LogisticRegression()), run.corpus, tmp_path / "run", progress=False)
    nothing = imprint.trace(other, "test", "random", progress=False)
    with pytest.raises(EvidenceError, match="has no gradients"):
        imprint.verify(nothing, other, members=0, tail_patch=3, progress=False)
