"""Curvature against matrices that are written out in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.gradients import Capture, Examples, LayerGradient, full, products
from imprint.gradients.curvature import Curvature, LayerCurvature, Stream
from imprint.gradients.curvature_evidence import fitted, load, save
from imprint.gradients.diagonal import Diagonal
from imprint.gradients.ekfac import Ekfac
from imprint.gradients.fisher import blocks, drawn, gradients, root
from imprint.gradients.iterative import conjugate_gradients, lanczos
from imprint.gradients.kfac import Kfac
from imprint.gradients.linear import FisherMatrix, combined, inner, written
from imprint.gradients.solving import Factored, Written, compressed, solution
from imprint.gradients.woodbury import Woodbury, damping
from imprint.tasks import Batch, Classification, Multilabel, Regression, Task

KINDS = (Diagonal, Kfac, Ekfac)
TASK = Classification((0, 1, 2))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(examples: int = 30, positions: int = 1, height: int = 4, width: int = 3, seed: int = 0) -> LayerGradient:
    """A layer whose inputs and output gradients are correlated and of different sizes."""
    inputs = normal(examples, positions, height, seed=seed) @ normal(height, height, seed=seed + 1)
    outputs = normal(examples, positions, width, seed=seed + 2) @ normal(width, width, seed=seed + 3)
    return LayerGradient("layer", "linear", inputs, outputs * inputs[..., :1].abs())


def embedding(examples: int = 12, positions: int = 5, codes: int = 7, width: int = 3) -> LayerGradient:
    codes_in = torch.randint(0, codes, (examples, positions), generator=torch.Generator().manual_seed(0))
    return LayerGradient("words", "embedding", codes_in, normal(examples, positions, width), codes=codes)


def tied(examples: int = 12) -> LayerGradient:
    one = embedding(examples)
    head = LayerGradient("head", "linear", normal(examples, 4, 3, seed=5), normal(examples, 4, 7, seed=6))
    return LayerGradient(one.name, one.kind, one.inputs, one.outputs, one.codes, head)


def affine(examples: int = 20) -> LayerGradient:
    gradient = normal(examples, 5) @ normal(5, 5, seed=9)
    return LayerGradient("norm", "affine", torch.ones(examples, 1, 1).double(), gradient[:, None])


def stream(*layers: LayerGradient, size: int = 7) -> Stream:
    """The gradients in blocks of uneven size."""
    return lambda: ([one[begin : begin + size] for one in layers] for begin in range(0, len(layers[0]), size))


def fisher(one: LayerGradient) -> Tensor:
    """The mean of `vec(G) vec(G)^T`, written out."""
    gradient = full(one).flatten(1)
    return gradient.T @ gradient / len(one)


def dense(one: LayerCurvature) -> Tensor:
    """The undamped curvature, written out."""
    height, width = one.values.shape
    left = torch.eye(height).double() if one.left is None else one.left
    right = torch.eye(width).double() if one.right is None else one.right
    basis = torch.kron(left, right)
    return basis @ torch.diag(one.values.flatten()) @ basis.T


def solved(matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix)).double(), gradient.T).T


LAYERS: dict[str, Callable[[], LayerGradient]] = {
    "one position": layer,
    "positions": lambda: layer(positions=6),
    "embedding": embedding,
    "tied": tied,
    "affine": affine,
}
EVERY_LAYER = pytest.mark.parametrize("one", [make() for make in LAYERS.values()], ids=LAYERS)


# What is fitted.


@EVERY_LAYER
def test_diagonal_is_the_fisher_matrix_s_diagonal(one: LayerGradient) -> None:
    found = Diagonal.fit(stream(one))[one.name]
    torch.testing.assert_close(found.values.flatten(), fisher(one).diagonal())


def test_kfac_is_the_kronecker_product_of_the_covariances() -> None:
    one = layer()
    a, g = one.inputs[:, 0], one.outputs[:, 0]
    expected = torch.kron(a.T @ a / len(one), g.T @ g / len(one))
    torch.testing.assert_close(dense(Kfac.fit(stream(one))[one.name]), expected)


def test_kfac_of_several_positions_is_exact_where_they_are_independent() -> None:
    """Grosse and Martens 2016: a mean over examples of a sum over positions times a mean over positions."""
    one = layer(positions=6)
    a, g = one.inputs.flatten(0, 1), one.outputs.flatten(0, 1)
    expected = torch.kron(a.T @ a / len(one), g.T @ g / (6 * len(one)))
    torch.testing.assert_close(dense(Kfac.fit(stream(one))[one.name]), expected)


def test_kfac_is_the_fisher_matrix_where_all_examples_share_their_input() -> None:
    one = layer()
    same = LayerGradient(one.name, one.kind, one.inputs[:1].expand_as(one.inputs), one.outputs)
    torch.testing.assert_close(dense(Kfac.fit(stream(same))[one.name]), fisher(same), atol=1e-9, rtol=1e-9)


@EVERY_LAYER
def test_ekfac_has_the_fisher_matrix_s_diagonal_in_the_basis_of_kfac(one: LayerGradient) -> None:
    found = Ekfac.fit(stream(one))[one.name]
    height, width = found.values.shape
    left = torch.eye(height).double() if found.left is None else found.left
    right = torch.eye(width).double() if found.right is None else found.right
    basis = torch.kron(left, right)
    torch.testing.assert_close(found.values.flatten(), (basis.T @ fisher(one) @ basis).diagonal())


@EVERY_LAYER
def test_ekfac_is_nearer_to_the_fisher_matrix_than_kfac(one: LayerGradient) -> None:
    """George et al. 2018: it is the nearest of all that are diagonal in this basis.

    The gradient of a norm has one `in` direction, and both are exact.
    """
    exact = fisher(one)
    off = {
        kind: float((dense(kind.fit(stream(one))[one.name]) - exact).norm() / exact.norm()) for kind in (Kfac, Ekfac)
    }
    if one.kind == "affine":
        assert max(off.values()) < 1e-9
    else:
        assert off[Ekfac] < off[Kfac]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_trace_is_that_of_the_fisher_matrix(kind: type[Curvature], make: Callable[[], LayerGradient]) -> None:
    """So that damping by a share of the mean means the same for all; K-FAC keeps it only if the factors are independent."""
    one = make()
    values = kind.fit(stream(one))[one.name].values
    if kind is not Kfac or one.kind == "affine":
        assert float(values.sum()) == pytest.approx(float(fisher(one).trace()))


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(1, 40))
def test_blocks_do_not_matter(kind: type[Curvature], size: int) -> None:
    whole, parts = (kind.fit(stream(layer(), tied(30), size=by)) for by in (30, size))
    for name in ("layer", "words"):
        torch.testing.assert_close(dense(parts[name]), dense(whole[name]), rtol=1e-8, atol=1e-8)
    assert parts.examples == 30


def test_wide_sides_keep_their_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.gradients.covariance.WIDEST", 3)
    found = Ekfac.fit(stream(layer(height=4, width=3)))["layer"]
    assert found.left is None
    assert found.right is not None


def test_gradients_that_are_not_finite_are_refused() -> None:
    one = layer()
    one.inputs[3, 0, 1] = torch.inf
    for kind in KINDS:
        with pytest.raises(EvidenceError, match="'layer' are not finite"):
            kind.fit(stream(one))


def test_no_examples_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(EvidenceError, match="no examples"):
            kind.fit(lambda: [])


# Its damped inverse.


@pytest.mark.parametrize("kind", KINDS)
@EVERY_LAYER
def test_precondition_is_the_damped_inverse(kind: type[Curvature], one: LayerGradient) -> None:
    found = kind.fit(stream(one))
    own = found[one.name]
    assert own.damping() == pytest.approx(0.1 * float(own.values.mean()))
    expected = solved(dense(own), full(one).flatten(1), own.damping())
    got = found.precondition(one)
    torch.testing.assert_close(got.outputs[:, 0], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(products([got], [one]), expected @ full(one).flatten(1).T, rtol=1e-7, atol=1e-8)


def test_a_layer_without_gradients_gives_no_score() -> None:
    one = layer()
    still = LayerGradient(one.name, one.kind, one.inputs, torch.zeros_like(one.outputs))
    for kind in KINDS:
        found = kind.fit(stream(still))
        assert bool((products([found.precondition(still)], [still]) == 0).all())


def test_unknown_layers_are_named() -> None:
    with pytest.raises(EvidenceError, match="no layer 'other'; it was fitted to layer"):
        Kfac.fit(stream(layer()))["other"]


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_is_read_back(kind: type[Curvature], tmp_path: Path) -> None:
    found = kind.fit(stream(layer(), affine(30)))
    save(found, tmp_path / "one.safetensors", weights="abc")
    again = load(tmp_path / "one.safetensors")
    assert type(again) is kind
    assert again.examples == 30
    assert again.tensors().keys() == found.tensors().keys()
    for name, one in found.tensors().items():
        assert torch.equal(again.tensors()[name], one)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(EvidenceError, match="missing or damaged"):
        load(path)
    with pytest.raises(EvidenceError, match="missing or damaged"):
        load(tmp_path / "none.safetensors")


# The form in which products cost the least.


@pytest.mark.parametrize("kind", KINDS)
def test_without_tolerance_the_inverse_is_kept_in_full(kind: type[Curvature]) -> None:
    own = kind.fit(stream(layer()))["layer"]
    torch.testing.assert_close(compressed(own, tolerance=0).dense(), own.inverse(), rtol=0, atol=0)


@given(seed=st.integers(0, 1000), tolerance=st.sampled_from([0.3, 0.03, 0.003]))
def test_compression_keeps_its_tolerance_and_says_its_error(seed: int, tolerance: float) -> None:
    """Errors of the inverse, weighed by how large products of the factors are along each pair of directions."""
    one = layer(examples=60, height=24, width=16, seed=seed)
    own = Ekfac.fit(stream(one))["layer"]
    found = compressed(own, tolerance=tolerance)
    weight = own.inputs[:, None] * own.outputs
    error = (weight * (found.dense() - own.inverse())).norm() / (weight * own.inverse()).norm()
    assert float(error) == pytest.approx(found.error, abs=1e-6)
    assert found.error <= tolerance
    assert found.cost <= own.values.numel()


def test_a_kronecker_product_takes_few_terms() -> None:
    """Its inverse is a smooth function of `eigenvalue x eigenvalue`: 64 directions on either side, and a handful of terms."""
    sizes = torch.logspace(0, -4, 64).double()
    own = LayerCurvature(sizes[:, None] * sizes, sizes, sizes)
    found = compressed(own, tolerance=0.01)
    assert found.cost < own.values.numel() / 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [1, 5, 60])
def test_scores_do_not_depend_on_the_form(kind: type[Curvature], queries: int) -> None:
    one = layer(examples=80, height=12, width=9)
    own = kind.fit(stream(one))["layer"]
    asked = one[:queries]
    expected = solved(dense(own), full(asked).flatten(1), own.damping()) @ full(one).flatten(1).T
    for inverse in (None, compressed(own, tolerance=0), compressed(own, tolerance=1e-6)):
        torch.testing.assert_close(solution(own, asked, inverse)(one), expected, rtol=1e-4, atol=1e-4)
    rough = Factored.of(own, asked, compressed(own, tolerance=0.01))(one)
    assert float((rough - expected).norm() / expected.norm()) < 0.1


def test_the_cheapest_form_is_taken() -> None:
    one = layer(examples=80, height=12, width=9)
    own = Ekfac.fit(stream(one))["layer"]
    inverse = compressed(own, tolerance=0.3)
    assert isinstance(solution(own, one[:1], inverse), Written)  # turning the examples costs more than a query saves
    assert isinstance(solution(own, one[:60], inverse), Factored)
    several = layer(positions=2, height=12, width=9)
    assert isinstance(solution(own, several, inverse), Written)


# Whose gradients.


class Probe(nn.Module):
    """Outputs that are the inputs, times a weight of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight


def examples_of(module: nn.Module, inputs: Tensor, target: Tensor, task: object = TASK) -> Examples:
    def read(places: object) -> tuple[Tensor, Tensor]:
        some = torch.as_tensor(places)
        return inputs[some], target[some]

    return Examples(read, len(inputs), Capture(module, task), torch.device("cpu"))  # type: ignore[arg-type]


def test_drawn_classes_have_the_model_s_frequencies() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    counts = torch.bincount(drawn(TASK, logits, torch.Generator().manual_seed(0)), minlength=3) / 20_000
    # Four standard errors of a share of 20,000 draws are below 0.015.
    torch.testing.assert_close(counts, logits[0].softmax(0), atol=0.015, rtol=0)


def test_drawn_labels_and_quantities() -> None:
    random = torch.Generator().manual_seed(0)
    labels = drawn(Multilabel(("a", "b")), torch.tensor([[0.0, 2.0]]).expand(20_000, 2), random)
    torch.testing.assert_close(labels.mean(0), torch.tensor([0.0, 2.0]).sigmoid(), atol=0.015, rtol=0)
    values = drawn(Regression(), torch.full((20_000, 1), 3.0), random)
    assert float(values.mean()) == pytest.approx(3.0, abs=0.03)
    assert float(values.var()) == pytest.approx(1.0, abs=0.05)


def test_an_unknown_task_has_the_empirical_fisher_alone() -> None:
    class Other:
        name = "other"

    for of in (
        lambda: drawn(Other(), torch.zeros(2, 2), torch.Generator()),
        lambda: root(Other(), *torch.zeros(2, 2, 2)),
    ):  # type: ignore[arg-type]
        with pytest.raises(EvidenceError, match="fisher='empirical'"):
            of()


def gauss_newton(task: Task, outputs: Tensor, target: Tensor) -> Tensor:
    """The Hessian of the loss in the outputs of one example."""
    return torch.func.hessian(lambda one: task.loss(one[None], Batch(one, target[None]))[0])(outputs)


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (TASK, torch.tensor(1)),
        (Multilabel(("a", "b", "c")), torch.tensor([1.0, 0.0, 1.0])),
        (Regression(), torch.tensor(0.5)),
    ],
)
def test_random_signs_have_the_hessian_of_the_loss(task: Task, target: Tensor) -> None:
    """All sign vectors together, so that their mean is exact."""
    width = 1 if isinstance(task, Regression) else 3
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * width).view(-1, width).double()
    outputs = torch.tensor([0.3, -1.0, 2.0][:width]).double()
    vectors = root(task, outputs.expand(len(signs), -1), signs)
    torch.testing.assert_close(
        vectors.T @ vectors / len(signs), gauss_newton(task, outputs, target.double() if target.dim() else target)
    )


@pytest.mark.parametrize("fisher", ["true", "drawn"])
def test_the_true_fisher_is_the_gauss_newton_matrix(fisher: str) -> None:
    """Of a linear classifier: `E[x x^T] (x) (diag(p) - p p^T)`, here of one input, over many random signs or labels."""
    module = nn.Linear(2, 3).double()
    x = torch.tensor([[1.0, -2.0]]).double()
    p = module(x)[0].softmax(0).detach()
    own = torch.cat([x[0], torch.ones(1).double()])
    expected = torch.kron(torch.outer(own, own), torch.diag(p) - torch.outer(p, p))
    examples = examples_of(module, x.expand(40_000, 2), torch.zeros(40_000, dtype=torch.int64))
    found = dense(fitted("kfac", examples, fisher).layers[""])  # exact: all examples share their input
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.abs().max()), rtol=0)


def test_random_signs_have_less_noise_than_drawn_labels() -> None:
    """Of a model that is sure of its answers; the spread is over seeds."""
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.copy_(10 * torch.eye(3, 4))
        module.bias.zero_()
    examples = examples_of(module, normal(200, 4).float(), torch.zeros(200, dtype=torch.int64))
    spread = {}
    for fisher in ("true", "drawn"):
        fits = torch.stack([fitted("diagonal", examples, fisher, seed).layers[""].values for seed in range(30)])
        spread[fisher] = float(fits.var(0).sum())
        means = fits.mean(0)
        # Of 30 fits the mean is within a fifth of the sum, for either.
        assert float(means.sum()) == pytest.approx(_curvature_sum(examples), rel=0.2)
    assert spread["true"] < spread["drawn"] / 2


def _curvature_sum(examples: Examples) -> float:
    """Trace of the Gauss-Newton matrix of a linear classifier."""
    inputs, _ = examples.read(torch.arange(len(examples)))  # type: ignore[arg-type]
    p = examples.capture.module(inputs).softmax(1).detach()
    return float(((inputs.square().sum(1) + 1) * (1 - p.square().sum(1))).mean())


@pytest.mark.parametrize("fisher", ["true", "drawn"])
def test_the_same_gradients_in_each_pass_and_others_from_another_seed(
    fisher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imprint.gradients.fisher.KEPT_BYTES", 0)
    examples = examples_of(nn.Linear(4, 3), normal(200, 4).float(), torch.zeros(200, dtype=torch.int64))
    passes = gradients(examples, fisher, seed=0)
    first, second = (torch.cat([one[0].outputs for one in passes()]) for _ in range(2))
    other = torch.cat([one[0].outputs for one in gradients(examples, fisher, seed=1)()])
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_kept_gradients_are_those_that_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of(nn.Linear(4, 3), normal(5000, 4).float(), torch.zeros(5000, dtype=torch.int64))
    calls = []
    taken = examples.capture.__call__
    monkeypatch.setattr(Capture, "__call__", lambda self, *given: calls.append(1) or taken(*given))
    kept = gradients(examples, "empirical")
    next(iter(kept()))  # a pass that is not finished keeps nothing
    first = [one[0].outputs for one in kept()]
    before = len(calls)
    again = [one[0].outputs for one in kept()]
    assert len(calls) == before
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert sum(map(len, again)) == 5000


def test_the_empirical_fisher_takes_the_labels_of_the_data() -> None:
    target = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0))
    examples = examples_of(nn.Linear(4, 3), normal(50, 4).float(), target)
    assert torch.equal(torch.cat([one for _, one in blocks(examples)]), target)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    examples = examples_of(nn.Linear(4, 3), normal(5, 4).float(), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(EvidenceError, match="Did you mean 'empirical'"):
        fitted("ekfac", examples, "empiric")
    with pytest.raises(EvidenceError, match="Did you mean 'ekfac'"):
        fitted("ekfak", examples)


# Linear algebra with gradients.


@EVERY_LAYER
@pytest.mark.parametrize("count", [1, 9])
def test_inner_products_and_weighted_sums(one: LayerGradient, count: int) -> None:
    gradient = full(one).flatten(1)
    vectors, weights = normal(count, gradient.shape[1]), normal(count, len(one), seed=1)
    torch.testing.assert_close(inner(one, vectors.view(count, *one.shape)), vectors @ gradient.T)
    torch.testing.assert_close(combined(one, weights).flatten(1), weights @ gradient)


def operator(layers: Sequence[LayerGradient]) -> tuple[FisherMatrix, Tensor]:
    """The damped Fisher matrix of some layers together as an operator, and written out."""
    matrix = FisherMatrix(stream(*layers), {one.name: one.shape for one in layers}, damping(layers))
    gradient = written(layers)
    return matrix, gradient.T @ gradient / len(gradient) + torch.diag(matrix.diagonal(gradient))


def test_damping_is_that_of_the_diagonal() -> None:
    """Conjugate gradients, the exact inverse and the block-diagonal curvatures are damped alike."""
    layers = [layer(20), tied(20), affine(20)]
    expected = {name: one.damping() for name, one in Diagonal.fit(stream(*layers)).layers.items()}
    assert damping(layers) == pytest.approx(expected)


def test_the_fisher_matrix_as_an_operator() -> None:
    matrix, expected = operator([layer(20), affine(20)])
    vectors = normal(3, matrix.size)
    torch.testing.assert_close(matrix(vectors), vectors @ expected)
    torch.testing.assert_close(matrix.joined(matrix.parts(vectors)), vectors)


@pytest.mark.parametrize("make", [lambda: [layer(20), affine(20)], lambda: [layer(20, positions=3), tied(20)]])
def test_woodbury_is_the_inverse(make: Callable[[], list[LayerGradient]]) -> None:
    layers = make()
    matrix, expected = operator(layers)
    inverse = Woodbury(layers)
    vectors = normal(4, matrix.size)
    torch.testing.assert_close(inverse.solve(matrix, vectors), torch.linalg.solve(expected, vectors.T).T)
    queries = [one[:6] for one in layers]
    scaled = inverse.scaled(queries)
    found = inverse.products(scaled, layers, inverse.weights(products(scaled, inverse.columns)))
    gradient = written(layers)
    torch.testing.assert_close(found, gradient[:6] @ torch.linalg.solve(expected, gradient.T))


def test_woodbury_leaves_layers_without_gradients_alone() -> None:
    still = LayerGradient("still", "linear", normal(20, 1, 2), torch.zeros(20, 1, 2).double())
    alone, both = Woodbury([layer(20)]), Woodbury([layer(20), still])
    moving = LayerGradient("still", "linear", normal(20, 1, 2), normal(20, 1, 2))
    for one in (alone, both):
        one.queries = one.scaled([layer(20), moving][: len(one.columns)])  # type: ignore[attr-defined]
    found = [
        one.products(
            one.queries, [layer(20), moving][: len(one.columns)], one.weights(products(one.queries, one.columns))
        )  # type: ignore[attr-defined]
        for one in (alone, both)
    ]
    torch.testing.assert_close(found[0], found[1])


def test_conjugate_gradients_solve_the_fisher_matrix() -> None:
    layers = [layer(20), affine(20)]
    matrix, expected = operator(layers)
    right = written(layers)[:5]
    some = Woodbury([one[:10] for one in layers])
    for precondition in (None, lambda rows: some.solve(matrix, rows)):
        found = conjugate_gradients(matrix, right, precondition, tolerance=1e-9, iterations=60)
        torch.testing.assert_close(found.vectors, torch.linalg.solve(expected, right.T).T, rtol=1e-6, atol=1e-7)
        assert float(found.residuals.max()) <= 1e-9


def test_the_inverse_of_a_sample_saves_iterations() -> None:
    layers = [layer(200, height=12, width=8), affine(200)]
    matrix, _ = operator(layers)
    right = written(layers)[:5]
    taken = {}
    for size in (0, 100, 200):
        some = Woodbury([one[:size] for one in layers]) if size else None
        precondition = None if some is None else lambda rows, some=some: some.solve(matrix, rows)
        taken[size] = conjugate_gradients(matrix, right, precondition, 1e-4, 500).iterations
    assert taken[200] == 1
    assert taken[100] < taken[0]


def test_conjugate_gradients_stop_where_they_are_told_and_leave_zeros_alone() -> None:
    diagonal = torch.linspace(1, 1000, 50).double()
    right = torch.stack([torch.ones(50).double(), torch.zeros(50).double()])
    found = conjugate_gradients(lambda rows: rows * diagonal, right, iterations=3)
    assert found.iterations == 3
    assert float(found.residuals[0]) > 1e-3
    assert bool((found.vectors[1] == 0).all())


@given(size=st.integers(2, 12), seed=st.integers(0, 100))
def test_lanczos_with_all_steps_finds_all_eigenvectors(size: int, seed: int) -> None:
    """Also of a matrix of low rank, whose zeros are eigenvalues many times over."""
    half = normal(size, max(1, size // 2), seed=seed)
    matrix = half @ half.T
    random = torch.Generator().manual_seed(0)
    values, vectors = lanczos(lambda rows: rows @ matrix, normal(size, seed=seed + 1), size, size, random)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(size).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        vectors.T @ torch.diag(values) @ vectors, matrix, atol=1e-8 * float(matrix.norm()), rtol=0
    )


def test_lanczos_finds_the_leading_eigenvectors_in_few_steps() -> None:
    spectrum = torch.cat([torch.tensor([50.0, 20.0, 10.0]), torch.linspace(1, 0, 97)]).double()
    basis = torch.linalg.qr(normal(100, 100)).Q
    matrix = basis @ torch.diag(spectrum) @ basis.T
    values, vectors = lanczos(lambda rows: rows @ matrix, normal(100, seed=1), 3, 20, torch.Generator())
    torch.testing.assert_close(values, spectrum[:3])
    torch.testing.assert_close((vectors @ basis[:, :3]).abs(), torch.eye(3).double(), atol=1e-6, rtol=0)
