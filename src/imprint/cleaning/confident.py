"""Confident learning: which labels are wrong, judged by predicted probabilities (Northcutt, Jiang, Chuang 2021).

An example counts as "confidently class j" when its probability of j is at least the mean probability of j among the examples
labelled j. Counting given label against confident class, and calibrating the counts to the number of examples of each label,
estimates the joint distribution of given and true labels. A rule then says which examples to flag, so that as many are flagged
as the joint says there are.

The implementation streams: it reads the probabilities in blocks, twice, never copies them whole, and finds each top-n by
partition instead of by sorting. The results are those of cleanlab's `filter.find_label_issues`, up to the order of exact ties.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from imprint.errors import MethodError, nearest

Rule = Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"]

# Probabilities this close count as equal, and thresholds are met by this much less (the constants of the reference implementation).
TOLERANCE = 1e-6
# Rows per block: 8 MiB of float32 at 100 classes, which stays near the caches.
BLOCK_NUMBERS = 2**21


class Probabilities(Protocol):
    """What is asked of the probabilities: a shape, and rows by slice or by index (an array, a memory map)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def find_label_issues(
    probabilities: Probabilities, target: Int[np.ndarray, " example"], rule: Rule = "prune_by_noise_rate"
) -> Bool[np.ndarray, " example"]:
    """Flag the examples whose label is likely wrong.

    Args:
        probabilities: `[example, class]`, best from a model that did not see the example with this label; rows sum to 1.
        target: Given class codes.
        rule: "prune_by_noise_rate": for each pair (given, true) the examples with the largest probability margin, as many as
            the joint says; "prune_by_class": for each class the examples with the lowest probability of their label; "both":
            what both flag; "confident_learning": the examples counted off the diagonal of the joint.

    Returns:
        True where the label is flagged. An example whose label is the predicted class is never flagged.

    Raises:
        MethodError: If the rule is unknown, or shapes or codes do not fit.

    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    >>> find_label_issues(probabilities, np.array([0, 0, 0, 1, 1, 1]))
    array([False, False,  True, False, False,  True])
    """
    if rule not in get_args(Rule):
        raise MethodError(f"Unknown rule '{rule}'.", nearest(rule, get_args(Rule)))
    count, classes = probabilities.shape
    target = np.ascontiguousarray(target)
    if len(target) != count:
        raise MethodError(f"{count} rows of probabilities for {len(target)} targets.", "Give one row per target.")
    if count and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise MethodError(
            f"Targets from {target.min()} to {target.max()} for {classes} columns of probabilities.",
            "Give class codes from 0 that index the columns.",
        )
    thresholds = class_thresholds(self_confidence(probabilities, target), target, classes)
    guess, disagrees = confident_guess(probabilities, target, thresholds)
    if rule == "confident_learning":
        return (guess >= 0) & (guess != target) & disagrees
    joint = confident_joint(guess, target, classes)
    prune = prune_counts(joint)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy's partition and gathers release the lock
        groups = list(_by_class(target, classes))
        flags = [np.ones(count, dtype=bool)]
        if rule in ("prune_by_class", "both"):
            flags.append(np.zeros(count, dtype=bool))
            for rows in pool.map(lambda group: _lowest_of_class(probabilities, prune, *group), groups):
                flags[-1][rows] = True
        if rule in ("prune_by_noise_rate", "both"):
            flags.append(np.zeros(count, dtype=bool))
            for rows in pool.map(lambda group: _largest_margins(probabilities, prune, disagrees, *group), groups):
                flags[-1][rows] = True
    return cast(np.ndarray, np.logical_and.reduce(flags)) & disagrees


def self_confidence(probabilities: Probabilities, target: Int[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    """Probability of the given label; lower = more likely wrong. Works best for examples that belong to no class at all."""
    return np.concatenate([block[_each(block), labels] for block, labels in _blocks(probabilities, target)])


def normalized_margin(
    probabilities: Probabilities, target: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """Probability of the given label less the largest other, mapped to 0..1; lower = more likely wrong.

    Works best for labels that were confused with another class.
    """
    return np.concatenate([(_margin(block, labels) + 1) / 2 for block, labels in _blocks(probabilities, target)])


def confidence_weighted_entropy(
    probabilities: Probabilities, target: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """log(1 + s) / s with s = normalised entropy / self-confidence; between 0 and 1, lower = more likely wrong."""
    from scipy.special import entr

    parts = []
    for block, labels in _blocks(probabilities, target):
        own = np.maximum(block[_each(block), labels], TOLERANCE)
        score = entr(block).sum(1) / np.log(block.shape[1]) / own
        parts.append(np.log1p(score) / np.maximum(score, TOLERANCE))
    return np.concatenate(parts)


def class_thresholds(
    confidence: Float[np.ndarray, " example"],
    target: Int[np.ndarray, " example"],
    classes: int,
    weights: Float[np.ndarray, " example"] | None = None,
) -> Float[np.ndarray, " class"]:
    """(Weighted) mean self-confidence of the examples of each class; 2 for a class without examples, so that nothing reaches it.

    >>> class_thresholds(np.array([0.5, 0.7, 0.9]), np.array([0, 0, 2]), 3)
    array([0.6, 2. , 0.9])
    """
    counts = np.bincount(target, weights, minlength=classes)
    own = confidence if weights is None else confidence * weights
    means = np.bincount(target, own, minlength=classes) / np.where(counts > 0, counts, 1)
    return np.where(counts > 0, np.maximum(means, 2 * TOLERANCE), 2.0)


def confident_guess(
    probabilities: Probabilities, target: Int[np.ndarray, " example"], thresholds: Float[np.ndarray, " class"]
) -> tuple[Int[np.ndarray, " example"], Bool[np.ndarray, " example"]]:
    """The confident class of each example, and whether the prediction disagrees with the label.

    Returns:
        The class whose threshold is met (the most probable class where several are met; -1 where none is), and whether some
        other class is more probable than the label by more than the tolerance.
    """
    guess = np.empty(len(target), dtype=np.int64)
    disagrees = np.empty(len(target), dtype=bool)
    start = 0
    for block, labels in _blocks(probabilities, target):
        least = (thresholds - TOLERANCE).astype(block.dtype)
        each, top = _each(block), block.argmax(1)
        # Where the most probable class meets its threshold it is the guess; only the other rows must be compared whole.
        found = np.where(block[each, top] >= least[top], top, -1)
        rest = np.flatnonzero(found < 0)
        met = block[rest] >= least
        several = np.count_nonzero(met, axis=1)
        found[rest] = np.select([several == 1, several > 1], [met.argmax(1), top[rest]], -1)
        guess[start : start + len(block)] = found
        own = block[each, labels]
        disagrees[start : start + len(block)] = (top != labels) & (block[each, top] > own + block.dtype.type(TOLERANCE))
        start += len(block)
    return guess, disagrees


def confident_joint(
    guess: Int[np.ndarray, " example"], target: Int[np.ndarray, " example"], classes: int
) -> Int[np.ndarray, "given true"]:
    """Counts of (given label, true label), calibrated so that each row sums to the number of examples with this label."""
    sure = guess >= 0
    joint = np.bincount(target[sure] * classes + guess[sure], minlength=classes**2).reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    counts = np.bincount(target, minlength=classes)
    calibrated = joint / joint.sum(1, keepdims=True) * counts[:, None]
    calibrated *= counts.sum() / max(calibrated.sum(), 1e-100)
    return _round_rows(calibrated)


def prune_counts(joint: Int[np.ndarray, "given true"], keep: int = 1) -> Int[np.ndarray, "true given"]:
    """How many examples to flag for each pair; transposed, and with at least `keep` examples left in each class."""
    prune = joint.T.astype(float)
    diagonal = np.maximum(prune.diagonal(), keep)
    share = (diagonal - prune.diagonal()) / np.maximum(np.count_nonzero(prune, axis=0) - 1.0, 1.0)
    prune = np.maximum(prune - share, 0)
    np.fill_diagonal(prune, diagonal)
    return _round_rows(prune.astype(int))


def _round_rows(counts: Float[np.ndarray, "row column"]) -> Int[np.ndarray, "row column"]:
    """Round to integers so that each row keeps its rounded sum; what is over goes to the entries that rounding moved most."""
    rounded = counts.round()
    missing = (counts.sum(1).round() - rounded.sum(1)).astype(int)
    for row in np.flatnonzero(missing):
        step = int(np.sign(missing[row]))
        moved = np.argsort(counts[row] - rounded[row])[::-step]
        rounded[row, moved[: abs(missing[row])]] += step
    return rounded.astype(np.int64)


def _lowest_of_class(
    probabilities: Probabilities, prune: np.ndarray, label: int, rows: Int[np.ndarray, " member"]
) -> Int[np.ndarray, " flagged"]:
    """The examples of a class with the lowest probability of their label, as many as the joint says are wrong."""
    wrong = len(rows) - int(prune[label, label])
    if len(rows) <= 1 or wrong < 1:
        return rows[:0]
    own = np.concatenate([probabilities[part][:, label] for part in _chunks(rows, probabilities.shape[1])])
    return rows[_smallest(own, wrong)]


def _largest_margins(
    probabilities: Probabilities, prune: np.ndarray, disagrees: np.ndarray, label: int, rows: Int[np.ndarray, " member"]
) -> Int[np.ndarray, " flagged"]:
    """For each true class, the examples of this label with the largest margin over it.

    Only an example that disagrees with its label can be flagged in the end, and all margins above the tolerance belong to such
    examples. So the rest of the class has to be looked at only for true classes of which more examples are to be flagged than
    have such a margin.
    """
    others = np.flatnonzero(prune[:, label] > 0)
    others = others[others != label]
    if len(rows) <= 1 or not len(others):
        return rows[:0]
    suspects = rows[disagrees[rows]]
    block = probabilities[suspects]
    deficit = (block[:, label, None] - block[:, others]).T.copy()  # minus the margin: [true, suspect]
    del block
    wanted = prune[others, label]
    enough = (deficit < -TOLERANCE).sum(1) >= wanted
    flagged = np.zeros(len(suspects), dtype=bool)
    for margin, number in zip(deficit[enough], wanted[enough], strict=True):
        flagged[_smallest(margin, int(number))] = True
    if not enough.all():
        position = np.full(len(rows), -1)
        position[np.flatnonzero(disagrees[rows])] = np.arange(len(suspects))
        short, number = others[~enough], wanted[~enough]
        best = [(np.empty(0, np.float64), np.empty(0, np.int64)) for _ in short]
        start = 0
        for part in _chunks(rows, probabilities.shape[1]):
            block = probabilities[part]
            margins = (block[:, label, None] - block[:, short]).T
            places = np.arange(start, start + len(part))
            start += len(part)
            for pair, margin in enumerate(margins):
                value, place = np.concatenate([best[pair][0], margin]), np.concatenate([best[pair][1], places])
                chosen = _smallest(value, int(number[pair]))
                best[pair] = value[chosen], place[chosen]
        kept = position[np.concatenate([place for _, place in best])]
        flagged[kept[kept >= 0]] = True
    return suspects[flagged]


def _smallest(values: Float[np.ndarray, " item"], number: int) -> Int[np.ndarray, " chosen"]:
    """Indices of the `number` smallest values, in any order."""
    if number >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, number - 1)[:number]


def _margin(
    block: Float[np.ndarray, "example class"], labels: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """Probability of the label less the largest other."""
    each = _each(block)
    others = block.copy()
    others[each, labels] = -np.inf
    return block[each, labels] - others.max(1)


def _each(block: np.ndarray) -> Int[np.ndarray, " row"]:
    return np.arange(len(block))


def _blocks(probabilities: Probabilities, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The probabilities as arrays of consecutive rows, with their targets."""
    size = max(1, BLOCK_NUMBERS // max(1, probabilities.shape[1]))
    for start in range(0, len(target), size):
        yield np.asarray(probabilities[start : start + size]), target[start : start + size]


def _chunks(rows: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_NUMBERS // max(1, classes))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _by_class(target: np.ndarray, classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(label, rows with this label)."""
    order = np.argsort(target, kind="stable")
    ends = np.cumsum(np.bincount(target, minlength=classes))
    return ((label, rows) for label, rows in enumerate(np.split(order, ends[:-1])))
