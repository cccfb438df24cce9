"""Many byte strings, looked for at once in a stream of bytes.

Every string has an anchor: 6 of its bytes (16 where it is long), at its beginning, its end or between, wherever fewest other strings have
the same ones. The bytes that are searched are turned into the keys of all their places at once; a table of bits tells the few places
whose key may be an anchor's, and only these are compared. So a search costs some nanoseconds a byte, for ten strings as for a million,
and holds one window in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt64

# Shorter strings occur everywhere by chance; so long are the anchors of short and of long strings.
LEAST, SHORT, LONG = 6, 6, 16
# Bytes whose keys are held at a time.
WINDOW = 2**20
MASK = np.uint64((1 << (8 * SHORT)) - 1)
GOLDEN, ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
# Entries of the table for each string: one place in so many is looked at in vain.
SPARSE = 64
# An anchor begins at the beginning of its string, or so many parts of it later.
PARTS = 4
# Bytes that make a word go on.
WORD = np.zeros(256, bool)
WORD[[*b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"]] = True


class Patterns:
    """Byte strings to look for.

    Args:
        values: The strings, at least 6 bytes each, none of them twice.
        whole: Which of them count only as words of their own: with no letter, digit, `_` or `-` before or after.

    >>> sought = Patterns([b"u-1832", b"u-2210"])
    >>> sorted(sought.found([b"asked by u-18", b"32 and others"]))
    [0]
    """

    def __init__(self, values: Sequence[bytes], whole: Sequence[bool] | None = None) -> None:
        self.values = list(values)
        self.whole = np.zeros(len(values), bool) if whole is None else np.asarray(whole, bool)
        self.longest = max(map(len, values), default=0)
        self.lengths = np.array([len(one) for one in values], np.int64)
        short = self.lengths < LONG
        self.anchors = [
            one
            for size, which in ((SHORT, short), (LONG, ~short))
            if (one := _anchors(self.values, np.flatnonzero(which), size)) is not None
        ]
        self.first = np.array([int.from_bytes(one[:SHORT], "little") for one in values], np.uint64)
        self.last = np.array([int.from_bytes(one[-SHORT:], "little") for one in values], np.uint64)

    def __len__(self) -> int:
        return len(self.values)

    def found(self, chunks: Iterable[bytes], skip: set[int] | frozenset[int] = frozenset()) -> set[int]:
        """Numbers of the strings that occur in a stream, also where they go over from one chunk to the next.

        Args:
            chunks: The stream.
            skip: Strings that need not be found.
        """
        found: set[int] = set()
        seen = np.zeros(len(self), bool)
        seen[list(skip)] = True
        tail, before = b"", 0
        if not self.values:
            return found
        for chunk in chunks:
            window = tail + chunk
            for begin in range(0, len(window), WINDOW):
                # Longer than a window by what a string may reach beyond it, to the left as to the right.
                start = max(0, begin - self.longest)
                found |= self._within(window[start : begin + WINDOW + self.longest], seen, not (before or start), False)
            tail = window[-self.longest - 1 :]
            before += len(window) - len(tail)
        return found | self._within(tail, seen, not before, True)

    def _within(self, data: bytes, seen: Bool[np.ndarray, " string"], opens: bool, closes: bool) -> set[int]:
        """Numbers of strings in these bytes that were not seen before; they are noted as seen.

        Args:
            data: Some of the stream.
            seen: Strings that need not be found.
            opens: Whether the stream begins here; else what stands before the first byte is not known.
            closes: Whether it ends here.
        """
        found: set[int] = set()
        if len(data) < LEAST:
            return found
        padded = np.frombuffer(data + bytes(LONG), np.uint8)
        words = np.ndarray((len(data),), "<u8", padded.data, strides=(1,))
        for anchors in self.anchors:
            places, strings = anchors.candidates(words, len(data))
            kept = ~seen[strings]
            starts, strings = (places - anchors.offset[strings])[kept], strings[kept]
            ends = starts + self.lengths[strings]
            kept = (starts >= 0) & (ends <= len(data))
            starts, ends, strings = starts[kept], ends[kept], strings[kept]
            kept = (words[starts] & MASK == self.first[strings]) & (words[ends - SHORT] & MASK == self.last[strings])
            goes_on = _word(padded, starts - 1, len(data), not opens) | _word(padded, ends, len(data), not closes)
            kept &= ~(self.whole[strings] & goes_on)
            for start, number in zip(starts[kept].tolist(), strings[kept].tolist(), strict=True):
                if not seen[number] and data.startswith(self.values[number], start):
                    seen[number] = True
                    found.add(number)
        return found


class _Anchors:
    """Anchors of strings of one size, and the table that tells where one may be."""

    def __init__(
        self, size: int, keys: UInt64[np.ndarray, " anchor"], strings: Int64[np.ndarray, " anchor"], offset: np.ndarray
    ) -> None:
        order = np.argsort(keys)
        self.size, self.keys, self.strings, self.offset = size, keys[order], strings[order], offset
        bits = int(np.clip(np.ceil(np.log2(SPARSE * len(keys))), 16, 27))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[_place(self.keys, self.shift)] = True

    def candidates(
        self, words: UInt64[np.ndarray, " place"], count: int
    ) -> tuple[Int64[np.ndarray, " hit"], Int64[np.ndarray, " hit"]]:
        """Places where an anchor stands, and the string that it is of."""
        count = count - self.size + 1
        if count <= 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys = _keys(words, count, self.size)
        hits = np.flatnonzero(self.table[_place(keys, self.shift)])
        keys = keys[hits]
        low = np.searchsorted(self.keys, keys, "left")
        many = np.searchsorted(self.keys, keys, "right") - low
        places = np.repeat(hits, many)
        within = np.arange(len(places)) - np.repeat(np.cumsum(many) - many, many)
        return places, self.strings[np.repeat(low, many) + within]


def _anchors(values: Sequence[bytes], which: Int64[np.ndarray, " string"], size: int) -> _Anchors | None:
    """The anchors of some of the strings: of a few places of each, the one whose key the fewest others have."""
    if not len(which):
        return None
    lengths = np.array([len(values[number]) for number in which.tolist()], np.int64)
    offsets = np.stack([(lengths - size) * part // PARTS for part in range(PARTS + 1)])
    keys = np.stack(
        [
            _keyed(
                [values[number][at : at + size] for number, at in zip(which.tolist(), row.tolist(), strict=True)], size
            )
            for row in offsets
        ]
    )
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    best = counts[place.reshape(keys.shape)].argmin(0)
    each = np.arange(len(which))
    offset = np.zeros(len(values), np.int64)
    offset[which] = offsets[best, each]
    return _Anchors(size, keys[best, each], which.astype(np.int64), offset)


def _keyed(parts: Sequence[bytes], size: int) -> UInt64[np.ndarray, " part"]:
    """Keys of byte strings of one size."""
    joined = np.frombuffer(b"".join(one + bytes(LONG) for one in parts) + bytes(LONG), np.uint8)
    words = np.ndarray((len(joined) - LONG,), "<u8", joined.data, strides=(1,))
    return _keys(words, len(words) - LONG, size)[:: size + LONG]


def _keys(words: UInt64[np.ndarray, " place"], count: int, size: int) -> UInt64[np.ndarray, " place"]:
    """The key of each of the first places: its bytes, or a hash of them."""
    if size == SHORT:
        return words[:count] & MASK
    with np.errstate(over="ignore"):
        return (words[:count] * GOLDEN) ^ (words[8 : count + 8] * ODD)


def _place(keys: UInt64[np.ndarray, " key"], shift: np.uint64) -> UInt64[np.ndarray, " key"]:
    """Where a key stands in the table."""
    with np.errstate(over="ignore"):
        mixed = keys ^ (keys >> np.uint64(29))
        mixed *= ODD
        return mixed >> shift


def _word(data: np.ndarray, places: Int64[np.ndarray, " hit"], count: int, beyond: bool) -> Bool[np.ndarray, " hit"]:
    """Whether a byte that makes a word go on stands at each of these places; `beyond` is the answer outside of what is known."""
    there = (places >= 0) & (places < count)
    return np.where(there, WORD[data[np.clip(places, 0, count - 1)]], beyond)
