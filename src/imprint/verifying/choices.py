"""The choices that a comparison trains on, and what each of them cost.

A choice is kept on disk with the seconds that it took, so that an interrupted comparison goes on with the same examples and the same time
left. Evidence that several methods read is collected once and counts for each of them: it is what asking that method alone would cost.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprint import evidence
from imprint.answers import Selection
from imprint.fitting import Progress, silent
from imprint.fitting.loop import batch_bounds
from imprint.fitting.samplers import sampler_from, visits
from imprint.fleets import Member, Shared
from imprint.methods import Derived, Method, needs_of
from imprint.recording import Run
from imprint.recording.files import read_json, replacing, write_json
from imprint.recording.needs import Dynamics, Need
from imprint.selecting import select
from imprint.selecting.evidence import TARGET, Random, about_target
from imprint.verifying.kept import identity

# Evidence of the recorded model, and not only of the data.
OF_MODEL = ("dynamics", "outputs", "features", "gradients", "gradient_norms", "layer_gradients", "curvature")
# "early" checkpoints are those of the first fifth of the epochs.
EARLY = 0.2


@dataclass(frozen=True)
class Choice:
    """Examples to train on, or a policy that chooses them as the training goes; and what it cost.

    Attributes:
        method: Its name in the table.
        budget: As a share of the training examples.
        examples: As a number of them.
        rows: Rows of the corpus, ascending; all training rows where a sampler chooses.
        weight: Of these rows, or None.
        sampler: What chooses them as the training goes, or None.
        seconds: That selecting took, evidence included, beyond the recorded training.
        recorded: The share of the recorded training that its evidence comes from.
        notes: Of the selection.
    """

    method: str
    budget: float
    examples: int
    rows: Int[np.ndarray, " example"]
    weight: Tensor | None = None
    sampler: Any = None
    seconds: float = 0.0
    recorded: float = 0.0
    notes: tuple[str, ...] = ()

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch. A sampler that does not say how much it visits is taken by its budget."""
        size = self.examples
        if self.sampler is not None:
            size = visits(self.sampler, len(self.rows)) or size
        return len(batch_bounds(size, batch_size)) - 1

    def member(self, shared: Shared, seed: int, epochs: int) -> Member:
        """The training on it."""
        settings: dict[str, Any] = {} if epochs == shared.learner.epochs else {"epochs": epochs}
        if self.sampler is not None:
            settings["sampler"] = self.sampler
        weight = self.weight
        if weight is not None and shared.data.weight is not None:
            weight = weight * shared.data.weight[torch.from_numpy(self.rows)]
        return Member(seed, self.rows, None, weight, settings)

    def save(self, path: Path) -> None:
        """Write it as one file."""
        held = {"rows": torch.from_numpy(self.rows)} | ({} if self.weight is None else {"weight": self.weight})
        plain = ("method", "budget", "examples", "seconds", "recorded", "notes")
        about = {name: getattr(self, name) for name in plain}
        about["sampling"] = None if self.sampler is None else self.sampler.spec()
        with replacing(path) as scratch:
            save_file(held, scratch, {"about": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Choice | None:
        """Read what `save` wrote; None where there is nothing readable."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            return None
        sampling, notes = about.pop("sampling"), tuple(about.pop("notes"))
        sampler = None if sampling is None else sampler_from(sampling)
        return cls(rows=held["rows"].numpy(), weight=held.get("weight"), sampler=sampler, notes=notes, **about)


def everything(run: Run) -> Choice:
    """All training examples."""
    rows = run.rows()
    return Choice("full", 1.0, len(rows), rows)


def of_selection(run: Run, selection: Selection) -> Choice:
    """The choice that a selection is, which may have been made from another run of the same corpus."""
    rows, number = run.rows(), int(selection.budget)
    about: dict[str, Any] = {
        "budget": float(f"{number / len(rows):.6g}"),
        "examples": number,
        "seconds": selection.seconds,
    }
    if selection.dynamic:  # its notes are about the table of its first epoch
        return Choice(selection.method, rows=rows, sampler=selection.sampler(), **about)
    chosen = selection.frame().select("id", "weight")
    rows = run.corpus.rows_of(chosen["id"])
    order = np.argsort(rows)
    weight = torch.from_numpy(chosen["weight"].to_numpy()[order].astype(np.float32))
    equal = bool((weight == weight[0]).all())
    return Choice(selection.method, rows=rows[order], weight=None if equal else weight, notes=selection.notes, **about)


class Chooser:
    """Asks select methods of a run, and keeps what they chose and what that cost.

    Args:
        run: The run.
        folder: Where that is kept; None keeps nothing.
        training: Seconds of one training on everything, which evidence from fleets that were trained earlier is priced with.
        more: Further arguments of `imprint.select`: target, trusted, entries.
        progress: Told what is collected.
    """

    def __init__(
        self,
        run: Run,
        folder: Path | None,
        training: float,
        more: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.run, self.folder, self.training, self.more, self.progress = (
            run,
            folder,
            training,
            dict(more or {}),
            progress,
        )
        self.took: dict[str, float] = {}
        self.costs = None if folder is None else folder / f"evidence-{self._digest()}.json"
        if self.costs is not None and self.costs.exists():
            self.took = {name: float(value) for name, value in read_json(self.costs).items()}

    def choose(self, one: Method, budget: float, seed: int) -> Choice:
        """What a method chooses.

        Args:
            one: The method.
            budget: As `imprint.select` takes it.
            seed: Of the choice; of a method that draws nothing any gives the same.
        """
        collected = self.collect(one)
        more = {name: _told(value) for name, value in self.more.items()}
        name = f"{self._digest(one.name, repr(budget), seed, more)}.safetensors"
        path = None if self.folder is None else self.folder / name
        choice = None if path is None else Choice.load(path)
        if choice is None:
            choice = of_selection(self.run, select(self.run, budget, one.name, seed=seed, progress=False, **self.more))
            choice = replace(choice, recorded=recorded_share(one, self.run))
            if isinstance(budget, float):
                choice = replace(choice, budget=budget)
            if path is not None:
                choice.save(path)
        return replace(choice, seconds=choice.seconds + collected)

    def collect(self, one: Method) -> float:
        """Seconds that the evidence of a method takes beyond the recorded training, whichever method asked for it first."""
        total = 0.0
        stores: dict[str, list[Need]] = {}
        for need in needs_of([one]):
            if need.kind is not None and need.store is not None:
                stores.setdefault(need.store, []).append(need)
        for store, needs in stores.items():
            if store not in self.took:
                of_all = [replace(need, split=None) if about_target(need) else need for need in needs]  # type: ignore[call-arg]
                began = time.perf_counter()
                there = not self.run.missing(of_all)
                evidence.collect(self.run, needs, [TARGET], self.progress)
                seconds = time.perf_counter() - began
                # What was there before is counted as far as it is known: the trainings that it takes.
                self.took[store] = max(need.trainings for need in needs) * self.training if there else seconds
                if self.costs is not None:
                    write_json(self.costs, self.took)
            total += self.took[store]
        return total

    def _digest(self, *asked: Any) -> str:
        """16 hex digits that differ where the run or what is asked of it differs."""
        about = [self.run.fingerprint, identity(self.run.learner), *asked]
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def _told(value: Any) -> Any:
    """An argument of `imprint.select` as JSON."""
    if hasattr(value, "fingerprint"):  # a corpus
        return value.fingerprint
    return value if value is None or isinstance(value, str) else np.asarray(value).tolist()


def draws(one: Method) -> bool:
    """Whether a method draws at random, so that another seed chooses anew."""
    return any(isinstance(need, Random) for need in closure(one.needs))


def targeted(one: Method) -> bool:
    """Whether a method reads the examples to be good at."""
    return any(about_target(need) for need in closure(one.needs))


def closure(needs: Iterable[Need]) -> set[Need]:
    """These needs and those that they are derived from."""
    found = set(needs)
    return found | {part for need in found if isinstance(need, Derived) for part in closure(need.needs)}


def recorded_share(one: Method, run: Run) -> float:
    """The share of the recorded training that the evidence of a method comes from: 0 where it looks at the data alone."""
    return max((share_of(need, int(run.learner.epochs or 1)) for need in needs_of([one])), default=0.0)


def share_of(need: Need, epochs: int) -> float:
    """The share of a training of so many epochs that a piece of evidence comes from.

    >>> share_of(Dynamics("loss", epochs=3), 12), share_of(Dynamics("loss"), 12), share_of(Need("target"), 12)
    (0.25, 1.0, 0.0)
    """
    if need.kind not in OF_MODEL and need.field != "held_out_loss":
        return 0.0
    first = getattr(need, "epochs", None) if isinstance(need, Dynamics) else getattr(need, "checkpoint", None)
    if first == "early":
        first = EARLY
    elif first == "first":
        first = 1
    if isinstance(first, float) and 0 < first < 1:
        return max(1, round(first * epochs)) / epochs
    return min(1.0, first / epochs) if isinstance(first, int) and first > 0 else 1.0
