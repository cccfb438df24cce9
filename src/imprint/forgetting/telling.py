"""How a request named its examples, in words that name none of them.

A record that an auditor reads should say *how* examples were chosen: by a list of ids, as a class, by a condition. But the text of a
condition may hold just what is to be forgotten (`text LIKE '%Jane Doe%'`), and would bring it back into the record. So a literal of the
condition that fits a forgotten row and no retained one is left out, and the whole text is kept as a salted hash: whoever holds the
request can show that it is the one that was served.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from imprint.forgetting.request import DIGEST

if TYPE_CHECKING:
    from imprint.recording import Run

# What stands for a literal that would tell.
LEFT_OUT = "\u2026"
# Strings and numbers of an SQL condition; two quotes within a string are one.
LITERAL = re.compile(r"'((?:[^']|'')*)'|(?<![\w.])(\d+\.?\d*(?:[eE][+-]?\d+)?)")
# Rows that are read at a time.
PIECE = 16384
# Classes that are named one by one.
NAMED = 20


def told(
    run: Run,
    places: Int64[np.ndarray, " example"],
    ids: Sequence[str] | pl.Series | None = None,
    where: pl.Expr | str | None = None,
    classes: Sequence[Any] | str | None = None,
    findings: Any = None,
) -> dict[str, Any]:
    """How a request named its examples: `by`, `words`, and `text`, which is to be kept as a hash alone (`sealed`).

    Args:
        run: The parent.
        places: The examples, as `wanted` found them.
        ids: As for `wanted`; so are the others.
    """
    if where is not None and isinstance(where, str):
        return {"by": "condition", "words": f"all training examples with {masked(run, places, where)}", "text": where}
    if where is not None:
        names = ", ".join(sorted(set(where.meta.root_names())))
        return {"by": "condition", "words": f"all training examples that satisfy a Polars expression over {names}"}
    if classes is not None:
        many = [str(one) for one in classes] if isinstance(classes, list | tuple | set | frozenset) else [str(classes)]
        shown = ", ".join(f"'{one}'" for one in many[:NAMED]) + (", ..." if len(many) > NAMED else "")
        return {
            "by": "class",
            "words": f"all training examples of the {'class' if len(many) == 1 else 'classes'} {shown}",
        }
    if findings is not None:
        return {"by": "findings", "words": f"what findings suggest to drop{_kinds(run, findings)}"}
    return {"by": "ids", "words": "the examples of a list of ids"}


def sealed(said: dict[str, Any], salt: str) -> dict[str, Any]:
    """The same without its text, of which a salted hash stays.

    >>> kept = sealed({"by": "condition", "words": "...", "text": "source = 'forum'"}, "00" * 16)
    >>> sorted(kept), len(kept["hash"])
    (['by', 'hash', 'words'], 32)
    """
    found = {name: value for name, value in said.items() if name != "text"}
    if "text" in said:
        key = bytes.fromhex(salt)
        found["hash"] = hashlib.blake2b(said["text"].encode(), digest_size=DIGEST, salt=key).hexdigest()
    return found


def masked(run: Run, places: Int64[np.ndarray, " example"], where: str) -> str:
    """A condition without what would tell of the forgotten rows.

    A text stays if each of its parts between wildcards is in a retained row as well, whatever the case; a number unless it is the value
    of a forgotten row and of no retained one.
    """
    literals = [(_parts(text.replace("''", "'")), number) for text, number in LITERAL.findall(where)]
    if not literals:
        return where
    rows = run.rows()
    forgotten = np.zeros(len(rows), bool)
    forgotten[places] = True
    names = set(re.findall(r"\w+", where.lower()))
    wanted: set[str | float] = {one for parts, _ in literals for one in parts}
    wanted |= {float(number) for _, number in literals if number}
    retained = _there(run, rows[~forgotten], names, wanted)
    gone = _there(run, rows[forgotten], names, wanted)

    def stays(parts: list[str], number: str) -> bool:
        if number:
            return float(number) in retained or float(number) not in gone
        return all(one in retained for one in parts)

    kept = iter([stays(*one) for one in literals])

    def shown(match: re.Match[str]) -> str:
        return match[0] if next(kept) else f"'{LEFT_OUT}'" if match[2] is None else LEFT_OUT

    return LITERAL.sub(shown, where)


def _parts(text: str) -> list[str]:
    """A text between its wildcards, in lower case."""
    return [one.lower() for one in re.split("[%_]", text) if one]


def _there(run: Run, rows: np.ndarray, names: set[str], wanted: set[str | float]) -> set[str | float]:
    """Which of these texts are a part of a value, and which numbers are a value, in the columns that a condition names."""
    found: set[str | float] = set()
    for column in _columns(run, rows, names):
        for one in wanted - found:
            if isinstance(one, str) and column.dtype == pl.String:
                if column.str.to_lowercase().str.contains(one, literal=True).any():
                    found.add(one)
            elif isinstance(one, float) and column.dtype.is_numeric() and (column == one).any():
                found.add(one)
    return found


def _columns(run: Run, rows: np.ndarray, names: set[str]) -> Iterator[pl.Series]:
    """Columns that a condition names, piece by piece; always the ids, and the target."""
    corpus = run.corpus
    inputs = [name for name in corpus.roles.inputs if set(re.findall(r"\w+", name.lower())) <= names]
    for begin in range(0, len(rows), PIECE):
        part = rows[begin : begin + PIECE]
        yield corpus.ids.gather(part)
        target = corpus.target.gather(part)
        yield target if target.dtype.is_numeric() or target.dtype.is_nested() else target.cast(pl.String)
        for column in corpus.read(part, inputs).iter_columns() if inputs else ():
            yield column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def _kinds(run: Run, findings: Any) -> str:
    """What the findings are about, counted."""
    if isinstance(findings, str | Path):
        findings = run.answer(str(findings)) if str(findings) in run.answers() else None
    frame = findings if findings is None or isinstance(findings, pl.DataFrame) else findings.frame()
    if frame is None or "kind" not in frame.columns:
        return ""
    kinds = Counter(frame.filter(pl.col("suggestion") == "drop")["kind"].drop_nulls().to_list())
    return f" ({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())})" if kinds else ""
