"""Near duplicates among vectors: pairs that are closer than chance brings examples of this data together.

How close two different examples come depends on the data: two pairs of trousers in Fashion-MNIST are as alike (correlation 0.99) as two
photographs of one car in CIFAR-10. What tells a copy is that it is much nearer than the neighbours behind it. If examples lie
with locally even density in m dimensions, the nearest of k neighbours falls within a fraction f of the k-th one's distance with
probability about k f^m. So a pair is a candidate when that fraction is at most (CHANCE / k)^(1/m), with m estimated from the
same distances (Levina, Bickel 2004); what remains is verified on the inputs themselves by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from imprint.cleaning.flags import Flags
from imprint.cleaning.neighbours import neighbours
from imprint.cleaning.texts import judge_pairs, representatives
from imprint.methods import method
from imprint.recording.needs import Table

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Neighbours looked at; larger groups of copies are found only where they are practically equal.
NEIGHBOURS = 20
# Expected share of examples that chance alone makes a candidate; and never a fraction above the largest that was seen among
# the near copies of CIFAR-10 and Fashion-MNIST (benchmarks/duplicates.py).
CHANCE, FRACTION = 1e-4, 0.25
# Vectors are compared in at most this many dimensions; a random projection keeps ratios of distances.
WIDTH = 64
# Arrays are copies from this correlation on; cells of a table when they differ by at most this many standard deviations.
CORRELATION, CELL = 0.97, 0.01


def near_pairs(vectors: Float[np.ndarray, "row feature"], equal: float = 0.0) -> Int[np.ndarray, "pair two"]:
    """Candidate pairs (smaller, larger) of near copies.

    Args:
        vectors: The examples.
        equal: Distance below which two examples are practically equal, and a pair however many more there are.

    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(size=(500, 8)); vectors[7] = vectors[3] + 1e-4
    >>> near_pairs(vectors).tolist()
    [[3, 7]]
    """
    if len(vectors) <= NEIGHBOURS + 1:
        return np.empty((0, 2), np.int64)
    distance, found = neighbours(vectors, vectors, NEIGHBOURS + 1)
    row = np.arange(len(vectors))[:, None]
    far = distance[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where((found >= 0) & (found != row) & (far > 0), distance / far, np.inf)
    near = fraction <= min(FRACTION, (CHANCE / NEIGHBOURS) ** (1 / dimension(distance[:, 1:])))
    near |= (found >= 0) & (found != row) & (distance < equal)
    left, which = np.nonzero(near)
    pairs = np.sort(np.stack([left, found[left, which]], 1), axis=1)
    return np.unique(pairs, axis=0)


def dimension(distance: Float[np.ndarray, "row neighbour"]) -> float:
    """Intrinsic dimension from ascending neighbour distances by maximum likelihood, as the median over rows; at least 1."""
    used = distance[(distance[:, 0] > 0) & np.isfinite(distance[:, -1])]
    if not len(used):
        return 1.0
    logs = np.log(used[:, -1:] / used[:, :-1]).mean(1)
    return max(1.0, float(1 / max(np.median(logs), 1e-6)))


def projection(width: int) -> Float[np.ndarray, "width 64"]:
    """A fixed random matrix to at most `WIDTH` dimensions; the identity where there are no more."""
    if width <= WIDTH:
        return np.eye(width, dtype=np.float32)
    return (np.random.default_rng(0).normal(size=(width, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)


def unit(rows: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row feature"]:
    """Rows with mean 0 and length 1, so that a dot product is a correlation; constant rows become 0."""
    centred = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 1e-6 * np.sqrt(rows.shape[1]), length, np.inf)


def similarities(
    corpus: Corpus,
    pairs: Int[np.ndarray, "pair two"],
    columns: list[str],
    similarity: Callable[[pl.DataFrame, Int[np.ndarray, "pair two"]], Float[np.ndarray, " pair"]],
    size: int = 2048,
) -> Float[np.ndarray, " pair"]:
    """Exact similarity of candidate pairs, whose inputs are read again in blocks.

    Args:
        similarity: Called with the rows of a block and its pairs as indices into them.
    """
    parts = [np.empty(0)]
    for start in range(0, len(pairs), size):
        read, local = np.unique(pairs[start : start + size], return_inverse=True)
        parts.append(similarity(corpus.read(read, columns), local.reshape(-1, 2)))
    return np.concatenate(parts)


def correlation(
    rows: Float[np.ndarray, "row feature"], pairs: Int[np.ndarray, "pair two"]
) -> Float[np.ndarray, " pair"]:
    """Correlation over features of pairs of rows; 0 with a constant row.

    >>> correlation(np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 5.0], [4.0, 4.0, 4.0]]), np.array([[0, 1], [0, 2]])).round(6).tolist()
    [1.0, 0.0]
    """
    scaled = unit(rows)
    return (scaled[pairs[:, 0]] * scaled[pairs[:, 1]]).sum(1)


def distinct_pairs(
    corpus: Corpus, rows: Int[np.ndarray, " row"], pairs: Int[np.ndarray, "pair two"]
) -> Int[np.ndarray, "pair two"]:
    """Pairs of indices into `rows` as pairs of rows, without those of equal contents."""
    found = rows[pairs]
    return found[corpus.content[found[:, 0]] != corpus.content[found[:, 1]]]


@method(
    "clean", "near-duplicate-arrays", kind="duplicate", modalities=["array"], needs=[Table()],
    higher="as for exact duplicates, times the correlation", source="gaps among nearest neighbours: imprint.cleaning.near",
)  # fmt: skip
def near_duplicate_arrays(corpus: Corpus) -> Flags:
    """Arrays that correlate at 0.97 or more with another one and are much nearer to it than to its other neighbours."""
    rows = representatives(corpus)
    columns = list(corpus.kinds)
    matrix = projection(int(np.prod(corpus.shape or (1,))))
    vectors = np.concatenate(
        [unit(_flat(frame)) @ matrix for _, frame in corpus.batches(rows, columns)] or [np.empty((0, 1), np.float32)]
    )
    pairs = distinct_pairs(corpus, rows, near_pairs(vectors, equal=0.03))
    similarity = similarities(corpus, pairs, columns, lambda frame, local: correlation(_flat(frame), local))
    return judge_pairs(corpus, pairs, similarity, CORRELATION)


def _flat(frame: pl.DataFrame) -> Float[np.ndarray, "row value"]:
    """The array column as a matrix."""
    values = frame.to_series(0)
    while values.dtype in (pl.List, pl.Array):
        values = values.explode()
    return np.nan_to_num(values.to_numpy().astype(np.float32)).reshape(len(frame), -1)


@method(
    "clean", "near-duplicate-rows", kind="duplicate", modalities=["table"], needs=[Table()],
    higher="as for exact duplicates, times one less the largest difference of a cell",
    source="gaps among nearest neighbours: imprint.cleaning.near",
)  # fmt: skip
def near_duplicate_rows(corpus: Corpus) -> Flags:
    """Rows equal in every column that is not a number and within a hundredth of a standard deviation in every one that is.

    They must also be much nearer than the neighbours behind them, so that values which lie on a coarse grid are no copies.
    Tables with fewer than three numeric columns are left out: close numbers tell too little there.
    """
    numeric = [name for name, kind in corpus.kinds.items() if kind == "numeric"]
    if len(numeric) < 3:
        return Flags.none()
    rows = representatives(corpus)
    sample = np.sort(np.random.default_rng(0).choice(rows, min(len(rows), 20_000), replace=False))
    seen = corpus.read(sample, numeric).select(pl.all().cast(pl.Float64).fill_nan(None))
    mean = np.array([value or 0.0 for value in seen.mean().row(0)])
    scale = np.array([value or np.inf for value in seen.std().row(0)])

    def scaled(frame: pl.DataFrame) -> np.ndarray:
        values = frame.select(pl.col(numeric).cast(pl.Float64).fill_nan(None).fill_null(np.nan)).to_numpy()
        return np.clip(np.nan_to_num((values - mean) / scale), -10, 10).astype(np.float32)

    def similarity(frame: pl.DataFrame, local: np.ndarray) -> np.ndarray:
        values = scaled(frame)
        # Missing cells and all other columns have to agree exactly.
        rest = (
            frame.select(pl.exclude(numeric), pl.col(numeric).is_null().name.suffix(" is missing"))
            .hash_rows()
            .to_numpy()
        )
        same = rest[local[:, 0]] == rest[local[:, 1]]
        gap = np.abs(values[local[:, 0]] - values[local[:, 1]]).max(1)
        return np.where(same & (gap <= CELL), 1 - gap, 0.0)

    matrix = projection(len(numeric))
    vectors = np.concatenate([scaled(frame) @ matrix for _, frame in corpus.batches(rows, numeric)])
    pairs = distinct_pairs(corpus, rows, near_pairs(vectors))
    columns = list(corpus.kinds)
    return judge_pairs(corpus, pairs, similarities(corpus, pairs, columns, similarity), 1 - CELL)
