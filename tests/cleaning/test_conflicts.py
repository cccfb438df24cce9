"""Conflict rows: every verdict beside every other, the rows first on which they disagree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.answers import Findings
from imprint.cleaning import clean, conflicts
from imprint.cleaning.conflicts import VERDICTS, disagreement, exceedance
from imprint.recording.needs import OutOfFold, Outputs, Target

EXAMPLES = 240


def blobs() -> pl.DataFrame:
    """Two classes of points, with wrong labels (rows 0 to 5), copies (row 7 of row 6), a far example (row 8), and a leak (row 9)."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 2, EXAMPLES)
    points = 4.0 * np.eye(2)[code] + rng.normal(size=(EXAMPLES, 2))
    given = code.copy()
    given[:6] = 1 - given[:6]
    points[8] = 80.0
    for copy, original in ((7, 6), (9, EXAMPLES - 1)):
        points[copy], given[copy] = points[original], given[original]
    split = np.where(np.arange(EXAMPLES) < 180, "train", "test")
    return pl.DataFrame(
        {
            "id": [f"p{row}" for row in range(EXAMPLES)],
            "x": points[:, 0],
            "y": points[:, 1],
            "label": [f"c{code}" for code in given],
            "split": split,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("conflicts")
    corpus = imprint.open(blobs(), target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner("mlp", epochs=12, batch_size=32), corpus, folder / "run", progress=False)


def row_of(frame: pl.DataFrame, id: str) -> dict[str, Any]:
    return frame.row(by_predicate=pl.col("id") == id, named=True)


def test_each_planted_fault_stands_in_its_column(run: Any) -> None:
    found = conflicts(run)
    frame = found.frame()
    assert found.verdicts == VERDICTS
    assert len(frame) == 180
    assert frame["id"].n_unique() == 180
    # Four of six: how many are flagged is an estimate, from 180 examples.
    assert sum(row_of(frame, f"p{row}")["mislabelled"] > 0 for row in range(6)) >= 4
    assert row_of(frame, "p7")["duplicate"] > 0
    assert row_of(frame, "p9")["leaking"] == 1
    assert row_of(frame, "p8")["outlier"] > 0.5
    assert row_of(frame, "p100")["label"] == blobs()["label"][100]
    assert frame.select(VERDICTS).to_numpy().max() == 1
    assert frame.select(VERDICTS).to_numpy().min() == 0


def test_rows_with_the_greatest_disagreement_come_first(run: Any) -> None:
    frame = conflicts(run).frame()
    values = frame.select(VERDICTS).to_numpy()
    np.testing.assert_allclose(frame["disagreement"], disagreement(values))
    assert frame["disagreement"].is_sorted(descending=True)
    assert frame["objections"].to_list() == (values >= 0.5).sum(1).tolist()
    objecting = frame.filter(pl.col("objections") > 0)
    assert all(
        row["verdict"].split("; not ")[0].split(", ") == [name for name in VERDICTS if row[name] >= 0.5]
        for row in objecting.iter_rows(named=True)
    )
    assert (frame.filter(pl.col("objections") == 0)["verdict"] == "no objection").all()


def test_findings_that_are_given_are_the_ones_that_count(run: Any) -> None:
    """Findings of one method alone: the other kinds are not answered, and null."""
    findings = clean(run, "exact-duplicates")
    found = conflicts(run, findings)
    assert found.verdicts == ("duplicate", "memorised", "leaking", "influential")
    assert found.frame()["mislabelled"].null_count() == 180
    assert any("mislabelled: no method" in note for note in found.notes)


def test_the_answer_that_the_run_keeps_is_read(run: Any) -> None:
    """What `imprint clean` saved, also where a user has edited it, is not asked again."""
    findings = clean(run, ["trajectory"])
    edited = Findings(**{**vars(findings), "table": findings.table.with_columns(severity=pl.lit(0.75, pl.Float32))})
    run.save_answer(edited)
    try:
        frame = conflicts(run).frame()
        assert set(frame["mislabelled"]) == {0.0, 0.75}
        assert frame["duplicate"].null_count() == 180
    finally:
        shutil.rmtree(Path(run.path) / "answers" / "findings")


def test_memorised_is_the_contrast_with_models_that_did_not_see_it(run: Any) -> None:
    run.collect([OutOfFold("probabilities", folds=3)], False)
    found = conflicts(run)
    assert any("out-of-fold models (3 trainings)" in note for note in found.notes)
    values = run.gather([Outputs("confidence"), Target()])
    said = run.gather([OutOfFold("probabilities", folds=3)])["probabilities"]
    unseen = said.gather(1, values["target"][:, None]).squeeze(1)
    expected = dict(zip(run.ids, (values["confidence"] - unseen).clamp(0, 1).tolist(), strict=True))
    frame = found.frame()
    np.testing.assert_allclose(frame["memorised"], [expected[id] for id in frame["id"]], atol=1e-6)


def test_what_a_run_cannot_answer_is_null_and_told(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from imprint.cleaning import conflicts as audit
    from imprint.errors import EvidenceError

    def nothing(run: Any) -> Any:
        raise EvidenceError("No gradients here.", "Fit a torch model.")

    monkeypatch.setitem(audit.__globals__, "_influential", nothing)
    found = conflicts(run)
    assert "influential" not in found.verdicts
    assert "influential: No gradients here." in found.summary()
    values = found.frame().select(found.verdicts).to_numpy()
    np.testing.assert_allclose(found.frame()["disagreement"], disagreement(values))


def test_summary_and_plot_name_the_first_rows(run: Any) -> None:
    found = conflicts(run)
    first = found.frame()["id"][0]
    assert first in found.summary()
    (heat,) = found.plot().data
    assert heat.y[0] == first
    assert list(heat.x) == list(found.verdicts)


def test_verdicts_that_go_together_disagree_where_they_differ() -> None:
    """Two columns that are equal on most rows; a third that has nothing to do with them, whose difference counts for nothing."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 400).astype(float)
    second = first.copy()
    second[:10] = 1 - first[:10]
    third = np.tile([0.0, 1.0], 200)[np.argsort(np.argsort(first, kind="stable"))]  # even among both halves
    third -= third.mean() - 0.5
    values = np.stack([first, second, third], 1)
    found = disagreement(values)
    assert found[:10].min() > found[10:].max()
    assert found[10:].max() < 0.1


def test_disagreement_by_hand() -> None:
    """Correlations of the columns (1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 1) are 0.577, -1, -0.577: only the first pair counts."""
    values = np.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(disagreement(values), [0, 1, 0, 0])
    # Nothing goes together: the three pairs weigh the same.
    np.testing.assert_allclose(disagreement(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])), [2 / 3] * 3)
    assert disagreement(np.ones((3, 1))).tolist() == [0, 0, 0]


def test_exceedance_is_by_rank() -> None:
    found = exceedance(torch.arange(101.0))
    torch.testing.assert_close(found[[0, 90, 95, 100]], torch.tensor([0.0, 0.0, 0.5, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(exceedance(torch.arange(101.0).double().exp()).float(), found)
    assert not exceedance(torch.ones(5)).any()


def test_a_quantity_has_no_memorised_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": rng.random(120), "y": rng.random(120)})
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    made = imprint.fit(imprint.Learner("mlp", epochs=2), corpus, tmp_path / "run", progress=False)
    found = conflicts(made)
    assert "memorised" not in found.verdicts
    assert found.frame()["label"].dtype == pl.Float64
