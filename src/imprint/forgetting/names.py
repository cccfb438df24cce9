"""Forgotten ids within texts: found by the words that they begin with, so that a million ids cost no more than a few."""

from __future__ import annotations

import re
from collections.abc import Iterable

from imprint.forgetting.patterns import LEAST

# What stands in the place of a forgotten id.
ERASED = "(erased)"
WORD = re.compile(r"[^\W_]+")


def telling(one: str) -> bool:
    """Whether an id names somebody in a text: a number of a few digits stands in many, and may be a class or a count.

    >>> telling("u-1"), telling("1832"), telling("20260001")
    (True, False, True)
    """
    return len(one) >= LEAST or not one.isdigit()


class Names:
    """Ids that may stand within sentences.

    Args:
        ids: The ids; those of one character are left out, since they stand in every text.

    >>> Names(["u-1", "a/b.png"]).sub("u-1 is like a/b.png, not like u-12 or xu-1")
    '(erased) is like (erased), not like u-12 or xu-1'
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids: dict[str, list[tuple[int, str]]] = {}
        for one in ids:
            first = WORD.search(one) if len(one) > 1 else None
            if first is not None:
                self.ids.setdefault(first[0], []).append((first.start(), one))
        for several in self.ids.values():  # of two that begin alike the longer one is meant
            several.sort(key=lambda one: -len(one[1]))

    def __bool__(self) -> bool:
        return bool(self.ids)

    def sub(self, text: str) -> str:
        """The text with `(erased)` for each id that stands in it as a word of its own."""
        if not self.ids:
            return text
        parts, end = [], 0
        for word in WORD.finditer(text):
            for before, one in self.ids.get(word[0], ()):
                begin = word.start() - before
                stop = begin + len(one)
                if begin >= end and text.startswith(one, begin) and not _joined(text, begin, stop):
                    parts += [text[end:begin], ERASED]
                    end = stop
                    break
        return "".join(parts) + text[end:] if parts else text


def _joined(text: str, begin: int, end: int) -> bool:
    """Whether what stands there goes on to the left or to the right."""

    def goes_on(place: int) -> bool:
        return 0 <= place < len(text) and (text[place].isalnum() or text[place] in "_-")

    return goes_on(begin - 1) or goes_on(end)
