"""Gradient methods: the scores of a run are those of the naive computation, held or streamed, and rank as their papers say."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

import imprint
from imprint import tracing
from imprint.errors import EvidenceError, ResourceError
from imprint.gradients import LayerGradient
from imprint.gradients import examples as examples_module
from imprint.gradients.examples import examples_of, kept_checkpoints
from imprint.recording import Run
from imprint.tasks import Batch
from imprint.tracing import gradients as gradients_module
from imprint.tracing import products as module
from imprint.tracing.gradients import inverted
from imprint.tracing.products import Blockwise, Products, Streamed, Term, best, exact

METHODS = ["gradient-dot", "gradient-cosine", "tracin", "tracin-projected", "trak", "trak-checkpoints", "logra"]


def small_cnn(shape: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, width),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """120 digits of three classes; the model ends in one position per layer ("mlp") or has convolutions ("cnn")."""
    folder = tmp_path_factory.mktemp(request.param)
    images, target = load_digits(n_class=3, return_X_y=True)
    pixels = images[:120].astype(np.float32)
    if request.param == "cnn":
        pixels = pixels.reshape(-1, 1, 8, 8)
    frame = pl.DataFrame(
        {
            "id": [f"digit-{number}" for number in range(120)],
            "x": pl.Series(pixels),
            "label": [f"d{value}" for value in target[:120]],
            "split": ["test" if number % 4 == 0 else "train" for number in range(120)],
        }
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    model = small_cnn if request.param == "cnn" else lambda shape, width: nn.Sequential(
        nn.Linear(shape[0], 12), nn.GELU(), nn.Linear(12, width)
    )  # fmt: skip
    learner = imprint.Learner(model, epochs=12, batch_size=32)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


def naive(run: Run, split: str, checkpoint: str) -> Tensor:
    """`[example, parameter]`: one backward pass per example."""
    module = run.model(checkpoint).module
    rows, target = torch.from_numpy(run.rows(split)), run.target(split)
    found = []
    for row, label in zip(rows, target, strict=True):
        batch = Batch(run.data.inputs[row][None], label[None])
        loss = run.task.loss(run.task.outputs(module, batch), batch)[0]
        found.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(module.parameters()))]))
    return torch.stack(found)


def test_exact_methods_are_the_naive_computation(run: Run) -> None:
    queries, examples = naive(run, "test", "last"), naive(run, "train", "last")
    found = imprint.trace(run, "test", "gradient-dot", progress=False)
    assert isinstance(found.factors, Blockwise)
    torch.testing.assert_close(found.matrix(), queries @ examples.T, rtol=1e-4, atol=1e-5)
    cosine = imprint.trace(run, "test", "gradient-cosine", progress=False).matrix()
    expected = nn.functional.normalize(queries) @ nn.functional.normalize(examples).T
    torch.testing.assert_close(cosine, expected, rtol=1e-4, atol=1e-5)
    summed = sum(rate * naive(run, "test", name) @ naive(run, "train", name).T for name, rate in kept_checkpoints(run))
    torch.testing.assert_close(
        imprint.trace(run, "test", "tracin", progress=False).matrix(), summed, rtol=1e-4, atol=1e-6
    )


def test_projected_methods_are_exact_where_nothing_is_projected_away(run: Run) -> None:
    """The networks have fewer than 1200 parameters: projected to 2000 numbers, gradients are kept as they are."""
    from imprint.recording.needs import GradientBlocks, Gradients, GradientValues
    from imprint.tracing.evidence import QUERIES, gather

    rows = run.rows("test")
    got = gather(
        run,
        [
            Gradients("query_gradients", split=QUERIES, size=2000, of="margin"), Gradients(size=2000, of="margin"),
            GradientValues(size=2000, of="margin"), GradientBlocks(size=2000, of="margin"),
        ],
        rows,
    )  # fmt: skip
    blocks = got.pop("blocks")
    queries, examples, margin = got["query_gradients"].double(), got["gradients"].double(), got["values"].double()
    kernel = examples.T @ examples
    kernel += kernel.diagonal().mean() * torch.eye(len(kernel))
    weight = 1 - torch.sigmoid(margin)
    expected = queries @ torch.linalg.inv(kernel) @ examples.T * weight
    found = tracing.trak(**got, classes=run.task.classes).scores().double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    total = 0
    for some in blocks.values():
        fisher = examples[:, some].T @ examples[:, some] / len(examples)
        fisher += 0.1 * fisher.diagonal().mean() * torch.eye(len(fisher))
        total = total + queries[:, some] @ torch.linalg.inv(fisher) @ examples[:, some].T
    found = tracing.logra(got["query_gradients"], got["gradients"], blocks).scores().double()
    torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-4 * float(total.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_examples_of_the_querys_class_help_it(run: Run, method: str) -> None:
    scores = imprint.trace(run, "test", method, progress=False).matrix()
    same = run.target("test")[:, None] == run.target("train")
    assert scores.shape == (30, 90)
    assert float(scores[same].mean()) > 0
    assert float(scores[same].mean()) > 10 * abs(float(scores[~same].mean())) or float(scores[~same].mean()) < 0


def test_a_step_on_the_helpful_lowers_the_querys_loss(run: Run) -> None:
    """The sign, and the unit, of gradient-dot: the first-order change of the loss per unit of learning rate."""
    scores = imprint.trace(run, "test", "gradient-dot", progress=False).matrix()
    query, step = 3, 1e-3
    helpful, harmful = int(scores[query].argmax()), int(scores[query].argmin())
    rows = {name: torch.from_numpy(run.rows(name)) for name in ("train", "test")}
    asked = Batch(run.data.inputs[rows["test"][query]][None], run.target("test")[query][None])
    for example in (helpful, harmful):
        network = run.model().module
        before = float(run.task.loss(run.task.outputs(network, asked), asked).detach())
        seen = Batch(run.data.inputs[rows["train"][example]][None], run.target("train")[example][None])
        run.task.loss(run.task.outputs(network, seen), seen).sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= step * parameter.grad
        after = float(run.task.loss(run.task.outputs(network, asked), asked).detach())
        assert before - after == pytest.approx(step * float(scores[query, example]), rel=0.1, abs=1e-7)


def test_projected_tracin_estimates_tracin(run: Run) -> None:
    exact_one, estimate = (
        imprint.trace(run, "test", name, progress=False).matrix().flatten() for name in ("tracin", "tracin-projected")
    )
    assert float(torch.corrcoef(torch.stack([exact_one, estimate]))[0, 1]) > 0.9


def terms(run: Run) -> tuple[tuple[examples_module.Examples, ...], tuple[examples_module.Examples, ...]]:
    kept = kept_checkpoints(run)[-2:]
    return tuple(
        tuple(examples_of(run, run.rows(split), name, weight=rate) for name, rate in kept)
        for split in ("test", "train")
    )


@pytest.mark.parametrize("cosine", [False, True])
def test_held_streamed_and_kept_scores_are_the_same(run: Run, cosine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, examples = terms(run)
    held = Products(
        tuple(Term(one.layers(), other.layers(), other.weight) for one, other in zip(queries, examples, strict=True)),
        cosine,
    )
    expected = held.matrix()
    seen = torch.rand(7, 90, generator=torch.Generator().manual_seed(0)) < 0.5
    for allowed in (2**30, 4 * 90 * 30 - 1, 1):  # all scores kept; none, but queries in one block; one query at a time
        monkeypatch.setattr(module, "allowed", lambda allowed=allowed: allowed)
        monkeypatch.setattr(examples_module, "BLOCK_BYTES", 25 * examples[0].bytes_each)
        streamed = Streamed(queries, examples, cosine)
        assert streamed.shape == held.shape == (30, 90)
        torch.testing.assert_close(streamed.matrix(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            streamed.scores(slice(3, 5), slice(40, 90)), expected[3:5, 40:], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(streamed.predict(seen), held.predict(seen), rtol=1e-4, atol=1e-5)
        for one, other in zip(streamed.top(4), held.top(4), strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(expected.gather(1, one.examples), one.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(held.predict(seen), expected.double() @ seen.double().T)


def test_factors_are_held_only_where_layers_have_one_position_and_they_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, examples = terms(run)
    convolutional = any(layer.positions > 1 for layer in examples[0].probe)
    assert isinstance(exact(queries, examples), Streamed if convolutional else Products)
    monkeypatch.setattr(module, "allowed", lambda: 1000)
    assert isinstance(exact(queries, examples), Streamed)


@given(
    queries=st.integers(1, 4), examples=st.integers(1, 20), k=st.integers(1, 25), block=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_best_is_that_of_the_whole_in_blocks_of_any_size(
    queries: int, examples: int, k: int, block: int, seed: int
) -> None:
    scores = torch.randint(-2, 3, (queries, examples), generator=torch.Generator().manual_seed(seed)).float()
    blocks = ((slice(b, min(b + block, examples)), scores[:, b : b + block]) for b in range(0, examples, block))
    for found, values in zip(best(blocks, k), (scores, -scores), strict=True):
        order = torch.from_numpy(np.argsort(-values.numpy(), axis=1, kind="stable")[:, :k].copy())
        assert torch.equal(found.examples, order)
        assert torch.equal(found.scores, scores.gather(1, order))


def test_scores_that_are_not_finite_say_so() -> None:
    layer = LayerGradient("head", "linear", torch.full((2, 1, 3), torch.inf), torch.ones(2, 1, 2))
    with pytest.raises(EvidenceError, match="not finite"):
        Products((Term([layer], [layer]),)).top(1)


def test_what_does_not_fit_in_memory_says_so() -> None:
    one = torch.ones(1, 1, 1)
    layer = LayerGradient("head", "linear", one.expand(10**6, 1, 1), one.expand(10**6, 1, 1))
    with pytest.raises(ResourceError, match="GiB"):
        Products((Term([layer], [layer]),)).matrix()


@given(width=st.integers(1, 6), examples=st.integers(1, 9), damping=st.floats(0.01, 10), seed=st.integers(0, 2**31))
def test_the_inverse_solves_its_equation(width: int, examples: int, damping: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    queries, gradients = torch.randn(3, width, generator=random), torch.randn(examples, width, generator=random)
    moment = gradients.double().T @ gradients.double()
    damped = moment + damping * moment.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    found = inverted(queries, gradients, damping)
    torch.testing.assert_close(found.double() @ damped, queries.double(), rtol=1e-3, atol=1e-3)
    mean = inverted(queries, gradients, damping, mean=True)
    torch.testing.assert_close(mean, examples * found, rtol=1e-4, atol=1e-4)
    assert not inverted(queries, torch.zeros(examples, width), damping).any()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradients_module, "MOMENT_EXAMPLES", 2)  # more examples than are taken at a time
        torch.testing.assert_close(inverted(queries, gradients, damping), found, rtol=1e-4, atol=1e-4)
