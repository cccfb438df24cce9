"""Progress on standard error: a bar for each job on a terminal, one line per finished job elsewhere (logs, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from imprint.cli.output import seconds

SHORTEST = 0.5  # seconds; quicker jobs leave no line behind


class Stages:
    """Follows `imprint.fitting.progress.Progress`: `stages(label, done, total, facts)`. Use as a context manager."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.jobs: dict[str, Any] = {}
        self.display: Any = None

    def __enter__(self) -> Stages:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.display = Progress(
                TextColumn("  {task.description:<24}"),
                BarColumn(bar_width=16),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]:>9}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[facts]}"),
                console=Console(stderr=True, highlight=False),
                transient=True,
            )
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.display is not None:
            self.display.stop()

    def __call__(self, label: str, done: int, total: int | None, facts: Mapping[str, str] | None = None) -> None:
        if label not in self.began:
            self.began[label] = time.perf_counter()
            if self.display is not None:
                self.jobs[label] = self.display.add_task(label, total=total, rate="", facts="")
        if self.display is not None:
            job = self.jobs[label]
            shown = "  ".join(f"{name} {value}" for name, value in (facts or {}).items())
            speed = next(task.speed for task in self.display.tasks if task.id == job)
            rate = "" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
            self.display.update(job, completed=done, total=total, facts=shown, rate=rate)
        if total is not None and done >= total:
            self.finish(label)

    def job(self, label: str) -> Callable[[int, int | None], None]:
        """One job as a callable of its own: `(done, total)`, where the total may be unknown."""
        return lambda done, total: self(label, done, total)

    def finish(self, label: str) -> None:
        """Leave a line behind: the job and its time."""
        took = time.perf_counter() - self.began.pop(label)
        line = f"  {label:<24} {seconds(took):>12}"
        if self.display is not None:
            self.display.remove_task(self.jobs.pop(label))
            if took >= SHORTEST:
                self.display.console.print(line, markup=False)
        elif took >= SHORTEST:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
