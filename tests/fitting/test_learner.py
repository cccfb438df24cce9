"""Settings that are refused, what "auto" becomes, and what a manifest keeps."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import imprint
from imprint.errors import LearnerError
from imprint.fitting.learner import _batch_size, _epochs, is_natural


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "clasification"}, {"optimizer": "adam"}, {"schedule": "linear"}, {"epochs": 0}, {"epochs": 1.5}, {"batch_size": -1},
        {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"weight_decay": -1.0}, {"ema": 1.0}, {"seed": "1"}, {"augment": "mixup"},
        {"precision": "fp8"}, {"device": "abacus"}, {"sampler": object()}, {"record": "everything"}, {"epochs": True},
    ],
)  # fmt: skip
def test_impossible_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(LearnerError) as caught:
        imprint.Learner(**settings)
    (name,) = settings
    assert name in str(caught.value)
    assert caught.value.remedy


def test_nothing_is_left_to_resolve(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": np.arange(200.0), "y": ["a", "b"] * 100})
    corpus = imprint.open(frame, target="y", store=tmp_path)
    learner = imprint.Learner().resolve(corpus)
    assert "auto" not in learner.spec().values()
    assert learner.task == "classification"
    assert learner.augment == "none"
    assert all(getattr(learner, name) is not None for name in ("epochs", "batch_size", "learning_rate", "weight_decay"))
    assert learner.resolve(corpus) == learner


def test_what_is_given_stays(tmp_path: Path) -> None:
    corpus = imprint.open(pl.DataFrame({"x": np.arange(50.0), "y": ["a", "b"] * 25}), target="y", store=tmp_path)
    learner = imprint.Learner(epochs=2, batch_size=7, learning_rate=0.5, weight_decay=0.0, seed=4).resolve(corpus)
    assert (learner.epochs, learner.batch_size, learner.learning_rate, learner.weight_decay, learner.seed) == (
        2,
        7,
        0.5,
        0,
        4,
    )


@pytest.mark.parametrize("kind", ["vectors", "images", "words"])
def test_steps_stay_reasonable_at_every_size(kind: str) -> None:
    for n in (10, 150, 1000, 50_000, 1_000_000, 5_000_000):
        batch_size = min(n, _batch_size(n, kind))
        steps = math.ceil(n / batch_size) * _epochs(n, batch_size, kind)
        assert steps >= min(60, n)
        assert steps <= (12_000 if kind == "vectors" else 60_000)
    assert _epochs(5_000_000, 8192, "vectors") == 1
    assert _batch_size(5_000_000, "vectors") == 8192


def test_a_spec_is_json_and_comes_back() -> None:
    learner = imprint.Learner("mlp", epochs=3, seed=5)
    assert imprint.Learner.from_spec(learner.spec()) == learner
    spec = imprint.Learner(torch.nn.Linear).spec()
    assert spec["model"] == "python:torch.nn.modules.linear:Linear"
    assert imprint.Learner.from_spec(spec, model=torch.nn.Linear).model is torch.nn.Linear


def _corpus_of(pictures: list[np.ndarray[Any, Any]], store: Path, folder: Path) -> imprint.Corpus:
    for number, pixels in enumerate(pictures):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        (place / f"{number}.png").write_bytes(content.getvalue())
    return imprint.open(folder, store=store)


def test_only_colour_photographs_are_mirrored(tmp_path: Path, rng: np.random.Generator) -> None:
    colour = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(20)]
    glyphs = [np.repeat(rng.integers(0, 256, (12, 12, 1), dtype=np.uint8), 3, axis=2) for _ in range(20)]
    photographs = _corpus_of(colour, tmp_path / "s1", tmp_path / "colour")
    letters = _corpus_of(glyphs, tmp_path / "s2", tmp_path / "grey")
    assert is_natural(photographs)
    assert not is_natural(letters)
    assert imprint.Learner().resolve(photographs).augment == "flip-crop"
    assert imprint.Learner().resolve(letters).augment == "none"


def test_augmentation_of_a_table_is_refused(tmp_path: Path) -> None:
    corpus = imprint.open(pl.DataFrame({"x": np.arange(50.0), "y": ["a", "b"] * 25}), target="y", store=tmp_path)
    with pytest.raises(LearnerError, match="pixels"):
        imprint.Learner(augment="flip-crop").resolve(corpus)


def test_very_many_classes_are_summarised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = imprint.open(pl.DataFrame({"x": np.arange(50.0), "y": ["a", "b"] * 25}), target="y", store=tmp_path)
    monkeypatch.setattr("imprint.fitting.learner.LOGITS_BYTES", 100)
    assert imprint.Learner().resolve(corpus).record == "summary"
