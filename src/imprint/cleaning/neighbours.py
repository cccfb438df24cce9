"""Nearest neighbours at the sizes that cleaning meets: exact when that is quick, by inverted file when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Up to this many reference vectors all distances are computed (10^9 in some seconds); above it, those in the nearest cells.
EXACT = 30_000
# Cells searched of an inverted file. Near copies fall into the same cell or into neighbouring ones.
PROBES = 8


def neighbours(
    queries: Float[np.ndarray, "query feature"], reference: Float[np.ndarray, "example feature"], k: int, seed: int = 0
) -> tuple[Float[np.ndarray, "query k"], Int[np.ndarray, "query k"]]:
    """Euclidean distances and indices of the `k` nearest reference vectors, nearest first; index -1 where fewer were found.

    >>> distance, index = neighbours(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [1.0, 0.0]]), 2)
    >>> distance.tolist(), index.tolist()
    ([[1.0, 5.0]], [[1, 0]])
    """
    import faiss

    reference = np.ascontiguousarray(reference, dtype=np.float32)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    count, width = reference.shape
    index: Any
    if count <= EXACT:
        index = faiss.IndexFlatL2(width)
    else:
        cells = int(2 * np.sqrt(count))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells)
        index.nprobe = PROBES
        index.cp.seed = seed
        index.cp.niter = 8
        sample = np.random.default_rng(seed).choice(count, min(count, 40 * cells), replace=False)
        index.train(reference[np.sort(sample)])
    index.add(reference)
    square, found = index.search(queries, min(k, count))
    return np.sqrt(np.maximum(square, 0)), found
