"""Influence functions: gradient products under the inverse of the training loss's curvature.

    score[q, i] = gradient[q] . (F + damping)^-1 gradient[i]

with the gradients of both losses at the last checkpoint and the Fisher matrix F of the training examples (the true one, which is the
Gauss-Newton matrix; see `imprint.gradients.fisher`). The methods differ in what they put for F. To first order the query's loss rises by
`score / n` when the example is left out and the training goes on to its new optimum (Koh, Liang 2017, arXiv:1703.04730); positive = the
example helps the query. The damping that each method adds is a multiple of the mean curvature (`DAMPING`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.fitting import generator
from imprint.gradients import Examples, LayerGradient, products, squared_norms
from imprint.gradients.curvature import Curvature
from imprint.gradients.fisher import gradients
from imprint.gradients.iterative import conjugate_gradients, lanczos
from imprint.gradients.linear import FisherMatrix, written
from imprint.gradients.solving import TOLERANCE, Inverse, compressed, solution
from imprint.gradients.woodbury import Woodbury
from imprint.methods import method
from imprint.recording.needs import Curvature as CurvatureNeed
from imprint.recording.needs import LayerGradients
from imprint.tracing.evidence import QUERIES
from imprint.tracing.factors import Factors
from imprint.tracing.products import Streamed, allowed, joined, within

# What solves for the gradients of some queries, and gives what multiplies the result with gradients of examples.
Multiply = Callable[[list[LayerGradient]], Float[Tensor, "query example"]]
Solve = Callable[[list[LayerGradient]], Multiply]

EXACT_GRADIENTS = [LayerGradients("queries", split=QUERIES), LayerGradients()]
SEED = 0
# What is added to the curvature before it is inverted, in units of the mean curvature of each layer: the best of the powers of ten by the
# linear datamodeling score on 128 or 160 retrained halves of Fashion-MNIST (MLP) and of digits (MLP, linear layer, CNN): .39 .46 .47 .42.
# The tenth of Grosse et al. (2023) had .33 .45 .43 .43, ten times as much .42 .42 .45 .40.
DAMPING = 1.0
# The same where the matrix is inverted over all layers together: it has no more rank than examples, and is the noisier for it. In the same
# settings 100 had .39 .42 .41 .40, ten .28 .41 .46 .40, one tenth .14 .16 .34 .23.
WHOLE_DAMPING = 100.0
# Of leading eigenvectors it hardly matters.
LEADING_DAMPING = 0.1
# Examples that the Fisher matrix of the iterative methods is taken over, drawn at random: each iteration is a pass over them.
FISHER_EXAMPLES = 4096
# Conjugate gradients stop when this share of the right side is left unexplained, or after so many passes.
RESIDUAL, ITERATIONS = 1e-2, 50
# Eigenvectors that Lanczos keeps, of twice as many passes.
RANK = 64
# Where no example has a gradient in a layer, there is nothing to divide by.
TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False)
class Influence(Streamed):
    """Scores of a block of queries at a time: solved for once, then multiplied with the examples' gradients as these are streamed.

    Attributes:
        solve: Solves for a block of queries.
    """

    solve: Solve | None = None

    def _stream(self, queries: slice, examples: slice) -> Iterator[tuple[slice, Tensor]]:
        assert self.solve is not None
        asked, trained = self.queries[0], self.examples[0]
        parts = [asked.layers(some) for some in within(queries, asked.size)]
        multiply = self.solve([joined([part[number] for part in parts]) for number in range(len(parts[0]))])
        for some in within(examples, trained.size):
            yield some, multiply(trained.layers(some)).float().cpu()

    def _written(self, one: Examples) -> int:
        return 4 * sum(layer.parameters for layer in one.probe)


def preconditioned(
    curvature: Curvature,
    queries: tuple[Examples, ...],
    examples: tuple[Examples, ...],
    damping: float = DAMPING,
    tolerance: float = TOLERANCE,
) -> Influence:
    """Influence under a curvature that is diagonal in some basis.

    Args:
        curvature: Fitted to the examples.
        queries: The queries.
        examples: The training examples.
        damping: In units of the mean curvature of each layer.
        tolerance: Expected error of a score as a share of the spread of scores; 0 takes the inverse in full.
    """
    return Influence(queries, examples, solve=_Preconditioned(curvature, damping, tolerance))


class _Preconditioned:
    """Solves layer by layer, in the form that costs the least; the inverse of each layer is put into it once."""

    def __init__(self, curvature: Curvature, damping: float, tolerance: float) -> None:
        self.curvature, self.damping, self.tolerance = curvature, damping, tolerance
        self.inverses: dict[str, Inverse] = {}

    def __call__(self, queries: list[LayerGradient]) -> Multiply:
        solved = [
            solution(self.curvature[layer.name].to(layer.outputs), layer, self.inverse(layer), self.damping)
            for layer in queries
        ]

        def multiply(examples: list[LayerGradient]) -> Tensor:
            return torch.stack([one(layer) for one, layer in zip(solved, examples, strict=True)]).sum(0)

        return multiply

    def inverse(self, layer: LayerGradient) -> Inverse | None:
        if layer.positions > 1 or layer.kind == "embedding":
            return None
        if layer.name not in self.inverses:
            self.inverses[layer.name] = compressed(
                self.curvature[layer.name].to(layer.outputs), self.damping, self.tolerance
            )
        return self.inverses[layer.name]


@method(
    "trace", "influence-ekfac", higher="helps the query", needs=[CurvatureNeed(), *EXACT_GRADIENTS],
    source="Grosse et al. 2023, arXiv:2308.03296; George et al. 2018, arXiv:1806.03884",
)  # fmt: skip
def influence_ekfac(curvature: Curvature, queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Influence:
    """Influence with EK-FAC: curvature along products of eigenvectors of each layer's inputs and output gradients.

    Layers are taken to be independent of each other. The eigenvalue-corrected curvature is the nearest matrix of that form.
    """
    return preconditioned(curvature, queries, examples)


@method(
    "trace", "influence-kfac", higher="helps the query",
    needs=[CurvatureNeed(approximation="kfac"), *EXACT_GRADIENTS],
    source="Martens, Grosse 2015, arXiv:1503.05671; Koh, Liang 2017, arXiv:1703.04730",
)  # fmt: skip
def influence_kfac(curvature: Curvature, queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Influence:
    """Influence with K-FAC: each layer's inputs taken to be independent of its output gradients."""
    return preconditioned(curvature, queries, examples)


@method(
    "trace", "influence-diagonal", higher="helps the query",
    needs=[CurvatureNeed(approximation="diagonal"), *EXACT_GRADIENTS],
    source="Koh, Liang 2017, arXiv:1703.04730; LeCun et al. 1989 (optimal brain damage)",
)  # fmt: skip
def influence_diagonal(
    curvature: Curvature, queries: tuple[Examples, ...], examples: tuple[Examples, ...]
) -> Influence:
    """Influence with the diagonal of the Fisher matrix: each weight on its own."""
    return preconditioned(curvature, queries, examples)


@method(
    "trace", "influence-exact", higher="helps the query", needs=EXACT_GRADIENTS,
    source="Woodbury 1950; Koh, Liang 2017, arXiv:1703.04730",
)  # fmt: skip
def influence_exact(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Influence:
    """Influence with the exact inverse of the damped Fisher matrix of up to 4,096 training examples, over all layers together.

    It is taken in the space of these examples (`imprint.gradients.woodbury`), where it costs less than EK-FAC. Of more training examples
    the matrix is taken over as many drawn at random; `influence-cg` goes on from there to all of them.
    """
    inverse = _Sampled(examples[0])

    def solve(layers: list[LayerGradient]) -> Multiply:
        scaled = inverse.woodbury.scaled(layers)
        weights = inverse.woodbury.weights(products(scaled, inverse.woodbury.columns))
        return lambda theirs: inverse.woodbury.products(scaled, theirs, weights)

    return Influence(queries, examples, solve=solve)


@method(
    "trace", "influence-cg", higher="helps the query", needs=EXACT_GRADIENTS,
    source="Koh, Liang 2017, arXiv:1703.04730; Martens 2010 (Hessian-free optimisation)",
)  # fmt: skip
def influence_cg(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Influence:
    """Influence by conjugate gradients: the damped Fisher matrix of all training examples and layers, solved for each query.

    The preconditioner is the exact inverse of that of up to 4,096 of the examples, so that few iterations are left; with no more examples
    than these it is `influence-exact`. Each iteration is a pass over all training examples for every query.
    """
    inverse = _Sampled(examples[0])

    def solve(layers: list[LayerGradient]) -> Multiply:
        shapes = {layer.name: layer.shape for layer in layers}
        matrix = FisherMatrix(gradients(examples[0], seed=SEED), shapes, inverse.woodbury.damping)
        found = conjugate_gradients(
            matrix, written(layers), lambda rows: inverse.woodbury.solve(matrix, rows), RESIDUAL, ITERATIONS
        )
        if not float(found.residuals.max()) <= RESIDUAL:
            warnings.warn(
                f"Conjugate gradients left up to {float(found.residuals.max()):.2g} of a query's gradient unexplained after "
                f"{found.iterations} iterations.",
                stacklevel=2,
            )
        return lambda theirs: matrix.products(found.vectors, theirs)

    return Influence(queries, examples, solve=solve)


class _Sampled:
    """The inverse of the Fisher matrix of a sample of examples whose gradients fit in memory; made when it is first asked for."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    @cached_property
    def woodbury(self) -> Woodbury:
        sample = subset(self.examples, min(FISHER_EXAMPLES, max(2, allowed() // self.examples.bytes_each)))
        parts = list(gradients(sample, seed=SEED)())
        return Woodbury([joined([part[number] for part in parts]) for number in range(len(parts[0]))], WHOLE_DAMPING)


@method(
    "trace", "influence-arnoldi", higher="helps the query", needs=EXACT_GRADIENTS,
    source="Schioppa et al. 2022, arXiv:2112.03052",
)  # fmt: skip
def influence_arnoldi(queries: tuple[Examples, ...], examples: tuple[Examples, ...]) -> Factors:
    """Influence in the space of the 64 leading eigenvectors of the Fisher matrix, found by Arnoldi's (here: Lanczos') iteration.

        score[q, i] = sum over eigenvectors v of (v . gradient[q]) (v . gradient[i]) / (eigenvalue + damping)

    What is outside that space, where curvature is least and the inverse largest, counts nothing, as in the paper. Damping, which the
    paper does without, is a tenth of the mean eigenvalue, and hardly matters for leading ones. Of more than 4,096
    training examples the matrix is taken over as many drawn at random. After that, gradients have 64 numbers.
    """
    return leading(queries[0], examples[0])


def leading(queries: Examples, examples: Examples, rank: int = RANK, steps: int | None = None) -> Factors:
    """Gradients along the leading eigenvectors of the Fisher matrix, those of the queries divided by its damped eigenvalues.

    Args:
        queries: The queries.
        examples: The training examples.
        rank: How many eigenvectors.
        steps: Products with the matrix; None for twice the rank.
    """
    stream = gradients(subset(examples), seed=SEED)
    matrix = FisherMatrix(stream, {layer.name: layer.shape for layer in examples.probe}, {})
    random = generator(SEED, "lanczos")
    start = torch.randn(matrix.size, generator=random).to(examples.probe[0].outputs)
    values, vectors = lanczos(matrix.undamped, start, rank, steps or 2 * rank, random)
    trace, count = 0.0, 0
    for layers in stream():
        trace += float(squared_norms(layers).double().sum())
        count += len(layers[0])
    damping = max(LEADING_DAMPING * trace / count / matrix.size, TINY)
    along = [
        torch.cat([matrix.products(vectors, layers).T.cpu() for _, layers in some.blocks()])
        for some in (queries, examples)
    ]
    return Factors(along[0] / (values.clamp(min=0) + damping).cpu(), along[1])


def subset(examples: Examples, most: int = FISHER_EXAMPLES) -> Examples:
    """These examples, or as many of them drawn at random."""
    if len(examples) <= most:
        return examples
    chosen = torch.randperm(len(examples), generator=generator(SEED, "fisher", "examples"))[:most].sort().values.numpy()
    return replace(examples, read=lambda places: examples.read(chosen[places]), total=most)
