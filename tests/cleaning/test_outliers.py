"""Outliers, rare classes, odd columns and images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_iris

from imprint.cleaning import clean
from imprint.cleaning.balance import imbalance
from imprint.cleaning.images import image_quality, thumbnails
from imprint.cleaning.outlying import outliers
from imprint.cleaning.tabular import columns, held_out_skill, leaking_columns


def clusters(spread: tuple[float, float] = (1.0, 1.0)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(600) % 2
    centre = torch.tensor([0.0, 8.0])[target, None]
    return centre + torch.randn(600, 5, generator=generator) * torch.tensor(spread)[target, None], target


def test_planted_outliers_are_found() -> None:
    """Five points ten deviations out; normal data has none beyond z = 4 in the log distance in five dimensions."""
    features, target = clusters()
    features[:5] += 10 * torch.tensor([[1.0, -1, 1, -1, 1]])
    flags = outliers(features, target)
    assert set(range(5)) <= set(flags.row.tolist())
    assert len(flags) <= 7
    assert np.all((flags.severity >= 0.5) & (flags.severity < 1))


def test_a_wide_class_is_judged_by_its_own_spread() -> None:
    """Class 1 is ten times as wide: judged over all, half of it would be far; judged by itself, nearly nothing is."""
    features, target = clusters((0.5, 5.0))
    assert len(outliers(features, target)) <= 3
    pooled = outliers(features, torch.zeros(600, dtype=torch.int64))
    assert len(pooled) <= len(target)


def test_scale_and_order_do_not_matter() -> None:
    features, target = clusters()
    features[:5] += 12
    before = set(outliers(features, target).row.tolist())
    scaled = set(outliers(features * torch.tensor([1.0, 100, 0.01, 5, 1]) + 7, target).row.tolist())
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    moved = outliers(features[order], target[order]).row
    assert scaled == before
    assert {int(order[row]) for row in moved} == before


def test_many_examples_are_judged_against_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = clusters()
    features[:5] += 15
    monkeypatch.setattr("imprint.cleaning.outlying.REFERENCE", 200)
    assert set(range(5)) <= set(outliers(features, target).row.tolist())


def test_few_or_equal_examples_have_no_outliers() -> None:
    assert len(outliers(torch.randn(10, 3), torch.zeros(10, dtype=torch.int64))) == 0
    assert len(outliers(torch.ones(100, 3), torch.zeros(100, dtype=torch.int64))) == 0


def test_rare_classes() -> None:
    target = torch.tensor([0] * 950 + [1] * 47 + [2] * 3)
    flags = imbalance(target, ("common", "scarce", "rare"))
    assert list(flags.column or []) == ["rare"]  # 47 are above a tenth of the even share of 333
    even = 1000 / 3
    assert flags.severity[0] == pytest.approx(1 - 3 / even)
    assert flags.evidence[0] == "class rare has 3 training examples; an even share would be 333"
    assert flags.row[0] == -1


def test_even_classes_are_no_finding() -> None:
    assert len(imbalance(torch.arange(100) % 4, tuple("abcd"))) == 0


def test_rare_labels_of_a_multilabel_target() -> None:
    target = torch.zeros(100, 3)
    target[:, 0] = 1
    target[:60, 1] = 1
    target[:2, 2] = 1
    assert list(imbalance(target, ("a", "b", "c")).column or []) == ["c"]


# Columns


def test_columns_that_carry_nothing(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    count = 200
    inputs = pl.DataFrame(
        {
            "good": rng.normal(size=count),
            "fixed": ["x"] * count,
            "empty": pl.Series([None] * count, dtype=pl.Float64),
            "sparse": [1.0 + at if at < 5 else None for at in range(count)],
            "key": [f"id-{at:05d}" for at in rng.permutation(count)],
            "number": np.arange(count) + 1000,
            "title": [f"some words number {at}" for at in range(count)],
            "city": rng.choice(["a", "b", "c"], count),
        }
    )
    kinds = {
        "good": "numeric", "fixed": "categorical", "empty": "numeric", "sparse": "numeric", "key": "categorical",
        "number": "numeric", "title": "text", "city": "categorical",
    }  # fmt: skip
    flags = columns(corpus_of(inputs, ["a", "b"] * 100, kinds, "table"))
    assert dict(zip(flags.column or (), flags.severity.round(1).tolist(), strict=True)) == pytest.approx(
        {"fixed": 0.3, "empty": 0.3, "sparse": 0.4, "key": 0.5, "number": 0.5}, abs=1e-6
    )


@pytest.mark.parametrize("values", ["number", "word"])
def test_a_column_that_gives_the_target_away(corpus_of: Any, values: str) -> None:
    """Breast cancer, whose best honest column reaches a skill of about 0.84, with the target written into another column."""
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    inputs = pl.DataFrame(x, schema=[f"x{at}" for at in range(30)])
    told = (
        pl.Series(y + rng.normal(size=len(y)) * 0.01)
        if values == "number"
        else pl.Series(np.where(y, "treated", "sent home"))
    )
    inputs = inputs.with_columns(told=told)
    kinds = {
        **dict.fromkeys(inputs.columns[:-1], "numeric"),
        "told": "numeric" if values == "number" else "categorical",
    }
    train = rng.random(len(y)) < 0.6
    corpus = corpus_of(inputs, np.where(y, "benign", "malignant").tolist(), kinds, "table", train)
    flags = leaking_columns(corpus)
    assert list(flags.column or []) == ["told"]
    assert flags.severity[0] > 0.95


def test_a_small_test_split_convicts_no_column(corpus_of: Any) -> None:
    """Iris: one petal column is right on nearly all of 30 held-out flowers, which is too few to call it a leak."""
    x, y = load_iris(return_X_y=True)
    train = np.random.default_rng(0).permutation(150) >= 30
    inputs = pl.DataFrame(x, schema=list("abcd"))
    corpus = corpus_of(inputs, y.tolist(), dict.fromkeys("abcd", "numeric"), "table", train)
    assert len(leaking_columns(corpus)) == 0


def test_a_regression_target_given_away(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=2000)
    inputs = pl.DataFrame({"tax": 1.2 * y + 3, "noise": rng.normal(size=2000)})
    train = rng.random(2000) < 0.8
    corpus = corpus_of(inputs, y, {"tax": "numeric", "noise": "numeric"}, "table", train)
    assert list(leaking_columns(corpus).column or []) == ["tax"]


def test_skill_is_nothing_for_noise() -> None:
    rng = np.random.default_rng(0)
    learned, checked = pl.Series(rng.normal(size=3000)), pl.Series(rng.normal(size=3000))
    target, truth = rng.integers(0, 4, 3000), rng.integers(0, 4, 3000)
    skill, least = held_out_skill(learned, target, checked, truth, False)
    assert abs(skill) < 0.05
    assert least < skill


# Images


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_image_quality(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    images = [encoded(rng.integers(0, 256, (32, 32))) for _ in range(200)]
    images += [
        encoded(np.full((32, 32), 128)),  # 200: blank
        encoded(rng.integers(0, 25, (32, 32))),  # 201: dark
        encoded(rng.integers(232, 256, (32, 32))),  # 202: bright
        encoded(rng.integers(0, 256, (320, 320))),  # 203: large
        encoded(rng.integers(0, 256, (16, 64))),  # 204: oblong, of the usual area
        b"not an image",  # 205: cannot be decoded, which the corpus tells
    ]
    corpus = corpus_of(pl.DataFrame({"image": images}), ["a"] * len(images), {"image": "image"}, "image")
    flags = image_quality(corpus, thumbnails(corpus))
    got = {
        int(row): (does, words) for row, does, words in zip(flags.row, flags.suggestion, flags.evidence, strict=True)
    }
    assert set(got) == {200, 201, 202, 203, 204}
    assert got[200] == ("drop", "blank: all pixels are nearly the same")
    assert got[203] == ("review", "320 x 320 pixels: area 1e+02 times the median")
    assert got[204][1] == "64 x 16 pixels: aspect ratio 4 times the median"


def test_blank_images_that_share_a_label_are_to_be_looked_at(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    images = [encoded(np.full((32, 32), 255))] * 10 + [encoded(rng.integers(0, 256, (32, 32))) for _ in range(50)]
    kinds = {"image": "image"}
    one = corpus_of(pl.DataFrame({"image": images}), ["I"] * 10 + ["J"] * 50, kinds, "image")
    assert set(image_quality(one, thumbnails(one)).suggestion) == {"review"}
    mixed = corpus_of(pl.DataFrame({"image": images}), ["I", "J"] * 5 + ["J"] * 50, kinds, "image")
    assert set(image_quality(mixed, thumbnails(mixed)).suggestion) == {"drop"}


def test_dark_images_are_no_finding_where_all_are(corpus_of: Any) -> None:
    rng = np.random.default_rng(0)
    images = [encoded(rng.integers(0, 25, (32, 32))) for _ in range(50)]
    corpus = corpus_of(pl.DataFrame({"image": images}), ["a"] * 50, {"image": "image"}, "image")
    assert len(image_quality(corpus, thumbnails(corpus))) == 0


# The verb over all of them


def test_findings_of_a_table(corpus_of: Any, run_of: Any, tmp_path: Any) -> None:
    """Everything at once: exact columns of the frame, order, groups, and what cannot be read."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 4))
    values[1] = values[0]
    inputs = pl.DataFrame(values, schema=list("abcd")).with_columns(fixed=pl.lit(1.0))
    target = rng.integers(0, 2, 300)
    target[1] = target[0]
    corpus = corpus_of(inputs, target, dict.fromkeys(inputs.columns, "numeric"), "table")
    corpus.set_aside = pl.DataFrame({"position": [300], "reason": ["the target is missing"]})
    logits = torch.zeros(3, 300, 2)
    run = run_of(corpus, logits, features=torch.from_numpy(values).float())
    findings = clean(run)
    frame = findings.frame()
    assert frame.columns == [
        "id", "position", "kind", "severity", "suggestion", "suggested_value", "method", "evidence",
    ]  # fmt: skip
    assert frame["severity"].is_sorted(descending=True)
    assert frame["suggested_value"].dtype == corpus.target.dtype
    broken = frame.filter(pl.col("kind") == "broken").row(0, named=True)
    assert (broken["id"], broken["position"], broken["evidence"]) == (None, 300, "the target is missing")
    copy = frame.filter(pl.col("method") == "exact-duplicates").row(0, named=True)
    assert (copy["id"], copy["position"], copy["suggestion"]) == ("r1", 1, "drop")
    assert "column 'fixed' is 1.0 in every row" in " ".join(frame["evidence"])
    groups = findings.groups()
    assert groups["ids"].to_list() == [["r0", "r1"]]
    kinds = findings.by_kind()
    assert kinds["findings"].sum() == len(frame)
    assert (kinds["drop"] + kinds["relabel"] + kinds["review"]).to_list() == kinds["findings"].to_list()
    assert f"{len(frame)} findings" in findings.summary()
    assert len(findings.plot().data) == 3
    back = type(findings).load(findings.save(tmp_path / "findings"))
    assert back.frame().equals(frame)
    assert back.groups().equals(groups)
    assert back.notes == findings.notes


def test_nothing_found_has_the_columns_all_the_same(corpus_of: Any, run_of: Any) -> None:
    corpus = corpus_of(pl.DataFrame({"a": [1.0, 2.0]}), ["x", "y"], {"a": "numeric"}, "table")
    findings = clean(run_of(corpus, torch.zeros(1, 2, 2)), ["exact-duplicates"])
    assert len(findings) == 0
    assert findings.frame().columns[0] == "id"
    assert findings.summary().startswith("nothing found by exact-duplicates")
