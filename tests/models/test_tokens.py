"""Token codes: which words have one, what a row looks like, and where each of its words stands in the text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint import models
from imprint.errors import ColumnError, LearnerError, RunError
from imprint.models import tokens
from imprint.models.tokens import BUCKETS, EMPTY, FIRST_BUCKET, FIRST_WORD, PADDING, TokenEncoder

from . import fakes


def corpus_of(texts: list[str | None]) -> fakes.FakeCorpus:
    return fakes.FakeCorpus(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}), {"text": "text"}, "text")


def fitted(texts: list[str | None], seed: int = 0) -> TokenEncoder:
    return TokenEncoder(seed).fit(corpus_of(texts), np.arange(len(texts)))


def said(encoder: TokenEncoder, *texts: str | None) -> torch.Tensor:
    return encoder.encode(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}))


@pytest.fixture(scope="module")
def encoder() -> TokenEncoder:
    corpus = fakes.texts()
    return TokenEncoder().fit(corpus, np.arange(280))


def test_the_vocabulary_is_the_words_that_occur_twice_in_training_rows_the_most_frequent_first() -> None:
    texts = [f"common word number{row}" for row in range(120)] + ["common"] * 3 + ["Twice", "twice!"]
    corpus = corpus_of([*texts, *["later"] * 50])
    encoder = TokenEncoder().fit(corpus, np.arange(len(texts)))
    assert encoder.vocabulary == ["common", "word", "twice"]
    assert corpus.seen == set(range(len(texts)))
    assert encoder.shape == (3,)
    rows = said(encoder, "Common twice later", "Later word")
    assert rows[0, :2].tolist() == [FIRST_WORD, FIRST_WORD + 2]
    assert FIRST_BUCKET <= rows[0, 2] == rows[1, 0] < FIRST_WORD  # an unknown word has the same code wherever it stands
    assert encoder.codes == FIRST_WORD + 3


def test_every_word_counts_where_there_are_few_texts() -> None:
    assert fitted(["one two", "two three"]).vocabulary == ["two", "one", "three"]


def test_the_vocabulary_is_bounded() -> None:
    encoder = fitted([" ".join(f"w{word}" for word in range(row * 90, row * 90 + 91)) for row in range(99)])
    assert encoder.codes == tokens.MOST_CODES
    assert int(said(encoder, " ".join(encoder.vocabulary[-5:])).max()) == tokens.MOST_CODES - 1


@pytest.mark.parametrize(("long", "longest", "length"), [(4, 7, 4), (6, 7, 7), (6, 4000, tokens.LONGEST)])
def test_rows_are_as_long_as_19_of_20_training_texts_need_within_the_bound(
    long: int, longest: int, length: int
) -> None:
    """Of 100 texts some are of `longest` words and the rest of four: four of a hundred may be cut, six may not."""
    texts = ["a b c d"] * (100 - long) + ["a " * longest] * long
    assert fitted(texts).shape == (length,)


def test_padding_follows_the_last_word_and_a_text_without_words_has_a_code(encoder: TokenEncoder) -> None:
    rows = said(encoder, "dog sea", None, "", " \t\n ", "dog")
    assert (rows[0] == PADDING).nonzero().flatten().tolist() == list(range(2, encoder.shape[0]))
    assert rows[1:4, 0].tolist() == [EMPTY] * 3
    assert not rows[1:4, 1:].any()
    assert rows.dtype == torch.int64
    assert said(encoder).shape == (0, *encoder.shape)


def test_signs_apostrophes_and_scripts_without_spaces() -> None:
    encoder = fitted(["Don't 东京ab हिन्दी x_1-2?"])
    (spans,) = encoder.spans(pl.DataFrame({"text": ["Don't 东京ab हिन्दी x_1-2?"]}))
    assert [span.word for span in spans] == ["Don't", "东", "京", "ab", "हिन्दी", "x_1", "-", "2", "?"]


@given(st.lists(st.one_of(st.none(), st.text(max_size=60)), min_size=1, max_size=8))
def test_spans_are_the_words_that_codes_are_of(encoder: TokenEncoder, texts: list[str | None]) -> None:
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    codes, spans = encoder.encode(frame), encoder.spans(frame)
    known = {word: FIRST_WORD + place for place, word in enumerate(encoder.vocabulary)}
    for text, row, own in zip(encoder.texts(frame), codes, spans, strict=True):
        assert int((row != PADDING).sum()) == len(own)
        assert [text[span.start : span.end] for span in own] == [span.word for span in own]
        assert all(one.end <= two.start for one, two in pairwise(own))
        between = [text[one.end : two.start] for one, two in pairwise(own)]
        assert not "".join([text[: own[0].start], *between]).strip()
        for code, span in zip(row.tolist(), own, strict=False):
            if span.word:
                assert code == known.get(span.word.lower(), code)
                assert (code >= FIRST_WORD) == (span.word.lower() in known)
            else:
                assert code == EMPTY


@given(st.lists(st.text(max_size=40), min_size=2, max_size=6))
def test_a_row_does_not_depend_on_the_others(encoder: TokenEncoder, texts: list[str]) -> None:
    together = said(encoder, *texts)
    assert torch.equal(together, torch.cat([said(encoder, text) for text in texts]))
    assert torch.equal(together.flip(0), said(encoder, *texts[::-1]))


def test_unknown_words_spread_over_the_buckets(encoder: TokenEncoder) -> None:
    words = [f"unheard{number}" for number in range(4000)]
    # A fair hash leaves a bucket empty with probability exp(-4000 / 256) < 1e-6 each.
    assert said(encoder, *words)[:, 0].unique().tolist() == list(range(FIRST_BUCKET, FIRST_BUCKET + BUCKETS))


def test_saved_as_json_and_loaded_it_encodes_the_same(encoder: TokenEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.json"]
    loaded = models.load_encoder(tmp_path)
    frame = fakes.texts().data
    assert torch.equal(loaded.encode(frame), encoder.encode(frame))
    assert (loaded.shape, loaded.codes, loaded.name) == (encoder.shape, encoder.codes, "tokens")
    spec = json.loads((tmp_path / "encoder.json").read_text())
    del spec["vocabulary"]
    (tmp_path / "encoder.json").write_text(json.dumps(spec))
    with pytest.raises(RunError, match="incomplete"):
        models.load_encoder(tmp_path)


def test_several_columns_are_one_text() -> None:
    data = pl.DataFrame({"title": ["good", None], "body": ["bad film", "film"]})
    corpus = fakes.FakeCorpus(data, {"title": "text", "body": "text"}, "text")
    encoder = TokenEncoder().fit(corpus, np.arange(2))
    assert encoder.texts(data).to_list() == ["good\nbad film", "film"]
    assert [span.word for span in encoder.spans(data)[0]] == ["good", "bad", "film"]
    with pytest.raises(ColumnError, match="'title' is missing"):
        encoder.encode(data.drop("title"))


def test_texts_without_any_word_are_refused() -> None:
    with pytest.raises(LearnerError, match="has a word"):
        fitted(["", None, "  "])
