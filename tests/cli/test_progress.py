"""Progress on standard error: one line per finished job that took a while, off a terminal."""

from __future__ import annotations

import pytest

from imprint.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list whose only item tests set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_job_leaves_one_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Stages() as stages:
        stages("open", 1, 1)
        stages("train", 0, 2)
        clock[0] = 75.0
        stages("train", 2, 2, {"epoch": "2/2"})
    assert capsys.readouterr().err == "  train          1 min 15 s\n"  # opening was instant


def test_a_reader_that_does_not_know_its_total_is_one_job(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.Stages() as stages:
        for batch in range(1, 4):
            clock[0] = 10.0 * batch
            stages("open", batch, batch)
        stages("train", 0, 1)
        clock[0] = 31.0
        stages("train", 1, 1)
    assert capsys.readouterr().err.split("\n") == ["  open                 20 s", "  train               1.0 s", ""]


def test_an_unfinished_job_leaves_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Stages() as stages:
        stages("train", 0, 2)
        clock[0] = 9.0
    assert capsys.readouterr().err == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Stages() as stages:
        stages("train", 1, 2, {"epoch": "1/2"})
        stages("train", 2, 2)
        stages("outputs", 1, 1)
        assert [task.description for task in stages.display.tasks] == ["outputs"]
