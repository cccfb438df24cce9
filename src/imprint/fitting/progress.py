"""Progress: one callable that long jobs tell how far they are; a bar in the terminal is one such callable."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol


class Progress(Protocol):
    """Called now and then by a long job, a few times a second at most."""

    def __call__(self, label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
        """`done` of `total` units of the job `label` are ready; `facts` are short things to show beside ("loss": "0.31")."""
        ...


def silent(label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
    """Show nothing."""


class Bar:
    """Progress bars on standard error, with throughput and time left. Use as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[facts]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._jobs: dict[str, object] = {}

    def __enter__(self) -> Bar:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def __call__(self, label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
        if label not in self._jobs:
            self._jobs[label] = self._display.add_task(label, total=total, rate="", facts="")
        job = self._jobs[label]
        shown = "  ".join(f"{name} {value}" for name, value in (facts or {}).items())
        self._display.update(job, completed=done, total=total, facts=shown)  # type: ignore[arg-type]
        speed = next(task.speed for task in self._display.tasks if task.id == job)
        self._display.update(job, rate=f"{speed:,.0f}/s" if speed else "")  # type: ignore[arg-type]
        if done >= total:
            self._display.remove_task(self._jobs.pop(label))  # type: ignore[arg-type]


@contextmanager
def reporter(progress: Progress | Literal[False] | None) -> Iterator[Progress]:
    """The given progress; for None a bar where standard error is a terminal; for False nothing."""
    if progress is None and sys.stderr.isatty():
        with Bar() as bar:
            yield bar
    else:
        yield progress or silent
