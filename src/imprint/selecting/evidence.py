"""What a select method reads: evidence of the training examples, the budget, and what the user said of the choice.

A need whose split is `TARGET` is about the examples to be good at. Where a method reads the same evidence of both, it gives that of the
target a name of its own: `Features("target_features", split=TARGET), Features()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from imprint import evidence
from imprint.corpus import Corpus
from imprint.engine import LOCAL, Engine
from imprint.errors import EvidenceError, IdError, MethodError
from imprint.evidence import Inputs, Named, Texts
from imprint.fitting import Progress, generator, silent
from imprint.methods import Derived, Method, Scored, needs_of, of_run, registered
from imprint.recording.held_out import held_out
from imprint.recording.needs import Features, HeldOutLoss, Need, Target
from imprint.selecting.untrained import Untrained

__all__ = [
    "TARGET", "Asked", "Budget", "Entries", "Inputs", "Random", "Texts", "Trusted", "gather", "serves_corpus", "target_rows",
]  # fmt: skip

TARGET = "<target>"
# A word that is in fewer texts than this balances nothing, and is no entry.
RARE = 2


@dataclass(frozen=True)
class Budget(Need):
    """How many examples to choose: an int."""

    field: str = "budget"


@dataclass(frozen=True)
class Random(Need):
    """The source of all randomness of the choice: a `torch.Generator`, seeded for the selection's seed and the method."""

    field: str = "generator"


@dataclass(frozen=True)
class Trusted(Need):
    """Which training examples the user trusts: bool `[example]`."""

    field: str = "trusted"


@dataclass(frozen=True)
class Entries(Need):
    """Entries to balance by, a tuple of str: those that were given, else the words of the texts, else the classes."""

    field: str = "entries"


@dataclass(frozen=True)
class Asked:
    """What a user asked of one method.

    Attributes:
        source: A `Run`, or a corpus without one (`Untrained`).
        method: The method.
        budget: How many examples.
        target: The examples to be good at; None for held-out ones (`target_rows`).
        trusted: Ids of trusted examples.
        entries: Entries to balance by.
        seed: Of the choice.
    """

    source: Any
    method: Method
    budget: int
    target: Named | None = None
    trusted: Sequence[str] | None = None
    entries: Sequence[str] | None = None
    seed: int = 0

    @cached_property
    def rows(self) -> Int[np.ndarray, " target"]:
        """Rows of the source's corpus that the target is."""
        return target_rows(self.source, self.target)

    @property
    def note(self) -> str:
        """What the method aimed at, where the user did not say."""
        if self.target is not None or not aims(self.method):
            return ""
        name, rows = held_out(self.source)
        part = "" if len(rows) == len(self.rows) else "half of "
        rest = "; the other half can judge the choice" if part else ""
        return f"aimed at {part}the split '{name}', {len(self.rows):,} examples{rest}"

    @cached_property
    def elsewhere(self) -> Corpus | None:
        """The target, where it is another corpus than the source's."""
        if not isinstance(self.target, Corpus) or self.target.ids.is_in(self.source.corpus.ids.implode()).all():
            return None
        return self.target


def gather(asked: Asked, progress: Progress = silent, engine: Engine = LOCAL) -> dict[str, Any]:
    """The values of what the method needs, by name; what a run lacks is collected first.

    Raises:
        MethodError: It takes a run, and the source is a corpus; or something was not said that it asks for.
    """
    one = asked.method
    if not isinstance(asked.source, Untrained):
        needs = [need for need in needs_of([one]) if asked.elsewhere is None or not about_target(need)]
        evidence.collect(asked.source, needs, [TARGET], progress, engine)
    elif not serves_corpus(one):
        without = ", ".join(other.name for other in registered("select") if serves_corpus(other))
        raise MethodError(
            f"The method '{one.name}' reads what a training recorded, and there is only a corpus.",
            f"Train first: imprint.select(imprint.fit(imprint.Learner(), corpus, path), ...). Without a training there are: {without}.",
        )
    return {need.name: value(asked, need) for need in one.needs}


def serves_corpus(one: Method) -> bool:
    """Whether a method can be asked of a corpus that nothing was trained on."""
    recorded = any(need.kind not in (None, "features") or isinstance(need, HeldOutLoss) for need in needs_of([one]))
    return not recorded and not any(isinstance(need, Scored) for need in one.needs)


def about_target(need: Need) -> bool:
    """Whether a need is about the examples to be good at."""
    return evidence.split_of(need) == TARGET


def aims(one: Method) -> bool:
    """Whether a method reads the examples to be good at."""
    return any(about_target(need) for need in needs_of([one]))


def value(asked: Asked, need: Need) -> Any:
    """The value of one need, what it is read from being there."""
    match need:
        case Budget():
            return asked.budget
        case Random():
            return generator(asked.seed, "select", asked.method.name)
        case Trusted():
            return trusted(asked)
        case Entries():
            return entries(asked)
        case Derived():
            return need.function(**{part.name: value(asked, part) for part in need.needs})
    source = asked.source
    if not about_target(need):
        return evidence.value(source, need, {}) if isinstance(need, Inputs | Texts) else of_run(need, source)
    if asked.elsewhere is not None:
        return of_corpus(source, need, asked.elsewhere)
    if isinstance(source, Untrained) and isinstance(need, Features):
        return evidence.inputs(source, asked.rows)  # type: ignore[arg-type]
    return evidence.of_rows(source, need, asked.rows)


def target_rows(source: Any, target: Named | None) -> Int[np.ndarray, " target"]:
    """Rows of the examples to be good at: those that were named, else those of the validation split.

    Where there is no validation split, they are half of the held-out examples, the same half each time: the other half can judge what
    was chosen for them.

    Args:
        source: A run, or an `Untrained` corpus.
        target: A split's name, a part of the corpus, ids, or rows.

    Raises:
        IdError: One is not of the corpus, or there is none.
        EvidenceError: None were named, and there are no held-out examples.
    """
    if target is not None:
        rows = evidence.named_rows(source, target, "target examples")
        if not len(rows):
            raise IdError(f"The target {target!r} has no examples.", "Name a split, ids or rows with examples.")
        return rows
    name, rows = held_out(source)
    if name.startswith("val"):
        return rows
    half = torch.randperm(len(rows), generator=generator(0, "target"))[: -(-len(rows) // 2)]
    return np.sort(rows[half.numpy()])


def trusted(asked: Asked) -> Bool[Tensor, " example"]:
    """Which training examples are trusted.

    Raises:
        MethodError: None were named.
        IdError: One is no training example.
    """
    if asked.trusted is None or not len(asked.trusted):
        raise MethodError(
            f"The method '{asked.method.name}' learns from examples that you trust, and none were named.",
            "Name them: imprint.select(..., trusted=[ids]).",
        )
    rows = evidence.named_rows(asked.source, list(asked.trusted), "trusted examples")
    found = torch.from_numpy(np.isin(asked.source.rows(), rows))
    if int(found.sum()) < len(rows):
        raise IdError(
            f"{len(rows) - int(found.sum())} of {len(rows)} trusted examples are not training examples.",
            "Name examples of the split 'train'.",
        )
    return found


def entries(asked: Asked) -> tuple[str, ...]:
    """Entries to balance by: those that were given, else the words that are in two texts or more, else the classes."""
    if asked.entries is not None:
        return tuple(map(str, asked.entries))
    source = asked.source
    if source.corpus.modality != "text":
        return tuple(map(str, getattr(source.task, "classes", getattr(source.task, "labels", ()))))
    text = evidence.texts(source.corpus, source.rows()).to_frame().with_row_index()
    words = text.select("index", pl.col("text").str.to_lowercase().str.extract_all(r"\w+").alias("word"))
    often = words.explode("word").drop_nulls().unique().group_by("word").len().filter(pl.col("len") >= RARE)
    return tuple(often["word"].sort())


def of_corpus(source: Any, need: Need, corpus: Corpus) -> Any:
    """The value of a need about the examples of another corpus with the same columns.

    Raises:
        EvidenceError: It is kept for the source's own examples only.
    """
    match need:
        case Texts():
            return evidence.texts(corpus, corpus.rows())
        case Target():
            return source.task.encode(corpus.target)
        case Features() | Inputs():
            model = source.model()
            encoded = (model.encode(frame) for _, frame in corpus.batches(size=1024))
            if isinstance(need, Inputs) or isinstance(source, Untrained):
                return evidence.flattened(encoded)
            return torch.cat([model.features(block).flatten(1).float().cpu() for block in encoded])
    raise EvidenceError(
        f"The method reads {need.kind or need.field} of the target, which must then be of the run's own corpus.",
        "Append the target's examples to the corpus as a split of their own, fit, and name that split.",
    )
