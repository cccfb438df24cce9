"""Spurious cues: one cheap feature that says the label about as well as the model does, and that the model follows.

A photograph's border, the length of a text, one word or one column can go with the label in the data at hand and not in the world. What
tells such a cue from a feature that merely helps is seen on held-out examples:

- it alone, in a model of one feature, is about as good as the whole model where it has something to say,
- and where it points to another class than the label, the model goes with the cue.

So the model's accuracy is given apart for the examples that go with the cue and those that go against it (the group-conditional accuracy
of Sagawa et al. 2020). Whether the cue is spurious or the very thing to be learned is for people to say: the finding is to review.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.cleaning.attributes import attributes
from imprint.cleaning.flags import Flags
from imprint.cleaning.slices import benjamini_hochberg
from imprint.cleaning.tabular import SKILL, class_skill, one_column
from imprint.methods import method
from imprint.recording.needs import HELD_OUT, Classes, Outputs, Rows, Table, Target

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from imprint.corpus import Corpus

# Examples that one-feature models learn from and are tested on; fewer where each has to be decoded or read word by word.
EXAMPLES, EXPENSIVE = 20_000, 4_000
# "About as well as the model": this share of its skill over chance.
AS_WELL = 0.9
# Fewest held-out examples, and share of them, about which a cue says something; fewest that go against it.
LEAST, SPOKEN, AGAINST = 30, 0.05, 10
# A cue that nothing goes against is reported where it speaks of this share.
COMMON = 0.2
# A number is cut into at most this many parts with at least this share of the examples each: labels may be noisy, and a cue is simple.
LEAVES, LEAF = 16, 0.02
# Expected share of false findings, and most findings.
RATE, REPORTED = 0.05, 5
# A word is looked at when it is in this share of the texts, and no more words than these, the commonest.
WORD_SHARE, WORDS = 0.01, 2000


@dataclass(frozen=True)
class Cue:
    """One cheap feature as a predictor.

    Attributes:
        name: In words.
        speaks: Held-out examples about which it says something: all, or those that hold the word.
        said: The class that it predicts for each held-out example.
    """

    name: str
    speaks: Bool[np.ndarray, " example"]
    said: Int[np.ndarray, " example"]


@dataclass(frozen=True)
class Judged:
    """A cue beside the model, on the examples of which the cue speaks.

    Attributes:
        skill, model_skill: Share of the way from chance to perfection that the cue and the model go.
        along, against: How many examples go with the cue and against it.
        accuracy_along, accuracy_against: Of the model on these; nan where there are none.
        follows: Share of the examples against the cue for which the model says what the cue says.
        p: Of the model being as good against the cue as with it (one-sided, exact).
    """

    cue: Cue
    skill: float
    model_skill: float
    along: int
    against: int
    accuracy_along: float
    accuracy_against: float
    follows: float
    p: float


@method(
    "clean", "spurious-cues", kind="subgroup", tasks=["classification"],
    higher="where the label goes against the cue, the model follows the cue more often",
    needs=[
        Outputs("logits", split=HELD_OUT), Target(), Rows(), Target("held_out_target", split=HELD_OUT),
        Rows("held_out_rows", split=HELD_OUT), Table(), Classes(),
    ],
    source="group-conditional accuracy: Sagawa et al. 2020, arXiv:1911.08731; one-feature models: Gardner et al. 2021, arXiv:2104.08646",
)  # fmt: skip
def spurious_cues(
    logits: Float[Tensor, "held_out class"],
    target: Int[Tensor, " example"],
    rows: Int[Tensor, " example"],
    held_out_target: Int[Tensor, " held_out"],
    held_out_rows: Int[Tensor, " held_out"],
    corpus: Corpus,
    classes: Sequence[Any],
) -> Flags:
    """Cheap features (a column, a word, a colour) as good as the model, which it follows; at most five findings, without an id.

    A cue is one column, one word's presence, one statistic of brightness, colour or length. It has at least 90 % of the model's skill
    on the held-out examples of which it speaks; where the label goes against it (10 examples at least) the model says what the cue
    says for half of them or more, and is worse there than elsewhere at a false discovery rate of 5 %. Severity = that share; 1 where
    the cue speaks of a fifth of the examples and hardly any goes against it.
    """
    if len(logits) < 2 * LEAST:
        return Flags.none()
    expensive = any(kind in ("text", "image", "array") for kind in corpus.kinds.values())
    learn, check = (_sample(len(of), EXPENSIVE if expensive else EXAMPLES) for of in (target, held_out_target))
    label, truth = target.numpy()[learn], held_out_target.numpy()[check]
    predicted = logits.argmax(1).numpy()[check]
    cues = cheap_cues(corpus, rows.numpy()[learn], label, held_out_rows.numpy()[check], len(classes))
    found = followed([judge(cue, predicted, truth) for cue in cues], corpus.modality == "table")
    return Flags.about_columns([(one.cue.name, one.follows, in_words(one)) for one in found])


def _sample(count: int, most: int) -> Int[np.ndarray, " some"]:
    return np.sort(np.random.default_rng(0).choice(count, min(count, most), replace=False))


def cheap_cues(
    corpus: Corpus,
    learn: Int[np.ndarray, " example"],
    label: Int[np.ndarray, " example"],
    check: Int[np.ndarray, " held_out"],
    classes: int,
) -> list[Cue]:
    """One-feature models of every cheap attribute and every common word, learned from some rows, asked of others."""
    learned, checked = attributes(corpus, learn), attributes(corpus, check)
    everywhere = np.ones(len(check), bool)
    least = max(5, int(LEAF * len(learn)))
    cues = []
    for name in learned:
        said = one_column(learned[name], label, checked[name], False, LEAVES, least)
        cues.append(Cue(name, everywhere, np.asarray(said, dtype=np.int64)))
    columns = [name for name, kind in corpus.kinds.items() if kind == "text"]
    if columns:
        words, seen, asked = presence(*(joined(corpus, rows, columns) for rows in (learn, check)))
        usual = np.argmax(seen.T @ np.eye(classes)[label], axis=1)
        asked = asked.tocsc()
        for place, word in enumerate(words):
            speaks = np.zeros(len(check), bool)
            speaks[asked.indices[asked.indptr[place] : asked.indptr[place + 1]]] = True
            cues.append(Cue(f"the word '{word}'", speaks, np.full(len(check), usual[place])))
    return cues


def joined(corpus: Corpus, rows: Int[np.ndarray, " row"], columns: list[str]) -> list[str]:
    """The texts of rows, columns joined by a space."""
    frame = corpus.read(rows, columns)
    return frame.select(pl.concat_str(pl.col(columns).fill_null(""), separator=" ")).to_series().to_list()


def presence(learn: list[str], check: list[str]) -> tuple[list[str], csr_matrix, csr_matrix]:
    """Words of at least two letters that are in 1 % of the first texts, and which texts hold them.

    >>> words, seen, asked = presence(["good film", "bad film"], ["a good one"])
    >>> words, asked.toarray().tolist()
    (['bad', 'film', 'good'], [[0, 0, 1]])
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, min_df=max(1, int(WORD_SHARE * len(learn))), max_features=WORDS)
    try:
        seen = counter.fit_transform(learn)
    except ValueError:  # no word at all
        return [], csr_matrix((len(learn), 0)), csr_matrix((len(check), 0))
    return counter.get_feature_names_out().tolist(), seen, counter.transform(check)


def judge(cue: Cue, predicted: Int[np.ndarray, " held_out"], truth: Int[np.ndarray, " held_out"]) -> Judged:
    """A cue beside the model.

    Skill of a cue that speaks of all examples is that of balanced accuracy; of one that speaks of some and names one class there,
    (accuracy - share of that class in all) / (1 - that share).
    """
    from scipy.stats import hypergeom

    speaks = cue.speaks
    said, model, label = cue.said[speaks], predicted[speaks], truth[speaks]
    if speaks.all():
        skill, model_skill = class_skill(said, label)[0], class_skill(model, label)[0]
    else:
        base = float((truth == said[0]).mean()) if len(said) else 1.0
        skill, model_skill = (
            (float((side == label).mean()) - base) / (1 - base) if base < 1 else 0.0 for side in (said, model)
        )
    right, along = model == label, said == label
    against = ~along
    p = 1.0
    if against.any() and along.any():
        p = float(hypergeom.cdf(right[against].sum(), len(right), right.sum(), against.sum()))
    return Judged(
        cue, skill, model_skill, int(along.sum()), int(against.sum()),
        float(right[along].mean()) if along.any() else float("nan"),
        float(right[against].mean()) if against.any() else float("nan"),
        float((model == said)[against].mean()) if against.any() else 1.0, p,
    )  # fmt: skip


def followed(judged: Sequence[Judged], table: bool = False) -> list[Judged]:
    """The cues that are about as good as the model and that it follows, the best first.

    Args:
        judged: All that were tried.
        table: Whether they are columns of a table: one that is nearly perfect is a leak, and found as that (`leaking-columns`).
    """
    spoken = [one for one in judged if _large(one)]
    tested = [one for one in spoken if one.against >= AGAINST]
    adjusted = benjamini_hochberg(np.array([one.p for one in tested]))
    pulled = [one for one, p in zip(tested, adjusted, strict=True) if p <= RATE and one.follows >= 0.5]
    # Hardly anything goes against it: nothing can be seen of what the model would do then.
    sure = [one for one in spoken if one.against < AGAINST and one.cue.speaks.mean() >= COMMON]
    found = [
        one
        for one in [*pulled, *sure]
        if one.skill > 0 and one.skill >= AS_WELL * one.model_skill and not (table and one.skill >= SKILL)
    ]
    return sorted(found, key=lambda one: (-one.skill * one.cue.speaks.mean(), one.cue.name))[:REPORTED]


def _large(one: Judged) -> bool:
    return one.along + one.against >= max(LEAST, SPOKEN * len(one.cue.speaks)) and one.along > 0


def in_words(one: Judged) -> str:
    """A cue and what the model makes of it."""
    where = "" if one.cue.speaks.all() else f" on the {one.along + one.against} held-out examples that hold it"
    text = f"{one.cue.name} alone has {one.skill / max(one.model_skill, 1e-9):.0%} of the model's skill{where}; the model is right on "
    text += f"{one.accuracy_along:.0%} of the {one.along} held-out examples that go with it"
    if one.against:
        text += f" and on {one.accuracy_against:.0%} of the {one.against} that go against it, where it follows the cue in {one.follows:.0%}"
    else:
        text += ", and none goes against it"
    return f"{text}: would it hold elsewhere?"
