"""Answers are stored whole, under their names, and come back as they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from imprint.errors import RunError
from imprint.recording import answers


@dataclass
class Answer:
    """The least that an answer has."""

    name: str
    rows: pl.DataFrame

    def spec(self) -> dict[str, Any]:
        return {"verb": "score", "cost": {"seconds": 1.5}}

    def frame(self) -> pl.DataFrame:
        return self.rows


FRAME = pl.DataFrame(
    {"id": ["a", "b"], "el2n": [0.5, None], "group": [["x"], []], "evidence": [{"p": 0.1}, {"p": 0.9}]}
)


def test_an_answer_comes_back(tmp_path: Path) -> None:
    answers.save(tmp_path, Answer("score", FRAME))
    answers.save(tmp_path, Answer("clean", FRAME.head(1)))
    assert answers.names(tmp_path) == ["clean", "score"]
    stored = answers.read(tmp_path, "score")
    assert stored.frame().equals(FRAME)
    assert stored.spec() == {"verb": "score", "cost": {"seconds": 1.5}}


def test_the_newest_answer_replaces_the_older(tmp_path: Path) -> None:
    answers.save(tmp_path, Answer("score", FRAME))
    answers.save(tmp_path, Answer("score", FRAME.head(1)))
    assert len(answers.read(tmp_path, "score").frame()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["score"]


def test_a_failed_save_leaves_the_older_answer(tmp_path: Path) -> None:
    answers.save(tmp_path, Answer("score", FRAME))
    broken = Answer("score", FRAME.head(1))
    broken.spec = lambda: {"no JSON": object()}  # type: ignore[method-assign, dict-item]
    with pytest.raises(TypeError):
        answers.save(tmp_path, broken)
    assert len(answers.read(tmp_path, "score").frame()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["score"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be called"):
        answers.save(tmp_path, Answer(name, FRAME))


def test_an_unknown_answer_is_named_with_the_nearest(tmp_path: Path) -> None:
    answers.save(tmp_path, Answer("score", FRAME))
    with pytest.raises(RunError, match="Did you mean 'score'"):
        answers.read(tmp_path, "scores")


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    answers.save(tmp_path, Answer("score", FRAME))
    (tmp_path / "score" / "answer.json").write_text("[")
    with pytest.raises(RunError, match=r"answer\.json is damaged"):
        answers.read(tmp_path, "score").spec()
