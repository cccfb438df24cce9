"""BM25: the lexical search score, as a control for attribution on text.

    score(q, d) = sum over the words w of q of idf(w) * tf(w, d) (k1 + 1) / (tf(w, d) + k1 (1 - b + b |d| / mean length))
    idf(w) = log(1 + (N - n(w) + 1/2) / (n(w) + 1/2))

A word of the query counts as often as it occurs in it. A word is a run of letters, digits and underscores, in lower case.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

from imprint.methods import method
from imprint.tracing.evidence import QUERIES, Texts
from imprint.tracing.factors import Factors

# The values that Robertson and Zaragoza find good in most collections, and that search engines ship.
K1, B = 1.2, 0.75


@method(
    "trace", "bm25", higher="shares more rare words", needs=[Texts("query_texts", split=QUERIES), Texts()],
    modalities=["text"], source="control; Robertson, Zaragoza 2009, doi:10.1561/1500000019",
)  # fmt: skip
def bm25(query_texts: pl.Series, texts: pl.Series) -> Factors:
    """Words that the query shares with the example, weighted by how rare they are; 0 or more. It sees neither model nor labels.

    >>> bm25(pl.Series(["cat"]), pl.Series(["a cat", "a dog"])).scores().round(decimals=3)
    tensor([[0.6930, 0.0000]])
    """
    counts, words = occurrences(texts)
    length = counts.sum(1)
    found = (counts > 0).sum(0)
    idf = np.log1p((len(texts) - found + 0.5) / (found + 0.5))
    longness = K1 * (1 - B + B * length / max(length.mean(), 1e-12))
    entries = counts.tocoo()
    row, column = entries.coords
    weight = idf[column] * entries.data * (K1 + 1) / (entries.data + longness[row])
    examples = sparse.csr_array((weight.astype(np.float32), (row, column)), shape=counts.shape)
    queries, _ = occurrences(query_texts, words)
    return Factors(queries.astype(np.float32), examples)


def occurrences(texts: pl.Series, words: pl.Series | None = None) -> tuple[sparse.csr_array, pl.Series]:
    """How often each word occurs in each text: `[text, word]`, and the words.

    Args:
        texts: The texts; a missing one has no words.
        words: The words to count; None for all that occur, in alphabetic order.
    """
    said = (
        pl.DataFrame({"text": np.arange(len(texts)), "word": texts.rename("word")})
        .with_columns(pl.col("word").str.to_lowercase().str.extract_all(r"\w+"))
        .explode("word")
        .drop_nulls("word")
    )
    words = said["word"].unique().sort() if words is None else words
    codes = pl.DataFrame({"word": words, "code": np.arange(len(words))})
    counts = said.group_by("text", "word").len().join(codes, on="word", how="inner")
    entries = counts["len"].to_numpy().astype(np.float64)
    places = counts["text"].to_numpy(), counts["code"].to_numpy()
    return sparse.csr_array((entries, places), shape=(len(texts), len(words))), words
