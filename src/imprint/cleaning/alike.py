"""More like these: some bad examples are known, and the others of their kind are sought among the training examples.

Whoever finds a poisoned batch, a mislabelling annotator or a broken sensor knows some of the bad examples, hardly ever all. To take only
those out leaves most of the harm in the model (Goel et al. 2024, arXiv:2402.14015). But what was recorded of the known ones often tells
them from everything else, and then from the record of the rest one can see which of these are of the same kind.

It is learning from positive and unlabelled examples (Elkan, Noto 2008): a ridge regression tells the known from all others, and each
example is scored by the regression that was fitted without it, in closed form. Three views of an example are tried:

    how it was learned              its margin (values: its loss) after each epoch: wrong labels, whatever the class
    features less what is usual     the same, and features less the mean of its class: a patch that stands for a class
    features within its class       the same, each class with a regression of its own: classes that were taken for each other

The view that ranks the known highest among all is taken: as the unlabelled are the good and the bad ones mixed, what ranks the known above
the unlabelled ranks the bad above the good (Menon et al. 2015). How many there are follows from how many score as the known do: no more of
the others can be bad than reach a score, over the share of the known that reach it (Blanchard, Lee, Scott 2010). That is cautious. Where
hardly one may be missed, all are taken that score as high as all but a few of the known: as known and unknown ones are of one kind, such a
score is reached by as large a share of the unknown (the argument of conformal prediction; Vovk, Gammerman, Shafer 2005).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from imprint.answers import Findings
from imprint.cleaning.flags import Flags, findings_table
from imprint.errors import EvidenceError, IdError, MethodError
from imprint.evidence import named_rows
from imprint.recording.needs import Dynamics, Features, Need

if TYPE_CHECKING:
    from imprint.recording import Run

# Fewest known examples, in all and in a class that is looked at by itself.
LEAST, OWN = 5, 3
# Penalties of the ridge, in units of the mean of the Gram matrix's trace; the best is chosen as the view is.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Standard errors beyond which the known are told from the others by more than chance. Of 1,500 random choices, of the best of fifteen
# scores each, none went beyond 4.2: scores depend on each other, as each example is among those that the others are scored by.
CLEARLY = 5.0
# Between which shares of the known a score is reached where the share of bad ones among the others is estimated. From half of them on:
# with ten known, the least over all shares is low by chance (a quarter: nothing but bad ones is found, and a third of them is not).
FEW, MOST = 0.5, 0.9
BLOCK = 8192
# Evidence of those that were known before.
NAMED = "named as bad"
SOURCE = (
    "positive and unlabelled learning: Elkan, Noto 2008, KDD; how many: Blanchard, Lee, Scott 2010, JMLR 11; "
    "the problem: Goel et al. 2024, arXiv:2402.14015"
)
HIGHER = "a larger share of the known bad examples is less typical of them than this one"


@dataclass(frozen=True)
class Alike:
    """How like the known examples the others are.

    Attributes:
        score: Of the view that was taken, each by a regression without the example; higher = more like the known, minus infinity: of a
            class of which too few are known.
        view: Its name.
        skill: How often a known example scores above another: area under the ROC curve.
        clear: Whether that is more than chance.
        share: Estimated share of the others that are of the same kind; 0 where it is not clear.
    """

    score: Float[np.ndarray, " example"]
    view: str
    skill: float
    clear: bool
    share: float

    def found(self, known: Bool[np.ndarray, " example"], recall: float | None = None) -> Int[np.ndarray, " some"]:
        """Which of the others are taken to be of the same kind, the likest first: as many as are thought to be, or for a recall."""
        others = np.flatnonzero(~known & np.isfinite(self.score))
        order = others[np.argsort(-self.score[others], kind="stable")]
        if recall is None or not self.clear:
            return order[: round(self.share * int((~known).sum()))]
        own = np.sort(self.score[known & np.isfinite(self.score)])
        return order[self.score[order] >= own[max(1, rank_for(len(own), recall)) - 1]]


def alike(run: Run, ids: Sequence[str] | pl.Series, *, recall: float | None = None) -> Findings:
    """The training examples that are like some that are known to be bad, and these, each suggested to be dropped.

    No training, and nothing is read but the record: `imprint.forget(run, findings=alike(run, ids), known=True)` takes them out of the
    model, `imprint.verify(alike(run, ids))` retrains without them, beside as many at random.

    Args:
        run: A recorded run.
        ids: Ids of five training examples or more that are known to be bad, of one kind. Of two kinds, ask twice.
        recall: Share of the bad examples that nobody knows yet which is to be found on average, if the known are drawn from all of them at
            random: 0.95 misses one in twenty, and names more that are good. None names as many as there are thought to be, which is
            cautious: what it names is mostly bad, and it misses more.

    Returns:
        Findings of the kind "alike", the likest first. Severity: the share of the known that are less typical of their kind, 1 for the
        known ones themselves. Where nothing tells the known from the others, these are all, and a note says so.

    Raises:
        IdError: An id is of no training example; or they are fewer than five, or all.
        MethodError: So few known examples cannot tell what such a recall takes.
        EvidenceError: The run recorded neither how examples were learned nor their features.

    >>> import imprint, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(300, 4)).astype(np.float32)
    >>> y = np.where(x[:, 0] > 0, "up", "down")
    >>> x[:30, 3], y[:30] = 6, "up"                               # thirty carry a mark, and one label
    >>> frame = pl.DataFrame({"id": [f"r{row}" for row in range(300)], "x": pl.Series(x), "y": y})
    >>> corpus = imprint.open(frame, target="y", id="id", store=folder + "/store")
    >>> run = imprint.fit(imprint.Learner("linear", epochs=4), corpus, folder + "/run", progress=False)
    >>> known = [one for one in run.ids if int(one[1:]) < 30][:8]
    >>> found = alike(run, known).table.filter(pl.col("evidence") != NAMED)["id"]
    >>> len(found) > 8, sum(int(one[1:]) < 30 for one in found) / len(found) > 0.8
    (True, True)
    """
    began = time.perf_counter()
    known = places_of(run, ids)
    if recall is not None:
        missable(int(known.sum()), recall)
    learned, features = evidence_of(run)
    group = run.target().numpy() if run.task.name == "classification" else None
    found = resemblance(known, learned, features, group)
    flags = flagged(found, known, recall)
    table = findings_table(flags, "alike", "alike", run)
    note = (
        f"What tells the {int(known.sum()):,} known examples from the others is {found.view}: one of them is above another "
        f"example {found.skill:.1%} of the time."
        if found.clear
        else f"Nothing that was recorded tells the {int(known.sum()):,} known examples from the others (best: {found.view}, above "
        f"another {found.skill:.1%} of the time, which may be chance): only these are listed. Know more of them, or of one kind."
    )
    return Findings(
        verb="clean", methods=("alike",), source={"alike": SOURCE}, higher={"alike": HIGHER},
        run={"path": str(run.path), "corpus": run.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": 0}, table=table, notes=(note,),
    )  # fmt: skip


def places_of(run: Run, ids: Sequence[str] | pl.Series) -> Bool[np.ndarray, " example"]:
    """Which training examples are named.

    Raises:
        IdError: An id is of no training example, or they are fewer than five, or all.
    """
    rows = named_rows(run, list(ids), "bad examples")
    known = np.isin(run.rows(), rows)
    if (count := int(known.sum())) < len(rows):
        raise IdError(
            f"{len(rows) - count} of {len(rows)} bad examples are no training examples.",
            "Name examples of the split 'train': run.ids.",
        )
    if count < LEAST or count == len(known):
        raise IdError(
            f"{count} of {len(known):,} training examples are named as bad.",
            f"Name {LEAST} or more, and not all: what they have in common is seen beside the others.",
        )
    return known


def evidence_of(
    run: Run,
) -> tuple[Float[np.ndarray, "example epoch"] | None, Float[np.ndarray, "example feature"] | None]:
    """How each example was learned, and its features; None for what the run cannot give.

    Raises:
        EvidenceError: It can give neither.
    """
    course = Dynamics("margin" if run.task.name == "classification" else "loss")
    problems: list[EvidenceError] = []

    def read(need: Need) -> np.ndarray | None:
        try:
            return np.asarray(run.gather([need])[need.name].float())
        except EvidenceError as error:
            problems.append(error)
            return None

    learned, features = read(course), read(Features())
    if learned is None and features is None:
        raise problems[-1]
    return None if learned is None else learned.T, features


def rank_for(known: int, recall: float) -> int:
    """Rank, from the least typical on, of the known example that others must score as high as, for a recall; 0 where no score is enough.

    Of known and unknown examples of one kind in a random order of scores, an unknown one is below the k-th lowest of m known ones with
    probability k / (m + 1).
    """
    return int((1 - recall) * (known + 1) + 1e-9)


def missable(known: int, recall: float) -> int:
    """That rank, if so many known examples can show such a recall.

    Raises:
        MethodError: It is no share, or more than so many known examples can show.

    >>> missable(99, 0.95), missable(10, 0.9)
    (5, 1)
    """
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall < 1:
        raise MethodError(f"recall={recall!r} is no share between 0 and 1.", "Give 0.95, or leave it out.")
    missed = rank_for(known, recall)
    if not missed:
        most = known / (known + 1)
        raise MethodError(
            f"{known} known examples do not tell what finds {recall:.4g} of the others of their kind.",
            f"Give recall={math.floor(100 * most) / 100:g} or less, or name {math.ceil(recall / (1 - recall) - 1e-9)} that are known.",
        )
    return missed


def flagged(found: Alike, known: Bool[np.ndarray, " example"], recall: float | None = None) -> Flags:
    """The known examples, and the others that are like them."""
    named, others = np.flatnonzero(known), found.found(known, recall)
    own = np.sort(found.score[known])
    typical = np.searchsorted(own, found.score[others], side="right") / len(own)
    words = [f"like {share:.0%} of the known or more, by {found.view}" for share in typical]
    return Flags(
        row=np.concatenate([named, others]),
        severity=np.concatenate([np.ones(len(named)), np.minimum(typical, 0.999)]).astype(np.float32),
        suggestion=["drop"] * (len(named) + len(others)),
        evidence=[NAMED] * len(named) + words,
    )


def resemblance(
    known: Bool[np.ndarray, " example"],
    learned: Float[np.ndarray, "example epoch"] | None,
    features: Float[np.ndarray, "example feature"] | None,
    group: Int[np.ndarray, " example"] | None = None,
) -> Alike:
    """Score all examples by the view that ranks the known highest.

    Args:
        known: Which are known.
        learned: Margin or loss of each example after each epoch.
        features: Of the trained model.
        group: Class of each example; None where there are none.

    >>> random = np.random.default_rng(0)
    >>> features, known = random.normal(size=(300, 4)), np.arange(300) < 10
    >>> features[:40, 1] += 6                                    # forty are of a kind, and ten of them known
    >>> found = resemblance(known, None, features)
    >>> others = found.found(known)
    >>> found.clear, set(others) <= set(range(10, 40)), len(others) > 15
    (True, True, True)
    """
    best: Alike | None = None
    for view, score in views(known, learned, features, group):
        skill = above(score, known)
        if best is None or skill > best.skill:
            best = Alike(score, view, skill, False, 0.0)
    assert best is not None
    count = int(known.sum())
    clear = best.skill - CLEARLY * deviation(best.skill, count, len(known) - count) > 0.5
    return Alike(best.score, best.view, best.skill, clear, share_of(best.score, known) if clear else 0.0)


def views(
    known: Bool[np.ndarray, " example"],
    learned: Float[np.ndarray, "example epoch"] | None,
    features: Float[np.ndarray, "example feature"] | None,
    group: Int[np.ndarray, " example"] | None,
) -> Iterator[tuple[str, Float[np.ndarray, " example"]]]:
    """Name and scores of each view, with each penalty."""
    parts = [one for one in (learned, features) if one is not None]
    both = np.concatenate(parts, 1)
    if learned is not None:
        for score in left_out(learned, known):
            yield "how it was learned", score
    if group is None:
        if features is not None:
            for score in left_out(both, known):
                yield "features", score
        return
    if features is not None:
        centred = features - means_of(features, group)
        # Margins as they are say more than what is left of them within a class.
        for score in left_out(centred if learned is None else np.concatenate([learned, centred], 1), known):
            yield "features, less what is usual in its class", score
    scores = np.full((len(PENALTIES), len(known)), -np.inf)
    for one in np.unique(group[known]):
        own = np.flatnonzero(group == one)
        if OWN <= known[own].sum() < len(own):
            scores[:, own] = left_out(both[own], known[own])
    for score in scores:
        yield f"{'how it was learned' if features is None else 'features'} within its class", score


def means_of(
    values: Float[np.ndarray, "example number"], group: Int[np.ndarray, " example"]
) -> Float[np.ndarray, "example number"]:
    """For each example the mean of its group."""
    codes, place = np.unique(group, return_inverse=True)
    total = np.zeros((len(codes), values.shape[1]))
    np.add.at(total, place, values)
    return (total / np.bincount(place)[:, None]).astype(values.dtype)[place]


def left_out(
    values: Float[np.ndarray, "example number"], known: Bool[np.ndarray, " example"]
) -> Float[np.ndarray, "penalty example"]:
    """Scores by each penalty: what a ridge regression of +1 (known) and -1 (others) says of an example that it was fitted without.

    Known and others weigh the same in all. Of a weighted ridge regression with residual r and leverage h, the residual without the example
    is r / (1 - h), so that one decomposition of the Gram matrix gives all of them, for every penalty. Examples are read in blocks, twice.
    """
    target = np.where(known, 1.0, -1.0)
    weight = np.where(known, 0.5 / known.sum(), 0.5 / (~known).sum())  # of sum 1
    blocks = [slice(begin, begin + BLOCK) for begin in range(0, len(known), BLOCK)]
    middle, spread = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    live = spread > 1e-9 * max(1.0, float(np.abs(values).max()))

    def scaled(block: slice) -> Float[np.ndarray, "some number"]:
        found: np.ndarray = (values[block][:, live] - middle[live]) / spread[live]
        return found

    centre = sum((weight[block] @ scaled(block) for block in blocks), np.zeros(int(live.sum())))
    gram, moment = np.zeros((len(centre), len(centre))), np.zeros(len(centre))
    for block in blocks:
        some = scaled(block) - centre
        weighed = some.T * weight[block]
        gram += weighed @ some
        moment += weighed @ target[block]  # targets are of weighted mean 0
    along, directions = np.linalg.eigh(gram)
    size = max(float(np.trace(gram)) / max(1, len(gram)), 1e-12)
    inverse = 1 / (np.maximum(along, 0) + size * np.array(PENALTIES)[:, None])
    found = np.empty((len(PENALTIES), len(known)))
    for block in blocks:
        turned = (scaled(block) - centre) @ directions
        said = (inverse * (directions.T @ moment)) @ turned.T
        leverage = np.minimum(weight[block] * (1 + inverse @ np.square(turned).T), 1 - 1e-9)
        found[:, block] = target[block] - (target[block] - said) / (1 - leverage)
    return found


def above(score: Float[np.ndarray, " example"], known: Bool[np.ndarray, " example"]) -> float:
    """How often a known example scores above another, a tie counting half.

    >>> above(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]))
    0.625
    """
    rank = pl.Series(score).rank("average").to_numpy()
    many = int(known.sum())
    return float((rank[known].sum() - many * (many + 1) / 2) / (many * (len(known) - many)))


def deviation(skill: float, known: int, others: int) -> float:
    """Standard error of an area under the ROC curve (Hanley, McNeil 1982)."""
    one, two = skill / (2 - skill), 2 * skill**2 / (1 + skill)
    variance = skill * (1 - skill) + (known - 1) * (one - skill**2) + (others - 1) * (two - skill**2)
    return math.sqrt(max(variance, 0.0) / (known * others))


def share_of(score: Float[np.ndarray, " example"], known: Bool[np.ndarray, " example"]) -> float:
    """The most of the others that can be of the kind of the known: the least, over scores, of (share of others) / (share of known).

    As known examples are few, only scores that half to nine tenths of them reach are looked at, and the share that reaches the j-th
    highest of m is on average j / (m + 1).

    >>> score = np.concatenate([np.linspace(5, 6, 20), np.linspace(5, 6, 40), np.linspace(-1, 0, 160)])
    >>> round(share_of(score, np.arange(220) < 20), 2)
    0.2
    """
    own, others = np.sort(score[known])[::-1], np.sort(score[~known])
    count = len(own)
    places = np.arange(max(OWN, int(FEW * count)), max(OWN, int(MOST * count)) + 1)
    reached = own[places - 1]
    share = 1 - np.searchsorted(others, reached, side="left") / len(others)
    return float(np.min(np.where(np.isfinite(reached), share / (places / (count + 1)), 1.0)).clip(0, 1))
