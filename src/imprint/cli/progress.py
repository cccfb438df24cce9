"""Progress on standard error: a bar for each job on a terminal, one line per finished job elsewhere (logs, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from imprint.cli.output import seconds

SHORTEST = 0.5  # seconds; quicker jobs leave no line behind


class Stages:
    """Follows `imprint.fitting.progress.Progress`: `stages(label, done, total, facts)`. Use as a context manager.

    A job counts as finished when another one begins after it was complete: a reader that does not know its total says with
    each batch that it is complete.
    """

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.bars: dict[str, Any] = {}
        self.display: Any = None

    def __enter__(self) -> Stages:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.display = Progress(
                TextColumn("  {task.description:<12}"),
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
        for label in list(self.ended) if error is None else []:
            self.finish(label)
        if self.display is not None:
            self.display.stop()

    def __call__(self, label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
        for other in [one for one in self.ended if one != label]:
            self.finish(other)
        self.began.setdefault(label, time.perf_counter())
        if self.display is not None:
            self.draw(label, done, total, facts or {})
        if done >= total:
            self.ended[label] = time.perf_counter()

    def draw(self, label: str, done: int, total: int, facts: Mapping[str, str]) -> None:
        """Move the bar of a job."""
        if label not in self.bars:
            self.bars[label] = self.display.add_task(label, total=total, rate="", facts="")
        shown = "  ".join(f"{name} {value}" for name, value in facts.items())
        speed = next(task.speed for task in self.display.tasks if task.id == self.bars[label])
        rate = "" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
        self.display.update(self.bars[label], completed=done, total=total, facts=shown, rate=rate)

    def finish(self, label: str) -> None:
        """Leave a line behind: the job and its time."""
        took = self.ended.pop(label) - self.began.pop(label)
        line = f"  {label:<12} {seconds(took):>12}"
        if self.display is not None:
            self.display.remove_task(self.bars.pop(label))
            if took >= SHORTEST:
                self.display.console.print(line, markup=False)
        elif took >= SHORTEST:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
