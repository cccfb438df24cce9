"""Answers are stored whole, under their names, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from imprint.answers import Scores
from imprint.errors import RunError
from imprint.recording import answers

FRAME = pl.DataFrame(
    {"id": ["a", "b"], "el2n": [0.5, None], "group": [["x"], []], "evidence": [{"p": 0.1}, {"p": 0.9}]}
)


def scores(rows: pl.DataFrame) -> Scores:
    about = {"path": "run", "corpus": "0123"}
    return Scores("score", ("el2n",), {"el2n": "a paper"}, {"el2n": "harder"}, about, {"seconds": 1.5}, rows)


def test_an_answer_comes_back(tmp_path: Path) -> None:
    answers.save(tmp_path, scores(FRAME))
    answers.save(tmp_path, scores(FRAME.head(1)), "scores-asked")
    assert answers.names(tmp_path) == ["scores", "scores-asked"]
    stored = answers.read(tmp_path, "scores")
    assert isinstance(stored, Scores)
    assert stored.frame().equals(FRAME)
    assert stored.spec() == scores(FRAME).spec()


def test_the_newest_answer_replaces_the_older(tmp_path: Path) -> None:
    answers.save(tmp_path, scores(FRAME))
    answers.save(tmp_path, scores(FRAME.head(1)))
    assert len(answers.read(tmp_path, "scores")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_failed_save_leaves_the_older_answer(tmp_path: Path) -> None:
    answers.save(tmp_path, scores(FRAME))
    broken = scores(FRAME.head(1))
    broken.cost["seconds"] = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        answers.save(tmp_path, broken)
    assert len(answers.read(tmp_path, "scores")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be called"):
        answers.save(tmp_path, scores(FRAME), name)


def test_an_unknown_answer_is_named_with_the_nearest(tmp_path: Path) -> None:
    answers.save(tmp_path, scores(FRAME))
    with pytest.raises(RunError, match="Did you mean 'scores'"):
        answers.read(tmp_path, "score")


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    answers.save(tmp_path, scores(FRAME))
    (tmp_path / "scores" / "answer.json").write_text("[")
    with pytest.raises(RunError, match="No readable answer"):
        answers.read(tmp_path, "scores")
