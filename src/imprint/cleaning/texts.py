"""Near-duplicate texts: MinHash signatures, banded into buckets, verified by the exact Jaccard similarity.

A text is the set of its runs of `SHINGLE` bytes, after lower-casing and with everything but letters and digits read as one space.
The Jaccard similarity of two such sets is the share of runs that they have in common. The probability that a random hash has its
minimum over both sets at the same run equals the Jaccard similarity (Broder 1997), so the minima of many hashes are a
signature of fixed length, and texts with an equal band of the signature are candidates (Leskovec et al. 2020, chapter 3).
Every candidate pair is then read again and compared exactly, so banding decides what is found, never what is flagged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float, Int, UInt32, UInt64

from imprint.cleaning.flags import Flags
from imprint.cleaning.groups import connected, judge_groups
from imprint.methods import method
from imprint.recording.needs import Table

if TYPE_CHECKING:
    from imprint.corpus import Corpus

SHINGLE = 6
# 16 bands of 6 hashes: a pair of similarity 0.85 is a candidate with probability 0.9997, of 0.8 with 0.99, of 0.5 with 0.22.
BANDS, HASHES = 16, 6
# Near duplicates share at least this much of their runs. What that finds and what it leaves: benchmarks/duplicates.py.
NEAR = 0.85
# Texts with fewer runs are too short to tell a near copy from a phrase that people simply say the same way.
LEAST = 20
# Bytes of text that are hashed together: their runs stay in the processor's second cache.
BLOCK_BYTES = 2**17


@method(
    "clean", "near-duplicate-texts", kind="duplicate", modalities=["text"], needs=[Table()],
    higher="as for exact duplicates, times the Jaccard similarity",
    source="MinHash: Broder 1997; banding: Leskovec, Rajaraman, Ullman 2020, ch. 3",
)  # fmt: skip
def near_duplicate_texts(corpus: Corpus) -> Flags:
    """Texts that share at least 85 % of their six-byte runs with another one, but are not equal to it."""
    rows = representatives(corpus)
    columns = [name for name, kind in corpus.kinds.items() if kind == "text"]
    pairs = rows[candidates(signatures(corpus, rows, columns))]
    pairs = pairs[corpus.content[pairs[:, 0]] != corpus.content[pairs[:, 1]]]
    similarity = np.empty(len(pairs))
    for start in range(0, len(pairs), 8192):
        part = pairs[start : start + 8192]
        read, local = np.unique(part, return_inverse=True)
        similarity[start : start + 8192] = jaccard(
            normalised(corpus.read(read, columns), columns), local.reshape(-1, 2)
        )
    return judge_pairs(corpus, pairs, similarity, NEAR)


def signatures(corpus: Corpus, rows: Int[np.ndarray, " row"], columns: list[str]) -> UInt64[np.ndarray, "row band"]:
    """`minhash` of these rows, read in batches and hashed in threads (numpy and polars let go of the interpreter's lock)."""
    parts = [np.empty((0, BANDS), np.uint64)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _, frame in corpus.batches(rows, columns):
            parts += pool.map(lambda some: minhash(normalised(some, columns)), frame.iter_slices(2048))
    return np.concatenate(parts)


def representatives(corpus: Corpus) -> Int[np.ndarray, " row"]:
    """One row of each content in each split: exact copies are found elsewhere, and would only fill the buckets."""
    frame = pl.DataFrame({"row": np.arange(len(corpus)), "content": corpus.content, "split": corpus.split_names})
    return frame.unique(["content", "split"], keep="first", maintain_order=True)["row"].to_numpy()


def judge_pairs(
    corpus: Corpus, pairs: Int[np.ndarray, "pair two"], similarity: Float[np.ndarray, " pair"], least: float
) -> Flags:
    """Flags for the groups that pairs of at least this similarity form."""
    near = similarity >= least
    group = connected(pairs[near], len(corpus))
    closest = np.zeros(len(corpus))
    for side in (0, 1):
        np.maximum.at(closest, pairs[near, side], similarity[near])
    return judge_groups(corpus, group, closest, "nearly the same as")


def normalised(frame: pl.DataFrame, columns: list[str]) -> pl.Series:
    """Texts in lower case, with each run of anything but letters and digits as one space."""
    joined = pl.concat_str([pl.col(name).fill_null("") for name in columns], separator=" ")
    # A single space stays as it is: most of them are, and leaving them alone halves the time.
    spaced = joined.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]{2,}|[^\p{L}\p{N} ]", " ")
    return frame.select(spaced.str.strip_chars()).to_series()


def shingles(texts: pl.Series) -> Iterator[tuple[UInt32[np.ndarray, " run"], Int[np.ndarray, " text"]]]:
    """Hashes of all runs of the texts and the number of runs of each text, in blocks of about `BLOCK_BYTES`.

    The bytes of all texts lie behind each other in the Arrow array, so the runs of a block are shifted views of one buffer.
    """
    array = texts.to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    start = 0
    while start < len(array):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES, side="right")) - 1)
        block = np.concatenate([data[offsets[start] : offsets[stop]], np.zeros(SHINGLE, np.uint8)])
        ends = offsets[start + 1 : stop + 1] - offsets[start]
        lengths = np.diff(ends, prepend=0)
        key = np.zeros(len(block) - SHINGLE, np.uint64)
        for byte in range(SHINGLE):
            key |= block[byte : len(key) + byte].astype(np.uint64) << np.uint64(8 * byte)
        key *= np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
        key *= np.uint64(0xBF58476D1CE4E5B9)
        # A run may not reach over the end of its text.
        remaining = np.repeat(ends, lengths) - np.arange(len(key))
        counts = np.maximum(lengths - SHINGLE + 1, 0)
        yield (key >> np.uint64(32)).astype(np.uint32)[remaining >= SHINGLE], counts
        start = stop


def minhash(texts: pl.Series) -> UInt64[np.ndarray, "text band"]:
    """Signatures of the texts, a key for each band of hashes; a text with fewer than `LEAST` runs has zeros and is never a candidate.

    A hash of the family is the product with an odd number, modulo 2^32, of a run that is mixed already.
    """
    factors = np.random.default_rng(0).integers(0, 2**31, BANDS * HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    parts = [np.empty((0, BANDS), np.uint64)]
    for runs, counts in shingles(texts):
        some = np.flatnonzero(counts)
        keys = np.zeros((len(counts), BANDS), np.uint64)
        if len(some):
            starts = (np.cumsum(counts) - counts)[some]
            scratch = np.empty_like(runs)
            folded = np.zeros((BANDS, len(some)), np.uint64)
            for number, factor in enumerate(factors):
                band = folded[number // HASHES]
                np.multiply(runs, factor, out=scratch)
                band ^= np.minimum.reduceat(scratch, starts)
                band *= np.uint64(0x9E3779B97F4A7C15)
                band ^= band >> np.uint64(32)
            keys[some] = folded.T
        keys[counts < LEAST] = 0
        parts.append(keys)
    return np.concatenate(parts)


def candidates(signatures: UInt64[np.ndarray, "text band"]) -> Int[np.ndarray, "pair two"]:
    """Pairs (smaller, larger) of texts with an equal band: each with the first of its bucket, and with the one before it.

    The lower bits of a key give way to the place of the text, so that plain sorting brings a bucket together, in order; that the
    rest of the key is equal by chance costs one comparison.
    """
    present = np.flatnonzero(signatures.any(1))
    bits = np.uint64(max(1, len(present).bit_length()))
    low = (np.uint64(1) << bits) - np.uint64(1)
    place = np.arange(len(present), dtype=np.uint64)
    found = [np.empty(0, np.uint64)]
    for band in signatures.T:
        key = np.sort(band[present] & ~low | place)
        member = np.flatnonzero((key[1:] ^ key[:-1]) <= low) + 1
        if len(member):
            begins = np.diff(member, prepend=-1) > 1
            first = (member[begins] - 1)[np.cumsum(begins) - 1]
            key &= low
            found += [key[earlier] << np.uint64(32) | key[member] for earlier in (member - 1, first)]
    pairs = distinct(np.concatenate(found))
    return present[np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], 1).astype(np.int64)]


def distinct(values: UInt64[np.ndarray, " value"]) -> UInt64[np.ndarray, " distinct"]:
    """Sorted, each once. Several times as fast here as `np.unique`, which fills a hash table.

    >>> distinct(np.array([3, 1, 3], np.uint64)).tolist()
    [1, 3]
    """
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def jaccard(texts: pl.Series, pairs: Int[np.ndarray, "pair two"]) -> Float[np.ndarray, " pair"]:
    """Exact Jaccard similarity of the run sets of pairs of texts.

    >>> jaccard(pl.Series(["abcdefgh", "abcdefgx", "abcdefgh"]), np.array([[0, 1], [0, 2]])).round(3).tolist()
    [0.5, 1.0]
    """
    sets, sizes = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    for runs, counts in shingles(texts):
        unique = distinct(np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(32) | runs)
        sets.append(unique.astype(np.uint32))
        sizes.append(np.bincount((unique >> np.uint64(32)).astype(np.int64), minlength=len(counts)))
    runs, size = np.concatenate(sets), np.concatenate(sizes)
    starts = np.cumsum(size) - size
    sides = []
    for side in pairs.T:
        count = size[side]
        member = np.arange(count.sum()) + np.repeat(starts[side] - np.cumsum(count) + count, count)
        sides.append(np.repeat(np.arange(len(side), dtype=np.uint64), count) << np.uint64(32) | runs[member])
    both = np.sort(np.concatenate(sides))
    common = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.int64), minlength=len(pairs))
    return common / np.maximum(size[pairs].sum(1) - common, 1)
