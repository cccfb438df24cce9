"""The row hash: equal rows agree, any changed cell shows, and nothing outside the row matters."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.corpus import hashing
from imprint.corpus.hashing import content_ids, digest, hash_cells, hash_rows, hash_series, hex_ids, mix

MASK = (1 << 64) - 1
cells = {
    "number": st.none() | st.floats(width=64, allow_nan=False),
    "count": st.none() | st.integers(-(2**63), 2**63 - 1),
    "flag": st.none() | st.booleans(),
    "word": st.none() | st.text(max_size=60),
    "data": st.none() | st.binary(max_size=40),
    "list": st.none() | st.lists(st.integers(-5, 5), max_size=4),
}
TYPES = {
    "number": pa.float64(),
    "count": pa.int64(),
    "flag": pa.bool_(),
    "word": pa.string(),
    "data": pa.binary(),
    "list": pa.list_(pa.int64()),
}
rows = st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=12)


def columns(table: list[dict]) -> list[tuple[str, pa.Array]]:
    return [(name, pa.array([row[name] for row in table], kind)) for name, kind in TYPES.items()]


def reference_mix(x: int) -> int:
    """splitmix64's finaliser in plain integers."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def reference_bytes(data: bytes) -> int:
    golden = int(hashing.GOLDEN)
    words = [int.from_bytes(data[k : k + 8], "little") for k in range(0, len(data), 8)]
    total = sum(reference_mix(word + (place + 1) * golden & MASK) for place, word in enumerate(words))
    return reference_mix((total + len(data) * golden) & MASK)


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=20))
def test_bytes_follow_the_stated_formula(values: list[bytes]) -> None:
    """Against plain Python integers: the definition holds on every platform and version."""
    expected = [reference_bytes(value) for value in values]
    assert hash_cells(pa.array(values, pa.binary())).tolist() == expected
    assert hash_cells(pa.array(values, pa.large_binary())).tolist() == expected


def test_ids_never_change() -> None:
    """Ids are kept by users between versions of this package: these digits may not change."""
    hashes = hash_rows([("text", pa.array(["a good film", "", None])), ("stars", pa.array([5, -1, None]))])
    assert hex_ids(hashes).to_list() == FROZEN


FROZEN = ["0f0b51878140cb7c", "ee3f30d58140de95", "9491ee2b20886774"]


@given(st.integers(0, MASK))
def test_mix_is_splitmix64(word: int) -> None:
    assert int(mix(np.array([word], dtype=np.uint64))[0]) == reference_mix(word)


@given(rows)
def test_rows_do_not_see_each_other(table: list[dict]) -> None:
    """Hashing rows one by one, in reverse, or sliced out of a longer array gives the same."""
    whole = hash_rows(columns(table))
    assert whole.tolist() == [int(hash_rows(columns([row]))[0]) for row in table]
    assert whole[::-1].tolist() == hash_rows(columns(table[::-1])).tolist()
    padded = columns([table[-1], *table, table[0]])
    assert whole.tolist() == hash_rows([(name, values[1:-1]) for name, values in padded]).tolist()


@given(rows, st.data())
def test_any_changed_cell_shows(table: list[dict], data: st.DataObject) -> None:
    """A chance of 2^-64 per example of being wrong."""
    row = data.draw(st.integers(0, len(table) - 1))
    name = data.draw(st.sampled_from(sorted(TYPES)))
    value = data.draw(cells[name].filter(lambda one: one != table[row][name]))
    changed = [dict(one) for one in table]
    changed[row][name] = value
    before, after = hash_rows(columns(table)), hash_rows(columns(changed))
    assert before[row] != after[row]
    assert np.delete(before, row).tolist() == np.delete(after, row).tolist()


def test_names_and_order_of_columns_matter() -> None:
    a, b = pa.array([1, 2]), pa.array([1, 2])
    first = hash_rows([("a", a), ("b", b)])
    assert (first != hash_rows([("a", a), ("c", b)])).all()
    assert (first != hash_rows([("b", b), ("a", a)])).all()


def test_equal_numbers_agree_whatever_their_type() -> None:
    kinds = [pa.int8(), pa.int64(), pa.uint16(), pa.uint64(), pa.float32(), pa.float64()]
    hashes = {tuple(hash_cells(pa.array([0, 1, 100, None], kind)).tolist()) for kind in kinds}
    assert len(hashes) == 1
    assert hash_cells(pa.array([True, False])).tolist() == hash_cells(pa.array([1, 0])).tolist()
    zeros = hash_cells(pa.array([0.0, -0.0]))
    assert zeros[0] == zeros[1]
    large = hash_cells(pa.array([2**53, 2**53 + 1, 2**53 + 2, -(2**63), 2**63 - 1]))
    assert len(set(large.tolist())) == 5


@pytest.mark.parametrize(
    "pair",
    [
        (pa.array(["a", "b", None]), pa.array(["a", "b", None]).dictionary_encode()),
        (pa.array(["a", "b", None]), pa.array(["a", "b", None], pa.large_string())),
        (
            pa.array(["a", "long enough to lie outside", None]),
            pa.array(["a", "long enough to lie outside", None], pa.string_view()),
        ),
        (pa.array([[1], [], None], pa.list_(pa.int64())), pa.array([[1.0], [], None], pa.large_list(pa.float64()))),
    ],
)
def test_equal_values_agree_whatever_their_layout(pair: tuple[pa.Array, pa.Array]) -> None:
    assert hash_cells(pair[0]).tolist() == hash_cells(pair[1]).tolist()


def test_near_values_differ() -> None:
    texts = [
        "",
        "\0",
        "\0\0",
        "a",
        "a\0",
        "b",
        "ab",
        "ba",
        "abcdefgh",
        "abcdefgh\0",
        "abcdefghabcdefgh",
        "x" * 63,
        "x" * 64,
        "x" * 65,
    ]
    assert len(set(hash_cells(pa.array(texts)).tolist())) == len(texts)
    swapped = pa.array([list(b"abcdefgh12345678"), list(b"12345678abcdefgh")], pa.list_(pa.uint8(), 16))
    assert len(set(hash_cells(swapped).tolist())) == 2
    moments = pa.array([dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 0, 0, 1), None])
    assert len(set(hash_cells(moments).tolist())) == 3


def test_arrays_hash_alike_in_slices_and_with_more_axes() -> None:
    data = np.random.default_rng(0).integers(0, 255, (50, 6, 5), dtype=np.uint8)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), 30)
    nested = pl.Series(data.reshape(-1)).reshape((50, 6, 5)).to_arrow()
    assert hash_cells(flat).tolist() == hash_cells(nested).tolist()
    assert hash_cells(flat[10:20]).tolist() == hash_cells(flat)[10:20].tolist()


def test_long_and_many_strings_are_hashed_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces give what large ones give, also where a string spans several pieces."""
    rng = np.random.default_rng(1)
    texts = ["x" * int(n) for n in rng.integers(0, 300, 200)]
    series = pl.Series(texts)
    whole = hash_series(series)
    monkeypatch.setattr(hashing, "WORDS_AT_ONCE", 7)
    monkeypatch.setattr(hashing, "ROWS_AT_ONCE", 11)
    assert hash_series(series).tolist() == whole.tolist()


def test_no_collisions_in_a_million_close_rows() -> None:
    """Counters are the worst case of a weak mixer; n^2 / 2^65 = 3e-8 of a false alarm."""
    n = 1_000_000
    hashes = hash_rows([("a", pa.array(np.arange(n) % 1000)), ("b", pa.array(np.arange(n) // 1000))])
    assert len(np.unique(hashes)) == n


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.sets(st.sampled_from([f"{k:016x}{s}" for k in range(5) for s in ("", "-1", "-2", "-7")])),
)
def test_content_ids_are_unique_and_avoid_those_taken(codes: list[int], taken: set[str]) -> None:
    ids = content_ids(np.array(codes, dtype=np.uint64), pl.Series(sorted(taken), dtype=pl.String)).to_list()
    assert len(set(ids)) == len(ids)
    assert not set(ids) & taken
    assert [one[:16] for one in ids] == [f"{code:016x}" for code in codes]
    if not taken:  # ordinals count the repeats in their order
        assert ids == [
            f"{code:016x}" + (f"-{k}" if (k := codes[:place].count(code)) else "") for place, code in enumerate(codes)
        ]


def test_digest_of_text_and_bytes_agree() -> None:
    assert digest("ü") == digest("ü".encode())
