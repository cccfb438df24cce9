"""ZIP-FIT: the texts that a compressor says most shortly when it knows the target's texts; no model, no features.

The normalised compression distance of a text x to a target text t, with C(.) the compressed size in bytes, and the mean of it over the
targets, is what ZIP-FIT ranks by (Obbad et al. 2024):

    NCD(x, t) = (C(x + t) - min(C(x), C(t))) / max(C(x), C(t)),        alignment(x) = 1 - mean over t of NCD(x, t).

Two short texts have little to say of each other: on sentences most of that number is the length of x, and it costs a compression per
pair. Here all of the target is known when x is compressed, C(x + t) = C(x | target) + C(t), and the rest of the formula is as it was:

    alignment(x) = (C(x) - C(x | target)) * mean over t of 1 / max(C(x), C(t)),

the share of a text that the target saves, where a text shorter than a target text counts as if it were as long. In eight mixtures
of two text sets (1,500 of each, 200 texts as the target; `benchmarks/targeting.py`) this finds those of the target with an AUROC of
0.78 to 0.996 (0.91 in the mean), the mean over pairs of 0.51 to 0.99 (0.75), at ten times the cost or more.

Deflate looks back 32 KiB, so the target is cut into parts of that size, and C(x | target) is the mean over parts. A part is read once
into a compressor that is copied for each text. Of a target of more than `PARTS` parts, evenly spaced texts are used.

At level 0 deflate stores what it is given, and no text saves anything: the authors' class has that as its default.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int

from imprint.errors import EvidenceError, MethodError
from imprint.methods import method
from imprint.selecting.evidence import TARGET, Budget, Random, Texts
from imprint.selecting.picks import Picks, ranked

# How far a match of deflate reaches back: its window less the longest match and the lookahead.
REACH = 2**15 - 262
# Parts of a target that are used (256 KiB); each costs some 25 to 100 microseconds a text.
PARTS = 8
LEVEL = 6


def alignment(texts: pl.Series, target_texts: pl.Series, level: int = LEVEL) -> Float[np.ndarray, " example"]:
    """How much shorter each text becomes by knowing the target; see the module. About 0 = nothing in common, 1 = said by the target.

    Args:
        texts: The texts.
        target_texts: The texts to be like.
        level: Of deflate, 1 to 9.

    Raises:
        MethodError: The level compresses nothing.
        EvidenceError: The target has no text.

    >>> found = alignment(pl.Series(["the cat sat on the mat", "buy cheap pills now"]), pl.Series(["a cat sat on my mat"] * 3))
    >>> bool(found[0] > 0.3 > found[1])
    True
    """
    if not 1 <= level <= 9:
        raise MethodError(
            f"Deflate has no level {level} that compresses.", "Give a level from 1 to 9; 0 stores its input."
        )
    known, used = _within(_bytes(target_texts), REACH * PARTS)
    if not known:
        raise EvidenceError("The target has no text to be like.", "Name target examples whose text columns are filled.")
    said = _bytes(texts)
    alone = _sizes(_compressor(level), said)
    given = np.mean([_sizes(_compressor(level, part), said) for part in _parts(known)], 0)
    return (alone - given) * _mean_inverse(alone, _sizes(_compressor(level), used))


def _bytes(texts: pl.Series) -> list[bytes]:
    """The texts in UTF-8, each ended by a line break."""
    return [text.encode() + b"\n" for text in texts.fill_null("")]


def _within(texts: list[bytes], most: int) -> tuple[bytes, list[bytes]]:
    """The texts joined, and which they are: all that say something, or as many, evenly spaced, as have so many bytes in all."""
    texts = [text for text in texts if text.strip()]
    total = sum(map(len, texts))
    if total > most:
        places = np.linspace(0, len(texts) - 1, max(1, len(texts) * most // total)).round().astype(int)
        texts = [texts[place] for place in places]
    return b"".join(texts)[:most], texts


def _parts(known: bytes) -> list[bytes]:
    """The target in as few equal parts as deflate can look back to."""
    size = -(-len(known) // -(-len(known) // REACH))
    return [known[begin : begin + size] for begin in range(0, len(known), size)]


def _compressor(level: int, known: bytes = b"") -> Any:
    """A compressor (raw deflate: no header, no checksum) that has seen something."""
    settings = (level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)
    return zlib.compressobj(*settings, known) if known else zlib.compressobj(*settings)


def _sizes(primed: Any, texts: list[bytes]) -> Int[np.ndarray, " example"]:
    """Compressed size of each text by copies of a compressor."""

    def size(text: bytes) -> int:
        one = primed.copy()
        return len(one.compress(text)) + len(one.flush())

    return np.fromiter(map(size, texts), np.int64, len(texts))


def _mean_inverse(
    sizes: Int[np.ndarray, " example"], others: Int[np.ndarray, " target"]
) -> Float[np.ndarray, " example"]:
    """Mean over others of 1 / max(size, other)."""
    others = np.sort(others)
    smaller = np.searchsorted(others, sizes)
    larger = np.append(np.cumsum((1 / others)[::-1])[::-1], 0.0)
    return (smaller / sizes + larger[smaller]) / len(others)


@method(
    "select", "zip-fit", higher="compressed further by what the target says",
    needs=[Texts(), Texts("target_texts", split=TARGET), Budget(), Random()],
    source="Obbad et al. 2024 (ZIP-FIT), arXiv:2410.18194",
)  # fmt: skip
def zip_fit(texts: pl.Series, target_texts: pl.Series, budget: int, generator: torch.Generator) -> Picks:
    """Examples whose texts compress best when the target's texts are known; of tables the texts are their rows, cell by cell.

    Copies of a target text rank first: a training set and a target that share texts are to be deduplicated before.

    >>> texts, target = pl.Series(["buy cheap pills now", "the cat sat on the mat"]), pl.Series(["a cat sat on my mat"])
    >>> zip_fit(texts, target, 1, torch.Generator()).order
    tensor([1])
    """
    value = torch.from_numpy(alignment(texts, target_texts)).float()
    size = sum(len(text) for text in _bytes(target_texts))
    note = (
        f"{REACH * PARTS:,} of the target's {size:,} bytes were used: evenly spaced texts."
        if size > REACH * PARTS
        else ""
    )
    return Picks(ranked(value, budget, generator), value=value, note=note)
