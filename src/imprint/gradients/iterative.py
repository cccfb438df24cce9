"""Solvers that see a matrix only through its products with vectors: conjugate gradients, and Lanczos for its leading eigenvectors.

All vectors of a block go through the matrix together, which is what makes a pass over the examples worth its price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Operator = Callable[[Float[Tensor, "vector n"]], Float[Tensor, "vector n"]]

# Below this share of the largest eigenvalue seen, what is left of a Lanczos vector is rounding error: the space is exhausted.
EXHAUSTED = 1e-6


@dataclass(frozen=True)
class Solved:
    """Solutions of linear systems.

    Attributes:
        vectors: The solutions.
        residuals: Norm of what each fails to explain, as a share of the norm of its right side.
        iterations: Products with the matrix.
    """

    vectors: Float[Tensor, "vector n"]
    residuals: Float[Tensor, " vector"]
    iterations: int


def conjugate_gradients(
    matrix: Operator,
    right: Float[Tensor, "vector n"],
    precondition: Operator | None = None,
    tolerance: float = 1e-3,
    iterations: int = 100,
) -> Solved:
    """Solve `matrix x = right` for each row, with a symmetric positive definite matrix.

    Args:
        matrix: Products with it; called with the systems that have not yet converged.
        right: Right sides.
        precondition: An approximate inverse, symmetric positive definite.
        tolerance: Share of the right side that a residual may keep.
        iterations: At most so many products.

    >>> diagonal = torch.tensor([1.0, 4.0])
    >>> conjugate_gradients(lambda rows: rows * diagonal, torch.tensor([[2.0, 8.0]])).vectors.round(decimals=4)
    tensor([[2., 2.]])
    """
    approximate = precondition or (lambda rows: rows)
    norm = right.norm(dim=1)
    solution, residual = torch.zeros_like(right), right.clone()
    active = (norm > 0).nonzero().flatten()
    direction = approximate(residual).clone()
    energy = (residual * direction).sum(1)
    done = 0
    while len(active) and done < iterations:
        search = direction[active]
        through = matrix(search)
        done += 1
        step = (energy[active] / (search * through).sum(1))[:, None]
        solution[active] += step * search
        residual[active] -= step * through
        left = residual[active].norm(dim=1) > tolerance * norm[active]
        active, search = active[left], search[left]
        if not len(active):
            break
        solved = approximate(residual[active])
        fresh = (residual[active] * solved).sum(1)
        direction[active] = solved + (fresh / energy[active])[:, None] * search
        energy[active] = fresh
    return Solved(solution, residual.norm(dim=1) / norm.clamp(min=torch.finfo(norm.dtype).tiny), done)


def lanczos(
    matrix: Operator, start: Float[Tensor, " n"], rank: int, steps: int, random: torch.Generator
) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank n"]]:
    """Leading eigenvalues (the largest first) and eigenvectors (rows) of a symmetric matrix.

    Arnoldi's iteration on a symmetric matrix; every new vector is made orthogonal to all earlier ones, twice. When the space that the
    start spans is exhausted, it goes on from a random vector outside it, so that with as many steps as dimensions all is found.

    Args:
        matrix: Products with it.
        start: Where to begin; it should have a part of every eigenvector that is looked for.
        rank: How many eigenvectors; at most `steps`.
        steps: Products with the matrix; twice the rank gives the rank good to a few percent.
        random: For going on.

    >>> matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    >>> values, _ = lanczos(lambda rows: rows @ matrix, torch.ones(3, dtype=torch.float64), 2, 3, torch.Generator())
    >>> [round(value, 6) for value in values.tolist()]
    [3.0, 2.0]
    """
    size = len(start)
    steps = min(steps, size)
    basis = start.new_zeros(steps, size)
    projected = torch.zeros(steps, steps, dtype=torch.float64)
    vector = start / start.norm()
    largest = 0.0
    for step in range(steps):
        basis[step] = vector
        image = matrix(vector[None])[0]
        known = basis[: step + 1]
        weights = known @ image
        projected[: step + 1, step] = projected[step, : step + 1] = weights.double().cpu()
        largest = max(largest, float(weights[step].abs()), float(image.norm()))
        vector = _outside(known, image)
        length = float(vector.norm())
        if length <= EXHAUSTED * largest and step + 1 < steps:
            drawn = torch.randn(size, generator=random, dtype=start.dtype, device=random.device).to(start.device)
            vector = _outside(known, drawn)
            length = float(vector.norm())
        vector = vector / max(length, torch.finfo(start.dtype).tiny)
    values, vectors = torch.linalg.eigh(projected)
    leading = vectors.flip(1)[:, :rank].to(basis)
    return values.flip(0)[:rank].to(basis), leading.T @ basis


def _outside(known: Float[Tensor, "k n"], vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What of a vector is orthogonal to rows that are orthonormal."""
    for _ in range(2):
        vector = vector - (known @ vector) @ known
    return vector
