"""Influence functions against inverses that are written out in float64, and as methods of a run."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.gradients import Capture, Examples, full
from imprint.gradients.curvature_evidence import fitted
from imprint.gradients.fisher import gradients
from imprint.gradients.linear import written
from imprint.methods import lookup
from imprint.recording import Run
from imprint.recording.needs import Curvature
from imprint.tasks import Classification
from imprint.tracing import influence
from imprint.tracing.influence import (
    Influence,
    influence_cg,
    influence_exact,
    leading,
    preconditioned,
    subset,
)

METHODS = (
    "influence-arnoldi",
    "influence-cg",
    "influence-diagonal",
    "influence-ekfac",
    "influence-exact",
    "influence-kfac",
)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def examples_of(module: nn.Module, inputs: Tensor, target: Tensor) -> Examples:
    def read(places: np.ndarray) -> tuple[Tensor, Tensor]:
        some = torch.from_numpy(places)
        return inputs[some], target[some]

    return Examples(read, len(inputs), Capture(module, Classification((0, 1, 2))), torch.device("cpu"))


class Words(nn.Module):
    """Token codes to classes, with the embedding's weights again in a head whose outputs are pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.classes = nn.Linear(6, 3)

    def forward(self, codes: Tensor) -> Tensor:
        return self.classes(torch.tanh(self.head(self.norm(self.embedding(codes))).mean(1)))


def several_positions(kind: str) -> tuple[Examples, Examples]:
    """30 examples and 5 queries of a network whose layers are called at several positions of an example, in float64."""
    random = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "cnn":
            module: nn.Module = nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.GroupNorm(2, 4),
                nn.ReLU(),
                nn.Conv2d(4, 3, 2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            inputs = drawn(35, 1, 5, 5, seed=4)
        else:
            module, inputs = Words(), torch.randint(0, 6, (35, 5), generator=random)
    target = torch.randint(0, 3, (35,), generator=random)
    module = module.double()
    return examples_of(module, inputs[30:], target[30:]), examples_of(module, inputs[:30], target[:30])


@pytest.fixture
def both() -> tuple[Examples, Examples]:
    """40 examples and 7 queries of a small network in float64."""
    module = mlp()
    target = torch.randint(0, 3, (47,), generator=torch.Generator().manual_seed(1))
    inputs = drawn(47, 5, seed=2)
    return examples_of(module, inputs[40:], target[40:]), examples_of(module, inputs[:40], target[:40])


def explicit(queries: Examples, examples: Examples, damping: Tensor) -> Tensor:
    """Scores by the inverse of the damped Fisher matrix, written out."""
    drawn = torch.cat([written(layers) for layers in gradients(examples, seed=influence.SEED)()])
    matrix = drawn.T @ drawn / len(drawn) + torch.diag(damping)
    return written(queries.layers()) @ torch.linalg.solve(matrix, written(examples.layers()).T)


def by_layer(examples: Examples) -> Tensor:
    """The damping of each parameter, a multiple of the mean curvature of its layer."""
    sizes = {layer.name: layer.parameters for layer in examples.probe}
    layers = fitted("diagonal", examples).layers
    return torch.cat(
        [torch.full((size,), layers[name].damping(influence.WHOLE_DAMPING)).double() for name, size in sizes.items()]
    )


def near(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sampled", [2, 15, 100])
def test_conjugate_gradients_are_the_explicit_inverse(
    both: tuple[Examples, Examples], sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sample that the preconditioner is made of; the damping is that of the sample."""
    monkeypatch.setattr(influence, "RESIDUAL", 1e-8)
    monkeypatch.setattr(influence, "ITERATIONS", 200)
    monkeypatch.setattr(influence, "FISHER_EXAMPLES", sampled)
    queries, examples = both
    found = influence_cg((queries,), (examples,)).scores()
    assert near(found, explicit(queries, examples, by_layer(subset(examples, sampled)))) < 1e-5


def test_the_space_of_the_examples_gives_the_explicit_inverse(both: tuple[Examples, Examples]) -> None:
    queries, examples = both
    found = influence_exact((queries,), (examples,)).scores()
    assert near(found, explicit(queries, examples, by_layer(examples))) < 1e-5


def test_arnoldi_of_full_rank_is_the_explicit_inverse(both: tuple[Examples, Examples]) -> None:
    queries, examples = both
    size = sum(layer.parameters for layer in examples.probe)
    found = leading(queries, examples, size, size).scores()
    damping = by_layer(examples)
    assert near(found, explicit(queries, examples, torch.full_like(damping, _mean_curvature(examples) * 0.1))) < 1e-5


@pytest.mark.parametrize("kind", ["cnn", "words"])
def test_layers_with_several_positions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods on convolutions, norms, and an embedding that is tied to a head."""
    monkeypatch.setattr(influence, "FISHER_EXAMPLES", 20)
    monkeypatch.setattr(influence, "RESIDUAL", 1e-8)
    monkeypatch.setattr(influence, "ITERATIONS", 300)
    queries, examples = several_positions(kind)
    damping = by_layer(subset(examples, 20))
    assert near(influence_cg((queries,), (examples,)).scores(), explicit(queries, examples, damping)) < 1e-5
    for approximation in ("diagonal", "kfac", "ekfac"):
        curvature = fitted(approximation, examples)
        found = preconditioned(curvature, (queries,), (examples,)).scores()
        expected = torch.zeros(5, 30, dtype=torch.float64)
        for asked, layer in zip(queries.layers(), examples.layers(), strict=True):
            own = curvature[layer.name]
            left, right = (own.forth(full(one).view(-1, *own.values.shape)).flatten(1) for one in (asked, layer))
            expected += left / (own.values + own.values.mean()).flatten() @ right.T
        assert near(found, expected) < 0.02  # layers with one position are compressed to a hundredth


def _mean_curvature(examples: Examples) -> float:
    drawn = torch.cat([written(layers) for layers in gradients(examples, seed=influence.SEED)()])
    return float(drawn.square().mean())


def test_arnoldi_of_low_rank_is_its_projection(both: tuple[Examples, Examples]) -> None:
    queries, examples = both
    drawn = torch.cat([written(layers) for layers in gradients(examples, seed=influence.SEED)()])
    values, vectors = torch.linalg.eigh(drawn.T @ drawn / len(drawn))
    values, vectors = values.flip(0)[:5], vectors.flip(1)[:, :5]
    along = [written(one.layers()) @ vectors for one in both]
    expected = along[0] / (values + 0.1 * _mean_curvature(examples)) @ along[1].T
    found = leading(queries, examples, 5, 40)
    assert found.examples.shape == (40, 5)
    assert near(found.scores(), expected) < 1e-5


@pytest.mark.parametrize("kind", ["diagonal", "kfac", "ekfac"])
def test_preconditioned_scores_are_products_under_the_written_out_curvature(
    both: tuple[Examples, Examples], kind: str
) -> None:
    queries, examples = both
    curvature = fitted(kind, examples)
    found = preconditioned(curvature, (queries,), (examples,)).scores()
    expected = torch.zeros(7, 40, dtype=torch.float64)
    for asked, layer in zip(queries.layers(), examples.layers(), strict=True):
        own = curvature[layer.name]
        inverse = 1 / (own.values + float(own.values.mean()))
        left, right = (
            own.forth(one.inputs[:, 0, :, None] * one.outputs[:, 0, None]).flatten(1) for one in (asked, layer)
        )
        expected += left * inverse.flatten() @ right.T
    # The inverse is kept to a hundredth of the scores' spread.
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_linear_layer_of_one_example_is_exact() -> None:
    """K-FAC and EK-FAC are the Fisher matrix where there is one example: scores equal those of the explicit inverse."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Linear(4, 3).double()
    inputs = drawn(6, 4, seed=0)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    queries, one = examples_of(module, inputs[1:], target[1:]), examples_of(module, inputs[:1], target[:1])
    gradient = written(next(iter(gradients(one)())))
    matrix = gradient.T @ gradient
    matrix = matrix + matrix.diagonal().mean() * torch.eye(len(matrix)).double()
    expected = written(queries.layers()) @ torch.linalg.solve(matrix, written(one.layers()).T)
    for kind in ("kfac", "ekfac"):
        found = preconditioned(fitted(kind, one), (queries,), (one,)).scores()
        assert near(found, expected) < 1e-5


def test_blocks_do_not_matter(both: tuple[Examples, Examples]) -> None:
    queries, examples = both
    whole = preconditioned(fitted("ekfac", examples), (queries,), (examples,))
    scores = whole.scores()
    assert whole.shape == (7, 40)
    torch.testing.assert_close(whole.scores(slice(2, 5), slice(10, 13)), scores[2:5, 10:13])
    seen = torch.rand(4, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.testing.assert_close(whole.predict(seen), scores.double() @ seen.double().T)
    highest, lowest = whole.top(3)
    torch.testing.assert_close(highest.scores, scores.topk(3).values)
    torch.testing.assert_close(lowest.scores, -(-scores).topk(3).values)


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_nothing_is_kept_where_it_does_not_fit(
    both: tuple[Examples, Examples], at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, examples = both
    curvature = fitted("ekfac", examples)
    # In full: which form is the cheapest depends on the number of queries, and they differ by the tolerance.
    expected = preconditioned(curvature, (queries,), (examples,), tolerance=0).scores()
    monkeypatch.setattr("imprint.tracing.products.allowed", lambda: 1)
    monkeypatch.setattr(Influence, "queries_at_a_time", lambda self: at_a_time)
    streamed = preconditioned(curvature, (queries,), (examples,), tolerance=0)
    torch.testing.assert_close(streamed.scores(), expected, rtol=1e-4, atol=1e-5)
    assert streamed.top(2)[0].examples.tolist() == expected.topk(2).indices.tolist()


def test_an_unfinished_solution_is_told(both: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence, "ITERATIONS", 1)
    monkeypatch.setattr(influence, "RESIDUAL", 1e-9)
    monkeypatch.setattr(influence, "FISHER_EXAMPLES", 5)
    queries, examples = both
    with pytest.warns(UserWarning, match="after 1 iterations"):
        influence_cg((queries,), (examples,)).scores()


def test_the_fisher_matrix_is_taken_over_a_sample_of_many_examples(both: tuple[Examples, Examples]) -> None:
    _, examples = both
    some = subset(examples, 15)
    assert len(some) == 15
    inputs, target = examples.read(np.arange(40))
    chosen, labels = some.read(np.arange(15))
    places = (inputs[:, None] == chosen).all(2).nonzero()
    assert places[:, 1].sort().values.tolist() == list(range(15))  # each is one of the examples
    assert len(places[:, 0].unique()) == 15
    assert torch.equal(target[places[:, 0]], labels[places[:, 1]])
    assert subset(examples, 40) is examples


# As methods of a run.


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_run(run: Run, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = imprint.trace(run, "test", name, k=3, progress=False)
    assert found.methods == (name,)
    frame = found.frame()
    assert len(frame) == 6 * len(run.rows("test"))
    assert bool(np.isfinite(frame["score"].to_numpy()).all())
    # What helps a query the most is mostly of its own class; by chance it would be a third.
    labels = dict(zip(run.examples["id"], run.examples["target"], strict=True))
    helpful = frame.filter(frame["rank"] == 1)
    same = np.mean([labels[a] == labels[b] for a, b in zip(helpful["query"], helpful["id"], strict=True)])
    assert same > 0.5


def test_curvature_is_kept_with_the_run_and_fitted_again_for_other_weights(run: Run) -> None:
    need = Curvature(approximation="kfac", fisher="empirical")
    run.collect([need])
    path = run.path / "evidence" / "curvature-kfac-empirical-last.safetensors"
    first = path.stat().st_mtime_ns
    assert run.has(need)
    run.collect([need])
    assert path.stat().st_mtime_ns == first
    path.write_bytes(b"damaged")
    assert not run.has(need)
    run.collect([need])
    assert run.has(need)
    found = run.gather([need])["curvature"]
    assert found.kind == "kfac"
    assert found.examples == len(run)


def test_unknown_curvature_is_refused_before_it_is_fitted(run: Run) -> None:
    with pytest.raises(imprint.errors.EvidenceError, match="Did you mean 'kfac'"):
        run.collect([Curvature(approximation="kfak")])


def test_methods_are_registered_with_their_sign() -> None:
    for name in METHODS:
        assert lookup("trace", name).higher == "helps the query"
        assert lookup("trace", name).trainings == 0
