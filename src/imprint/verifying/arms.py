"""The arms of a verdict on forgetting: what is asked of each of its models, and where the answers are kept.

An arm is some models of one kind: what a method made of models that knew the examples, those models themselves, or models that never saw
them. Of each model is kept what it says of the rows that are measured on, and a few figures that need the model itself (how soon it
relearns, what its features resemble). The models are not kept, and those of one arm are in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imprint.fitting import Data, generator
from imprint.forgetting import Forgetting
from imprint.forgetting.lineage import weights_of
from imprint.recording import Run
from imprint.recording.files import save_tensors
from imprint.verifying.kept import identity
from imprint.verifying.recovering import Cue, cue_success
from imprint.verifying.relearning import mean_loss, relearn
from imprint.verifying.representation import cka, features, probe

# Of retained and held-out examples; and of candidates of an attack, forgotten and held-out each.
MOST_ROWS = MOST_CANDIDATES = 2000
# Held-out rows that no shadow model saw, which RMIA compares with: fewer give too coarse a score, more cost time.
FEWEST_POPULATION, MOST_POPULATION = 20, 1000
# A forgotten and a held-out example with targets this near (in quantiles) count as alike.
BINS = 10
# Oracles whose features are compared with.
FEATURE_JUDGES = 4
# Part of what is kept's name; another number where what is measured changes.
FORMAT = 1


@dataclass(frozen=True)
class Rows:
    """Rows of the corpus that all arms are asked about.

    Attributes:
        sets: "forget", "retain" and, where there are such rows, "held-out".
        candidates: Rows of an attack: forgotten ones, then as many held-out ones with like targets; empty where there are none.
        population: Held-out rows that are no candidates.
    """

    sets: dict[str, Int[Tensor, " row"]]
    candidates: Int[Tensor, " candidate"]
    population: Int[Tensor, " z"]

    @property
    def members(self) -> int:
        """How many of the candidates are forgotten ones: the first half."""
        return len(self.candidates) // 2

    @cached_property
    def all(self) -> Int[Tensor, " row"]:
        """Each row once, ascending."""
        return torch.unique(torch.cat([*self.sets.values(), self.candidates, self.population]))

    def places(self, rows: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Where rows stand in `all`."""
        return torch.searchsorted(self.all, rows)


def rows_of(job: Forgetting, seed: int = 0) -> Rows:
    """What a request is measured on: forgotten rows, and at most 2,000 retained and held-out rows each, drawn by the seed."""
    data = job.data
    forget, held = job.forget.rows, held_out_rows(data)
    sets = {"forget": forget, "retain": drawn(job.retain.rows, MOST_ROWS, seed, "retain")}
    if not len(held):
        return Rows(sets, held, held)
    sets["held-out"] = drawn(held, MOST_ROWS, seed, "held-out")
    groups = alike(job, torch.cat([forget, held]))
    candidates = matched(forget, held, groups[: len(forget)], groups[len(forget) :], seed)
    rest = held[~torch.isin(held, candidates)]
    return Rows(sets, candidates, drawn(rest, MOST_POPULATION, seed, "population"))


def held_out_rows(data: Data) -> Int[Tensor, " row"]:
    """The test split; where there is none the validation split; else nothing."""
    others = [name for name in data.splits if name != "train" and len(data.splits[name])]
    name = next((one for one in others if one == "test"), next((one for one in others if one.startswith("val")), None))
    return torch.empty(0, dtype=torch.int64) if name is None else data.splits[name]


def drawn(rows: Int[Tensor, " row"], most: int, seed: int, purpose: str) -> Int[Tensor, " some"]:
    """At most so many rows, at random, ascending."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed, "forgetting", purpose))[:most]].sort().values


def alike(job: Forgetting, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Codes that are equal where targets are alike: of a class, with as many labels, in the same tenth of the values."""
    target = job.data.target[rows]
    if target.ndim == 2:
        return target.sum(1).long()
    if not target.is_floating_point():
        return target
    edges = torch.quantile(job.data.target[job.data.rows].double(), torch.linspace(0, 1, BINS + 1).double()[1:-1])
    return torch.bucketize(target.double(), edges)


def matched(
    forget: Int[Tensor, " forgotten"],
    held: Int[Tensor, " held"],
    own: Int[Tensor, " forgotten"],
    other: Int[Tensor, " held"],
    seed: int,
    most: int = MOST_CANDIDATES,
) -> Int[Tensor, " candidate"]:
    """Forgotten rows, then as many held-out rows, with the same number of both from each group.

    Args:
        forget: Forgotten rows.
        held: Held-out rows.
        own: Groups of the forgotten rows.
        other: Of the held-out rows.
        seed: Of the draw.
        most: Of either kind.

    >>> found = matched(torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9]), torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), 0)
    >>> found[1].item(), found[3].item()
    (2, 9)
    """
    draw = generator(seed, "forgetting", "candidates")
    size = len(forget) + len(held)
    # The k-th of a group on one side is paired with the k-th of the same group on the other, both in random order.
    pairs = [groups * size + _numbered(groups, draw) for groups in (own, other)]
    common = pairs[0][torch.isin(pairs[0], pairs[1])]
    common = common[torch.randperm(len(common), generator=draw)[:most]]
    return torch.cat([rows[torch.isin(pair, common)] for rows, pair in zip((forget, held), pairs, strict=True)])


def _numbered(groups: Int[Tensor, " row"], draw: torch.Generator) -> Int[Tensor, " row"]:
    """The how many-th of its group each is, from 0, in a random order."""
    order = torch.randperm(len(groups), generator=draw)
    order = order[groups[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(groups[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(groups)) - starts)


@dataclass(frozen=True)
class Arm:
    """What the models of an arm answered.

    Attributes:
        outputs: What each says of the rows that are asked about, in the order of `Rows.all`.
        figures: Name -> a value of each model (for "cka-oracle" of each model and judge).
        seconds: What a method took on each.
    """

    outputs: Float[Tensor, "model row ..."]
    figures: dict[str, Float[Tensor, "model ..."]]
    seconds: Float[Tensor, " model"]
    notes: tuple[str, ...] = ()


class Bench:
    """Asks models the same questions.

    Args:
        job: The request.
        rows: What they are asked about.
        judges: Oracles whose features are compared with; none: nothing is asked of features.
        parent: The parent's module, whose loss on the forgotten examples is to be reached again; None: nothing is learned again.
        cue: A cue to try; None for none.
        folder: Where answers are kept; None to keep nothing. With a cue nothing is kept, as nobody can tell two cues apart.
    """

    def __init__(
        self,
        job: Forgetting,
        rows: Rows,
        judges: Sequence[nn.Module],
        parent: nn.Module | None,
        cue: Cue | None,
        folder: Path | None,
    ) -> None:
        self.job, self.rows, self.cue = job, rows, cue
        self.folder = None if cue is not None else folder
        self.held = rows.sets.get("held-out", torch.empty(0, dtype=torch.int64))
        self.about = [len(judges), parent is not None, weights_of(job.run)]
        self.target_loss = None if parent is None else mean_loss(job, parent)
        self.judges = [self._features(one, self.held) for one in judges] if len(self.held) else []
        self.cued = self.held[:0]
        if cue is not None and len(self.held):
            other = job.data.target[self.held] != job.task.encode(pl.Series([cue.target]))
            self.cued = self.held[other if other.ndim == 1 else other.any(1)]

    def ask(
        self,
        outputs: Float[Tensor, "model row ..."],
        modules: Sequence[nn.Module],
        parents: Sequence[nn.Module],
        seconds: Sequence[float],
        notes: tuple[str, ...] = (),
    ) -> Arm:
        """Answers of some models.

        Args:
            outputs: What they say of all rows of the corpus.
            modules: The models.
            parents: What each was made from (of an oracle: a model that knew the examples).
            seconds: What it took.
            notes: What to know of them.
        """
        figures: dict[str, list[Any]] = {}
        for module, parent in zip(modules, parents, strict=True):
            for name, value in self._figures(module, parent).items():
                figures.setdefault(name, []).append(value)
        tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()}
        return Arm(outputs[:, self.rows.all].clone(), tensors, torch.tensor(seconds, dtype=torch.float64), notes)

    def _figures(self, module: nn.Module, parent: nn.Module) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.target_loss is not None:
            found["relearn"] = relearn(self.job, module, self.target_loss)
        if self.judges:
            own = self._features(module, self.held)
            found["cka-oracle"] = [cka(own, one) for one in self.judges]
            found["cka-parent"] = cka(own, self._features(parent, self.held))
            kept = self.rows.sets["retain"]
            target = self.job.data.target
            classes = self.job.task.width if self.job.task.name == "classification" else None
            found["probe"] = probe(self._features(module, kept), target[kept], own, target[self.held], classes)
        if self.cue is not None and len(self.cued):
            found["cue"] = cue_success(self.job, module, self.job.data.inputs[self.cued], self.cue)
        return found

    def _features(self, module: nn.Module, rows: Int[Tensor, " row"]) -> Float[Tensor, "row feature"]:
        return features(module, self.job.task, self.job.data.inputs[rows])

    # ------------------------------------------------------------------------------------------------------------- kept

    def key(self, about: Mapping[str, Any]) -> str:
        """16 hex digits that differ where the run, the request, the rows, the questions or the models differ."""
        run: Run = self.job.run
        said = [FORMAT, run.fingerprint, identity(self.job.learner), self.about, dict(about)]
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=8)
        for values in (self.job.forget.places, self.rows.all, *self.rows.sets.values()):
            digest.update(f"{tuple(values.shape)}".encode() + np.ascontiguousarray(values.numpy()).tobytes())
        return digest.hexdigest()

    def read(self, key: str) -> Arm | None:
        """What was kept; None if nothing is, or it is damaged."""
        if self.folder is None or not (path := self.folder / f"{key}.safetensors").exists():
            return None
        try:
            held = load_file(path)
        except SafetensorError:
            return None
        notes = held.pop("notes", torch.empty(0, dtype=torch.uint8))
        return Arm(
            held.pop("outputs"), {name: one for name, one in held.items() if name != "seconds"}, held["seconds"],
            tuple(json.loads(bytes(notes.tolist()))) if len(notes) else (),
        )  # fmt: skip

    def keep(self, key: str, arm: Arm) -> Arm:
        """Keep what models answered."""
        if self.folder is not None:
            notes = torch.frombuffer(bytearray(json.dumps(arm.notes).encode()), dtype=torch.uint8)
            tensors = {**arm.figures, "outputs": arm.outputs, "seconds": arm.seconds, "notes": notes}
            save_tensors(self.folder / f"{key}.safetensors", {name: one.contiguous() for name, one in tensors.items()})
        return arm
