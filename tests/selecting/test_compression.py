"""ZIP-FIT: sizes beside those of compressing anew, the formula beside that of the paper, and texts of the target found in a pool."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

import imprint
import imprint.selecting.compression as module
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, MethodError
from imprint.selecting import zip_fit
from imprint.selecting.compression import alignment

KITCHEN = ("pan", "oven", "butter", "salt", "whisk", "dough", "simmer", "onion", "stir", "bake")
GARAGE = ("axle", "wrench", "piston", "clutch", "brake", "torque", "engine", "valve", "rotor", "chassis")


def sentences(words: tuple[str, ...], count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(4, 9))) for _ in range(count)]


def size(text: bytes, known: bytes = b"", level: int = 6) -> int:
    settings = (level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY)
    one = zlib.compressobj(*settings, known) if known else zlib.compressobj(*settings)
    return len(one.compress(text) + one.flush())


def test_it_is_the_mean_of_the_papers_formula() -> None:
    """1 - NCD(x, t), with C(x + t) = C(x | target) + C(t), averaged over the target's texts by a loop."""
    texts = ["", "a", *sentences(KITCHEN, 5, 0), "pan " * 40]
    target = sentences(KITCHEN, 7, 1)
    known = "".join(f"{text}\n" for text in target).encode()
    expected = []
    for text in (f"{text}\n".encode() for text in texts):
        alone, given = size(text), size(text, known)
        others = [size(f"{one}\n".encode()) for one in target]
        distances = [(given + other - min(alone, other)) / max(alone, other) for other in others]
        expected.append(1 - np.mean(distances))
    assert alignment(pl.Series(texts), pl.Series(target)) == pytest.approx(expected, abs=1e-12)


def test_texts_of_the_target_rank_above_others() -> None:
    pool = sentences(KITCHEN, 100, 0) + sentences(GARAGE, 100, 1)
    target = pl.Series(sentences(KITCHEN, 40, 2))
    picks = zip_fit(pl.Series(pool), target, 100, torch.Generator().manual_seed(0))
    assert picks.value is not None
    wanted = np.arange(200) < 100
    assert roc_auc_score(wanted, picks.value) == 1.0
    assert sorted(picks.order.tolist()) == list(range(100))
    drawn = imprint.selecting.random(torch.arange(200), 100, torch.Generator().manual_seed(0))
    assert 0.3 < wanted[drawn.order].mean() < 0.7


def test_stored_texts_say_nothing() -> None:
    """The trap of the authors' default level: what is stored is as long whatever is known."""
    text, known = b"pan oven butter salt\n", b"salt pan oven butter salt\n"
    assert size(text, known, level=0) == size(text, level=0) > len(text)
    assert size(text, known, level=1) < size(text, level=1)
    for level in (0, 10):
        with pytest.raises(MethodError, match=f"no level {level} that compresses"):
            alignment(pl.Series(["a"]), pl.Series(["a"]), level)


def test_the_end_of_a_long_target_counts_as_much_as_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REACH", 2000)
    first, last = sentences(KITCHEN, 60, 0), sentences(GARAGE, 60, 1)
    joined = b"".join(f"{text}\n".encode() for text in first + last)
    parts = module._parts(joined)
    assert b"".join(parts) == joined
    assert len(parts) == -(-len(joined) // 2000)
    assert max(map(len, parts)) <= 2000
    forwards = alignment(pl.Series([first[0], last[0]]), pl.Series(first + last))
    backwards = alignment(pl.Series([first[0], last[0]]), pl.Series(last + first))
    assert forwards == pytest.approx(backwards, abs=0.1)
    # One compressor that saw all of it would only know the end.
    assert size(f"{first[0]}\n".encode(), joined[-2000:]) > size(f"{first[0]}\n".encode(), joined[:2000])


def test_a_target_beyond_the_parts_is_thinned_evenly_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REACH", 500)
    monkeypatch.setattr(module, "PARTS", 2)
    target = pl.Series([f"{number:09d}" for number in range(1000)])
    known, used = module._within(module._bytes(target), 1000)
    assert len(known) <= 1000
    assert [int(text) for text in used][:2] == [0, 10]
    assert int(used[-1]) == 999
    picks = zip_fit(pl.Series(["a", "b"]), target, 1, torch.Generator())
    assert picks.note == "1,000 of the target's 10,000 bytes were used: evenly spaced texts."
    assert zip_fit(pl.Series(["a", "b"]), target.head(20), 1, torch.Generator()).note == ""


def test_without_a_target_text_it_says_so() -> None:
    with pytest.raises(EvidenceError, match="no text to be like"):
        alignment(pl.Series(["a"]), pl.Series(["", " ", None]))


def test_it_serves_a_corpus_of_texts(texts: Corpus) -> None:
    target = [f"t{row}" for row in range(60) if row % 4 == 0 and texts.target[row] == "colour"]
    chosen = imprint.select(texts, 10, "zip-fit", target=target, progress=False)
    again = imprint.select(texts, 10, "zip-fit", target=target, progress=False)
    assert chosen.ids == again.ids
    assert chosen.frame()["value"].is_sorted(descending=True)
    elsewhere = imprint.select(texts, 10, "zip-fit", target=texts.split("test"), progress=False)
    assert elsewhere.budget == 10


def test_rows_of_a_table_are_texts_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    random = np.random.default_rng(0)
    near = np.arange(80) < 40
    frame = pl.DataFrame(
        {
            "id": [f"r{row}" for row in range(80)],
            "town": [random.choice(["Graz", "Linz"] if one else ["Lyon", "Nice"]) for one in near],
            "job": [random.choice(["nurse", "baker"] if one else ["pilot", "judge"]) for one in near],
            "age": random.integers(20, 60, 80),
            "label": random.choice(["yes", "no"], 80),
            "split": ["valid" if row < 10 else "train" for row in range(80)],
        }
    )
    store = tmp_path_factory.mktemp("rows") / "store"
    corpus = imprint.open(frame, target="label", id="id", split="split", store=store)
    chosen = imprint.select(corpus, 30, "zip-fit", progress=False)
    assert {int(one[1:]) < 40 for one in chosen.ids} == {True}


def test_data_without_texts_are_refused(corpus: Corpus) -> None:
    with pytest.raises(EvidenceError, match="no texts"):
        imprint.select(corpus, 10, "zip-fit", progress=False)
