"""Exact and near duplicates: what is planted is found, what is not is not, and the rules for groups hold."""

from __future__ import annotations

import io
import string
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from imprint.cleaning.duplicates import exact_duplicates, same_content
from imprint.cleaning.flags import Flags, findings_table
from imprint.cleaning.groups import connected
from imprint.cleaning.images import near_duplicate_images, thumbnails
from imprint.cleaning.near import dimension, near_duplicate_arrays, near_duplicate_rows, near_pairs
from imprint.cleaning.neighbours import neighbours
from imprint.cleaning.texts import (
    BANDS,
    HASHES,
    LEAST,
    NEAR,
    candidates,
    distinct,
    jaccard,
    minhash,
    near_duplicate_texts,
    normalised,
    signatures,
)


def rows_of(flags: Flags, suggestion: str | None = None) -> set[int]:
    return {int(row) for row, does in zip(flags.row, flags.suggestion, strict=True) if suggestion in (None, does)}


def numbers(values: list[list[float]]) -> pl.DataFrame:
    return pl.DataFrame({f"x{at}": column for at, column in enumerate(zip(*values, strict=True))})


# Groups


def test_rules_for_groups(corpus_of: Any, run_of: Any) -> None:
    """One group of each sort: a plain copy, a contradiction, a leak, a leak with other targets, a copy within the test split."""
    values = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11]
    target = ["a", "a", "a", "b", "a", "a", "a", "b", "a", "a", *"ababab"]
    train = np.array([1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1], bool)
    corpus = corpus_of(pl.DataFrame({"x": values}), target, {"x": "numeric"}, "table", train)
    flags = exact_duplicates(corpus)
    got = {
        int(row): (kind, does, round(float(severity), 2))
        for row, kind, does, severity in zip(flags.row, flags.kind or (), flags.suggestion, flags.severity, strict=True)
    }
    assert got == {
        1: ("duplicate", "drop", 0.5),
        2: ("duplicate", "review", 0.8),
        3: ("duplicate", "review", 0.8),
        4: ("leak", "drop", 1.0),
        6: ("leak", "drop", 1.0),
        9: ("duplicate", "review", 0.3),
    }
    table = findings_table(flags, "exact-duplicates", "duplicate", run_of(corpus, np.zeros((1, 1, 1))))
    by_id = {row["id"]: row for row in table.iter_rows(named=True)}
    assert by_id["r4"]["evidence"] == "the same inputs as 'r5' in the split 'test'"
    assert by_id["r6"]["evidence"] == "the same inputs as 'r7' in the split 'test', and the targets differ"
    assert by_id["r1"]["related"] == "r0"
    assert {by_id["r2"]["related"], by_id["r3"]["related"]} == {"r2", "r3"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.booleans()), min_size=1, max_size=40))
def test_no_content_is_lost_and_no_leak_stays(corpus_of: Any, rows: list[tuple[int, int, bool]]) -> None:
    """After dropping what is suggested, every content is still there, and none is in both splits."""
    train = np.array([row[2] for row in rows])
    inputs = pl.DataFrame({"text": [str(row[0]) for row in rows]})
    flags = exact_duplicates(corpus_of(inputs, [row[1] for row in rows], {"text": "text"}, "text", train))
    dropped = rows_of(flags, "drop")
    left = [row for at, row in enumerate(rows) if at not in dropped]
    assert {content for content, _, _ in left} == {content for content, _, _ in rows}
    trained = {content for content, _, train in left if train}
    tested = {content for content, _, train in left if not train}
    assert not trained & tested


@given(st.lists(st.integers(0, 20), max_size=60))
def test_same_content(values: list[int]) -> None:
    group = same_content(np.array(values, np.uint64))
    for at, value in enumerate(values):
        others = {other for other, same in enumerate(values) if same == value}
        assert (group[at] >= 0) == (len(others) > 1)
        assert group[at] < 0 or set(np.flatnonzero(group == group[at])) == others


def test_regression_contradicts_by_more_than_a_deviation(corpus_of: Any) -> None:
    inputs = pl.DataFrame({"x": [1, 1, 2, 2, *range(3, 30)]})
    target = [0.0, 0.1, 0.0, 50.5, *np.linspace(0.5, 20.5, 27)]
    flags = exact_duplicates(corpus_of(inputs, target, {"x": "numeric"}, "table"))
    assert rows_of(flags, "drop") == {1}
    assert rows_of(flags, "review") == {2, 3}


def test_a_table_with_few_values_is_one_finding(corpus_of: Any) -> None:
    flags = exact_duplicates(corpus_of(pl.DataFrame({"x": [0, 1] * 50}), ["a", "b"] * 50, {"x": "numeric"}, "table"))
    assert flags.row.tolist() == [-1]
    assert flags.evidence == [
        "only 2 of 100 rows have distinct inputs: the columns hold too few values to tell rows apart"
    ]


def test_connected_components() -> None:
    group = connected(np.array([[5, 1], [1, 7], [2, 3]]), 9)
    assert group[5] == group[1] == group[7] != group[2] == group[3]
    assert set(np.flatnonzero(group < 0)) == {0, 4, 6, 8}


# Texts


def words(rng: np.random.Generator, count: int) -> list[str]:
    return ["".join(rng.choice(list(string.ascii_lowercase), rng.integers(3, 9))) for _ in range(count)]


def test_near_texts(corpus_of: Any) -> None:
    """500 different texts of 30 words; of some a copy with other case and signs, of some with one word changed; and texts
    that share half of their words, which are no copies."""
    rng = np.random.default_rng(0)
    texts = [" ".join(words(rng, 30)) for _ in range(500)]
    reworked = [text.upper().replace(" ", ", ") + "!" for text in texts[:20]]
    edited = [" ".join([*text.split()[:14], "other", *text.split()[15:]]) for text in texts[20:40]]
    related = [" ".join(text.split()[:15] + words(rng, 15)) for text in texts[40:60]]
    everything = [*texts, *reworked, *edited, *related]
    train = np.ones(len(everything), bool)
    train[20:30] = False  # some originals are test rows
    flags = near_duplicate_texts(
        corpus_of(pl.DataFrame({"text": everything}), ["a", "b"] * 280, {"text": "text"}, "text", train)
    )
    assert rows_of(flags) <= set(range(40)) | set(range(500, 540))
    groups = {frozenset((int(row), int(other))) for row, other in zip(flags.row, flags.related, strict=True)}  # type: ignore[arg-type]
    assert groups == {frozenset((at, 500 + at)) for at in range(40)}
    kinds = dict(zip(flags.row.tolist(), flags.kind or (), strict=True))
    assert {row for row, kind in kinds.items() if kind == "leak"} == set(range(520, 530))
    assert set(range(500, 520)) == rows_of(flags, "drop")  # equal but for case and signs: nothing to look at


@given(st.text("abc ", min_size=8, max_size=40), st.text("abc ", min_size=8, max_size=40))
def test_jaccard_is_that_of_the_sets(first: str, second: str) -> None:
    texts = normalised(pl.DataFrame({"t": [first, second]}), ["t"])
    sets = [{text[at : at + 6] for at in range(len(text) - 5)} for text in texts]
    union = sets[0] | sets[1]
    expected = len(sets[0] & sets[1]) / len(union) if union else 0.0
    assert jaccard(texts, np.array([[0, 1]])).item() == pytest.approx(expected)


def pairs_of(similarity: float, count: int, rng: np.random.Generator) -> pl.Series:
    """Pairs of texts, one after the other, of 400 letters at random; as many in front are shared as the similarity asks for."""
    letters = np.frombuffer(string.ascii_lowercase.encode(), np.uint8)
    # Of r runs in each set, c are common: c / (2 r - c) = similarity.
    shared = round(395 * 2 * similarity / (1 + similarity)) + 5
    both = letters[rng.integers(0, 26, (count, 2, 400))]
    both[:, 1, :shared] = both[:, 0, :shared]
    return pl.Series([row.tobytes().decode() for row in both.reshape(-1, 400)])


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
def test_bands_agree_as_often_as_the_formula_says(similarity: float) -> None:
    """A band of 6 hashes is equal with probability s^6, and one of 16 bands with 1 - (1 - s^6)^16, s being the exact similarity of
    each pair. Pairs are independent: four standard errors are allowed for them; bands of a pair are not quite, which the largest
    variance (as if all were one) covers."""
    count = 1500
    texts = pairs_of(similarity, count, np.random.default_rng(0))
    known = np.arange(2 * count).reshape(-1, 2)
    exact = jaccard(texts, known)
    assert exact == pytest.approx(similarity, abs=0.01)
    signed = minhash(texts)
    assert signed.shape == (2 * count, BANDS)
    equal = signed[::2] == signed[1::2]
    band = exact.mean() ** HASHES
    assert abs(equal.mean() - band) < 4 * np.sqrt(band * (1 - band) / count)
    found = {tuple(pair) for pair in candidates(signed).tolist()}
    expected = (1 - (1 - exact**HASHES) ** BANDS).mean()
    share = np.mean([tuple(pair) in found for pair in known.tolist()])
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_copies_above_the_threshold_are_candidates() -> None:
    """A pair at the threshold is missed with probability 0.0003, one at 0.9 with 2e-6: of 3,000 and 1,000, five misses are unlikely
    (1 in 500) and more than eight impossible for practical purposes; the seed is fixed."""
    rng = np.random.default_rng(1)
    for similarity, count, most in ((NEAR + 0.005, 3000, 5), (0.9, 1000, 0)):
        texts = pairs_of(similarity, count, rng)
        known = np.arange(2 * count).reshape(-1, 2)
        assert jaccard(texts, known).min() >= NEAR
        found = {tuple(pair) for pair in candidates(minhash(texts)).tolist()}
        assert sum(tuple(pair) not in found for pair in known.tolist()) <= most


@given(st.lists(st.tuples(*[st.integers(0, 4)] * BANDS), max_size=15))
def test_candidates_join_all_that_share_a_band(rows: list[tuple[int, ...]]) -> None:
    """Texts with an equal band come into one group, whatever the size of the bucket; zeros are never candidates; no pair is
    without a common band."""
    keys = np.array(rows, np.uint64).reshape(-1, BANDS)
    keys[:, 0] = np.where(keys.any(1), keys[:, 0] + 1, 0)  # the first band is 0 where all are
    signed = keys * np.uint64(0x9E3779B97F4A7C15)
    pairs = candidates(signed)
    assert np.all(pairs[:, 0] < pairs[:, 1])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert all((signed[one] == signed[other]).any() for one, other in pairs)
    group = connected(pairs, len(keys))
    for one in range(len(keys)):
        for other in range(one):
            if keys[one].any() and keys[other].any() and (keys[one] == keys[other]).any():
                assert group[one] == group[other] >= 0
        assert keys[one].any() or group[one] < 0


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_distinct(values: list[int]) -> None:
    assert distinct(np.array(values, np.uint64)).tolist() == sorted(set(values))


@given(st.lists(st.text(max_size=30), max_size=5))
def test_only_letters_and_digits_are_compared(texts: list[str]) -> None:
    frame = pl.DataFrame({"t": texts}, schema={"t": pl.String})
    plain = frame["t"].str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars()
    assert normalised(frame, ["t"]).to_list() == plain.to_list()


def test_signatures_in_threads_are_those_of_all_texts(corpus_of: Any) -> None:
    """More texts than one thread takes at once, some of them too short, and empty, at the borders."""
    rng = np.random.default_rng(0)
    texts = [f"{number} {word}" * 6 for number, word in enumerate(words(rng, 4500))]
    texts[2046:2050] = ["", "short", "", "?"]
    frame = pl.DataFrame({"text": texts})
    rows = rng.permutation(4500)
    signed = signatures(corpus_of(frame, ["a"] * 4500, {"text": "text"}, "text"), rows, ["text"])
    assert np.array_equal(signed, minhash(normalised(frame, ["text"]))[rows])
    assert np.flatnonzero(~signed.any(1)).tolist() == np.flatnonzero((rows >= 2046) & (rows < 2050)).tolist()


@pytest.mark.parametrize("length", [LEAST + 4, LEAST + 5])
def test_texts_are_compared_from_twenty_runs_on(length: int) -> None:
    signed = minhash(pl.Series([string.ascii_lowercase[:length]]))
    assert signed.any() == (length - 5 >= LEAST)


def test_texts_without_letters(corpus_of: Any) -> None:
    """Empty texts, signs only and other scripts neither fail nor become copies of each other."""
    texts = ["", "?!", "…", None, "日本語の文章です" * 5, "другой текст " * 5, "a"]
    flags = near_duplicate_texts(corpus_of(pl.DataFrame({"text": texts}), list("ababaab"), {"text": "text"}, "text"))
    assert len(flags) == 0


# Vectors


def test_neighbours_of_the_inverted_file_are_those_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near copies are found by both; of ordinary neighbours the inverted file may miss some at cell borders."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors[:100] = vectors[100:200] + 1e-3
    exact = neighbours(vectors, vectors, 2)[1]
    monkeypatch.setattr("imprint.cleaning.neighbours.EXACT", 1000)
    quick = neighbours(vectors, vectors, 2)[1]
    assert np.array_equal(exact[:200], quick[:200])


@pytest.mark.parametrize("true", [2, 5, 10])
def test_intrinsic_dimension(true: int) -> None:
    """Normal data of that many dimensions, embedded in 20 by a rotation; the estimator is known to be low by some tenths."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(3000, true)) @ np.linalg.qr(rng.normal(size=(20, 20)))[0][:true]
    estimate = dimension(neighbours(flat, flat, 21)[0][:, 1:])
    assert 0.7 * true < estimate < 1.3 * true


@pytest.mark.parametrize("width", [2, 4, 16])
def test_chance_makes_few_candidates(width: int) -> None:
    """Independent points: the rule promises one in 10,000 examples; 5,000 of them may give a handful of pairs."""
    vectors = np.random.default_rng(0).normal(size=(5000, width))
    assert len(near_pairs(vectors)) <= 5


def test_near_rows(corpus_of: Any) -> None:
    """Copies with rounding noise are found; rows on a coarse grid, and copies with another category, are none."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 5))
    values[:10] = values[10:20] + 1e-4
    inputs = numbers(values.tolist()).with_columns(colour=pl.Series(rng.choice(["red", "blue"], 1000)))
    colour = inputs["colour"].to_list()
    colour[:8] = colour[10:18]
    colour[8:10] = ["green", "green"]
    inputs = inputs.with_columns(colour=pl.Series(colour))
    kinds = {**dict.fromkeys(inputs.columns[:5], "numeric"), "colour": "categorical"}
    target = ["a"] * 1000
    flags = near_duplicate_rows(corpus_of(inputs, target, kinds, "table"))
    assert rows_of(flags) == set(range(10, 18))
    grid = pl.DataFrame(rng.integers(0, 5, (1000, 6)), schema=[f"x{at}" for at in range(6)], orient="row")
    assert len(near_duplicate_rows(corpus_of(grid, target, dict.fromkeys(grid.columns, "numeric"), "table"))) == 0


def test_near_arrays(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 12, 12)).astype(np.float32)
    values[:5] = 2 * values[5:10] + 1 + 0.01 * rng.normal(size=(5, 12, 12))
    inputs = pl.DataFrame({"x": pl.Series(values, dtype=pl.Array(pl.Float32, (12, 12)))})
    flags = near_duplicate_arrays(corpus_of(inputs, ["a"] * 400, {"x": "array"}, "array", shape=(12, 12)))
    assert rows_of(flags) == set(range(5, 10))


# Images


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random colour pictures: noise at 6 x 6, enlarged to 48 x 48."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC) for pixels in small]


def test_near_images(corpus_of: Any) -> None:
    """JPEG, smaller, and brighter copies are found; a mirrored one and other pictures are not."""
    pictures = scenes(200)
    copies = [
        encoded(pictures[0], "JPEG", quality=60),
        encoded(pictures[1].resize((30, 30))),
        encoded(ImageEnhance.Brightness(pictures[2]).enhance(0.7)),
        encoded(pictures[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    ]
    images = [*(encoded(picture) for picture in pictures), *copies, b"not an image"]
    train = np.ones(len(images), bool)
    train[0] = False
    corpus = corpus_of(pl.DataFrame({"image": images}), ["a"] * len(images), {"image": "image"}, "image", train)
    found = thumbnails(corpus)
    assert found.width[:3].tolist() == [48, 48, 48]
    assert found.width[-1] == 0
    flags = near_duplicate_images(corpus, found)
    assert rows_of(flags) == {200, 201, 202}
    assert (flags.kind or [])[flags.row.tolist().index(200)] == "leak"
    assert np.all(flags.severity[flags.row != 200] <= 0.5)
