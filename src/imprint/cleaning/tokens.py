"""Duplicated and token-artifact evaluation sets: is the measured accuracy that of understanding?

Detectors of vulnerable code lost half of their accuracy on realistic data (Chakraborty et al. 2021, arXiv:2009.07235), for three reasons
that any set of texts can have:

- duplicates: held-out texts with copies, or near copies, among the training texts, and held-out texts that are copies of each other,
- tokens that give the label away without being about it: names, numbers, punctuation, the commonest words,
- a class balance that is not that of use.

The audit measures each of them, and what the model's accuracy is without it: on held-out texts that have no near copy in training, beside a
bag-of-words model and one that sees artifact tokens alone, and with each class weighted by how often it comes up in use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from imprint.cleaning.cues import joined, presence
from imprint.cleaning.near import similarities
from imprint.cleaning.slices import benjamini_hochberg
from imprint.cleaning.texts import NEAR, candidates, jaccard, minhash, normalised
from imprint.errors import MethodError, TargetError, nearest
from imprint.recording.needs import HELD_OUT, Classes, Outputs, Rows, Target
from imprint.tasks.shares import wilson

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from scipy.sparse import csr_matrix

    from imprint.corpus import Corpus

# Texts that bag-of-words models learn from and are judged on.
EXAMPLES = 10_000
# Tokens in the table: those that go with one class beyond chance at this rate, the clearest first.
RATE, LISTED = 0.05, 100
# What tells nothing of what a text is about: marks and numbers, and the words that turn up everywhere: the commonest, in a tenth of the
# texts or more.
COMMONEST, EVERYWHERE = 50, 0.1
MARKS = re.compile(r"[^\w\s]|\d+")


@dataclass(frozen=True)
class Tokens:
    """What copies and artifact tokens make of a measured accuracy.

    Attributes:
        table: measure, value, low, high (95 % interval; null where there is none), in words.
        tokens: token, class, examples, share (of the class among the texts that hold it), base (among all), z, artifact.
        copies: id, copy_of (id), similarity, where ("train" or "held out"), exact: held-out texts that are (near) copies.
    """

    table: pl.DataFrame = field(repr=False)
    tokens: pl.DataFrame = field(repr=False)
    copies: pl.DataFrame = field(repr=False)

    def value(self, measure: str) -> float:
        """One figure of the table."""
        return float(self.table.filter(pl.col("measure") == measure)["value"].item())

    def frame(self) -> pl.DataFrame:
        """One row per measure: measure, value, low, high, meaning."""
        return self.table

    def summary(self) -> str:
        """Copies, accuracy without them, and what bare tokens achieve."""
        held = ("near copies in training", "copies of each other")
        reached = ("accuracy", "accuracy without copies", "bag of words", "artifact tokens", "commonest class")
        train, own = (f"{self.value(name):.1%}" for name in held)
        model, fresh, bag, bare, common = (f"{self.value(name):.3f}" for name in reached)
        text = (
            f"{train} of the held-out texts have a near copy in training and {own} one among themselves. The model's accuracy is {model}, "
            f"{fresh} without copies of training texts; a bag of words has {bag}, artifact tokens alone {bare}, the commonest class "
            f"{common}."
        )
        if "accuracy in use" in self.table["measure"]:
            text += f" With the classes as often as in use: {self.value('accuracy in use'):.3f}."
        leading = self.tokens.filter("artifact").head(5)
        if len(leading):
            listed = ", ".join(
                f"'{row['token']}' ({row['class']} {row['share']:.0%})" for row in leading.iter_rows(named=True)
            )
            text += f" Artifact tokens that go with a class: {listed}."
        return text

    def plot(self) -> go.Figure:
        """Tokens by how many texts hold them and how purely they go with a class."""
        import plotly.graph_objects as go

        figure = go.Figure(
            [
                go.Scatter(
                    x=part["examples"].to_list(), y=part["share"].to_list(), text=part["token"].to_list(), mode="markers+text",
                    textposition="top center", name=name,
                )
                for name, part in (
                    ("artifact", self.tokens.filter("artifact")), ("other", self.tokens.filter(~pl.col("artifact"))),
                )
            ]
        )  # fmt: skip
        figure.update_layout(xaxis_title="texts with the token", yaxis_title="share of its class", xaxis_type="log")
        return figure


def tokens(run: Any, prior: Mapping[Any, float] | None = None) -> Tokens:
    """Copies, artifact tokens and class balance in the evaluation of a text classifier.

    Args:
        run: A recorded run of a classification of texts.
        prior: Class -> how often it comes up in use; the accuracy is then also given for that balance.

    Raises:
        MethodError: The data are no texts, or the task is no classification.
        TargetError: A class of `prior` is unknown, or its shares do not sum to more than 0.
        EvidenceError: All rows are training rows.
    """
    corpus: Corpus = run.corpus
    columns = [name for name, kind in corpus.kinds.items() if kind == "text"]
    if not columns or run.task.name != "classification":
        raise MethodError(
            f"Artifact tokens are of classified texts; this run is {run.task.name} on {corpus.modality} data.",
            "Use overlap instead.",
        )
    found = run.gather(
        [
            Outputs("logits", split=HELD_OUT),
            Target(),
            Rows(),
            Target("truth", split=HELD_OUT),
            Rows("held", split=HELD_OUT),
            Classes(),
        ]
    )
    rows, held = found["rows"].numpy(), found["held"].numpy()
    label, truth = found["target"].numpy(), found["truth"].numpy()
    classes = tuple(found["classes"])
    right = (found["logits"].argmax(1) == found["truth"]).numpy()
    copies = copied(corpus, rows, held, columns)
    in_training = _among(corpus, held, copies.filter(pl.col("where") == "train"))
    each_other = _among(corpus, held, copies.filter(pl.col("where") == "held out"))
    fresh = ~in_training
    rng = np.random.default_rng(0)
    learn, check = (np.sort(rng.choice(len(of), min(len(of), EXAMPLES), replace=False)) for of in (rows, held))
    learned, checked = joined(corpus, rows[learn], columns), joined(corpus, held[check], columns)
    words, seen, asked = presence(learned, checked)
    marks = _marks(learned), _marks(checked)
    often = np.asarray(seen.mean(0)).ravel()
    frequent = [place for place in np.argsort(-often, kind="stable")[:COMMONEST] if often[place] >= EVERYWHERE]
    bag = bernoulli(seen, label[learn], asked, len(classes))
    bare = bernoulli(
        _beside(seen[:, frequent], presence_of(marks[0], marks[0])), label[learn],
        _beside(asked[:, frequent], presence_of(marks[0], marks[1])), len(classes),
    )  # fmt: skip
    commonest = int(np.bincount(label, minlength=len(classes)).argmax())
    measures: list[tuple[str, np.ndarray, str]] = [
        (
            "near copies in training",
            in_training,
            "share of held-out texts that share 85 % of their runs with a training text",
        ),
        ("copies of each other", each_other, "share of held-out texts with a near copy among the held-out texts"),
        ("accuracy", right, "of the model on all held-out texts"),
        ("accuracy without copies", right[fresh], "of the model on held-out texts without a near copy in training"),
        ("bag of words", bag == truth[check], "accuracy of naive Bayes that sees which words a text holds"),
        ("artifact tokens", bare == truth[check], "the same of marks, numbers and words that turn up everywhere"),
        ("commonest class", truth == commonest, "accuracy of always saying the commonest class of the training texts"),
    ]
    table = [(name, *_share(values), words_) for name, values, words_ in measures]
    if prior is not None:
        table.append(_in_use(right, truth, classes, prior))
    listed = going_with(
        [*words, *_names(marks[0])], _beside(seen, presence_of(marks[0], marks[0])), label[learn], classes,
        {*(words[place] for place in frequent), *_names(marks[0])},
    )  # fmt: skip
    schema = ["measure", "value", "low", "high", "meaning"]
    return Tokens(pl.DataFrame(table, schema=schema, orient="row"), listed, copies)


def copied(
    corpus: Corpus, rows: Int[np.ndarray, " example"], held: Int[np.ndarray, " held_out"], columns: list[str]
) -> pl.DataFrame:
    """Held-out texts that are copies or near copies of a training text, or of an earlier held-out text; see `near-duplicate-texts`."""
    both = np.concatenate([rows, held])
    signatures = np.concatenate([minhash(normalised(frame, columns)) for _, frame in corpus.batches(both, columns)])
    pairs = np.concatenate([candidates(signatures), _equal(corpus.content[both])])
    # What is asked is of held-out texts: a pair needs one.
    pairs = np.unique(pairs[pairs[:, 1] >= len(rows)], axis=0)
    similarity = similarities(
        corpus, both[pairs], columns, lambda frame, local: jaccard(normalised(frame, columns), local)
    )
    same = corpus.content[both[pairs[:, 0]]] == corpus.content[both[pairs[:, 1]]]
    similarity = np.where(same, 1.0, similarity)
    table = pl.DataFrame(
        {
            "id": corpus.ids.gather(both[pairs[:, 1]]),
            "copy_of": corpus.ids.gather(both[pairs[:, 0]]),
            "similarity": similarity,
            "where": np.where(pairs[:, 0] < len(rows), "train", "held out"),
            "exact": same,
        },
        schema_overrides={"similarity": pl.Float64, "where": pl.String, "exact": pl.Boolean},
    )
    return table.filter(pl.col("similarity") >= NEAR).sort("similarity", descending=True, maintain_order=True)


def _equal(content: np.ndarray) -> Int[np.ndarray, "pair two"]:
    """Each row with the first and with the last before it that have its content."""
    order = np.argsort(content, kind="stable")
    key = content[order]
    place = np.arange(len(order))
    first = (
        np.maximum.accumulate(np.where(np.concatenate([[True], key[1:] != key[:-1]]), place, 0))
        if len(order)
        else place
    )
    member = np.flatnonzero(first != place)
    pairs = [np.stack([order[first[member]], order[member]], 1), np.stack([order[member - 1], order[member]], 1)]
    return np.sort(np.concatenate(pairs), axis=1)


def _among(corpus: Corpus, held: Int[np.ndarray, " held_out"], copies: pl.DataFrame) -> Bool[np.ndarray, " held_out"]:
    """Which held-out rows a table of copies names, on either side."""
    named = pl.concat([copies["id"], copies["copy_of"]])
    return corpus.ids.gather(held).is_in(named.implode()).to_numpy()


def _marks(texts: list[str]) -> list[list[str]]:
    """Punctuation marks of each text, and one token for any number."""
    return [sorted({"<number>" if one[0].isdigit() else one for one in MARKS.findall(text)}) for text in texts]


def _names(marks: list[list[str]]) -> list[str]:
    """The marks that texts hold, sorted."""
    return sorted({one for text in marks for one in text})


def presence_of(known: list[list[str]], asked: list[list[str]]) -> csr_matrix:
    """Which texts hold which of the tokens that the first texts hold."""
    from scipy.sparse import csr_matrix

    place = {one: number for number, one in enumerate(_names(known))}
    where = [(row, place[one]) for row, text in enumerate(asked) for one in text if one in place]
    row, column = np.array(where, dtype=np.int64).reshape(-1, 2).T
    return csr_matrix((np.ones(len(row)), (row, column)), shape=(len(asked), len(place)))


def _beside(left: csr_matrix, right: csr_matrix) -> csr_matrix:
    from scipy.sparse import hstack

    return hstack([left, right], format="csr")


def bernoulli(
    seen: csr_matrix, label: Int[np.ndarray, " example"], asked: csr_matrix, classes: int
) -> Int[np.ndarray, " held_out"]:
    """Predictions of naive Bayes on which tokens a text holds; of a text with none that is known, the commonest class."""
    from sklearn.naive_bayes import BernoulliNB

    if not seen.shape[1]:
        return np.full(asked.shape[0], np.bincount(label, minlength=classes).argmax())
    return np.asarray(BernoulliNB().fit(seen, label).predict(asked))


def _share(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """A share with its 95 % interval (Wilson 1927)."""
    number = len(values)
    if not number:
        return None, None, None
    share = float(np.mean(values))
    return share, *wilson(share, number)


def _in_use(
    right: Bool[np.ndarray, " held_out"],
    truth: Int[np.ndarray, " held_out"],
    classes: tuple[Any, ...],
    prior: Mapping[Any, float],
) -> tuple[str, float, float | None, float | None, str]:
    """Accuracy with each class as often as in use."""
    for name in prior:
        if name not in classes:
            raise TargetError(f"{name!r} is no class of this task.", nearest(str(name), map(str, classes)))
    share = np.array([float(prior.get(one, 0.0)) for one in classes])
    if not (share >= 0).all() or share.sum() <= 0:
        raise TargetError(f"{dict(prior)} is no balance of classes.", "Give shares of 0 or more that are not all 0.")
    recall = np.array(
        [right[truth == code].mean() if (truth == code).any() else np.nan for code in range(len(classes))]
    )
    used = share > 0
    value = float((recall[used] * share[used]).sum() / share.sum())
    return "accuracy in use", value, None, None, "of the model with each class as often as in use"


def going_with(
    names: list[str],
    seen: csr_matrix,
    label: Int[np.ndarray, " example"],
    classes: tuple[Any, ...],
    artifacts: set[str],
) -> pl.DataFrame:
    """Tokens that go with one class more than chance has it, the clearest first.

    z = (share of the class among the texts with the token - its share in all) in standard errors of the former; a token is listed if its
    one-sided p-value passes Benjamini-Hochberg at 5 % over all tokens and classes.
    """
    from scipy.stats import norm

    hits = np.asarray((seen > 0).T.astype(float) @ np.eye(len(classes))[label])
    count = hits.sum(1, keepdims=True)
    base = np.bincount(label, minlength=len(classes)) / max(1, len(label))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = hits / count
        z = np.nan_to_num((share - base) / np.sqrt(base * (1 - base) / count))
    adjusted = benjamini_hochberg(norm.sf(z).ravel()).reshape(z.shape)
    best = z.argmax(1) if z.size else np.empty(0, np.int64)
    each = np.arange(len(names))
    keep = np.flatnonzero(adjusted[each, best] <= RATE) if z.size else each[:0]
    return (
        pl.DataFrame(
            {
                "token": [names[place] for place in keep],
                "class": [str(classes[code]) for code in best[keep]],
                "examples": count[keep, 0].astype(np.int64),
                "share": share[keep, best[keep]],
                "base": base[best[keep]],
                "z": z[keep, best[keep]],
                "artifact": [names[place] in artifacts for place in keep],
            },
            schema_overrides={"token": pl.String, "class": pl.String, "artifact": pl.Boolean},
        )
        .sort("z", descending=True, maintain_order=True)
        .head(LISTED)
    )
