"""Several annotators: which label to believe, which example to look at again, and who labels well.

CROWDLAB (Goh, Tkachenko, Mueller 2022, arXiv:2210.06812) takes a trained classifier for one more annotator. Each vote is a distribution
that gives its label the share P of votes that agree with the consensus, and every other label the same rest; the probability of
a label is the average of these distributions and the classifier's, and an annotator weighs

    w = 1 - (disagreement with other annotators) / (error of always answering the most frequent consensus),

the classifier sqrt(mean votes per example) times the same with its error against the consensus. So it falls back on the
classifier where there is one vote, and on the votes where there are many. Dawid and Skene (1979) is the control that knows
no classifier: each annotator has a confusion matrix, and expectation-maximisation finds these and the labels in turn.

Votes are held as a list (example, annotator, label), never as a table of examples by annotators: thousands of crowd workers with
ten votes each cost what their votes cost. The results are those of cleanlab's `get_label_quality_multiannotator`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from imprint.cleaning.folds import folds_of
from imprint.errors import ColumnError, IdError, MethodError
from imprint.recording.needs import OutOfFold

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ("id", "annotator", "label")
# The least weight, so that nobody is silent (the constant of the reference implementation).
LEAST = 1e-6
# Rounds of expectation-maximisation at most, and the change of the log-likelihood per vote at which it stops.
ROUNDS, STILL = 100, 1e-6
# Votes from which on an annotator is named in a summary: of 10 the standard error of an agreement is 0.16 at most.
ENOUGH = 10
# Votes that each cell of a confusion matrix starts with: annotators of few votes stay near chance.
PRIOR = 0.1


@dataclass(frozen=True)
class Votes:
    """Votes as codes, one entry per vote.

    Attributes:
        example: Who is labelled, 0..examples-1.
        annotator: Who labels, 0..annotators-1.
        label: Class code.
        examples, annotators, classes: How many there are.
    """

    example: Int[np.ndarray, " vote"]
    annotator: Int[np.ndarray, " vote"]
    label: Int[np.ndarray, " vote"]
    examples: int
    annotators: int
    classes: int

    @property
    def per_example(self) -> Int[np.ndarray, " example"]:
        """Votes of each example."""
        return np.bincount(self.example, minlength=self.examples)

    @property
    def counts(self) -> Float[np.ndarray, "example class"]:
        """Votes of each example for each class."""
        cell = self.example * self.classes + self.label
        return (
            np.bincount(cell, minlength=self.examples * self.classes).reshape(self.examples, self.classes).astype(float)
        )

    def by_annotator(self, value: Float[np.ndarray, " vote"], some: Bool[np.ndarray, " vote"]) -> np.ndarray:
        """Mean of a value over the votes of each annotator, of `some` of them; NaN where there are none."""
        who = self.annotator[some]
        total = np.bincount(who, weights=value[some].astype(float), minlength=self.annotators)
        with np.errstate(invalid="ignore"):
            return total / np.bincount(who, minlength=self.annotators)


@dataclass(frozen=True)
class Consensus:
    """What several annotators and a classifier say together.

    Attributes:
        label: The consensus label of each example.
        quality: Probability of the consensus label; lower = look again.
        agreement: Share of the example's votes for the consensus label.
        probabilities: Of each label, from votes and classifier together.
        annotator_quality: How far to trust each annotator's labels, 0..1.
        annotator_weight: Weight of each annotator's vote.
        model_weight: Weight of the classifier.
    """

    label: Int[np.ndarray, " example"]
    quality: Float[np.ndarray, " example"]
    agreement: Float[np.ndarray, " example"]
    probabilities: Float[np.ndarray, "example class"]
    annotator_quality: Float[np.ndarray, " annotator"]
    annotator_weight: Float[np.ndarray, " annotator"]
    model_weight: float


def crowdlab(votes: Votes, probabilities: Float[np.ndarray, "example class"]) -> Consensus:
    """Consensus labels, their quality and that of the annotators.

    Args:
        votes: At least one per example; each annotator votes at most once on an example, and some example has two votes.
        probabilities: Of a classifier that did not see the example.

    Raises:
        MethodError: If shapes do not fit, an example has no vote, or none has two.

    >>> votes = Votes(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1]), np.array([1, 1, 0, 0, 0]), 2, 3, 2)
    >>> found = crowdlab(votes, np.array([[0.3, 0.7], [0.9, 0.1]]))
    >>> found.label, found.annotator_quality.round(2)
    (array([1, 0]), array([0.86, 0.86, 0.19]))
    """
    if probabilities.shape != (votes.examples, votes.classes):
        raise MethodError(
            f"Probabilities of shape {probabilities.shape} for votes on {votes.examples} examples of {votes.classes} classes.",
            "Give one row per example and one column per class.",
        )
    if not votes.per_example.all():
        raise MethodError("Some examples have no vote.", "Leave them out.")
    if votes.per_example.max() < 2:
        raise MethodError(
            "No example has two votes, so nothing tells annotators apart.", "Use clean(run, 'confident-learning')."
        )
    first = _weighed(votes, probabilities, majority(votes, probabilities))
    best = first.probabilities.max(1, keepdims=True) == first.probabilities
    consensus = np.where(best.sum(1) == 1, best.argmax(1), first.label)
    return _weighed(votes, probabilities, consensus)


def majority(votes: Votes, probabilities: Float[np.ndarray, "example class"]) -> Int[np.ndarray, " example"]:
    """The label with most votes; of equally many the one that the classifier finds more probable, then the rarer one.

    >>> votes = Votes(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0, 1, 1]), 2, 2, 2)
    >>> majority(votes, np.array([[0.7, 0.3], [0.5, 0.5]]))
    array([0, 1])
    """
    counts = votes.counts
    tied = counts == counts.max(1, keepdims=True)
    said = np.where(tied, probabilities, -np.inf)
    tied &= said == said.max(1, keepdims=True)
    return np.where(tied, -counts.sum(0), -np.inf).argmax(1)


def _weighed(
    votes: Votes, probabilities: Float[np.ndarray, "example class"], consensus: Int[np.ndarray, " example"]
) -> Consensus:
    """The weighted average of votes and classifier, with weights by their agreement with one consensus."""
    number, counts = votes.per_example, votes.counts
    several = number > 1
    each = np.arange(votes.examples)
    agreement = counts[each, consensus] / number
    agrees = votes.label == consensus[votes.example]
    # How often one of two annotators of an example says what the other says; of who is always alone, the mean of the others.
    others = number[votes.example] - 1.0
    same = counts[votes.example, votes.label] - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        pairwise = np.bincount(votes.annotator, same, votes.annotators) / np.bincount(
            votes.annotator, others, votes.annotators
        )
    pairwise = np.where(np.isnan(pairwise), np.nanmean(pairwise), pairwise)
    known = consensus[several]
    always = max(float((known != np.bincount(known, minlength=votes.classes).argmax()).mean()), LEAST)
    weight = np.maximum(1 - (1 - pairwise) / always, LEAST)
    error = float((probabilities[several].argmax(1) != known).mean())
    model_weight = max(1 - error / always, LEAST) * float(np.sqrt(number.mean()))
    right = float(agreement[several].mean())
    wrong = (1 - right) / (votes.classes - 1)
    # Every vote gives `wrong` to all labels, and what is missing to `right` to its own.
    given = weight[votes.annotator]
    total = np.bincount(votes.example, given, votes.examples)
    cell = votes.example * votes.classes + votes.label
    own = np.bincount(cell, given, votes.examples * votes.classes).reshape(counts.shape)
    joined = (model_weight * probabilities + wrong * total[:, None] + (right - wrong) * own) / (model_weight + total)[
        :, None
    ]
    # An annotator's quality: the probability of their labels, and their agreement with the consensus where they were not alone
    # (the former only, of who always was).
    trusted = votes.by_annotator(joined[votes.example, votes.label], np.ones(len(agrees), bool))
    agreeing = votes.by_annotator(agrees, several[votes.example])
    share = model_weight / (model_weight + weight.sum() * number.mean() / votes.annotators)
    quality = np.where(np.isnan(agreeing), trusted, share * trusted + (1 - share) * agreeing)
    return Consensus(consensus, joined[each, consensus], agreement, joined, quality, weight, model_weight)


def dawid_skene(
    votes: Votes,
) -> tuple[Float[np.ndarray, "example class"], Float[np.ndarray, "annotator true given"]]:
    """Probabilities of the true labels and a confusion matrix per annotator, from votes alone (Dawid, Skene 1979).

    Expectation-maximisation from the shares of the votes, with a tenth of a vote in each cell to begin with.

    >>> votes = Votes(np.repeat([0, 1, 2, 3], 3), np.tile([0, 1, 2], 4), np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]), 4, 3, 2)
    >>> posterior, confusion = dawid_skene(votes)
    >>> posterior.argmax(1), confusion[:, 0, 0].round(1)
    (array([0, 1, 0, 1]), array([1. , 1. , 0.5]))
    """
    counts = votes.counts
    posterior = counts / counts.sum(1, keepdims=True)
    cell = votes.annotator * votes.classes + votes.label
    likelihood = -np.inf
    for _ in range(ROUNDS):
        share = np.log(np.maximum(posterior.mean(0), np.finfo(float).tiny))
        seen = np.stack(
            [
                np.bincount(cell, posterior[votes.example, true], votes.annotators * votes.classes)
                for true in range(votes.classes)
            ],
            axis=1,
        ).reshape(votes.annotators, votes.classes, votes.classes)  # [annotator, given, true]
        log = np.log((seen + PRIOR) / (seen + PRIOR).sum(1, keepdims=True))
        score = share + np.stack(
            [
                np.bincount(votes.example, log[votes.annotator, votes.label, true], votes.examples)
                for true in range(votes.classes)
            ],
            axis=1,
        )
        top = score.max(1, keepdims=True)
        odds = np.exp(score - top)
        posterior = odds / odds.sum(1, keepdims=True)
        now = float((top[:, 0] + np.log(odds.sum(1))).sum()) / len(votes.label)
        if abs(now - likelihood) < STILL:
            break
        likelihood = now
    return posterior, np.exp(log).transpose(0, 2, 1)


@dataclass(frozen=True)
class Annotators:
    """What several annotators, a classifier and Dawid-Skene say of each example, and how far to trust each annotator.

    Attributes:
        table: What `frame` gives.
        people: One row per annotator, the least trusted first: `annotator, quality, agreement, examples, worst_class`. `quality` is
            CROWDLAB's, 0..1; `agreement` the share of their votes that say the consensus; `worst_class` the label of theirs
            that agrees least.
        model_weight: Weight of the classifier beside the annotators' mean weight.
        notes: What to know beside it.
    """

    table: pl.DataFrame = field(repr=False)
    people: pl.DataFrame = field(repr=False)
    model_weight: float
    notes: tuple[str, ...] = ()

    def frame(self) -> pl.DataFrame:
        """One row per example, the least sure consensus first.

        `id`; `given`: the label of the run; `consensus`; `quality`: its probability, 0..1; `agreement`: share of the votes for it;
        `votes`: how many; `majority`: the label with most votes; `dawid_skene`: the label by the control.
        """
        return self.table

    @property
    def labels(self) -> dict[str, Any]:
        """Id -> consensus label, where it is another than the given one: what `corpus.relabel` takes."""
        changed = self.table.filter(pl.col("given") != pl.col("consensus"))
        return dict(zip(changed["id"], changed["consensus"], strict=True))

    def summary(self) -> str:
        """How many labels change, how sure the consensus is, and who stands apart."""
        changed, apart = len(self.labels), int((self.table["consensus"] != self.table["majority"]).sum())
        control = int((self.table["consensus"] != self.table["dawid_skene"]).sum())
        unsure = int((self.table["quality"] < 0.5).sum())
        known = self.people.filter(pl.col("examples") >= ENOUGH)
        least = (
            "Least trusted of the {} annotators with {} or more votes: {}.".format(
                len(known),
                ENOUGH,
                ", ".join(
                    f"{row['annotator']} (quality {row['quality']:.2f}, {row['examples']} votes)"
                    for row in known.head(3).iter_rows(named=True)
                ),
            )
            if len(known)
            else f"No annotator has {ENOUGH} votes, so none is judged alone."
        )
        text = (
            f"{len(self.table)} examples, {self.people['examples'].sum()} votes of {len(self.people)} annotators. The consensus "
            f"differs from the given label of {changed}, from the majority of {apart}, from Dawid-Skene of {control}; of {unsure} it "
            f"has a quality below 0.5. The classifier weighs {self.model_weight:.1f} annotators. {least}"
        )
        return " ".join([text, *self.notes])

    def plot(self) -> go.Figure:
        """Annotators by votes and quality, beside the quality of the consensus labels."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=1, cols=2, subplot_titles=["annotators", "consensus labels"])
        shown = self.people.sample(min(len(self.people), 5000), seed=0)
        people = go.Scattergl(
            x=shown["examples"].to_list(), y=shown["quality"].to_list(), text=shown["annotator"].cast(pl.String).to_list(),
            mode="markers", marker={"size": 5, "opacity": 0.6},
        )  # fmt: skip
        figure.add_trace(people, row=1, col=1)
        figure.add_trace(go.Histogram(x=self.table["quality"].to_list(), nbinsx=40), row=1, col=2)
        figure.update_xaxes(title_text="votes", type="log", row=1, col=1)
        figure.update_yaxes(title_text="quality (trusted ↑)", row=1, col=1)
        figure.update_xaxes(title_text="quality (sure →)", row=1, col=2)
        figure.update_yaxes(title_text="examples", row=1, col=2)
        figure.update_layout(showlegend=False, height=380)
        return figure


def annotators(run: Any, votes: pl.DataFrame, folds: int | None = None) -> Annotators:
    """Consensus labels of a run's training examples, from votes and from models that had not seen the example.

    Args:
        run: A recorded run of a classification; its own target is any label to begin with (one vote, a majority).
        votes: `id, annotator, label`, one row per vote; votes on examples that are not trained on are left out.
        folds: How many trainings give the predictions; None: those that the run holds, else 5.

    Raises:
        MethodError: The run is no classification, or no example has two votes.
        ColumnError: A column is missing, or an annotator votes twice on one example.
        IdError: No vote is on a training example.
    """
    if run.task.name != "classification":
        raise MethodError(
            f"Votes are on classes; this run is {run.task.name}.",
            "Use clean(run), which judges labels by the model alone.",
        )
    classes = tuple(run.task.classes)
    table, ids, people, coded = _coded(votes, run.ids, classes)
    left_out = len(votes) - len(table)
    said = run.gather([OutOfFold("probabilities", folds=folds or folds_of(run) or 5)])["probabilities"].double().numpy()
    rows = pl.DataFrame({"id": ids}).join(
        pl.DataFrame({"id": run.ids, "row": np.arange(len(run.ids))}), on="id", maintain_order="left"
    )["row"]
    found = crowdlab(coded, said[rows.to_numpy()])
    names = pl.Series(list(classes))
    control, _ = dawid_skene(coded)
    frame = pl.DataFrame({
        "id": ids,
        "given": names.gather(run.target("train").numpy()[rows.to_numpy()]),
        "consensus": names.gather(found.label),
        "quality": found.quality,
        "agreement": found.agreement,
        "votes": coded.per_example,
        "majority": names.gather(majority(coded, said[rows.to_numpy()])),
        "dawid_skene": names.gather(control.argmax(1)),
    })  # fmt: skip
    notes = (f"{left_out} votes are on examples that the run was not trained on.",) if left_out else ()
    return Annotators(
        frame.sort("quality", maintain_order=True),
        _people(coded, found, people, names),
        found.model_weight / float(found.annotator_weight.mean()),
        notes,
    )


def _coded(
    votes: pl.DataFrame, ids: pl.Series, classes: tuple[Any, ...]
) -> tuple[pl.DataFrame, pl.Series, pl.Series, Votes]:
    """The votes on these ids; the ids and annotators that occur, in order; and the votes as codes."""
    missing = [name for name in COLUMNS if name not in votes.columns]
    if missing:
        raise ColumnError(
            f"The votes have no column {', '.join(map(repr, missing))}; they have {', '.join(votes.columns)}.",
            "Give one row per vote with the columns id, annotator, label.",
        )
    table = votes.select(
        pl.col("id").cast(pl.String), "annotator", pl.col("label").cast(pl.Series(list(classes)).dtype, strict=False)
    )
    table = table.filter(pl.col("id").is_in(ids.to_list()))
    if not len(table):
        raise IdError(
            "None of the votes is on a training example.", f"Give ids as the corpus has them, such as '{ids[0]}'."
        )
    twice = table.filter(pl.struct("id", "annotator").is_duplicated())
    if len(twice):
        raise ColumnError(
            f"Annotator {twice['annotator'][0]} votes more than once on '{twice['id'][0]}'.", "Keep one of their votes."
        )
    codes = pl.DataFrame({"label": list(classes), "code": np.arange(len(classes))})
    table = table.join(codes, on="label", how="left", maintain_order="left")
    if table["code"].null_count():
        row = int(table["code"].is_null().arg_true()[0])
        raise ColumnError(
            f"A vote on '{table['id'][row]}' is for {table['label'][row]!r}, which is no class of the run.",
            f"The classes are: {', '.join(map(str, classes[:10]))}.",
        )
    which, who = table["id"].unique(maintain_order=True), table["annotator"].unique(maintain_order=True)
    places = table.join(
        pl.DataFrame({"id": which, "example": np.arange(len(which))}), on="id", maintain_order="left"
    ).join(pl.DataFrame({"annotator": who, "person": np.arange(len(who))}), on="annotator", maintain_order="left")
    coded = Votes(
        places["example"].to_numpy(),
        places["person"].to_numpy(),
        places["code"].to_numpy(),
        len(which),
        len(who),
        len(classes),
    )
    return table, which, who, coded


def _people(votes: Votes, found: Consensus, who: pl.Series, names: pl.Series) -> pl.DataFrame:
    """The annotators, the least trusted first."""
    agrees = votes.label == found.label[votes.example]
    worst = (
        pl.DataFrame({"person": votes.annotator, "label": votes.label, "agrees": agrees})
        .group_by("person", "label")
        .agg(pl.col("agrees").mean(), pl.len())
        .sort("agrees", "len", "label", descending=[False, True, False])
        .group_by("person", maintain_order=True)
        .first()
        .sort("person")["label"]
    )
    return pl.DataFrame({
        "annotator": who,
        "quality": found.annotator_quality,
        "agreement": votes.by_annotator(agrees, np.ones(len(agrees), bool)),
        "examples": np.bincount(votes.annotator, minlength=votes.annotators),
        "worst_class": names.gather(worst.to_numpy()),
    }).sort("quality", "agreement", nulls_last=True, maintain_order=True)  # fmt: skip
