"""The audit, end to end on real data: everything is written, it resumes, and its report shows what it found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

import imprint
from imprint.auditing import AuditResult
from imprint.errors import ImprintError, MethodError
from imprint.fitting import Fixed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 digits as a CSV of pixels, 10 % of the labels flipped, ten rows repeated."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:800].astype(np.int16), labels[:800]
    rng = np.random.default_rng(0)
    given = np.where(rng.random(800) < 0.1, (labels + rng.integers(1, 10, 800)) % 10, labels)
    frame = pl.DataFrame({f"p{pixel}": images[:, pixel] for pixel in range(64)}).with_columns(
        pl.Series("digit", [f"d{label}" for label in given])
    )
    path = tmp_path_factory.mktemp("audit") / "digits.csv"
    pl.concat([frame, frame[:10]]).write_csv(path)
    return path


@pytest.fixture(scope="module")
def result(source: Path) -> AuditResult:
    learner = imprint.Learner(epochs=8, batch_size=32)
    return imprint.audit(source, target="digit", learner=learner, out=source.parent / "out", seeds=2, progress=False)


def test_everything_is_written(result: AuditResult) -> None:
    out = result.out
    findings = pl.read_parquet(out / "findings.parquet")
    assert findings.equals(result.findings.frame())
    assert json.loads((out / "summary.json").read_text())["verdict"]["effect"] == result.verdict.effect
    edited = imprint.open(out / "corpus")
    assert edited.fingerprint == result.edited.fingerprint
    assert set(edited.ids) <= set(result.corpus.ids)
    assert imprint.load(out / "run").answers() == ["findings", "scores", "verdict"]
    assert "<script" in (out / "report.html").read_text()


def test_planted_errors_are_found(result: AuditResult, source: Path) -> None:
    frame = result.findings.frame()
    copies = frame.filter(pl.col("kind").is_in(["duplicate", "leak"]))
    # Ten rows were repeated; a group of copies across splits is a leak.
    assert len(copies) >= 10
    labels = load_digits(return_X_y=True)[1][:800]
    given = pl.read_csv(source)["digit"].to_list()
    wrong = {row for row in range(800) if given[row] != f"d{labels[row]}"}
    flagged = set(frame.filter(pl.col("kind") == "label")["position"].to_list())
    # At 10 % noise a flag at random is right one time in ten.
    assert len(flagged & wrong) / len(flagged) > 0.5


def test_the_same_audit_again_trains_nothing(result: AuditResult, source: Path, monkeypatch) -> None:
    import sys

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    # By name, since the function `imprint.recording.fit` hides the module that it is in.
    for module, name in (
        ("imprint.recording.fit", "train"),
        ("imprint.fleets.sequential", "train"),
        ("imprint.fleets.batched", "train_wave"),
    ):
        monkeypatch.setattr(sys.modules[module], name, refuse)
    again = imprint.audit(
        source,
        target="digit",
        learner=imprint.Learner(epochs=8, batch_size=32),
        out=result.out,
        seeds=2,
        progress=False,
    )
    assert again.verdict.before == result.verdict.before
    assert again.findings.frame().equals(result.findings.frame())


def test_a_price_is_positive_and_grows_with_the_work(source: Path) -> None:
    corpus = imprint.open(source, target="digit")
    learner = imprint.Learner(epochs=2)
    fit, audit = (imprint.price(call, learner, corpus, seeds=3) for call in ("fit", "audit"))
    assert 0 < fit.seconds < audit.seconds
    assert (fit.trainings, audit.trainings) == (1, 10)
    assert min(fit.memory_bytes, fit.disk_bytes) > 0
    few = imprint.price("fit", imprint.Learner(epochs=2, sampler=Fixed(range(24))), corpus)
    assert "24 training examples" in few.basis
    with pytest.raises(MethodError, match="audit"):
        imprint.price("audits", learner, corpus)


def test_mistakes_are_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="trajectory"):
        imprint.audit(source, target="digit", methods=["trajectori"], out=tmp_path / "out")
    with pytest.raises(ImprintError, match="digits"):
        imprint.audit(source, target="digits", out=tmp_path / "out")
    assert not (tmp_path / "out" / "run").exists()


def test_where_nothing_can_be_verified_the_report_says_why(source: Path, tmp_path: Path) -> None:
    learner = imprint.Learner(epochs=2, batch_size=32)
    result = imprint.audit(
        source, target="digit", learner=learner, methods=["imbalance"], out=tmp_path / "out", seeds=1, progress=False
    )
    assert result.verdict is None
    assert "nothing to verify" in result.notes[-1]
    assert "nothing to verify" in result.report.read_text()
