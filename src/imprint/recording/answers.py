"""The answers of a run: one folder per name under RUN/answers, written whole or not at all (`imprint.answers`)."""

from __future__ import annotations

import re
from pathlib import Path

from imprint.answers import Answer, load_answer
from imprint.errors import RunError, nearest

NAME = re.compile(r"[\w][\w.+-]*")


def names(folder: Path) -> list[str]:
    """Names of the stored answers, sorted."""
    return sorted(path.parent.name for path in folder.glob("*/answer.json") if not path.parent.name.startswith("."))


def read(folder: Path, name: str) -> Answer:
    """A stored answer, as the type that was saved; an unknown name raises `RunError` with the nearest one."""
    if name not in names(folder):
        raise RunError(f"The run has no answer '{name}'.", nearest(name, names(folder)))
    return load_answer(folder / name)


def save(folder: Path, answer: Answer, name: str | None = None) -> Path:
    """Store an answer under a name (by default that of its type), replacing one of the same name."""
    name = answer.name if name is None else name
    if not NAME.fullmatch(name):
        raise RunError(f"An answer cannot be called {name!r}.", "Use letters, digits, dots, dashes and underscores.")
    return answer.save(folder / name)
