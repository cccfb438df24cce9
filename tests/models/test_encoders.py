"""What every encoder owes: the same encoding after saving, whatever the batch, whoever runs it, from training rows only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint import models
from imprint.errors import LearnerError, RunError
from imprint.models.encoder import sample_rows

from . import fakes

RNG = np.random.default_rng(1)
CORPORA: dict[str, Callable[[], fakes.FakeCorpus]] = {
    "table": fakes.table,
    "text": fakes.texts,
    "image": fakes.images,
    "grey image": lambda: fakes.images(grey=True),
    "vectors": lambda: fakes.arrays(RNG.normal(3, 5, (60, 6))),
    "uint8 planes": lambda: fakes.arrays(RNG.integers(0, 256, (60, 9, 8), dtype=np.uint8)),
    "uint8 pictures": lambda: fakes.arrays(RNG.integers(0, 256, (60, 9, 8, 3), dtype=np.uint8)),
    "float pictures": lambda: fakes.arrays(RNG.normal(0, 1, (60, 3, 9, 8)).astype(np.float32)),
}
every_corpus = pytest.mark.parametrize("corpus", [make() for make in CORPORA.values()], ids=list(CORPORA))


def fitted(corpus: fakes.FakeCorpus, model: object = "auto", held_out: int = 10) -> models.Encoder:
    corpus.seen.clear()
    return models.encoder_for(corpus, model).fit(corpus, np.arange(len(corpus.data) - held_out))


@every_corpus
def test_saved_and_loaded_encodes_bitwise_the_same(corpus: fakes.FakeCorpus, tmp_path: Path) -> None:
    encoder = fitted(corpus)
    encoder.save(tmp_path)
    loaded = models.load_encoder(tmp_path)
    assert torch.equal(loaded.encode(corpus.data), encoder.encode(corpus.data))
    assert (loaded.shape, loaded.name, loaded.frozen_features) == (encoder.shape, encoder.name, encoder.frozen_features)
    if encoder.normalisation is not None:
        assert all(map(torch.equal, loaded.normalisation, encoder.normalisation))
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in (".json", ".safetensors", ".skops")]


@every_corpus
def test_a_rows_encoding_does_not_depend_on_its_batch(corpus: fakes.FakeCorpus) -> None:
    encoder = fitted(corpus)
    whole = encoder.encode(corpus.data)
    assert whole.shape == (len(corpus.data), *encoder.shape)
    for size in (1, 7):
        parts = [encoder.encode(corpus.data[start : start + size]) for start in range(0, 21, size)]
        assert torch.equal(torch.cat(parts), whole[:21])
    assert torch.equal(encoder.encode(corpus.data[np.arange(len(whole))[::-1]]), whole.flip(0))
    assert encoder.encode(corpus.data.clear()).shape == (0, *encoder.shape)


@every_corpus
def test_fitting_reads_training_rows_only_and_is_deterministic(corpus: fakes.FakeCorpus) -> None:
    first = fitted(corpus)
    assert (
        max(corpus.seen) == len(corpus.data) - 11
    )  # the last 10 rows are held out, and the rest is below the sample's size
    again = models.encoder_for(corpus).fit(corpus, np.arange(len(corpus.data) - 10)[::-1])
    assert torch.equal(first.encode(corpus.data), again.encode(corpus.data))


@every_corpus
def test_nothing_is_not_a_number(corpus: fakes.FakeCorpus) -> None:
    encoded = fitted(corpus).encode(corpus.data)
    assert encoded.dtype in (torch.float32, torch.uint8)
    assert encoded.float().isfinite().all()


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=50), st.integers(1, 60), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_sample_is_a_seeded_ascending_subset(rows: set[int], most: int, seed: int) -> None:
    sampled = sample_rows(np.array(sorted(rows, reverse=True)), most, seed)
    assert len(sampled) == min(most, len(rows))
    assert set(sampled.tolist()) <= rows
    assert (np.diff(sampled) > 0).all()
    assert (sampled == sample_rows(np.array(sorted(rows)), most, seed)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "encoder.json is missing"),
        ("{", "damaged"),
        ('{"encoder": "os.system"}', "describes no encoder"),
        ("[]", "describes no encoder"),
        ('{"encoder": "table", "format": 99}', "format 99"),
        ('{"encoder": "table", "format": 1}', "incomplete"),
    ],
)
def test_a_damaged_folder_is_a_run_error(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "encoder.json").write_text(content)
    with pytest.raises(RunError, match=message):
        models.load_encoder(tmp_path)


def test_truncated_tensors_are_a_run_error(tmp_path: Path) -> None:
    corpus = fakes.table(60)
    fitted(corpus).save(tmp_path)
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match="damaged"):
        models.load_encoder(tmp_path)


def test_a_damaged_skops_file_is_a_run_error(tmp_path: Path) -> None:
    corpus = fakes.table(60)
    fitted(corpus).save(tmp_path)
    path = tmp_path / "vectorizer.skops"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RunError, match="cannot be read"):
        models.load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("model", "resolved"),
    [
        ("auto", "table/mlp"),
        ("linear", "table/linear"),
        ("table", "table/mlp"),
        ("table/linear", "table/linear"),
    ],
)
def test_resolve_names_encoder_and_module(model: str, resolved: str) -> None:
    corpus = fakes.table(60)
    assert models.resolve(model, corpus) == resolved
    # What is resolved means the same as what was asked for.
    assert models.resolve(resolved, corpus) == resolved
    assert type(models.encoder_for(corpus, resolved)) is type(models.encoder_for(corpus, model))


def test_images_are_resolved_by_what_reads_them() -> None:
    assert models.resolve("auto", fakes.images(4)) == "image/cnn"
    assert models.resolve("image:96", fakes.images(4)) == "image:96/cnn"
    assert models.resolve("efficientnet-lite0", fakes.images(4)) == "efficientnet-lite0/mlp"
    assert models.resolve("auto", CORPORA["vectors"]()) == "array/mlp"
    assert models.resolve("auto", CORPORA["uint8 planes"]()) == "array/cnn"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LearnerError, match="'wordllama'"):
        models.encoder_for(fakes.texts(20), "wordlama")
    with pytest.raises(LearnerError, match="reads text inputs; this corpus is of the modality 'table'"):
        models.encoder_for(fakes.table(20), "tfidf")


def test_encoder_json_is_plain(tmp_path: Path) -> None:
    fitted(fakes.table(60)).save(tmp_path)
    spec = json.loads((tmp_path / "encoder.json").read_text())
    assert spec["numeric"] == ["age", "income", "count", "constant", "member"]


def test_a_missing_column_is_named() -> None:
    for corpus in (fakes.table(60), fakes.texts(60), fakes.images(20)):
        encoder = fitted(corpus)
        column = next(iter(corpus.kinds))
        with pytest.raises(Exception, match=f"Column '{column}' is missing"):
            encoder.encode(corpus.data.drop(column))


def test_two_text_columns_are_joined_and_a_missing_one_is_skipped() -> None:
    data = pl.DataFrame({"title": ["good film", None, "bad play"] * 20, "body": ["very good", "dog cat", None] * 20})
    two = fakes.FakeCorpus(data, {"title": "text", "body": "text"}, "text")
    one = fakes.FakeCorpus(
        pl.DataFrame({"x": ["good film\nvery good", "dog cat", "bad play"] * 20}), {"x": "text"}, "text"
    )
    assert torch.equal(fitted(two, "tfidf").encode(two.data), fitted(one, "tfidf").encode(one.data))
