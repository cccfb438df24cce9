"""A prediction beside the training examples that an attribution holds responsible for it: what there is to show of each.

Images become thumbnails. In texts that the model reads word by word, words are marked by their scores (`imprint.tracing.tokens`): in the
query by what they do for its own margin, in an example by what they do for the help that training on it is to the query. In texts that it
reads as one vector, the words that the query and an example share are marked, the rarer in the training texts the stronger: that compares
the texts, and is not what the model looked at. In rows of a table, the cells that differ from the query's are marked: numbers by more than
half a standard deviation of their column, everything else by any difference.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import torch

from imprint.answers import Attribution, Trust
from imprint.errors import IdError, ImprintError
from imprint.recording import Run
from imprint.reporting.thumbnails import small
from imprint.reporting.words import word
from imprint.tracing.tokens import Words, reads_words

QUERY_PIXELS, EXAMPLE_PIXELS = 320, 160
QUERY_CHARACTERS, EXAMPLE_CHARACTERS = 6000, 1500
CELL_CHARACTERS = 240
MOST_COLUMNS = 40
# Points of a drawn line: an array with more numbers is thinned.
POINTS = 256
# Training examples that the spread of columns and the frequency of words are taken from, drawn at random.
SAMPLE = 2000
# A word in more of the training texts than the first is not marked; in more than the second, weakly.
COMMON, FREQUENT = 0.2, 0.02
# Numbers differ from here, in standard deviations of their column.
APART = 0.5
WORD = re.compile(r"\w+")
# A word with a score from these shares of the largest in its text is marked weakly, or strongly; and so many are named in a list.
WEAK, STRONG = 0.15, 0.5
MOST_NAMED = 5


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    """A cell of a row: its value as text, and whether it differs from the query's."""

    text: str
    differs: bool = False


@dataclass(frozen=True)
class Shown:
    """What is shown of a query or of an example.

    Attributes:
        id: Its id.
        position: Where it stands in the source.
        split: Its split.
        label: Its label in the user's terms, as text.
        predicted: What the model says of it, as text; None where the model is not at hand.
        probability: Of that, in a classification.
        right: Whether the model is right; None where that is not known.
        rank: 1, 2, ... = the most helpful, -1, -2, ... = the most harmful; 0 = the query itself.
        score: Of the attribution.
        picture: Of an image or of an array that is one.
        line: Numbers of any other array, scaled to 0..1.
        text: Pieces of a text with the strength of their mark: 0, 1 or 2; negative of a word that speaks or works against the query.
        cut: How many characters of the text were left out.
        cells: Of the other columns, in the order of `Explanation.columns`.
        marks: Words that it shares with the query (of the query: with its most helpful examples), the rarest first; or columns in which it
            differs.
        words: Of a text that the model reads word by word: the words with the largest scores, by size, and these.
    """

    id: str
    position: Any
    split: str
    label: str
    predicted: str | None
    probability: float | None
    right: bool | None
    rank: int = 0
    score: float | None = None
    picture: Picture | None = None
    line: tuple[float, ...] = ()
    text: tuple[tuple[str, int], ...] = ()
    cut: int = 0
    cells: tuple[Cell, ...] = ()
    marks: tuple[str, ...] = ()
    words: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Explained:
    """A query beside its examples, the most helpful and the most harmful first."""

    query: Shown
    helpful: tuple[Shown, ...]
    harmful: tuple[Shown, ...]


@dataclass(frozen=True)
class Explanation:
    """Queries beside their examples, and what has to be known to read them.

    Attributes:
        run: Path of the run.
        method: The trace method.
        higher: What a higher score means.
        examples: How many training examples were compared.
        modality: Of the corpus.
        marked: "scores" (of words), "words" (that are shared), "columns" or "": what the marks are about.
        columns: Names of the cells.
        more_columns: How many columns are not shown.
        queries: The queries that are shown.
        left_out: How many more were traced.
        trust: How far the method was measured to be believed on this run; None where it was not.
        answer: Name of the attribution among the run's answers.
        cost: Seconds and trainings.
        notes: Of the attribution.
    """

    run: str
    method: str
    higher: str
    examples: int
    modality: str
    marked: str
    queries: tuple[Explained, ...]
    columns: tuple[str, ...] = ()
    more_columns: int = 0
    left_out: int = 0
    trust: Trust | None = None
    answer: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, str]:
        """What the two ends of the scores are called."""
        return ends(self.higher)


def ends(higher: str) -> tuple[str, str]:
    """What the two ends of scores are called: a similarity does not say that its lower end does harm.

    >>> ends("helps the query"), ends("more similar")
    (('Most helpful', 'Most harmful'), ('Highest scores', 'Lowest scores'))
    """
    if higher.startswith(("helps", "raises")):
        return "Most helpful", "Most harmful"
    return "Highest scores", "Lowest scores"


def explain(run: Run, attribution: Attribution, queries: Sequence[str] | None = None) -> Explanation:
    """Put queries beside their examples.

    Args:
        run: The run that was traced; its corpus must be at hand.
        attribution: What `trace` found.
        queries: Ids of the queries to show; None for all.

    Raises:
        IdError: A query was not traced.
    """
    traced = attribution.queries
    names = traced if queries is None else list(queries)
    unknown = [name for name in names if name not in set(traced)]
    if unknown:
        raise IdError(
            f"The query {unknown[0]!r} was not traced.", f"There are {len(traced)}: {', '.join(traced[:3])}, ..."
        )
    look = _Look(run)
    table = attribution.frame().filter(pl.col("query").is_in(names))
    ids = pl.concat([pl.Series("id", names, dtype=pl.String), table["id"]]).unique(maintain_order=True).to_list()
    shown = look.shown(ids) if ids else {}
    found = []
    for name in names:
        own = table.filter(pl.col("query") == name).select("id", "rank", "score")
        found.append(look.beside(shown[name], [(shown[id], rank, score) for id, rank, score in own.iter_rows()]))
    trust = f"trust-{attribution.method}"
    judged = [name for name in (trust, f"{trust}-tail-patch") if name in run.answers()]
    known = run.answer(judged[0]) if judged else None
    return Explanation(
        run=str(run.path),
        method=attribution.method,
        higher=attribution.higher[attribution.method],
        examples=attribution.examples,
        modality=run.corpus.modality,
        marked="scores" if look.words else "words" if look.texts else "columns" if look.cells else "",
        queries=tuple(found),
        columns=tuple(look.cells),
        more_columns=look.more_columns,
        left_out=len(traced) - len(names),
        trust=known if isinstance(known, Trust) else None,
        answer=f"attribution-{attribution.method}",
        cost=dict(attribution.cost),
        notes=attribution.notes,
    )


@dataclass(frozen=True)
class _Seen:
    """An example as it was read: what is common to it as a query and as an example."""

    shown: Shown
    values: dict[str, Any]
    words: frozenset[str]


class _Look:
    """What a run's examples look like."""

    def __init__(self, run: Run) -> None:
        self.run, self.corpus = run, run.corpus
        kinds = self.corpus.kinds
        self.pictures = [name for name, kind in kinds.items() if kind in ("image", "array")]
        prose = [name for name, kind in kinds.items() if kind == "text"]
        self.texts = prose if self.corpus.modality != "table" else []
        plain = [name for name in kinds if name not in self.pictures and name not in self.texts]
        self.cells, self.more_columns = plain[:MOST_COLUMNS], max(0, len(plain) - MOST_COLUMNS)
        numeric = [name for name in self.cells if kinds[name] == "numeric"]
        rows = run.rows()
        some = np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False))
        self.words = _words(run) if self.texts else None
        self.spread: dict[str, float] = {}
        self.share: dict[str, float] = {}
        if numeric:
            frame = self.corpus.read(some, numeric)
            self.spread = {name: float(frame[name].cast(pl.Float64).std() or 0.0) for name in numeric}  # type: ignore[arg-type]
        if self.texts and self.words is None:
            said = pl.Series(
                [" ".join(value or "" for value in row) for row in self.corpus.read(some, self.texts).iter_rows()]
            )
            words = said.str.to_lowercase().str.extract_all(r"\w+").list.unique().explode()
            self.share = {
                name: count / len(some) for name, count in words.drop_nulls().value_counts(name="n").iter_rows()
            }

    def shown(self, ids: Sequence[str]) -> dict[str, _Seen]:
        """What there is to show of these examples, before they are compared."""
        rows = self.corpus.rows_of(ids)
        frame = self.corpus.read(rows)
        said = self.said(rows)
        splits, positions = self.corpus.split_names.gather(rows), self.corpus.positions.gather(rows)
        labels = self.corpus.target.gather(rows)
        found = {}
        for number, (id, values) in enumerate(zip(ids, frame.iter_rows(named=True), strict=True)):
            prose = " ".join(values[name] or "" for name in self.texts)
            predicted, probability, right = said[number]
            one = Shown(
                id=id, position=positions[number], split=splits[number], label=word(labels[number]) or "none",
                predicted=predicted, probability=probability, right=right,
            )  # fmt: skip
            found[id] = _Seen(one, values, frozenset(WORD.findall(prose.lower())))
        return found

    def said(self, rows: np.ndarray) -> list[tuple[str | None, float | None, bool | None]]:
        """Prediction, its probability and whether it is right; None where the model is not at hand."""
        ascending, place = np.unique(rows, return_inverse=True)
        try:
            if self.run.has("outputs"):
                outputs = self.run.evidence("outputs").read(ascending)
            else:
                outputs = self.run.model().outputs(self.corpus.read(ascending))
        except ImprintError:
            return [(None, None, None)] * len(rows)
        outputs, task = outputs[torch.from_numpy(place)], self.run.task
        target = self.run.target(None)[torch.from_numpy(rows)]
        values = [word(value) for value in task.decode(task.predict(outputs))]
        sure: list[Any] = [None] * len(rows)
        if task.name == "classification":
            sure = task.probabilities(outputs).amax(1).tolist()
        right = task.correct(outputs, target).tolist() if task.name != "regression" else [None] * len(rows)
        return list(zip(values, sure, right, strict=True))

    def beside(self, query: _Seen, examples: Sequence[tuple[_Seen, int, float]]) -> Explained:
        """A query and its examples, compared."""
        if self.words is not None:
            return self.read(self.words, query, examples)
        helpful = frozenset().union(*(one.words for one, rank, _ in examples if rank > 0))
        made = [
            self.drawn(one, query, EXAMPLE_PIXELS, EXAMPLE_CHARACTERS, query.words, rank, score)
            for one, rank, score in examples
        ]
        return Explained(
            self.drawn(query, query, QUERY_PIXELS, QUERY_CHARACTERS, helpful),
            tuple(one for one in made if one.rank > 0),
            tuple(one for one in made if one.rank < 0),
        )

    def read(self, words: Words, query: _Seen, examples: Sequence[tuple[_Seen, int, float]]) -> Explained:
        """A query and its examples, with their words' scores."""
        asked, *rows = self.corpus.rows_of([query.shown.id, *(one.shown.id for one, _, _ in examples)]).tolist()
        scores = [words.of_query(asked), *words.of_examples(asked, rows)]
        tables = words.table([asked, *rows], scores)
        texts = self.run.encoder.texts(self.corpus.read([asked, *rows]))
        made = []
        shown = [(query, 0, None, QUERY_CHARACTERS), *((*one, EXAMPLE_CHARACTERS) for one in examples)]
        for (one, rank, score, characters), table, text in zip(shown, tables, texts, strict=True):
            named = table.filter(pl.col("word") != "").sort(pl.col("score").abs(), descending=True).head(MOST_NAMED)
            made.append(
                replace(
                    one.shown, rank=rank, score=score, text=weighed(text[:characters], table),
                    cut=max(0, len(text) - characters), words=tuple(named.select("word", "score").iter_rows()),
                )
            )  # fmt: skip
        return Explained(
            made[0], tuple(one for one in made[1:] if one.rank > 0), tuple(one for one in made[1:] if one.rank < 0)
        )

    def drawn(
        self,
        one: _Seen,
        query: _Seen,
        pixels: int,
        characters: int,
        words: frozenset[str],
        rank: int = 0,
        score: float | None = None,
    ) -> Shown:
        """An example with its picture, its marked text and its marked cells."""
        image, line = self.pictured(one.values, pixels)
        prose = "\n\n".join(one.values[name] or "" for name in self.texts)
        cells = tuple(
            Cell(_short(word(one.values[name])), self.differs(name, one.values[name], query.values[name]))
            for name in self.cells
        )
        if self.texts:
            common = sorted(one.words & words, key=lambda name: (self.share.get(name, 0.0), name))
            marks = [name for name in common if self.strength(name)]
        else:
            marks = [name for name, cell in zip(self.cells, cells, strict=True) if cell.differs]
        return replace(
            one.shown, rank=rank, score=score, picture=image, line=line, cells=cells, marks=tuple(marks),
            text=self.marked(prose[:characters], words) if self.texts else (), cut=max(0, len(prose) - characters),
        )  # fmt: skip

    def differs(self, column: str, value: Any, other: Any) -> bool:
        """Whether a cell differs from the query's."""
        if column in self.spread and value is not None and other is not None:
            return abs(float(value) - float(other)) > APART * self.spread[column]
        return bool(value != other)

    def strength(self, found: str) -> int:
        """How strongly a shared word is marked: 2 for a rare one, 1 for a frequent one, 0 for a common one."""
        share = self.share.get(found, 0.0)
        return 0 if share > COMMON else 1 if share > FREQUENT else 2

    def marked(self, text: str, words: frozenset[str]) -> tuple[tuple[str, int], ...]:
        """A text in pieces, with the strength of their mark."""
        pieces: list[tuple[str, int]] = []
        end = 0
        for match in WORD.finditer(text):
            strength = self.strength(name) if (name := match[0].lower()) in words else 0
            if strength:
                pieces += [(text[end : match.start()], 0), (match[0], strength)]
                end = match.end()
        return tuple(piece for piece in [*pieces, (text[end:], 0)] if piece[0])

    def pictured(self, values: Mapping[str, Any], pixels: int) -> tuple[Picture | None, tuple[float, ...]]:
        """The first picture of an example; of an array that is none, its numbers."""
        for name in self.pictures:
            value = values[name]
            array = None if value is None or isinstance(value, bytes) else np.asarray(value)
            try:
                image = small(value if array is None else array, pixels)
            except ImportError:  # Pillow comes with the extra 'image'
                image = None
            if image is not None:
                file = io.BytesIO()
                image.save(file, "WEBP", lossless=max(image.size) <= 64, quality=85)
                uri = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
                return Picture(uri, image.width, image.height), ()
            if array is not None and array.dtype.kind in "fiub":
                return None, _line(array.reshape(-1).astype(np.float64))
        return None, ()


def weighed(text: str, table: pl.DataFrame) -> tuple[tuple[str, int], ...]:
    """A text in pieces, with the strength and the sign of their mark.

    Args:
        text: The text, or its beginning.
        table: Of `imprint.tracing.tokens`.

    >>> weighed("not bad", pl.DataFrame({"word": ["not", "bad"], "start": [0, 4], "end": [3, 7], "score": [-1.0, 0.2]}))
    (('not', -2), (' ', 0), ('bad', 1))
    """
    largest = float(table["score"].abs().max() or 0.0)  # type: ignore[arg-type]
    pieces: list[tuple[str, int]] = []
    end = 0
    for _, start, stop, score in table.iter_rows():
        share = abs(score) / largest if largest > 0 else 0.0
        if share >= WEAK and stop <= len(text):
            strength = 2 if share >= STRONG else 1
            pieces += [(text[end:start], 0), (text[start:stop], strength if score > 0 else -strength)]
            end = stop
    return tuple(piece for piece in [*pieces, (text[end:], 0)] if piece[0])


def _words(run: Run) -> Words | None:
    """Scores of words, where the run's model reads words and is at hand."""
    try:
        return Words(run) if reads_words(run) else None
    except ImprintError:
        return None


def _line(numbers: np.ndarray) -> tuple[float, ...]:
    """Numbers thinned to at most `POINTS` and scaled to 0..1; those that are not finite are left out."""
    thin = numbers[:: -(-len(numbers) // POINTS)] if len(numbers) else numbers
    thin = thin[np.isfinite(thin)]
    if not len(thin):
        return ()
    low, high = thin.min(), thin.max()
    return tuple(((thin - low) / (high - low if high > low else 1.0)).tolist())


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"
