"""Content hashes: 64 bits per row, vectorised, the same on every platform, version and chunk size.

Ids and exact-duplicate search hang on these hashes, so they may not depend on a library's internal hash. A cell becomes 64
bits (numbers: their float64 bits, so that 1, 1.0 and True are equal; strings and bytes: the sum over their 8-byte words of a
mixed word-and-place, then mixed with the length); a row is the mixed sum over its columns, each mixed with a seed that
follows from the column's place and name. The mixer is splitmix64's finaliser (Steele, Lea, Flood 2014), a bijection in
which every input bit changes every output bit with a chance near one half.

Odds: two different rows agree with a chance of 2^-64, so among n rows some pair agrees wrongly with a chance of about
n^2 / 2^65: 3e-8 for a million rows, 3e-4 for a hundred million. The hash is not cryptographic: who chooses the rows can
make two of them agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

U64 = np.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)
NULL = U64(0xD6E8FEB86659FD93)
NAN = U64(0x7FF8000000000000)
# Masks that keep the first 0..8 bytes of a little-endian word.
FIRST_BYTES = np.array([(1 << (8 * k)) - 1 for k in range(9)], dtype=U64)
# Words hashed at a time: bounds the working memory to about 16 MiB, however long a string is.
WORDS_AT_ONCE = 1 << 18
# Rows hashed at a time, so that the working arrays stay in cache.
ROWS_AT_ONCE = 1 << 16
# Every integer up to here has its own float64.
EXACT_INTEGERS = 1 << 53


def mix(words: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, element by element. The argument is overwritten and returned."""
    with np.errstate(over="ignore"):
        for start in range(0, len(words), ROWS_AT_ONCE):
            part = words[start : start + ROWS_AT_ONCE]
            part ^= part >> U64(30)
            part *= U64(0xBF58476D1CE4E5B9)
            part ^= part >> U64(27)
            part *= U64(0x94D049BB133111EB)
            part ^= part >> U64(31)
    return words


def digest(data: bytes | str) -> int:
    """64 bits of BLAKE2b, for names, whole files and encoded images.

    >>> digest("label") == digest(b"label")
    True
    """
    data = data.encode() if isinstance(data, str) else data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_rows(columns: Sequence[tuple[str, pa.Array]]) -> np.ndarray:
    """Hash of each row over all its columns.

    Args:
        columns: (name, values) in the order of the corpus' inputs; all of one length.

    Returns:
        [row] uint64. Depends on names and order of the columns, and on nothing outside the row.

    >>> one = hash_rows([("a", pa.array([1, 2])), ("b", pa.array(["x", None]))])
    >>> two = hash_rows([("a", pa.array([2.0])), ("b", pa.array([None], pa.string()))])
    >>> bool(one[1] == two[0])
    True
    """
    seeds = [U64(digest(f"{place}\x1f{name}")) for place, (name, _) in enumerate(columns)]
    length = len(columns[0][1]) if columns else 0
    hashes = np.zeros(length, dtype=U64)
    for start in range(0, length, ROWS_AT_ONCE):
        total = hashes[start : start + ROWS_AT_ONCE]
        for seed, (_, values) in zip(seeds, columns, strict=True):
            total += mix(hash_cells(values[start : start + ROWS_AT_ONCE]) ^ seed)
        mix(total)
    return hashes


def hash_series(series: pl.Series) -> np.ndarray:
    """[row] uint64 of one column by itself (ids, targets, split names)."""
    hashes = np.empty(len(series), U64)
    for start in range(0, len(series), ROWS_AT_ONCE):
        hashes[start : start + ROWS_AT_ONCE] = mix(hash_cells(series.slice(start, ROWS_AT_ONCE).to_arrow()))
    return hashes


def hash_cells(values: pa.Array) -> np.ndarray:
    """64 bits per cell; equal values give equal bits whatever their numeric type. A fresh array that the caller may change."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type
    if pa.types.is_dictionary(kind):
        return hash_cells(values.dictionary_decode())
    if pa.types.is_null(kind):
        return np.full(len(values), NULL)
    if pa.types.is_floating(kind):
        cells = _float_bits(_raw(values, _number_type(kind)).astype(np.float64))
    elif pa.types.is_boolean(kind):
        cells = _float_bits(_flags(values).astype(np.float64))
    elif pa.types.is_integer(kind):
        cells = _integer_bits(_raw(values, _number_type(kind)))
    elif pa.types.is_temporal(kind):
        cells = _raw(values, np.dtype(f"i{kind.bit_width // 8}")).astype(np.int64).view(U64).copy()
    elif _is_text(kind):
        cells = _bytes(values)
    elif pa.types.is_fixed_size_list(kind):
        cells = _fixed_lists(values)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = np.asarray(values.offsets).astype(np.int64)
        items = mix(hash_cells(values.values[offsets[0] : offsets[-1]]))
        cells = _sum_places(offsets - offsets[0], items)
    elif pa.types.is_struct(kind):
        cells = hash_rows([(kind.field(k).name, values.field(k)) for k in range(kind.num_fields)])
    else:
        raise TypeError(f"no content hash for Arrow type {kind}")
    if values.null_count:
        cells[_flags(values.is_null()).astype(bool)] = NULL
    return cells


def hex_ids(hashes: np.ndarray) -> pl.Series:
    """[row] str: each hash as 16 hexadecimal digits.

    >>> hex_ids(np.array([255, 1 << 60], dtype=np.uint64)).to_list()
    ['00000000000000ff', '1000000000000000']
    """
    digits = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype=np.uint16)
    offsets = np.arange(0, 16 * ROWS_AT_ONCE + 1, 16, dtype=np.int64)
    pieces = []
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        text = digits[hashes[start : start + ROWS_AT_ONCE].astype(">u8").view(np.uint8)]
        pieces.append(pa.LargeStringArray.from_buffers(len(text) // 8, pa.py_buffer(offsets), pa.py_buffer(text)))
    return pl.Series("id", pl.from_arrow(pa.chunked_array(pieces, pa.large_string())), dtype=pl.String)


def content_ids(hashes: np.ndarray, taken: pl.Series | None = None) -> pl.Series:
    """Ids of rows without a key: the hash, and "-1", "-2", ... for its repeats in their order; skips ids that are taken.

    >>> content_ids(np.array([7, 9, 7], dtype=np.uint64)).to_list()
    ['0000000000000007', '0000000000000009', '0000000000000007-1']
    """
    repeats = _repeats(hashes)
    ids = hex_ids(hashes)
    if taken is not None and len(taken):
        stem = taken.str.slice(0, 16)
        taken = taken.filter(stem.is_in(ids.unique().implode()))
    if not repeats and (taken is None or not len(taken)):
        return ids
    used = set(taken.to_list()) if taken is not None else set()
    table = pl.DataFrame({"id": ids}).with_columns(pl.int_range(pl.len()).over("id").alias("ordinal"))
    if used:
        table = _skip_taken(table, used)
    suffix = pl.when(pl.col("ordinal") > 0).then(pl.format("-{}", "ordinal")).otherwise(pl.lit(""))
    return table.select((pl.col("id") + suffix).alias("id"))["id"]


def fingerprint(seeds: Sequence[str], columns: Sequence[np.ndarray | pl.Series]) -> str:
    """16 hexadecimal digits over columns (values, or their hashes if they are at hand), in row order."""
    state = hashlib.blake2b(digest_size=8)
    for seed in seeds:
        state.update(seed.encode() + b"\x1f")
    places = [U64(digest(str(place))) for place in range(len(columns))]
    for start in range(0, len(columns[0]), ROWS_AT_ONCE):
        pieces = [column[start : start + ROWS_AT_ONCE] for column in columns]
        hashes = [hash_series(piece) if isinstance(piece, pl.Series) else piece for piece in pieces]
        mixed = [mix(piece ^ place) for piece, place in zip(hashes, places, strict=True)]
        state.update(np.sum(mixed, axis=0, dtype=U64).astype("<u8").tobytes())
    return state.hexdigest()


def _repeats(hashes: np.ndarray) -> bool:
    ordered = np.sort(hashes)
    return bool((ordered[1:] == ordered[:-1]).any())


def _skip_taken(table: pl.DataFrame, used: set[str]) -> pl.DataFrame:
    """Give the repeats of each hash the smallest ordinals that no existing id has. Only hashes that clash are looped over."""
    stems = {one[:16] for one in used}
    free: dict[str, list[int]] = {}
    for stem, count in table.filter(pl.col("id").is_in(list(stems))).group_by("id").len().iter_rows():
        ordinals: list[int] = []
        candidate = 0
        while len(ordinals) < count:
            if (f"{stem}-{candidate}" if candidate else stem) not in used:
                ordinals.append(candidate)
            candidate += 1
        free[stem] = ordinals
    mapping = pl.DataFrame(
        [(stem, k, chosen) for stem, chosen_all in free.items() for k, chosen in enumerate(chosen_all)],
        schema={"id": pl.String, "ordinal": pl.Int64, "chosen": pl.Int64},
        orient="row",
    )
    joined = table.join(mapping, on=["id", "ordinal"], how="left", maintain_order="left")
    return joined.select("id", pl.coalesce("chosen", "ordinal").alias("ordinal"))


def _is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )  # fmt: skip


def _raw(values: pa.Array, dtype: np.dtype) -> np.ndarray:
    """The values' buffer as numpy, nulls included (as whatever stands there)."""
    buffer = values.buffers()[1]
    if buffer is None:
        return np.zeros(len(values), dtype)
    return np.frombuffer(buffer, dtype=dtype)[values.offset : values.offset + len(values)]


def _flags(values: pa.Array) -> np.ndarray:
    """Booleans as 0 and 1 (nulls as whatever stands there)."""
    return _raw(values.cast(pa.uint8()), np.dtype(np.uint8))


def _number_type(kind: pa.DataType) -> np.dtype:
    """numpy's type of an Arrow number."""
    letter = "f" if pa.types.is_floating(kind) else "i" if pa.types.is_signed_integer(kind) else "u"
    return np.dtype(f"{letter}{kind.bit_width // 8}")


def _float_bits(values: np.ndarray) -> np.ndarray:
    """Bits of a fresh float64 array with one zero and one NaN."""
    values += 0.0  # -0.0 becomes 0.0
    bits = values.view(U64)
    bits[np.isnan(values)] = NAN
    return bits


def _integer_bits(values: np.ndarray) -> np.ndarray:
    """Float64 bits where they are exact, else the integer's own bits."""
    bits = values.astype(np.float64).view(U64)
    if values.dtype.itemsize == 8 and len(values):
        large = (values > EXACT_INTEGERS) | (values < -EXACT_INTEGERS if values.dtype.kind == "i" else False)
        if large.any():
            bits[large] = values[large].astype(np.int64).view(U64)
    return bits


def _bytes(values: pa.Array) -> np.ndarray:
    """Strings and binaries: the sum over 8-byte words of mix(word + place), mixed with the length."""
    if pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.large_binary())
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        values = values.cast(pa.large_string() if pa.types.is_string_view(values.type) else pa.large_binary())
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    _, offset_buffer, data_buffer = values.buffers()
    if not len(values) or offset_buffer is None:
        return np.zeros(len(values), U64)
    offsets = np.frombuffer(offset_buffer, dtype=np.int64 if wide else np.int32)
    offsets = offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)
    used = int(offsets[-1] - offsets[0])
    data = np.zeros(used + 8, dtype=np.uint8)  # eight bytes more, so that the last word can be read whole
    if used:
        data[:used] = np.frombuffer(data_buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    # A word begins at any byte: an overlapping view, little-endian on every machine.
    words_at = np.ndarray(shape=(used + 1,), dtype="<u8", buffer=data, strides=(1,))
    if int(lengths.max()) <= 8:
        words = words_at[starts].astype(U64) & FIRST_BYTES[lengths]
        total = mix(words + GOLDEN)
        total[lengths == 0] = 0
    else:
        total = _sum_words(words_at, starts, lengths)
    with np.errstate(over="ignore"):
        return mix(total + lengths.astype(U64) * GOLDEN)


def _sum_words(words_at: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[cell] sum of the mixed words of each cell, a bounded number of words at a time."""
    total = np.zeros(len(starts), dtype=U64)
    last = np.cumsum((lengths + 7) >> 3)  # one past the last word of each cell, counted over all cells
    first = last - ((lengths + 7) >> 3)
    with np.errstate(over="ignore"):
        for low in range(0, int(last[-1]), WORDS_AT_ONCE):
            high = min(low + WORDS_AT_ONCE, int(last[-1]))
            cells = slice(int(np.searchsorted(last, low, "right")), int(np.searchsorted(first, high, "left")))
            begin = np.maximum(first[cells], low)
            counts = np.minimum(last[cells], high) - begin
            word = np.arange(low, high)
            words = words_at[np.repeat(starts[cells] - 8 * first[cells], counts) + 8 * word].astype(U64)
            # The last word of a cell holds 1 to 8 bytes of it.
            ends = (last[cells] <= high) & (counts > 0)
            words[last[cells][ends] - 1 - low] &= FIRST_BYTES[((lengths[cells][ends] - 1) & 7) + 1]
            words += (word + 1).astype(U64) * GOLDEN
            words -= np.repeat(first[cells].astype(U64) * GOLDEN, counts)
            total[cells] += _segment_sums(mix(words), begin - low, counts)
    return total


def _segment_sums(values: np.ndarray, begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[segment] sums of consecutive runs of `values`; an empty run sums to zero."""
    sums = np.zeros(len(begin), dtype=U64)
    filled = counts > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, begin[filled])
    return sums


def _sum_places(offsets: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[list] hash of lists from their items' hashes: place matters, and so does the length."""
    counts = np.diff(offsets)
    place = np.arange(len(items)) - np.repeat(offsets[:-1], counts)
    with np.errstate(over="ignore"):
        sums = _segment_sums(mix(items + (place + 1).astype(U64) * GOLDEN), offsets[:-1], counts)
        return mix(sums + counts.astype(U64) * GOLDEN)


def _fixed_lists(values: pa.Array) -> np.ndarray:
    """Arrays of one shape: their raw bytes as words where they are numbers, so float32 and float64 differ."""
    width = values.type.list_size
    flat = values.values[values.offset * width : (values.offset + len(values)) * width]
    while pa.types.is_fixed_size_list(flat.type):
        inner = flat.type.list_size
        flat = flat.values[flat.offset * inner : (flat.offset + len(flat)) * inner]
    if not len(values):
        return np.zeros(0, U64)
    if flat.null_count or not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        offsets = np.arange(len(values) + 1, dtype=np.int64) * (len(flat) // len(values))
        return _sum_places(offsets, mix(hash_cells(flat)))
    raw = _raw(flat, _number_type(flat.type))
    data = np.ascontiguousarray(raw.astype(raw.dtype.newbyteorder("<"), copy=False)).view(np.uint8)
    data = data.reshape(len(values), -1)
    length = data.shape[1]
    count = (length + 7) >> 3
    hashes = np.empty(len(values), dtype=U64)
    rows = max(1, WORDS_AT_ONCE // max(count, 1))
    with np.errstate(over="ignore"):
        places = np.arange(1, count + 1, dtype=U64) * GOLDEN
        for start in range(0, len(values), rows):
            block = data[start : start + rows]
            words = np.zeros((len(block), count * 8), dtype=np.uint8)
            words[:, :length] = block
            hashes[start : start + rows] = mix(words.view("<u8").astype(U64) + places).sum(1, dtype=U64)
        return mix(hashes + U64(length) * GOLDEN)
