"""Checkpoints: weights that any tool can read, and beside them what a training needs in order to go on exactly.

    epoch-0007.safetensors          state dict of the model (the averaged one if the learner asks for an average)
    epoch-0007.state.safetensors    optimizer, random states, sampler's memory, unfinished epoch; only of the two newest checkpoints
    epoch-0007.json                 scalars, and size and digest of the files above; written last: without it, no checkpoint

Within a long epoch a checkpoint is called `epoch-0007-step-00001234` and lives until two newer ones are there. Of the complete
epochs the first, the last, the best and a few evenly spaced ones are kept, the others are removed as the training goes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.errors import RunError
from imprint.fitting import State
from imprint.recording.files import read_json, remove, replacing, write_json

KEPT = 10
SECONDS = 60.0
RESUMABLE = 2


class Partial(Protocol):
    """Something whose unfinished epoch belongs in a checkpoint (the recorder)."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, as its JSON file describes it."""

    folder: Path
    name: str
    description: dict[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch it is of, from 1."""
        return int(self.description["epoch"])

    @property
    def step(self) -> int:
        """Optimizer steps taken until then."""
        return int(self.description["step"])

    @property
    def complete(self) -> bool:
        """Whether it stands at the end of its epoch."""
        return not self.description["place"]

    @property
    def score(self) -> float | None:
        """The headline metric on the evaluated split; higher = better."""
        return self.description.get("score")

    @property
    def resumable(self) -> bool:
        """Whether the training's state is (still) beside the weights."""
        return self.path("state.safetensors").exists()

    def path(self, suffix: str) -> Path:
        """One of its files."""
        return self.folder / f"{self.name}.{suffix}"

    def verify(self) -> None:
        """Compare its files with their digests.

        Raises:
            RunError: A file is missing, cut short or changed; the message names it.
        """
        for name, expected in self.description["files"].items():
            path = self.folder / name
            if name.endswith(".state.safetensors") and not path.exists():
                continue  # an older checkpoint keeps its weights only
            if not path.exists():
                raise RunError(f"The checkpoint file {path} is missing.", _REMEDY)
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise RunError(
                    f"The checkpoint file {path} is cut short or changed: {size} bytes instead of {expected['bytes']}.",
                    _REMEDY,
                )
            if _digest(path) != expected["blake2b"]:
                raise RunError(
                    f"The checkpoint file {path} is damaged: its digest differs from {self.name}.json.", _REMEDY
                )

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, verified."""
        self.verify()
        return _load(self.path("safetensors"))


_REMEDY = "Restore the file from a backup, remove this checkpoint's files to use an earlier one, or fit again with resume=False."


class Checkpoints:
    """The checkpoints of a run: the loop's `Saver`, and how a later sitting finds its way back.

    Args:
        folder: `RUN/checkpoints`.
        epochs: How many epochs the training will have, which fixes the evenly spaced ones that are kept.
        seconds: Save within an epoch after this long.
        partial: The recorder, whose unfinished epoch is saved too.
        score: Gives the headline metric of the epoch just completed (higher = better), or None.
        keep: How many evenly spaced epochs are kept.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int = 1,
        *,
        seconds: float = SECONDS,
        partial: Partial | None = None,
        score: Callable[[], float | None] = lambda: None,
        keep: int = KEPT,
    ) -> None:
        self.folder, self.seconds, self.partial, self.score = folder, seconds, partial, score
        self.spaced = spaced(epochs, keep)
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint within the epoch is due."""
        return time.monotonic() - self._last > self.seconds

    def all(self) -> list[Checkpoint]:
        """What is on disk, oldest first. A damaged description is left out; `resume` speaks of it."""
        found = []
        for path in sorted(self.folder.glob("epoch-*.json")):
            try:
                description = read_json(path)
                found.append(Checkpoint(self.folder, path.stem, description))
                _ = found[-1].step, found[-1].epoch, description["place"], description["files"]
            except (RunError, KeyError, TypeError):
                found = [one for one in found if one.name != path.stem]
        return sorted(found, key=lambda one: one.step)

    def named(self, name: str) -> Checkpoint:
        """The checkpoint called "last", "first", "best" or "epoch-0007" (or the epoch's number).

        Raises:
            RunError: There is none.
        """
        complete = [one for one in self.all() if one.complete]
        newest = self.all()
        if name == "last" and newest:
            return newest[-1]
        if name == "first" and complete:
            return complete[0]
        if name == "best" and complete:
            return _best(complete) or complete[-1]
        wanted = f"epoch-{int(name):04d}" if str(name).isdigit() else name
        for one in newest:
            if one.name == wanted:
                return one
        names = ", ".join(one.name for one in newest) or "none"
        raise RunError(
            f"No checkpoint '{name}' in {self.folder}.", f"There are: {names}; also 'first', 'best', 'last'."
        )

    def save(self, state: State) -> None:
        """Write a checkpoint and remove those that it replaces."""
        unfinished = bool(state.place)
        name = f"epoch-{state.epoch:04d}" + (f"-step-{state.step:08d}" if unfinished else "")
        checkpoint = Checkpoint(self.folder, name, {})
        tensors, groups, scalars = _optimizer_tensors(state.optimizer)
        if state.average is not None:
            tensors |= {f"module/{key}": value for key, value in state.module.state_dict().items()}
            tensors["average/count"] = state.average.n_averaged
        tensors["random/cpu"] = torch.get_rng_state()
        device = next(state.module.parameters()).device
        if device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(device)
        tensors |= {f"sampler/{key}": value for key, value in state.feedback.state().items()}
        if unfinished:
            tensors["epoch/indices"] = state.indices
            tensors["epoch/losses"] = torch.stack(state.losses)
            if state.weights is not None:
                tensors["epoch/weights"] = state.weights
            if self.partial is not None:
                tensors |= {f"record/{key}": value for key, value in self.partial.state().items()}
        self._commit(
            checkpoint,
            state.model,
            tensors,
            {
                "epoch": state.epoch,
                "step": state.step,
                "place": state.place,
                "seconds": state.seconds,
                "learning_rate": state.learning_rate,
                "score": None if unfinished else self.score(),
                "optimizer": {"param_groups": groups, "scalars": scalars},
                "scaler": state.scaler.state_dict(),
            },
        )

    def save_weights(self, module: nn.Module, epoch: int, step: int, seconds: float) -> None:
        """Write the weights alone, at the end of an epoch of a training that is not ours to resume."""
        checkpoint = Checkpoint(self.folder, f"epoch-{epoch:04d}", {})
        description = {"epoch": epoch, "step": step, "place": 0, "seconds": seconds, "score": self.score()}
        self._commit(checkpoint, module, {}, description)

    def _commit(
        self, checkpoint: Checkpoint, model: nn.Module, state: dict[str, Tensor], description: dict[str, Any]
    ) -> None:
        """Tensors first, and the description that makes them a checkpoint last."""
        remove(checkpoint.path("json"))
        files = [checkpoint.path("safetensors")]
        _save(files[0], model.state_dict())
        if state:
            files.append(checkpoint.path("state.safetensors"))
            _save(files[1], state)
        described = {path.name: {"bytes": path.stat().st_size, "blake2b": _digest(path)} for path in files}
        write_json(checkpoint.path("json"), {**description, "files": described})
        self._prune()
        self._last = time.monotonic()

    def settle(self) -> None:
        """The training is complete: no checkpoint but the last has to be resumable."""
        self._prune(resumable=1)

    def _prune(self, resumable: int = RESUMABLE) -> None:
        """Keep what the module docstring says."""
        found = self.all()
        complete = [one for one in found if one.complete]
        best = _best(complete)
        for number, one in enumerate(found):
            newest = number >= len(found) - resumable
            keep = one.complete and (one.epoch in self.spaced or one in (complete[0], best))
            if not newest:
                remove(one.path("state.safetensors"))
                if not keep:
                    one.path("json").unlink(missing_ok=True)
                    remove(one.path("safetensors"))

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole and resumable, and what was wrong with newer ones.

        Raises:
            RunError: There were checkpoints, and all of them are damaged.
        """
        wrong: list[str] = []
        known = {one.name: one for one in self.all()}
        names = sorted((path.stem for path in self.folder.glob("epoch-*.json")), reverse=True)
        for name in sorted(names, key=lambda name: known[name].step if name in known else 2**62, reverse=True):
            if name not in known:
                wrong.append(f"The checkpoint file {self.folder / name}.json is damaged.")
                continue
            if not known[name].resumable and wrong:
                continue
            try:
                known[name].verify()
                if known[name].resumable:
                    return known[name], wrong
            except RunError as error:
                wrong.append(error.problem)
        if wrong:
            raise RunError(" ".join(wrong), "No earlier checkpoint can be resumed. Fit again with resume=False.")
        return None, []

    def restore(self, checkpoint: Checkpoint, state: State) -> None:
        """Put a fresh state back to where the checkpoint stands."""
        weights = _load(checkpoint.path("safetensors"))
        tensors = _load(checkpoint.path("state.safetensors"))
        description = checkpoint.description
        if state.average is not None:
            state.average.module.load_state_dict(weights)
            state.average.n_averaged.copy_(tensors["average/count"])
            weights = {
                key.removeprefix("module/"): value for key, value in tensors.items() if key.startswith("module/")
            }
        state.module.load_state_dict(weights)
        _restore_optimizer(state.optimizer, tensors, description["optimizer"])
        state.scaler.load_state_dict(description["scaler"])
        state.epoch, state.step, state.place = checkpoint.epoch, checkpoint.step, int(description["place"])
        state.seconds, state.learning_rate = float(description["seconds"]), float(description["learning_rate"])
        kept = {key.removeprefix("sampler/"): value for key, value in tensors.items() if key.startswith("sampler/")}
        state.feedback.restore(kept, next(state.module.parameters()).device)
        if state.place:
            state.indices = tensors["epoch/indices"]
            state.weights = tensors.get("epoch/weights")
            state.losses = list(tensors["epoch/losses"].to(next(state.module.parameters()).device))
            if self.partial is not None:
                record = {
                    key.removeprefix("record/"): value for key, value in tensors.items() if key.startswith("record/")
                }
                self.partial.restore(record)
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"], next(state.module.parameters()).device)


def spaced(epochs: int, keep: int = KEPT) -> set[int]:
    """Epochs whose checkpoints are kept: the first, the last, and `keep` evenly spaced in all.

    >>> sorted(spaced(30, 4))
    [1, 11, 20, 30]
    """
    if epochs <= keep:
        return set(range(1, epochs + 1))
    return {round(1 + number * (epochs - 1) / max(1, keep - 1)) for number in range(keep)}


def _best(complete: list[Checkpoint]) -> Checkpoint | None:
    scored = [one for one in complete if one.score is not None]
    return max(scored, key=lambda one: (one.score, -one.epoch)) if scored else None


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[Any], dict[str, dict[str, Any]]]:
    described = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for number, entries in described["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{key}"] = value
            else:
                scalars.setdefault(str(number), {})[key] = value
    return tensors, described["param_groups"], scalars


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], description: dict[str, Any]
) -> None:
    entries: dict[int, dict[str, Any]] = {
        int(number): dict(values) for number, values in description["scalars"].items()
    }
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/", 2)
            entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": description["param_groups"]})


def _save(path: Path, tensors: dict[str, Any]) -> None:
    # Clones: tensors that share memory (tied weights) are written apart.
    whole = {
        key: value.detach().cpu().contiguous().clone() for key, value in tensors.items() if isinstance(value, Tensor)
    }
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary)
        except SafetensorError as error:  # raised for a full disk too, with the system's words
            raise OSError(str(error)) from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"The checkpoint file {path} cannot be read: {error}.", _REMEDY) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
