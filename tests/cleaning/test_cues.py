"""Spurious cues: planted words, borders and columns are found where the model follows them; clean data gives none."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from scipy import stats

from imprint.cleaning import clean, spurious_cues
from imprint.cleaning.attributes import LOOKS, attributes
from imprint.cleaning.cues import Cue, followed, in_words, judge, presence

TRAIN, HELD = 600, 600


def judged(
    corpus: Any, target: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...] = ("no", "yes")
) -> dict[str, tuple[float, str]]:
    """Cues by name -> (severity, evidence), of a model that predicts as given on the held-out half."""
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), len(classes)).float()
    codes = torch.from_numpy(target)
    flags = spurious_cues(
        logits, codes[:TRAIN], torch.arange(TRAIN), codes[TRAIN:], torch.arange(TRAIN, TRAIN + HELD), corpus, classes
    )
    assert (flags.row == -1).all()
    assert set(flags.suggestion) <= {"review"}
    return {
        name: (float(severity), text)
        for name, severity, text in zip(flags.column or [], flags.severity, flags.evidence, strict=True)
    }


def agreeing(target: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The target, wrong for all but this share."""
    return np.where(rng.random(len(target)) < share, target, 1 - target)


@pytest.fixture
def target(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, TRAIN + HELD)


def texts_with(word: np.ndarray, rng: np.random.Generator) -> pl.Series:
    common = np.array(["apple", "bread", "candle", "door", "egg", "flute", "grass", "house"])
    rest = rng.choice(common, (len(word), 4))
    return pl.Series([" ".join([*row, "watermark" if one else "house"]) for row, one in zip(rest, word, strict=True)])


def test_a_word_that_the_model_follows_is_found(corpus_of: Any, target: np.ndarray, rng: np.random.Generator) -> None:
    """The word stands in nine in ten texts of "yes" and one in ten of "no"; the model says "yes" where it stands."""
    holds = agreeing(target, 0.9, rng) == 1
    corpus = corpus_of(pl.DataFrame({"text": texts_with(holds, rng)}), target, {"text": "text"}, "text")
    found = judged(corpus, target, holds[TRAIN:].astype(np.int64))
    severity, text = found["the word 'watermark'"]
    assert severity == 1.0
    assert "on 100% of the" in text
    assert "on 0% of the" in text
    assert set(found) == {"the word 'watermark'"}


def test_a_word_that_the_model_sees_through_is_none(
    corpus_of: Any, target: np.ndarray, rng: np.random.Generator
) -> None:
    """The same data, and a model that is nearly always right, with the word or against it."""
    holds = agreeing(target, 0.9, rng) == 1
    corpus = corpus_of(pl.DataFrame({"text": texts_with(holds, rng)}), target, {"text": "text"}, "text")
    assert not judged(corpus, target, agreeing(target[TRAIN:], 0.99, rng))


def test_a_column_that_the_model_follows_is_found(corpus_of: Any, target: np.ndarray, rng: np.random.Generator) -> None:
    camera = np.where(agreeing(target, 0.85, rng) == 1, "front", "back")
    frame = pl.DataFrame({"camera": camera, "size": rng.normal(size=len(target)) + 0.5 * target})
    corpus = corpus_of(frame, target, {"camera": "categorical", "size": "numeric"}, "table")
    found = judged(corpus, target, (camera == "front").astype(np.int64)[TRAIN:])
    assert list(found) == ["camera"]


def test_a_column_that_gives_the_target_away_is_left_to_the_leak_check(
    corpus_of: Any, target: np.ndarray, rng: np.random.Generator
) -> None:
    frame = pl.DataFrame({"code": np.where(target == 1, "b", "a"), "noise": rng.normal(size=len(target))})
    corpus = corpus_of(frame, target, {"code": "categorical", "noise": "numeric"}, "table")
    assert not judged(corpus, target, target[TRAIN:])


def test_a_border_colour_is_found(corpus_of: Any, target: np.ndarray, rng: np.random.Generator) -> None:
    """Red borders go with "yes" in nine of ten images; what is inside is noise."""
    red = agreeing(target, 0.9, rng) == 1
    encoded = []
    for one in red:
        pixels = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
        pixels[[0, -1]] = pixels[:, [0, -1]] = (220, 30, 30) if one else (30, 30, 220)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        encoded.append(file.getvalue())
    corpus = corpus_of(pl.DataFrame({"image": encoded}), target, {"image": "image"}, "image")
    found = judged(corpus, target, red[TRAIN:].astype(np.int64))
    assert {"border redness", "border blueness"} <= set(found)


def test_without_a_cue_nothing_is_found(corpus_of: Any) -> None:
    """Twenty data sets: labels from two columns together, a model that knows both; no column and no word is as good as it."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, TRAIN + HELD))
        target = (a + b > 0).astype(np.int64)
        corpus = corpus_of(pl.DataFrame({"a": a, "b": b}), target, {"a": "numeric", "b": "numeric"}, "table")
        assert not judged(corpus, target, agreeing(target[TRAIN:], 0.97, rng))
        texts = texts_with(rng.random(TRAIN + HELD) < 0.5, rng)
        corpus = corpus_of(pl.DataFrame({"text": texts}), target, {"text": "text"}, "text")
        assert not judged(corpus, target, agreeing(target[TRAIN:], 0.9, rng))


def test_a_model_at_chance_follows_nothing(corpus_of: Any) -> None:
    """Where nothing can be learned, cue and model are alike by chance: no more than 1 of 20 data sets may speak up."""
    spoke = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        target = rng.integers(0, 2, TRAIN + HELD)
        frame = pl.DataFrame({name: rng.normal(size=TRAIN + HELD) for name in "abcdef"})
        corpus = corpus_of(frame, target, dict.fromkeys("abcdef", "numeric"), "table")
        spoke += bool(judged(corpus, target, rng.integers(0, 2, HELD)))
    assert spoke <= 1


def test_a_cue_is_judged_in_closed_form() -> None:
    """40 examples hold the word, which says 1: 30 are 1. The model is right on 27 of these, and on 2 of the other 10."""
    truth = np.array([1] * 30 + [0] * 10 + [0] * 50 + [1] * 10)
    predicted = np.array([1] * 27 + [0] * 3 + [0] * 2 + [1] * 8 + [0] * 50 + [1] * 10)
    speaks = np.arange(100) < 40
    one = judge(Cue("the word 'x'", speaks, np.ones(100, np.int64)), predicted, truth)
    assert (one.along, one.against) == (30, 10)
    assert one.accuracy_along == pytest.approx(0.9)
    assert one.accuracy_against == pytest.approx(0.2)
    assert one.follows == pytest.approx(0.8)
    base = 40 / 100
    assert one.skill == pytest.approx((0.75 - base) / (1 - base))
    assert one.model_skill == pytest.approx((29 / 40 - base) / (1 - base))
    assert one.p == pytest.approx(stats.fisher_exact([[2, 8], [27, 3]], alternative="less").pvalue)
    assert followed([one]) == [one]
    assert "40 held-out examples that hold it" in in_words(one)


def test_a_cue_that_nothing_goes_against_is_found_where_it_is_common() -> None:
    truth = np.arange(200) % 2
    common = judge(Cue("the word 'x'", truth == 1, np.ones(200, np.int64)), truth, truth)
    assert (common.against, common.follows, common.skill) == (0, 1.0, 1.0)
    assert followed([common]) == [common]
    rare = judge(Cue("the word 'y'", (truth == 1) & (np.arange(200) < 62), np.ones(200, np.int64)), truth, truth)
    assert rare.along == 31
    assert not followed([rare])


def test_words_are_those_of_one_text_in_a_hundred() -> None:
    learn = ["common"] * 300 + ["rare"] * 2
    words, seen, asked = presence(learn, ["common rare", "neither"])
    assert words == ["common"]
    assert seen.sum() == 300
    assert asked.toarray().tolist() == [[1], [0]]
    assert presence(["!", "?"], ["a"])[0] == []


def test_attributes_of_texts_images_and_arrays(corpus_of: Any) -> None:
    texts = corpus_of(pl.DataFrame({"text": ["one two  three", None, ""]}), ["a", "b", "a"], {"text": "text"}, "text")
    assert attributes(texts, texts.rows())["words in text"].to_list() == [3, 0, 0]
    pixels = np.full((8, 8, 3), 10, np.uint8)
    pixels[2:6, 2:6] = 250
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images = corpus_of(pl.DataFrame({"image": [file.getvalue(), b"broken"]}), ["a", "b"], {"image": "image"}, "image")
    looks = attributes(images, images.rows())
    assert list(looks) == list(LOOKS)
    assert looks["border brightness"][0] == pytest.approx(10)
    assert looks["brightness"][0] == pytest.approx(10 + 240 / 4)
    assert looks["pixels"][0] == 64
    assert np.isnan(looks["redness"][1])
    arrays = corpus_of(
        pl.DataFrame({"x": [[1.0, 3.0], [2.0, 2.0]]}, schema={"x": pl.Array(pl.Float64, 2)}),
        ["a", "b"],
        {"x": "array"},
        "array",
    )
    found = attributes(arrays, arrays.rows())
    assert (found["mean of x"].to_list(), found["spread of x"].to_list()) == ([2.0, 2.0], [1.0, 0.0])


def test_clean_asks_for_cues(grouped_run: Any) -> None:
    """The model has one input that counts, which therefore is a cue as good as the model; its team is none of its business."""
    frame = clean(grouped_run, ["spurious-cues"]).frame()
    assert len(frame) == 1
    assert frame["evidence"][0].startswith("x alone has ")
    assert frame["id"][0] is None
