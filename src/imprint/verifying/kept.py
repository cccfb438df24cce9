"""Trains members of a fleet and keeps what each says of the test examples, so that none is trained twice.

What is kept is named by all that decides it: the corpus, the learner, the member's seed, training rows, targets, weights and settings,
and the test rows. So a verification that was interrupted goes on, one with more seeds trains the new ones alone, and two questions that
come down to the same training share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint.fitting import Learner, Progress, silent
from imprint.fitting.samplers import visits
from imprint.fleets import Member, Shared, execute
from imprint.fleets.executing import Executor, Finished
from imprint.verifying.following import Followed, Following


@dataclass(frozen=True)
class Training:
    """What became of a member.

    Attributes:
        outputs: What it says of the test rows.
        seconds: It took; of a member that was trained together with others its share. Not a number where that was not kept.
        steps: Optimizer steps, where they were counted.
        curve: The headline metric as it was trained, where it was followed: a row per measurement with `imprint.verifying.following.POINT`.
    """

    outputs: Float[Tensor, "example ..."]
    seconds: float
    steps: int | None = None
    curve: Float[Tensor, "point 4"] | None = None


class Kept:
    """Trains members and keeps what they say of the test rows.

    Args:
        folder: Where that is kept, or None to keep nothing.
        shared: What the members have in common.
        test: Rows whose outputs are wanted.
        corpus: Fingerprint of the corpus, whose inputs and weights the members are trained on.
        curves: Whether members are to be followed as they are trained (`imprint.verifying.following`). What was kept without a curve is
            trained again.
    """

    def __init__(
        self, folder: str | Path | None, shared: Shared, test: Tensor, corpus: str, *, curves: bool = False
    ) -> None:
        self.folder, self.shared, self.test = None if folder is None else Path(folder), shared, test
        self.corpus, self.curves = corpus, curves
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def train(self, members: Sequence[Member], progress: Progress = silent) -> list[Tensor]:
        """Outputs of members on the test rows, trained now or earlier, in their order."""
        found: dict[int, Tensor] = {number: one.outputs for number, one in self.stream(members, progress)}
        return [found[number] for number in range(len(members))]

    def stream(self, members: Sequence[Member], progress: Progress = silent) -> Iterator[tuple[int, Training]]:
        """What became of members, trained now or earlier, each as soon as it is known; the number is the place among `members`.

        All that are left to train are trained as one fleet, equal ones once. Those whose sampler does not say how much it visits are
        trained one after the other, and their steps are counted.
        """
        places: dict[str, list[int]] = {}
        for number, member in enumerate(members):
            places.setdefault(self.key(member) or f"{number}", []).append(number)
        earlier, missing = 0, []
        for key, numbers in places.items():
            kept = self._read(key)
            if kept is None:
                missing.append(key)
                continue
            earlier += len(numbers)
            yield from ((number, kept) for number in numbers)

        def told(label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
            progress("verify", earlier + done, len(members), facts)

        first = {places[key][0]: key for key in missing}
        moving = [number for number in first if not countable(members[number])]
        still = [number for number in first if number not in set(moving)]
        parts: list[tuple[list[int], str | Executor]] = (
            [(sorted(first), Following())] if self.curves else [(still, "steady"), (moving, Following(points=0))]
        )
        for numbers, executor in parts:
            trained = execute(
                self.shared, members, queries=self.test, executor=executor, numbers=numbers, progress=told
            )
            for finished in trained:
                for number, training in zip(finished.numbers, _trainings(finished), strict=True):
                    self._keep(first[number], training)
                    same = places[first[number]]
                    yield from ((one, training) for one in same)
            earlier += sum(len(places[first[number]]) for number in numbers)
        progress("verify", len(members), len(members))

    def alone(self, member: Member) -> Training:
        """What became of one member that was trained alone, so that its seconds are those of nothing else; kept like any other."""
        key = self.key(member) or ""
        kept = self._read(key)
        if kept is None or kept.steps is None:
            executor = Following() if self.curves else Following(points=0)
            (finished,) = execute(self.shared, [member], queries=self.test, executor=executor)
            (kept,) = _trainings(finished)
            self._keep(key, kept)
        return kept

    def key(self, member: Member) -> str | None:
        """16 hex digits that differ where the corpus, the training or the test rows differ; None where a sampler cannot be told apart."""
        settings = described(member.settings)
        if settings is None:
            return None
        about = json.dumps([self.corpus, identity(self.shared.learner), member.seed, settings], sort_keys=True)
        digest = hashlib.blake2b(about.encode(), digest_size=8)
        for part in (member.rows, member.target, member.weight, self.test):
            if part is None:
                digest.update(b"shared")
                continue
            values = torch.as_tensor(part).contiguous().numpy()
            digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None or len(key) != 16 else self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> Training | None:
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            held = load_file(path)
        except SafetensorError:  # damaged: it is trained again
            return None
        curve, steps = held.get("curve"), held.get("steps")
        if self.curves and curve is None:
            return None
        seconds = float(held["seconds"]) if "seconds" in held else float("nan")
        return Training(held["outputs"], seconds, None if steps is None else int(steps), curve)

    def _keep(self, key: str, training: Training) -> None:
        path = self._path(key)
        if path is None:
            return
        held = {
            "outputs": training.outputs.contiguous(),
            "seconds": torch.tensor(training.seconds, dtype=torch.float64),
        }
        held |= {} if training.steps is None else {"steps": torch.tensor(training.steps)}
        held |= {} if training.curve is None else {"curve": training.curve.contiguous()}
        scratch = path.with_suffix(".partial")
        save_file(held, scratch)
        scratch.replace(path)


def countable(member: Member) -> bool:
    """Whether the steps of a member are known beforehand: it has no sampler of its own, or one that says how much it visits."""
    sampler = member.settings.get("sampler")
    return sampler is None or visits(sampler, 1) is not None


def _trainings(finished: Finished) -> list[Training]:
    steps: list[Any] = [None] * len(finished.numbers)
    curves: list[Any] = steps
    if isinstance(finished, Followed):
        steps, curves = finished.steps, finished.curves
    return [
        Training(outputs.clone(), *more)
        for outputs, *more in zip(finished.outputs, finished.seconds, steps, curves, strict=True)
    ]


def identity(learner: Learner) -> dict[str, Any]:
    """What a learner is told apart by. Settings that are not set are left out, so that one that a later version adds changes nothing."""
    return {name: value for name, value in learner.spec().items() if value is not None}


def described(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of a member as JSON; None where one is an object that cannot be told from others of its kind.

    >>> described({"epochs": 3, "learning_rate": 0.1})
    {'epochs': 3, 'learning_rate': 0.1}
    >>> described({"sampler": object()}) is None
    True
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if hasattr(value, "spec"):
            found[name] = value.spec()
        elif value is None or isinstance(value, str | int | float | np.integer):
            found[name] = value
        else:
            return None
    return found
