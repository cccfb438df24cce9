"""Answers: what a verb returns. Typed, keyed by id, saved with the run, readable by any tool.

An answer is a table plus what one has to know to read it: which methods made it, what a higher value means, which run and
corpus it is about, what it cost. On disk it is a folder with `answer.json` and `table.lance`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl

from imprint.errors import IdError, MethodError, RunError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What a finding is about, the most harmful first.
KINDS = ("leak", "label", "alike", "broken", "duplicate", "outlier", "column", "subgroup", "imbalance")
SUGGESTIONS = ("drop", "relabel", "review")
# How long trainings on different choices are: regime of a comparison -> in words.
REGIMES = {"epochs": "equal epochs", "steps": "equal steps", "time": "equal time, selecting counted"}


@dataclass(frozen=True)
class Answer(ABC):
    """What a verb found out.

    Attributes:
        verb: The verb that was asked.
        methods: The methods that answered.
        source: Method -> where it is from.
        higher: Method -> what a higher value means.
        run: What it is about: `{"path": of the run, "corpus": fingerprint}`.
        cost: `{"seconds": measured, "trainings": beyond the recorded one}`.
        table: The rows, with columns that `frame` may leave out.
        notes: What to know beside the table, such as a method that was left out and why.
    """

    verb: str
    methods: tuple[str, ...]
    source: dict[str, str]
    higher: dict[str, str]
    run: dict[str, str]
    cost: dict[str, float]
    table: pl.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    name: ClassVar[str] = "answer"

    def frame(self) -> pl.DataFrame:
        """The answer as a table, one row per item."""
        return self.table

    def summary(self) -> str:
        """One line that says what this is."""
        return f"{self.name}: {len(self.table)} rows by {', '.join(self.methods)} in {self.cost['seconds']:.1f} s"

    def spec(self) -> dict[str, Any]:
        """All but the table, as JSON."""
        return {
            "answer": self.name,
            **{one.name: getattr(self, one.name) for one in fields(self) if one.name != "table"},
        }

    @abstractmethod
    def plot(self) -> go.Figure:
        """A figure of the answer."""

    def __str__(self) -> str:
        return self.summary()

    def __len__(self) -> int:
        return len(self.table)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the answer as a folder, whole or not at all; an answer that is already there is replaced.

        Raises:
            RunError: If the folder cannot be written.
        """
        import lance

        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
                folder = Path(scratch) / "answer"
                folder.mkdir()
                description = self.spec()
                (folder / "answer.json").write_text(
                    json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8"
                )
                lance.write_dataset(self.table.to_arrow(), str(folder / "table.lance"))
                if target.exists():
                    shutil.rmtree(target)
                folder.rename(target)
        except OSError as error:
            raise RunError(
                f"The answer cannot be written to {target}: {error}.", "Check the disk and the path."
            ) from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; the answer comes back as the type that was saved.

        Raises:
            RunError: If there is no readable answer of this type.
        """
        import lance

        folder = Path(path)
        try:
            description: dict[str, Any] = json.loads((folder / "answer.json").read_text("utf-8"))
            table = pl.DataFrame(lance.dataset(str(folder / "table.lance")).to_table())
            kind = ANSWERS[description.pop("answer")]
            if kind is Findings and "related" not in table.columns:  # saved by its frame alone
                table = table.with_columns(pl.lit(None, pl.String).alias("related"))
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"No readable answer at {folder}: {error}.", "Ask the verb again, and save its answer."
            ) from error
        if not issubclass(kind, cls):
            raise RunError(f"{folder} holds {kind.name}, not {cls.name}.", f"Read it with {kind.__name__}.load.")
        lists = {name: tuple(value) for name, value in description.items() if isinstance(value, list)}
        return kind(table=table, **{**description, **lists})


@dataclass(frozen=True)
class Scores(Answer):
    """One value per training example and method. `frame()`: id, position, split, one column per method."""

    name: ClassVar[str] = "scores"

    def summary(self) -> str:
        """What was scored, and the spread of each score."""

        def spread(values: pl.Series) -> str:
            low, middle, high = (float(values.quantile(at) or 0.0) for at in (0.05, 0.5, 0.95))
            return f"{values.name} {middle:.3g} [{low:.3g}, {high:.3g}]"

        return (
            f"{len(self.table)} examples, {len(self.methods)} scores in {self.cost['seconds']:.1f} s; "
            f"median [5 %, 95 %]: {'; '.join(spread(self.table[name]) for name in self.methods)}"
        )

    def plot(self) -> go.Figure:
        """The data map where confidence and variability are there, else a histogram of each score."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        # A browser draws this many points smoothly; more would not show more.
        shown = self.table.sample(min(len(self.table), 20_000), seed=0)
        if {"confidence", "variability"} <= set(self.methods):
            figure = go.Figure(
                go.Scattergl(
                    x=shown["variability"].to_list(), y=shown["confidence"].to_list(), text=shown["id"].to_list(),
                    mode="markers", marker={"size": 4, "opacity": 0.5},
                )
            )  # fmt: skip
            figure.update_layout(xaxis_title="variability (ambiguous →)", yaxis_title="confidence (easy ↑)")
            return figure
        figure = make_subplots(rows=len(self.methods), cols=1, subplot_titles=list(self.methods))
        for row, name in enumerate(self.methods, 1):
            figure.add_trace(go.Histogram(x=shown[name].to_list(), name=name), row=row, col=1)
            figure.update_xaxes(title_text=f"higher = {self.higher[name]}", row=row, col=1)
        figure.update_layout(showlegend=False, height=260 * len(self.methods))
        return figure


@dataclass(frozen=True)
class Findings(Answer):
    """What is wrong with the data, the most severe first.

    `frame()`: id, position, kind, severity, suggestion, suggested_value, method, evidence. A finding about the corpus as a whole
    or about a column has no id. Severity is between 0 and 1, higher = worse; what it measures is said by the method
    (`higher`). The table also holds `related`: the id (or column) that a finding is held against, such as the copy that stays.
    """

    name: ClassVar[str] = "findings"
    COLUMNS: ClassVar[tuple[str, ...]] = (
        "id", "position", "kind", "severity", "suggestion", "suggested_value", "method", "evidence",
    )  # fmt: skip

    def frame(self) -> pl.DataFrame:
        """The findings, the most severe first."""
        return self.table.select(self.COLUMNS)

    def by_kind(self) -> pl.DataFrame:
        """kind, findings, drop, relabel, review (counts), severity (the highest); in the order of `KINDS`."""
        order = pl.Enum(KINDS)
        return (
            self.table.group_by(pl.col("kind").cast(order))
            .agg(
                pl.len().alias("findings"),
                *((pl.col("suggestion") == name).sum().alias(name) for name in SUGGESTIONS),
                pl.col("severity").max(),
            )
            .sort("kind")
            .with_columns(pl.col("kind").cast(pl.String))
        )

    def groups(self) -> pl.DataFrame:
        """Duplicates and leaks as groups to look at side by side: related, ids (the related one first), kind, severity."""
        pairs = self.table.filter(pl.col("kind").is_in(["duplicate", "leak"]) & pl.col("related").is_not_null())
        return (
            pairs.group_by("related", maintain_order=True)
            .agg(
                pl.col("id").filter(pl.col("id") != pl.col("related")).alias("ids"),
                pl.col("kind").first(),
                pl.col("severity").max(),
            )
            .with_columns(pl.concat_list(pl.col("related"), pl.col("ids")).alias("ids"))
            .sort("severity", descending=True)
        )

    def summary(self) -> str:
        """How many findings of each kind, and what they suggest."""
        if not len(self.table):
            return f"nothing found by {', '.join(self.methods)} in {self.cost['seconds']:.1f} s"
        kinds = ", ".join(f"{row['findings']} {row['kind']}" for row in self.by_kind().iter_rows(named=True))
        does = ", ".join(
            f"{count} to {name}" for name in SUGGESTIONS if (count := int((self.table["suggestion"] == name).sum()))
        )
        return f"{len(self.table)} findings ({kinds}); {does}; in {self.cost['seconds']:.1f} s"

    def plot(self) -> go.Figure:
        """How many findings of each kind, by suggestion."""
        import plotly.graph_objects as go

        counts = self.by_kind()
        figure = go.Figure(
            [
                go.Bar(y=counts["kind"].to_list(), x=counts[name].to_list(), name=name, orientation="h")
                for name in SUGGESTIONS
            ]
        )
        figure.update_layout(barmode="stack", xaxis_title="findings", yaxis={"autorange": "reversed"})
        return figure


@dataclass(frozen=True)
class Verdict(Answer):
    """What retraining says of an answer: the effect of acting on it, its interval, and what acting at random does.

    `frame()`: arm ("before", "after" and one arm per control), seed, one column per metric on the test examples.

    Attributes:
        metric: The headline metric of the task; higher = better.
        effect: Mean of `after` less mean of `before`, in units of the metric.
        interval: Confidence interval of the effect, over seeds and test examples together.
        level: Its level.
        examples: How many test examples the metric was measured on.
        edits: What was done to the training examples, in counts: `{"drop": 12, "relabel": 30}`.
    """

    metric: str = ""
    effect: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    level: float = 0.95
    examples: int = 0
    edits: dict[str, int] = field(default_factory=dict)
    name: ClassVar[str] = "verdict"

    def arm(self, name: str) -> tuple[float, ...]:
        """The metric in one arm, by seed."""
        return tuple(self.table.filter(pl.col("arm") == name).sort("seed")[self.metric].to_list())

    @property
    def before(self) -> tuple[float, ...]:
        """The metric without acting, by seed."""
        return self.arm("before")

    @property
    def after(self) -> tuple[float, ...]:
        """The metric after acting on the answer, by seed."""
        return self.arm("after")

    @property
    def controls(self) -> dict[str, tuple[float, ...]]:
        """The metric after acting at random, by control and seed."""
        arms = self.table["arm"].unique(maintain_order=True)
        return {name: self.arm(name) for name in arms if name not in ("before", "after")}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(self.table["seed"].unique().sort().to_list())

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.interval[0] <= 0 <= self.interval[1]

    def summary(self) -> str:
        """The verdict in one sentence."""
        low, high = self.interval
        before, after = (sum(arm) / len(arm) for arm in (self.before, self.after))
        if self.clear:
            change = f"Acting on it {'raises' if self.effect > 0 else 'lowers'} test {self.metric} from {before:.4f} to {after:.4f}"
        else:
            change = f"No clear change of test {self.metric} ({before:.4f} before, {after:.4f} after)"
        control = "".join(
            f"; {name} edits of the same size: {sum(arm) / len(arm) - before:+.4f}"
            for name, arm in self.controls.items()
        )
        return (
            f"{change}: {self.effect:+.4f}, {self.level * 100:g} % interval {low:+.4f} to {high:+.4f}, "
            f"{len(self.before)} seeds, {self.examples} test examples{control}."
        )

    def plot(self) -> go.Figure:
        """The metric of every training, by arm, seeds joined by lines."""
        import plotly.graph_objects as go

        arms = self.table["arm"].unique(maintain_order=True).to_list()
        by_seed = (self.table.filter(pl.col("seed") == seed) for seed in self.seeds)
        figure = go.Figure(
            [
                go.Scatter(
                    x=arms,
                    y=[rows.filter(pl.col("arm") == arm)[self.metric].item() for arm in arms],
                    name=f"seed {seed}",
                )
                for seed, rows in zip(self.seeds, by_seed, strict=True)
            ]
        )
        figure.update_layout(yaxis_title=f"test {self.metric}")
        return figure


@dataclass(frozen=True)
class Attribution(Answer):
    """The training examples that help and that harm each query the most.

    `frame()`: query (its id), id, position, rank (1, 2, ... = the most helpful; -1, -2, ... = the most harmful), score. One row per
    query and example; queries in the order in which they were asked for.

    Attributes:
        k: How many examples stand at either end.
        members: Trainings of the fleet that it was asked to read; None as the method declares.
        examples: How many training examples were compared.
        factors: The scores of all examples as the product of two matrices (`imprint.tracing.Factors`). They are not saved: an
            attribution that was loaded computes them again from its run.
    """

    k: int = 0
    members: int | None = None
    examples: int = 0
    factors: Any = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "attribution"

    @property
    def method(self) -> str:
        """The method that answered."""
        return self.methods[0]

    @property
    def queries(self) -> list[str]:
        """Ids of the queries, in the order in which they were asked for."""
        return self.table["query"].unique(maintain_order=True).to_list()

    def matrix(self) -> Any:
        """All scores, `[query, example]`: rows in the order of `queries`, columns in that of the run's training examples (`run.ids`).

        Raises:
            ResourceError: They do not fit in memory.
            RunError: It was loaded, and its run is not at hand.
        """
        tracing = importlib.import_module("imprint.tracing")  # a later part of the system, which this one does not know
        return tracing.restored(self).matrix()

    def spec(self) -> dict[str, Any]:
        """All but the table and the factors, as JSON."""
        return {name: value for name, value in super().spec().items() if name != "factors"}

    def summary(self) -> str:
        """What was traced, by which method, and at what price."""
        trainings = f" and {self.cost['trainings']:.0f} trainings" if self.cost["trainings"] else ""
        shown = len(self.table) // max(1, 2 * len(self.queries))
        return (
            f"The {shown} most helpful and {shown} most harmful of {self.examples:,} training examples for {len(self.queries):,} "
            f"queries by {self.method} (higher = {self.higher[self.method]}), from {self.cost['seconds']:.1f} s{trainings}."
        )

    def plot(self, query: str | None = None) -> go.Figure:
        """Scores of the examples at both ends for one query (by default the first).

        Raises:
            IdError: It was not traced.
        """
        import plotly.graph_objects as go

        queries = self.queries
        query = queries[0] if query is None and queries else query
        own = self.table.filter(pl.col("query") == query)
        if not len(own):
            raise IdError(
                f"The query {query!r} was not traced.", f"There are {len(queries)}: {', '.join(queries[:3])}, ..."
            )
        own = own.sort(
            pl.col("rank") < 0, pl.col("rank"), maintain_order=True
        )  # the most helpful above, the most harmful below
        figure = go.Figure(
            go.Bar(
                x=own["score"].to_list(),
                y=[f"{rank:+d} {name}" for rank, name in own.select("rank", "id").iter_rows()],
                orientation="h",
            )
        )
        figure.update_layout(
            title=f"query {query}", xaxis_title=f"higher = {self.higher[self.method]}", yaxis={"autorange": "reversed"}
        )
        return figure


@dataclass(frozen=True)
class Trust(Answer):
    """How far an attribution can be believed: the linear datamodeling score, beside controls.

    Over models trained on random subsets that the attribution has not seen, the score of a query is the rank correlation of two
    numbers: the sum of the attribution's scores of the examples that a model saw, and what that model says of the query. 1 = it
    tells exactly which subsets are good for the query, 0 = it knows nothing.

    Where it was asked for: what became of predictions when the model was trained again without the examples that help them the most,
    what one more step on these examples does (tail-patch), and how well labels that are known to be wrong are found. Every measured value
    is (value, low, high), by method and control; a lead is the method's value less the control's, on the same queries, models or examples.

    `frame()`: method, query, lds; with a removal also drop and flip, with a tail-patch also gain, of the queries that it was done for.

    Attributes:
        lds: Mean over queries.
        interval: Its confidence interval, over queries and subsets together.
        level: Level of all intervals.
        controls: Control -> (its LDS, low, high).
        leads: Control -> its lead in LDS.
        members: Subset models that it was measured on; 0: no linear datamodeling score was measured.
        removed: How many examples were removed for a query; 0: no removal was asked for.
        drops: Name -> fall of the query's margin without these examples.
        drop_leads: Control -> its lead.
        flips: Name -> share of the queries, all predicted rightly before, whose prediction is then wrong.
        flip_leads: Control -> its lead.
        patched: Examples in a step of the tail-patch; 0: none was asked for.
        rate: Of the steps.
        gains: Name -> rise of a query's margin after one step of gradient descent on these examples.
        gain_leads: Control -> its lead.
        detection: Name -> area under the ROC curve for the known wrong labels, by the mean harm that an example does to the queries;
            empty where none were given.
        detection_leads: Control -> its lead.
        seconds: Name -> what the scores took: of the attribution what `trace` took, evidence that it had to collect included.
        evidence_bytes: Name -> size on disk of the evidence that is read for it.
    """

    lds: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    level: float = 0.95
    controls: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    leads: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    members: int = 0
    removed: int = 0
    drops: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    drop_leads: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    flips: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    flip_leads: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    patched: int = 0
    rate: float = 0.0
    gains: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    gain_leads: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    detection: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    detection_leads: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evidence_bytes: dict[str, int] = field(default_factory=dict)
    name: ClassVar[str] = "trust"

    def __post_init__(self) -> None:
        measured = (
            "controls", "leads", "drops", "drop_leads", "flips", "flip_leads", "gains", "gain_leads", "detection", "detection_leads",
        )  # fmt: skip
        for name in measured:  # JSON has no tuples
            object.__setattr__(self, name, {key: tuple(value) for key, value in getattr(self, name).items()})

    @property
    def method(self) -> str:
        """The method whose attribution was verified."""
        return self.methods[0]

    @property
    def queries(self) -> int:
        """How many queries it was measured on."""
        judged = self.table.filter(pl.col("lds").is_not_null()) if self.members else self.table
        return judged["query"].n_unique()

    def beats(self, control: str) -> bool:
        """Whether the method's lead over a control is clear: the interval of the difference is above zero."""
        return self.leads[control][1] > 0

    def summary(self) -> str:
        """The trust in one sentence."""
        if not self.members:
            asked = f"{self._removal()}{self._tail_patch()}{self._detection()}"
            return f"{self.method}, without models trained on other subsets.{asked}"
        low, high = self.interval
        better = [name for name, lead in self.leads.items() if lead[1] > 0]
        worse = [name for name, lead in self.leads.items() if lead[2] < 0]
        others = [name for name in self.leads if name not in better + worse]
        if "random" in self.leads and "random" not in better:
            verdict = f"{self.method} is {'worse' if 'random' in worse else 'no better'} than random"
        else:
            parts = (("better than", better), ("not clearly better than", others), ("worse than", worse))
            verdict = f"{self.method} is " + ", ".join(
                f"{word} {' and '.join(names)}" for word, names in parts if names
            )
        controls = "; ".join(
            f"{name} {value:+.3f} ({a:+.3f} to {b:+.3f})" for name, (value, a, b) in self.controls.items()
        )
        return (
            f"{verdict}: linear datamodeling score {self.lds:+.3f}, {self.level * 100:g} % interval {low:+.3f} to {high:+.3f}, over "
            f"{self.members} models trained on random subsets and {self.queries:,} queries; {controls}."
            f"{self._removal()}{self._tail_patch()}{self._detection()}"
        )

    def _removal(self) -> str:
        """What became of predictions without the examples, in one sentence; nothing where that was not asked for."""
        if not self.removed:
            return ""
        others = [name for name in self.drops if name != self.method]
        fell = ", ".join(f"{self.drops[name][0]:.3f} by {name}" for name in others)
        turned = ", ".join(f"{self.flips[name][0]:.0%} by {name}" for name in others)
        queries = self.table.filter(pl.col("drop").is_not_null())["query"].n_unique()
        return (
            f" Without the {self.removed} examples that it names first, the margin of a query falls by {self.drops[self.method][0]:.3f} "
            f"({fell}) and {self.flips[self.method][0]:.0%} of {queries} right predictions turn wrong ({turned})."
        )

    def _tail_patch(self) -> str:
        """What a step on the examples did, in one sentence; nothing where that was not asked for."""
        if not self.patched:
            return ""
        others = ", ".join(f"{value[0]:+.3g} by {name}" for name, value in self.gains.items() if name != self.method)
        (value, low, high), behind = self.gains[self.method], [n for n, lead in self.gain_leads.items() if lead[1] <= 0]
        clear = f"not clearly more than {' or '.join(behind)}" if behind else "clearly more than all of these"
        queries = self.table.filter(pl.col("gain").is_not_null())["query"].n_unique()
        return (
            f" After one step on the {self.patched} examples that it names first, the margin of a query changes by {value:+.3g} "
            f"({low:+.3g} to {high:+.3g}, {queries} queries; {others}): {clear}."
        )

    def _detection(self) -> str:
        """How well known wrong labels are found, in one sentence; nothing where none were given."""
        if not self.detection:
            return ""
        others = ", ".join(f"{value[0]:.3f} by {name}" for name, value in self.detection.items() if name != self.method)
        return f" It finds the known wrong labels with an area under the ROC curve of {self.detection[self.method][0]:.3f} ({others})."

    def plot(self) -> go.Figure:
        """The score of each query, by method; the gain of each query where only a tail-patch was asked for."""
        import plotly.graph_objects as go

        names = self.table["method"].unique(maintain_order=True).to_list()
        column, title = ("lds", "linear datamodeling score of a query") if self.members else ("gain", "gain of a query")
        figure = go.Figure(
            [
                go.Box(x=self.table.filter(pl.col("method") == name)[column].drop_nulls().to_list(), name=name)
                for name in names
            ]
        )
        figure.update_layout(xaxis_title=title, showlegend=False)
        return figure


@dataclass(frozen=True)
class Selection(Answer):
    """Which training examples to train on, in which order of preference, with which weights.

    `frame()`: id, position, rank (1 = the most wanted), weight (mean 1), value (what was ranked by, higher = more wanted; null where there
    is no such thing). Of a policy that chooses anew in each epoch, the visits of the first one.

    The table holds all training examples, those that were left out below, without rank; and `place`, where an example stands among the
    training examples.

    Attributes:
        budget: How many examples were asked for.
        examples: How many training examples there were.
        seed: Of the choice.
        asked: What else was said: target, trusted, entries, members, as `imprint.select` takes them.
        sampling: The spec of the sampler of a policy that chooses anew; empty for a choice once and for all.
    """

    budget: int = 0
    examples: int = 0
    seed: int = 0
    asked: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "selection"
    COLUMNS: ClassVar[tuple[str, ...]] = ("id", "position", "rank", "weight", "value")

    def __len__(self) -> int:
        return int(self.table["rank"].count())

    def frame(self) -> pl.DataFrame:
        """The chosen examples, the most wanted first."""
        return self._chosen.select(self.COLUMNS)

    @property
    def _chosen(self) -> pl.DataFrame:
        return self.table.filter(pl.col("rank").is_not_null())

    @property
    def method(self) -> str:
        """The method that chose."""
        return self.methods[0]

    @property
    def ids(self) -> list[str]:
        """Ids of the chosen examples, the most wanted first."""
        return self._chosen["id"].to_list()

    @property
    def weights(self) -> dict[str, float]:
        """Id -> weight of each chosen example."""
        return dict(self._chosen.select("id", "weight").iter_rows())

    @property
    def dynamic(self) -> bool:
        """Whether it is a policy that chooses anew in each epoch."""
        return bool(self.sampling)

    @property
    def seconds(self) -> float:
        """What selecting took, evidence that had to be collected for it included."""
        return self.cost["seconds"]

    def sampler(self) -> Any:
        """The choice as the in-loop data policy of `Learner(sampler=...)`: an `imprint.fitting.Sampler`.

        Of a choice once and for all it visits every chosen example once per epoch, with its weight.
        """
        samplers = importlib.import_module(
            "imprint.fitting.samplers"
        )  # a later part of the system, which this one does not know
        if self.dynamic:
            return samplers.sampler_from(self.sampling)
        own = self._chosen
        weights = None if (own["weight"] == 1).all() else own["weight"].to_list()
        return samplers.Fixed(own["place"].to_list(), weights)

    def summary(self) -> str:
        """What was chosen, by what, and at what price."""
        share = self.budget / max(1, self.examples)
        anew = ", anew in each epoch" if self.dynamic else ""
        trainings = f" and {self.cost['trainings']:.0f} trainings" if self.cost["trainings"] else ""
        return (
            f"{self.budget:,} of {self.examples:,} training examples ({share:.0%}) by {self.method}{anew}, in "
            f"{self.seconds:.1f} s{trainings}."
        )

    def plot(self) -> go.Figure:
        """What was ranked by, of the chosen examples and of those left out; without such a value, where they stand in the training set."""
        import plotly.graph_objects as go

        known = self.table.filter(pl.col("value").is_not_null())
        if len(known):
            column, title = "value", f"higher = {self.higher[self.method]}"
        else:
            known, column, title = self.table, "place", "place among the training examples"
        parts = (("chosen", pl.col("rank").is_not_null()), ("left out", pl.col("rank").is_null()))
        figure = go.Figure([go.Histogram(x=known.filter(part)[column].to_list(), name=name) for name, part in parts])
        figure.update_layout(barmode="stack", xaxis_title=title, yaxis_title="training examples")
        return figure


@dataclass(frozen=True)
class Comparison(Answer):
    """What models trained on several choices of examples are worth, beside random choices of the same size and beside all examples.

    `frame()`: one row per training: method, budget (a share of the training examples), regime, seed, examples, steps, select_seconds,
    recorded_seconds, train_seconds, the headline metric, worst_group, nll, ece, beyond_random. A choice that left no time to train on it
    has no model: its steps are 0 and its measures null.

    Attributes:
        metric: The headline metric of the task; higher = better.
        level: Level of all intervals.
        examples: How many test examples all were measured on.
        training: How many training examples there are.
        worst: What `worst_group` is the least of: "group" or "class"; "" where neither is measured.
        full_seconds: What a training on all examples takes, alone, without recording it.
        full_steps: How many optimizer steps that is.
        recorded: Whether the part of the recorded training that a method's evidence comes from counts as time of selecting.
        intervals: Columns of `summary_frame`.
        points: Columns of `curves`.
    """

    metric: str = ""
    level: float = 0.95
    examples: int = 0
    training: int = 0
    worst: str = ""
    full_seconds: float = 0.0
    full_steps: int = 0
    recorded: bool = False
    intervals: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    points: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    name: ClassVar[str] = "comparison"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(self.table["seed"].unique().sort().to_list())

    @property
    def regimes(self) -> tuple[str, ...]:
        """The regimes, in the order in which they were asked for."""
        return tuple(self.table["regime"].unique(maintain_order=True).to_list())

    @property
    def main(self) -> str:
        """The regime that a summary is about: equal steps, where the choice alone makes the difference; else the first."""
        return "steps" if "steps" in self.regimes else self.regimes[0]

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets as shares of the training examples, ascending, without that of all of them."""
        return tuple(self.table.filter(pl.col("method") != "full")["budget"].unique().sort().to_list())

    def summary_frame(self) -> pl.DataFrame:
        """One row per method, budget and regime.

        method, budget, regime, anew (whether it chooses anew as the training goes), examples, seeds; steps, select_seconds,
        recorded_seconds, train_seconds (means over the seeds); METRIC,
        over_random, over_full (differences on the same seeds and test examples), worst_group, ece, each with `_low` and `_high`; nll.
        The intervals of the first three are about new seeds and new test examples (`imprint.verifying.interval`), those of the others
        about new seeds.
        """
        plain = {"method": pl.String, "regime": pl.String, "anew": pl.Boolean, "examples": pl.Int64, "seeds": pl.Int64}
        numbers = {name: pl.Float64 for name in self.intervals if name not in plain}
        return pl.DataFrame(self.intervals, schema_overrides={**plain, **numbers})

    @property
    def curves(self) -> pl.DataFrame:
        """How good the model was as it was trained: method, budget, regime, seed, epoch, step, seconds (selecting included), METRIC.

        Empty unless `compare(..., curves=True)`.
        """
        kinds = {"method": pl.String, "budget": pl.Float64, "regime": pl.String, "seed": pl.Int64, "epoch": pl.Int64}
        kinds |= {"step": pl.Int64, "seconds": pl.Float64, self.metric: pl.Float64}
        return pl.DataFrame({name: self.points.get(name, []) for name in kinds}, schema=kinds)

    def time_to(self, value: float) -> pl.DataFrame:
        """How long each choice takes until its model is this good: method, budget, regime, reached, step, seconds.

        `reached` is the share of the seeds that get there at all; step and seconds are means over the seeds, selecting included, and null
        unless every seed gets there. The fastest come first.

        Args:
            value: Of the headline metric.

        Raises:
            MethodError: The trainings were not followed.
        """
        curves = self.curves
        if not len(curves):
            raise MethodError(
                "These trainings were not followed, and so nobody knows when they became how good.",
                "Compare with curves=True (on the command line --curves).",
            )
        cell = ["method", "budget", "regime"]
        first = (
            curves.group_by(*cell, "seed", maintain_order=True)
            .agg(pl.col("step", "seconds").filter(pl.col(self.metric) >= value).first())
            .group_by(*cell, maintain_order=True)
            .agg(pl.col("seconds").is_not_null().mean().alias("reached"), pl.col("step", "seconds").mean())
        )
        whole = (pl.when(pl.col("reached") == 1).then(pl.col(name)).alias(name) for name in ("step", "seconds"))
        return first.with_columns(*whole).sort("seconds", nulls_last=True, maintain_order=True)

    def clear(self, regime: str, budget: float) -> tuple[list[str], list[str]]:
        """The methods whose lead over random is clear, the best first, and those that are clearly behind it, the worst first."""
        own = self.summary_frame().filter(
            (pl.col("regime") == regime) & (pl.col("budget") == budget) & ~pl.col("method").is_in(["random", "full"])
        )
        ahead = own.filter(pl.col("over_random_low") > 0).sort("over_random", descending=True)
        behind = own.filter(pl.col("over_random_high") < 0).sort("over_random")
        return ahead["method"].to_list(), behind["method"].to_list()

    def summary(self) -> str:
        """Who is ahead of random, by budget, in the main regime."""
        regime = self.main
        table = self.summary_frame().filter(pl.col("regime") == regime)
        full = table.filter(pl.col("method") == "full")[self.metric].item()
        said = [
            f"Test {self.metric} with all {self.training:,} training examples is {full:.4f} ({self.full_steps:,} steps, "
            f"{len(self.seeds)} seeds, {self.examples:,} test examples)."
        ]
        for budget in self.budgets:
            own = table.filter((pl.col("budget") == budget) & pl.col(self.metric).is_not_null())
            random = own.filter(pl.col("method") == "random")[self.metric]
            others = own.filter(pl.col("over_random").is_not_null()).sort(self.metric, descending=True)
            if not len(random):
                continue
            words = f"With {100 * budget:.3g} % of them ({REGIMES[regime]}) random reaches {random[0]:.4f}"
            if len(others):
                best, (ahead, behind) = others.row(0, named=True), self.clear(regime, budget)
                words += (
                    f", {best['method']} {best[self.metric]:.4f} ({best['over_random']:+.4f}, {self.level * 100:g} % interval "
                    f"{best['over_random_low']:+.4f} to {best['over_random_high']:+.4f}); {len(ahead)} of {len(others)} clearly ahead of "
                    f"random, {len(behind)} clearly behind"
                )
            said.append(words + ".")
        return " ".join(said)

    def plot(self) -> go.Figure:
        """The metric by budget, a line per method with its interval, a panel per regime; all of the data as a dotted line."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        table = self.summary_frame()
        figure = make_subplots(
            rows=1, cols=len(self.regimes), subplot_titles=[REGIMES[one] for one in self.regimes], shared_yaxes=True
        )
        for column, regime in enumerate(self.regimes, 1):
            own = table.filter(pl.col("regime") == regime)
            for method in own["method"].unique(maintain_order=True):
                line = own.filter((pl.col("method") == method) & pl.col(self.metric).is_not_null()).sort("budget")
                if method == "full":
                    figure.add_hline(y=line[self.metric][0], line_dash="dot", row=1, col=column)
                    continue
                value = line[self.metric]
                figure.add_trace(
                    go.Scatter(
                        x=(100 * line["budget"]).to_list(), y=value.to_list(), name=method, legendgroup=method,
                        showlegend=column == 1, mode="lines+markers",
                        error_y={
                            "array": (line[f"{self.metric}_high"] - value).to_list(),
                            "arrayminus": (value - line[f"{self.metric}_low"]).to_list(), "type": "data",
                        },
                    ),
                    row=1, col=column,
                )  # fmt: skip
            figure.update_xaxes(title_text="budget, % of the training examples", row=1, col=column)
        figure.update_yaxes(title_text=f"test {self.metric}", row=1, col=1)
        return figure


# Between a model and the only one that it is held against, a difference of outputs as small as this is rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Forgetfulness(Answer):
    """How far models that have forgotten examples are from models that never saw them, beside doing nothing.

    Arms: each method that was judged, "nothing" (models that still know the examples) and "oracle" (models trained without them). All are
    held against further oracles, so that the oracle's own row is what is left between models that never saw the examples.

    `frame()`: measure, set ("forget", "retain", "held-out"), arm, value, low, high, better ("lower", "higher", or "oracle": the nearer to
    the oracle's value). The table also holds `change` (the value less that of doing nothing) and `gap` (less that of the oracle) with
    `_low` and `_high`: as both arms were asked about the same examples by the same judges, these say more than two intervals side by
    side. Those of the measures that tell arms apart on the forgotten examples (`telling`) hold at `level` all together. No id is in it.

    Attributes:
        count: How many examples were forgotten.
        oracles: Models that were trained without them; 1 where training has no randomness.
        models: Models of each arm.
        shadows: Models that the membership attacks learned from; 0: there were none.
        level: Level of all intervals.
        examples: Set -> how many examples it was measured on.
        seconds: Arm -> what one model took, without the parent's training; of "oracle" a training without the examples.
        conclusions: What follows, a sentence each; every one of them could have been "no".
    """

    count: int = 0
    oracles: int = 0
    models: int = 0
    shadows: int = 0
    level: float = 0.95
    examples: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    conclusions: tuple[str, ...] = ()
    name: ClassVar[str] = "forgetfulness"
    COLUMNS: ClassVar[tuple[str, ...]] = ("measure", "set", "arm", "value", "low", "high", "better")
    # What tells models that know an example from models that do not.
    TELLING: ClassVar[tuple[str, ...]] = (
        "klom", "distance", "accuracy", "f1", "r2", "loss", "lira-auroc", "rmia-auroc", "relearn",
    )  # fmt: skip

    def frame(self) -> pl.DataFrame:
        """One row per measure, set and arm."""
        return self.table.select(self.COLUMNS)

    @property
    def arms(self) -> tuple[str, ...]:
        """Methods, then "nothing" and "oracle"."""
        return (*self.methods, "nothing", "oracle")

    @property
    def main(self) -> str:
        """What nearness to the oracles is measured by: "klom", or "distance" where there is one oracle only."""
        return "klom" if (self.table["measure"] == "klom").any() else "distance"

    def row(self, arm: str, measure: str, set: str = "forget") -> dict[str, Any] | None:
        """One row of the table; None where it was not measured."""
        found = self.table.filter((pl.col("arm") == arm) & (pl.col("measure") == measure) & (pl.col("set") == set))
        return found.row(0, named=True) if len(found) else None

    def near(self, arm: str, measure: str = "klom", set: str = "forget") -> bool:
        """Whether a measure does not tell an arm from the oracles: the interval of its gap holds zero, or is on the better side.

        Raises:
            MethodError: That was not measured.
        """
        own = self._known(arm, measure, set)
        if measure == "distance":  # there is no chance in it
            return bool(own["value"] <= ROUNDING)
        if own["gap"] is None:  # the oracle itself
            return True
        below, above = own["gap_high"] < 0, own["gap_low"] > 0
        return not {"lower": above, "higher": below}.get(own["better"], below or above)

    def told_apart(self, arm: str) -> list[str]:
        """The measures on the forgotten examples that tell an arm from the oracles; empty if none does."""
        return [name for name in self.telling() if not self.near(arm, name)]

    def telling(self) -> list[str]:
        """The measures on the forgotten examples that could tell an arm from the oracles."""
        known = self.table.filter(pl.col("set") == "forget")["measure"].unique().to_list()
        return [name for name in self.TELLING if name in known]

    def beats_nothing(self, arm: str) -> bool:
        """Whether an arm is clearly nearer to the oracles on the forgotten examples than doing nothing by a measure, and farther by none.

        Raises:
            MethodError: There is no such arm.
        """
        return bool(self.nearer(arm)) and not self.farther(arm)

    def nearer(self, arm: str) -> list[str]:
        """The telling measures by which an arm is clearly nearer to the oracles than doing nothing, which they tell from the oracles."""
        return [name for name in self.telling() if self._moved(arm, name) < 0 and not self.near("nothing", name)]

    def farther(self, arm: str) -> list[str]:
        """The telling measures by which an arm is clearly farther from the oracles than doing nothing: on the same side, or beyond them."""
        return [name for name in self.telling() if self._moved(arm, name) > 0]

    def _moved(self, arm: str, measure: str) -> float:
        """How much farther from the oracles than doing nothing an arm is; 0 where the interval of the change holds zero."""
        own, nothing = self._known(arm, measure, "forget"), self._known("nothing", measure, "forget")
        if own["change"] is None or own["change_low"] <= 0 <= own["change_high"]:
            return 0.0
        return float(own["change"] if own["better"] == "lower" else abs(own["gap"]) - abs(nothing["gap"]))

    def _known(self, arm: str, measure: str, set: str) -> dict[str, Any]:
        row = self.row(arm, measure, set)
        if row is None:
            known = self.table.select("arm", "measure", "set").unique(maintain_order=True)
            own = known.filter(pl.col("arm") == arm)
            raise MethodError(
                f"'{measure}' on '{set}' was not measured of '{arm}'.",
                f"Measured: {', '.join(f'{one} on {where}' for one, where in own.select('measure', 'set').iter_rows())}."
                if len(own)
                else f"Arms: {', '.join(known['arm'].unique(maintain_order=True))}.",
            )
        return row

    def summary(self) -> str:
        """What was held against what, who is told apart and by what, and who does no better than nothing."""
        oracles = f"{self.oracles:,} models" if self.oracles > 1 else "a model"
        gone = "the forgotten example" if self.count == 1 else f"the {self.count:,} forgotten examples"
        said = f"Held against {oracles} trained without {gone}"
        apart = {one: self.told_apart(one) for one in self.methods}
        better = [one for one in self.methods if self.beats_nothing(one)]
        trace = bool(self.told_apart("nothing"))
        if len(apart) == 1:
            ((arm, by),) = apart.items()
            word = f"told apart by {', '.join(by)}" if by else "not told apart"
            if not trace:
                than = (
                    "which shows little: doing nothing is not told apart either"
                    if not by
                    else "as doing nothing is not"
                )
            else:
                by = self.nearer(arm) if better else []
                than = (
                    f"and nearer to them than doing nothing by {', '.join(by)}"
                    if by
                    else "and no nearer to them than doing nothing"
                )
            return f"{said}, on these examples {arm} is {word}, {than}."
        parts = {
            "Not told apart on these examples": [one for one, by in apart.items() if not by],
            "Told apart, but nearer than doing nothing": [one for one, by in apart.items() if by and one in better],
            "Told apart, and no nearer than doing nothing": [
                one for one, by in apart.items() if by and one not in better
            ],
        }
        words = "".join(f" {word}: {', '.join(names)}." for word, names in parts.items() if names)
        rest = "" if trace else " Doing nothing is not told apart either, so that this shows little."
        return f"{said}: {len(apart)} methods.{words}{rest}"

    def plot(self) -> go.Figure:
        """How far each arm is from the oracles, a panel per set, with intervals; the oracles' own distance as a dotted line."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        own = self.table.filter(pl.col("measure") == self.main)
        sets = own["set"].unique(maintain_order=True).to_list()
        figure = make_subplots(rows=1, cols=len(sets), subplot_titles=sets, shared_yaxes=True)
        for column, name in enumerate(sets, 1):
            rows = own.filter((pl.col("set") == name) & (pl.col("arm") != "oracle"))
            spread = {"array": (rows["high"] - rows["value"]).to_list(), "type": "data"}
            spread["arrayminus"] = (rows["value"] - rows["low"]).to_list()
            bars = go.Bar(x=rows["value"].to_list(), y=rows["arm"].to_list(), orientation="h", error_x=spread)
            figure.add_trace(bars, row=1, col=column)
            floor = own.filter((pl.col("set") == name) & (pl.col("arm") == "oracle"))["value"].item()
            figure.add_vline(x=floor, line_dash="dot", row=1, col=column)
            figure.update_xaxes(title_text=f"{self.main} (lower = nearer)", row=1, col=column)
        figure.update_layout(showlegend=False, yaxis={"autorange": "reversed"})
        return figure


ANSWERS: dict[str, type[Answer]] = {
    kind.name: kind for kind in (Scores, Findings, Verdict, Attribution, Trust, Selection, Comparison, Forgetfulness)
}


def load_answer(path: str | os.PathLike[str]) -> Answer:
    """The answer saved at `path`, as its own type."""
    return Answer.load(path)
