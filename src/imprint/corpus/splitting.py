"""Seeded splits: stratified by class, whole groups on one side, decided by a hash of the id and the seed.

Within a class of m rows every split gets its share m * fraction rounded down or up; who rounds up varies from class to class
along a golden-ratio sequence, so that many small classes together still come out at the fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import polars as pl

from imprint.corpus.hashing import U64, digest, hash_series, mix
from imprint.errors import ColumnError

DEFAULT = {"train": 0.8, "test": 0.2}
# An integer target with more distinct values than this is taken for a quantity (as in `imprint.tasks.infer`).
MOST_INTEGER_CLASSES = 100
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def check(fractions: Mapping[str, float]) -> dict[str, float]:
    """The fractions, if they are ones: positive, adding up to 1, with a "train" among them.

    >>> check({"train": 0.7, "test": 0.3})
    {'train': 0.7, 'test': 0.3}
    """
    wrong = not fractions or any(
        not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1
        for share in fractions.values()
    )
    if (
        wrong
        or not all(isinstance(name, str) and name for name in fractions)
        or abs(sum(fractions.values()) - 1) > 1e-6
    ):
        raise ColumnError(
            f"split={dict(fractions)!r} is no set of fractions that add up to 1.",
            'Give for instance split={"train": 0.8, "test": 0.2}.',
        )
    if "train" not in fractions:
        raise ColumnError(f"split={dict(fractions)!r} has no 'train'.", "Call the split to train on 'train'.")
    return {name: float(share) for name, share in fractions.items()}


def assign(
    ids: pl.Series,
    fractions: Mapping[str, float],
    seed: int,
    strata: pl.Series | None = None,
    groups: pl.Series | None = None,
    keys: np.ndarray | None = None,
) -> pl.Series:
    """The split of each row.

    Args:
        ids: [row] unique.
        fractions: Split name -> share; they add up to 1.
        seed: Another seed gives another split.
        strata: [row] classes whose shares are kept in every split; a class with one row goes to "train".
        groups: [row] rows of one group go to one split.
        keys: [row] `hash_series(ids)`, if it is at hand.

    Returns:
        [row] split names, as an Enum of all of them. The same ids, strata and seed give the same split, in whatever order the rows stand.

    >>> ids = pl.Series([f"r{k}" for k in range(10)])
    >>> assign(ids, {"train": 0.8, "test": 0.2}, seed=0).value_counts(sort=True).rows()
    [('train', 8), ('test', 2)]
    """
    names = pl.Series("split", list(fractions), dtype=pl.Enum(list(fractions)))
    if groups is not None:
        codes = _by_groups(groups, list(fractions), np.array(list(fractions.values())), seed, strata)
    else:
        stratum = np.zeros(len(ids), np.int32) if strata is None else _codes(strata)
        hashes = hash_series(ids) if keys is None else keys
        order = _order(stratum, mix(hashes ^ U64(digest(f"split {seed}"))))
        counts = np.bincount(stratum)
        sizes = quotas(counts, np.array(list(fractions.values())), seed)
        if strata is not None and "train" in fractions:
            train = list(fractions).index("train")
            sizes[counts == 1] = np.arange(len(fractions)) == train
        codes = np.empty(len(ids), np.int16)
        codes[order] = np.repeat(np.tile(np.arange(len(fractions), dtype=np.int16), len(counts)), sizes.reshape(-1))
    return names.gather(codes)


def strata_of(target: pl.Series, task: str) -> pl.Series | None:
    """The classes to stratify by, or None where the target is a quantity or a list of labels."""
    if task not in ("auto", "classification") or target.dtype == pl.List:
        return None
    if task == "auto" and target.dtype.is_numeric():
        fractional = target.dtype.is_float() and bool((target != target.floor()).any())
        if fractional or target.n_unique() > MOST_INTEGER_CLASSES:
            return None
    return target


def quotas(counts: np.ndarray, fractions: np.ndarray, seed: int) -> np.ndarray:
    """[stratum, split] rows: each is its quota rounded down or up, each stratum's add up to its size."""
    share = np.round(counts[:, None] * fractions[None, :], 9)
    base = np.floor(share).astype(np.int64)
    # The remainders of a stratum add up to a whole number of rows; a comb with unit teeth, shifted by a different amount in
    # each stratum, hits every remainder at most once and that many in all.
    reach = np.cumsum(share - base, axis=1)
    reach[:, -1] = np.round(reach[:, -1])
    start = (digest(f"quota {seed}") % 10**6) / 10**6
    shift = (start + GOLDEN_RATIO * np.arange(1, len(counts) + 1)) % 1.0
    teeth = np.ceil(reach - shift[:, None]).clip(min=0).astype(np.int64)
    return base + np.diff(teeth, axis=1, prepend=0)


def _codes(values: pl.Series) -> np.ndarray:
    """Codes 0..k-1 in the values' sorted order, so that they do not depend on the order of the rows."""
    text = values.cast(pl.String)
    known = text.unique().sort()
    return text.cast(pl.Enum(known)).to_physical().to_numpy()


def _order(stratum: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rows by stratum, then by key. Overwrites the key, which loses as many of its low bits as there are bits in the stratum."""
    bits = int(stratum.max(initial=0)).bit_length()
    if bits:
        key >>= U64(bits)
        key |= stratum.astype(U64) << U64(64 - bits)
    return np.argsort(
        key
    )  # keys are hashes and as good as never equal; the vectorised sort is several times faster than a stable one


def _by_groups(
    groups: pl.Series, names: list[str], fractions: np.ndarray, seed: int, strata: pl.Series | None
) -> np.ndarray:
    """[row] split codes: groups in hashed order within their commonest class, cut where the rows reach the fractions."""
    group = _codes(groups)
    size = np.bincount(group)
    if len(size) < len(names):
        raise ColumnError(
            f"Column '{groups.name}' holds {len(size)} group{'s' if len(size) != 1 else ''}, too few for the splits {', '.join(names)}.",
            "Choose another group column, or fewer splits.",
        )
    first = pl.DataFrame({"group": group, "name": groups.cast(pl.String)}).unique("group").sort("group")["name"]
    key = mix(hash_series(first) ^ U64(digest(f"split {seed}")))
    stratum = np.zeros(len(size), np.int64)
    if strata is not None:
        table = pl.DataFrame({"group": group, "class": _codes(strata)}).group_by("group", "class").len()
        stratum = (
            table.sort("group", "len", "class", descending=[False, True, False])
            .unique("group", keep="first", maintain_order=True)["class"]
            .to_numpy()
        )
    codes = _cut(stratum, key, size, fractions)
    if len(np.unique(codes)) < len(names) and strata is not None:
        codes = _cut(np.zeros_like(stratum), key, size, fractions)
    if len(np.unique(codes)) < len(names):  # one group outweighs all others: by number of groups instead
        codes = _cut(np.zeros_like(stratum), key, np.ones_like(size), fractions)
    if len(np.unique(codes)) < len(
        names
    ):  # fewer groups than the fractions ask for: one for each small split, the rest to the largest
        codes = np.full(len(size), int(np.argmax(fractions)))
        small = [k for k in range(len(names)) if k != int(np.argmax(fractions))]
        codes[np.argsort(key, kind="stable")[: len(small)]] = small
    return codes[group]


def _cut(stratum: np.ndarray, key: np.ndarray, size: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """[group] split codes: the split in whose stretch of the stratum's rows the middle of the group lies."""
    order = _order(stratum, key)
    rows = size[order].astype(np.float64)
    total = np.bincount(stratum, weights=size)
    begin = np.concatenate([[0.0], np.cumsum(total)[:-1]])
    middle = (np.cumsum(rows) - rows / 2 - begin[stratum[order]]) / total[stratum[order]]
    codes = np.empty(len(size), np.int64)
    codes[order] = np.searchsorted(np.cumsum(fractions)[:-1], middle, side="right")
    return codes
