"""MetaCLIP's balancing: texts that mention rare things are kept, texts that mention only common things are thinned.

Each text is matched with a list of entries (words, titles, classes) by substring. An entry e in n[e] texts is given the chance
min(1, t / n[e]): up to the cap t, all its texts would be kept, beyond it about t of them. A text is kept if one of its entries keeps it
(Xu et al. 2023),

    P(kept) = 1 - product over its entries of (1 - min(1, t / n[e])),

so a text is only left out where everything that it says is said often enough elsewhere; texts without an entry are left out. The
paper sets t (20,000) and takes the size that comes out. Here the budget is given: the expected size grows with t, and t is solved
for. Of examples with these probabilities, exactly as many as the budget are drawn (systematic sampling).

An entry matches whole words, whatever the case: punctuation counts as a word of its own, and in scripts that do not put spaces
between words an entry matches anywhere. Where there are no texts, tags are matched: values of categorical columns and the target's
classes or labels, as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from torch import Tensor

from imprint.errors import MethodError
from imprint.methods import method
from imprint.recording.needs import Rows, Table
from imprint.selecting.evidence import Budget, Entries, Random
from imprint.selecting.picks import Picks, ranked

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Texts matched at a time; the matcher is built anew for each block.
BLOCK = 65_536
# Scripts without spaces between words, as in MetaCLIP 2 (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan).
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"

Pairs = Int[np.ndarray, "pair two"]


@dataclass(frozen=True, eq=False)
class Balance:
    """How examples are thinned.

    Attributes:
        cap: t: an entry in more examples than that is thinned.
        keep: Probability of each example to be kept.
        counts: Examples of each entry.
    """

    cap: float
    keep: Float[Tensor, " example"]
    counts: Int[Tensor, " entry"]


def matches(texts: pl.Series, entries: Sequence[str]) -> Pairs:
    """Which texts have which entries: pairs of (place of the text, place of the entry), ascending, each once.

    All entries are looked for in one pass over each text (Aho-Corasick). Entries that differ in case or spaces alone count as the
    first.

    >>> matches(pl.Series(["A red car.", "redder", "New York, red"]), ["red", "new york"]).tolist()
    [[0, 0], [2, 0], [2, 1]]
    """
    pattern = spaced(pl.Series(entries, dtype=pl.String))
    pattern = pattern.str.replace_all(f"^ ({UNSPACED})", "$1").str.replace_all(f"({UNSPACED}) $", "$1")
    known = pl.DataFrame({"pattern": pattern, "entry": np.arange(len(pattern))})
    known = known.filter(pl.col("pattern").str.strip_chars() != "").unique("pattern", keep="first", maintain_order=True)
    found = [np.empty((0, 2), np.int64)]
    for begin in range(0, len(texts) if len(known) else 0, BLOCK):
        some = spaced(texts.slice(begin, BLOCK)).str.extract_many(known["pattern"].to_list(), overlapping=True)
        places = pl.DataFrame({"place": np.arange(begin, begin + len(some)), "pattern": some})
        found.append(_pairs(places.explode("pattern").join(known, on="pattern")))
    return np.concatenate(found)


def tag_matches(tags: pl.Series, entries: Sequence[str]) -> Pairs:
    """Which examples have which entries as a tag, `matches` of whole values: one tag each, or a list of them.

    >>> tag_matches(pl.Series([["a", "b"], ["c"], ["b"]]), ["b", "a"]).tolist()
    [[0, 0], [0, 1], [2, 0]]
    """
    known = pl.DataFrame({"tag": pl.Series(entries, dtype=pl.String), "entry": np.arange(len(entries))})
    known = known.unique("tag", keep="first", maintain_order=True)
    places = pl.DataFrame({"place": np.arange(len(tags)), "tag": tags})
    if isinstance(tags.dtype, pl.List):
        places = places.explode("tag")
    return _pairs(places.with_columns(pl.col("tag").cast(pl.String)).join(known, on="tag"))


def spaced(texts: pl.Series) -> pl.Series:
    """Texts in lower case, with one space around and between words; a mark of punctuation is a word.

    >>> spaced(pl.Series(["C++,  please"])).to_list()
    [' c + + , please ']
    """
    apart = texts.fill_null("").str.to_lowercase().str.replace_all(r"([^\w\s])", " $1 ")
    joined = apart.str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.select(pl.format(" {} ", joined)).to_series()


def _pairs(found: pl.DataFrame) -> Pairs:
    pairs = found.select("place", "entry").drop_nulls().unique().sort("place", "entry")
    return pairs.to_numpy().astype(np.int64, copy=False).reshape(-1, 2)


def balance(pairs: Pairs, examples: int, entries: int, budget: int) -> Balance:
    """The cap with which as many examples as the budget are expected to be kept, and their probabilities.

    Args:
        pairs: Which examples have which entries.
        examples: How many examples there are.
        entries: How many entries.
        budget: How many to keep. With as many as have an entry or more, all of these are certain.

    >>> pairs = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [4, 1]])
    >>> found = balance(pairs, 6, 2, 3)
    >>> round(found.cap, 6), [round(float(one), 6) for one in found.keep]
    (2.0, [0.5, 0.5, 0.5, 0.5, 1.0, 0.0])
    """
    place, entry = pairs.T
    counts = np.bincount(entry, minlength=entries)
    often = counts[entry]

    def keep(cap: float) -> Float[np.ndarray, " example"]:
        with np.errstate(divide="ignore"):
            missed = np.log1p(-np.minimum(1.0, cap / often))
        return 0.0 - np.expm1(np.bincount(place, missed, minlength=examples))

    # An entry keeps min(n, cap) examples at most, so that budget / entries is too low (half of it also where it is exact, in spite of
    # rounding); with n the cap of all, nothing is thinned.
    low, high = 0.5 * budget / max(1, int((counts > 0).sum())), float(counts.max(initial=1))
    if budget >= len(np.unique(place)):
        cap = high
    else:
        cap = float(brentq(lambda cap: keep(cap).sum() - budget, min(low, high), high, xtol=1e-9 * low, rtol=1e-12))
    return Balance(cap, torch.from_numpy(keep(cap)), torch.from_numpy(counts))


def systematic(
    probability: Float[Tensor, " example"], budget: int, generator: torch.Generator
) -> Int[Tensor, " picked"]:
    """Exactly so many examples, each with its own probability, of which the budget is the sum: one step through all of them.

    >>> systematic(torch.tensor([1.0, 0.5, 0.0, 0.5]), 2, torch.Generator()).numel()
    2
    """
    certain = probability >= 1 - 1e-9
    left = budget - int(certain.sum())
    mixed = torch.randperm(len(probability), generator=generator)
    mixed = mixed[~certain[mixed] & (probability[mixed] > 0)]
    ends = probability[mixed].double().cumsum(0)
    if left <= 0 or not len(ends):
        return certain.nonzero().squeeze(1)
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    points = (torch.arange(left) + start) * (ends[-1] / left)
    return torch.cat([certain.nonzero().squeeze(1), mixed[torch.searchsorted(ends, points, right=True)]])


def found_in(corpus: Corpus, rows: Int[np.ndarray, " example"], entries: Sequence[str]) -> tuple[Pairs, str]:
    """Which examples of a corpus have which entries, and where they were looked for.

    Raises:
        MethodError: The corpus has neither texts nor tags.
    """
    texts = [name for name, kind in corpus.kinds.items() if kind == "text"]
    if texts:
        said = pl.concat_str([pl.col(name).fill_null("") for name in texts], separator=" . ")
        begin, parts = 0, []
        for some, frame in corpus.batches(rows, texts, size=BLOCK):
            parts.append(matches(frame.select(said).to_series(), entries) + np.array([begin, 0]))
            begin += len(some)
        return np.concatenate(parts), "texts"
    columns = [name for name, kind in corpus.kinds.items() if kind == "categorical"]
    parts = [tag_matches(corpus.read(rows, [name])[name], entries) for name in columns]
    if corpus.roles.target is not None and not corpus.target.dtype.is_float():
        parts.append(tag_matches(corpus.target.gather(rows), entries))
    if not parts:
        raise MethodError(
            "The corpus has neither texts nor tags to find entries in.",
            "Give it a text or categorical column, or classes.",
        )
    return np.unique(np.concatenate(parts), axis=0), "tags"


@method(
    "select", "metadata-balance", higher="kept with a higher probability: says something rarer",
    needs=[Table(), Rows(), Entries(), Budget(), Random()], source="Xu et al. 2023 (MetaCLIP), arXiv:2309.16671",
)  # fmt: skip
def metadata_balance(
    corpus: Corpus, rows: Int[Tensor, " example"], entries: Sequence[str], budget: int, generator: torch.Generator
) -> Picks:  # fmt: skip
    """Examples balanced over the entries that their texts (or tags) have: common entries are capped, rare ones kept.

    The value is the probability with which an example was kept. Where the budget is larger than the number of examples with an entry,
    others are drawn at random.
    """
    pairs, where = found_in(corpus, rows.numpy(), entries)
    if not len(pairs):
        raise MethodError(
            f"None of the {len(entries):,} entries is in the {where} of the training examples.",
            f"Give entries that occur, such as entries=['...']; the first of these is {entries[0]!r}."
            if entries
            else "Give entries=[...].",
        )
    found = balance(pairs, len(rows), len(entries), budget)
    chosen = systematic(found.keep, budget, generator)
    order = chosen[ranked(found.keep[chosen], budget, generator)]
    without = int((found.keep == 0).sum())
    if len(order) < budget:
        others = (found.keep == 0).nonzero().squeeze(1)
        mixed = others[torch.randperm(len(others), generator=generator)]
        order = torch.cat([order, mixed[: budget - len(order)]])
    thinned = int((found.counts > found.cap).sum())
    note = (
        f"{int((found.counts > 0).sum()):,} of {len(entries):,} entries were found; {thinned:,} of them in more than {found.cap:,.1f} "
        f"examples and thinned; {without:,} examples have no entry."
    )
    return Picks(order, value=found.keep.float(), note=note)
