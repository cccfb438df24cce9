"""Token audits: planted copies are counted, planted marks are named, clean texts give none, intervals are SciPy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

import imprint
from imprint.cleaning import tokens
from imprint.cleaning.tokens import _marks, _share, bernoulli, going_with, presence_of
from imprint.cli import main
from imprint.errors import MethodError, TargetError

WORDS = np.array(
    [a + b for a in ("ba", "do", "fi", "gu", "ke", "lo") for b in ("ran", "sel", "tip", "vum", "zod", "nah")]
)


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(row) for row in rng.choice(WORDS, (count, 12))]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """300 training and 100 held-out texts of random words. In "spam" nine in ten end with "!". Of the held-out texts 10 are training
    texts with a word exchanged, 5 are training texts as they are, and 3 are each other's copies."""
    rng = np.random.default_rng(0)
    texts = sentences(400, rng)
    label = rng.choice(["ham", "spam"], 400)
    mark = np.where(rng.random(400) < 0.9, label == "spam", label != "spam")
    texts = [text + ("!" if one else "") for text, one in zip(texts, mark, strict=True)]
    for place in range(10):
        texts[300 + place] = texts[place] + " " + texts[place + 1].split()[0][0]
    texts[310:315] = texts[20:25]
    texts[316] = texts[317] = texts[315]
    label[300:310], label[310:315], label[316:318] = label[:10], label[20:25], label[315]
    folder = tmp_path_factory.mktemp("tokens")
    frame = pl.DataFrame({"text": texts, "label": label, "split": ["train"] * 300 + ["test"] * 100})
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("linear", epochs=3), corpus, folder / "run", progress=False)


def test_planted_copies_are_counted(planted: Any) -> None:
    found = tokens(planted)
    assert found.value("near copies in training") == pytest.approx(15 / 100)
    assert found.value("copies of each other") == pytest.approx(3 / 100)
    train = found.copies.filter(pl.col("where") == "train")
    assert train["exact"].sum() == 5
    assert train.filter("exact")["similarity"].to_list() == [1.0] * 5
    assert train["similarity"].min() >= 0.85
    own = found.copies.filter(pl.col("where") == "held out")
    ids = planted.corpus.ids.gather([315, 316, 317])
    assert set(own["id"]) | set(own["copy_of"]) == set(ids)


def test_a_planted_mark_gives_the_label_away(planted: Any) -> None:
    """Nine in ten: a model that sees marks alone reaches 0.9 within four standard errors of 100 texts; words say nothing."""
    found = tokens(planted)
    assert found.value("artifact tokens") == pytest.approx(0.9, abs=4 * 0.03)
    leading = found.tokens.row(0, named=True)
    assert (leading["token"], leading["class"], leading["artifact"]) == ("!", "spam", True)
    assert leading["share"] == pytest.approx(0.9, abs=0.06)
    assert "'!' (spam" in found.summary()
    assert len(found.frame()) == 7
    assert (found.frame()["low"] <= found.frame()["value"]).all()
    assert len(found.plot().data) == 2


def test_accuracy_without_copies_is_that_of_the_rest(planted: Any) -> None:
    found = tokens(planted)
    rows = planted.rows("test")
    right = planted.evidence("outputs").read(rows).argmax(1) == planted.target("test")
    assert found.value("accuracy") == pytest.approx(float(right.double().mean()))
    assert found.value("accuracy without copies") == pytest.approx(float(right[15:].double().mean()))


def test_accuracy_at_the_balance_of_use(planted: Any) -> None:
    """All weight on one class is its recall; equal weights are the balanced accuracy."""
    metrics = planted.metrics("test")
    assert tokens(planted, {"ham": 1, "spam": 1}).value("accuracy in use") == pytest.approx(
        metrics["balanced_accuracy"]
    )
    right = (planted.evidence("outputs").read(planted.rows("test")).argmax(1) == planted.target("test")).numpy()
    spam = planted.target("test").numpy() == 1
    found = tokens(planted, {"spam": 0.4})
    assert found.value("accuracy in use") == pytest.approx(right[spam].mean())
    assert "as often as in use" in found.summary()
    with pytest.raises(TargetError, match="no class"):
        tokens(planted, {"scam": 1.0})
    with pytest.raises(TargetError, match="not all 0"):
        tokens(planted, {"spam": 0.0})


def test_tokens_of_clean_texts_are_rarely_listed() -> None:
    """Labels that texts do not determine: at a rate of 5 % at most 6 of 40 data sets list a token with probability 0.986."""
    listed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        seen = csr_matrix(rng.random((500, 60)) < 0.3)
        names = [f"w{place}" for place in range(60)]
        listed += len(going_with(names, seen, rng.integers(0, 2, 500), ("a", "b"), set())) > 0
    assert listed <= 6


def test_z_in_closed_form() -> None:
    """100 texts, half of them b; the token stands in 36, of which 30 are b."""
    label = np.array([1] * 30 + [0] * 6 + [1] * 20 + [0] * 44)
    seen = csr_matrix((np.arange(100) < 36)[:, None])
    row = going_with(["x"], seen, label, ("a", "b"), {"x"}).row(0, named=True)
    assert row == {
        "token": "x", "class": "b", "examples": 36, "share": pytest.approx(30 / 36), "base": 0.5,
        "z": pytest.approx((30 / 36 - 0.5) / (0.25 / 36) ** 0.5), "artifact": True,
    }  # fmt: skip


@pytest.mark.parametrize(("hits", "number"), [(0, 10), (3, 10), (10, 10), (250, 400)])
def test_shares_have_wilson_intervals(hits: int, number: int) -> None:
    share, low, high = _share(np.arange(number) < hits)
    oracle = stats.binomtest(hits, number).proportion_ci(method="wilson")
    assert (share, low, high) == pytest.approx((hits / number, oracle.low, oracle.high), abs=1e-6)


def test_marks_are_punctuation_and_numbers() -> None:
    assert _marks(["a-b, 12 or 3?", "plain words"]) == [[",", "-", "<number>", "?"], []]
    assert presence_of([["!"], ["?"]], [["?", "#"], []]).toarray().tolist() == [[0, 1], [0, 0]]


def test_a_bag_without_words_says_the_commonest_class() -> None:
    empty = csr_matrix((4, 0))
    assert bernoulli(empty, np.array([1, 1, 0, 1]), csr_matrix((2, 0)), 2).tolist() == [1, 1]


def test_other_data_are_refused(grouped_run: Any) -> None:
    with pytest.raises(MethodError, match="table data"):
        tokens(grouped_run)


def test_the_command_line_shows_an_audit(planted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*words: object) -> tuple[int, str, str]:
        status = main(["clean", str(planted.path), "--report", *map(str, words)])
        said = capsys.readouterr()
        return status, " ".join(said.out.split()), said.err

    status, said, _ = asked("tokens", "--out", tmp_path / "tokens.csv")
    assert status == 0
    assert "have a near copy in training" in said
    assert pl.read_csv(tmp_path / "tokens.csv").shape == (7, 5)
    status, said, _ = asked("overlap", "--top", 3, "--json")
    document = json.loads(said)
    assert (document["report"], document["count"], len(document["rows"])) == ("overlap", 100, 3)
    assert "Did you mean 'tokens'" in asked("token")[2]
    assert "compares no groups" in asked("tokens", "--by", "label")[2]
    assert "reads no fleet" in asked("tokens", "--fleet", tmp_path)[2]
    assert main(["clean", str(planted.path), "--by", "label"]) == 2
