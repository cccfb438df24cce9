"""What became of the members, on disk: one safetensors file for each group of members that were trained together.

A file is there in full or not at all, so a fleet that was killed lacks only the members that had not been handed over. Each file
holds the numbers of its members, and their logits or their margins and losses on the queries; reading takes slices of it.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint.errors import EvidenceError, RunError
from imprint.fleets.executing import Finished
from imprint.recording.evidence import derive_field
from imprint.recording.files import remove, replacing
from imprint.recording.needs import FIELDS
from imprint.tasks import Task

SUMMARY = ("margin", "loss", "confidence", "correct")
# Bytes of logits that are read, or turned into margins and losses, at a time.
BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class File:
    """One file of outcomes.

    Attributes:
        path: Where it is.
        numbers: Its members.
        seconds: That each of them took.
        metrics: Of each on the test rows; empty where these are not among the queries.
        bytes_each: Bytes of one member's outcomes.
    """

    path: Path
    numbers: Int[np.ndarray, " member"]
    seconds: Float[np.ndarray, " member"]
    metrics: Sequence[Mapping[str, float]]
    bytes_each: int


class Outcomes:
    """The outcomes of a fleet on disk.

    Args:
        folder: Of the fleet.
        task: What outputs mean.
        keep: "logits", or "summary" for margin and loss.
        target: Encoded targets of the queries.
    """

    def __init__(self, folder: Path, task: Task, keep: str, target: Tensor) -> None:
        self.folder, self.task, self.keep, self.target = folder, task, keep, target
        self.names: tuple[str, ...] = ("logits",) if keep == "logits" else ("margin", "loss")

    # ------------------------------------------------------------------------------------------------------------------- writing

    def write(self, finished: Finished, test: Int[Tensor, " example"] | None = None) -> None:
        """Write the outcomes of some members, in full or not at all; their parameters before them.

        Args:
            finished: What an executor yielded.
            test: Places of the test rows among the queries, where all of them are: metrics are measured on them.
        """
        outputs = finished.outputs.detach().cpu().float()
        for number, parameters in zip(finished.numbers, finished.parameters or (), strict=False):
            kept = {name: value.detach().cpu().contiguous().clone() for name, value in parameters.items()}
            _save(self.parameters_path(number), kept)
        tensors = {
            "numbers": torch.tensor(finished.numbers),
            "seconds": torch.tensor(finished.seconds, dtype=torch.float64),
        }
        if self.keep == "logits":
            tensors["logits"] = outputs
        else:
            tensors |= {name: self._derived(name, outputs) for name in self.names}
        metrics: list[dict[str, float]] = []
        if test is not None:
            target = self.target[test]
            metrics = [self.task.metrics(one[test], target) for one in outputs]
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        about = {"metrics": json.dumps(metrics), "crc32": str(_sum(tensors))}
        _save(self.folder / "outcomes" / f"{min(finished.numbers):08d}.safetensors", tensors, about)

    def _derived(self, field: str, logits: Tensor) -> Tensor:
        """A field of every query, a few members at a time."""
        step = max(1, BLOCK_BYTES // max(1, logits[0].nbytes))
        parts = [derive_field(self.task, field, part, self.target) for part in torch.split(logits, step)]
        return torch.cat(parts)

    def parameters_path(self, number: int) -> Path:
        """Where the parameters of a member are, if they were asked for."""
        return self.folder / "parameters" / f"{number:08d}.safetensors"

    # ------------------------------------------------------------------------------------------------------------------- reading

    def files(self) -> list[File]:
        """What is on disk, by its headers. A damaged file is left out; see `verify`."""
        found = []
        for path in sorted((self.folder / "outcomes").glob("[0-9]*.safetensors")):
            try:
                found.append(_header(path, self.names))
            except RunError:
                continue
        return found

    def verify(self, members: int, parameters: bool) -> list[File]:
        """What is on disk and whole, by its sums. A damaged file is set aside with a warning; its members are to be trained again.

        Args:
            members: How many the fleet has.
            parameters: Whether their parameters have to be there too.
        """
        for folder in ("outcomes", "parameters"):
            for left in (self.folder / folder).glob(".*.tmp"):  # of a writer that was killed
                remove(left)
        found: list[File] = []
        seen: set[int] = set()
        for path in sorted((self.folder / "outcomes").glob("[0-9]*.safetensors")):
            try:
                one = _header(path, self.names)
                _check(path)
                numbers = set(one.numbers.tolist())
                if seen & numbers or not numbers <= set(range(members)):
                    raise RunError(f"{path} is damaged: it holds members of other files, or of another fleet.")
                if parameters:
                    for number in numbers:
                        _check(self.parameters_path(number))
            except RunError as error:
                aside = path.with_name(f"damaged-{path.name}")
                path.replace(aside)
                warnings.warn(
                    f"{error.problem} It is set aside as {aside.name}, and its members are trained again.", stacklevel=4
                )
                continue
            seen |= numbers
            found.append(one)
        return found

    def read(
        self, files: Sequence[File], field: str, members: Int[np.ndarray, " member"], queries: Int[np.ndarray, " query"]
    ) -> Tensor:
        """A field of some members on some queries: `[member, query, ...]`.

        Args:
            files: Where these members are.
            field: One of `imprint.recording.needs.FIELDS`.
            members: Their numbers, in the order that is wanted.
            queries: Places among the queries, in the order that is wanted.

        Raises:
            EvidenceError: There is no such field, it was not kept, or no member is asked for.
            RunError: A file is damaged, or a member was not trained.
        """
        self._check_field(field)
        found: Tensor | None = None
        missing = np.ones(len(members), dtype=bool)
        order = np.argsort(members, kind="stable")
        target = self.target[torch.from_numpy(queries)]
        for file in files:
            # Where in the answer each of the file's members stands; a member may be asked for twice.
            begin = np.searchsorted(members, file.numbers, "left", sorter=order)
            end = np.searchsorted(members, file.numbers, "right", sorter=order)
            within = np.repeat(np.arange(len(file.numbers)), end - begin)
            if not len(within):
                continue
            where = order[np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])]
            missing[where] = False
            for chosen, values in self._blocks(file, field, within, queries, target):
                if found is None:
                    found = torch.empty(len(members), *values.shape[1:], dtype=values.dtype)
                found[torch.from_numpy(where[chosen])] = values
        if missing.any():
            raise RunError(
                f"{int(missing.sum())} of these {len(members)} members are not trained yet, among them {members[missing][0]}.",
                "Call imprint.fleet(...) again with the same path: it trains what is missing.",
            )
        if found is None:
            raise EvidenceError("No member was asked for.", "Give at least one member.")
        return found

    def _blocks(
        self, file: File, field: str, within: np.ndarray, queries: np.ndarray, target: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """A field of members of one file (`within`, ascending), as many at a time as memory should hold."""
        low, high = (int(queries.min()), int(queries.max()) + 1) if len(queries) else (0, 0)
        straight = len(queries) == high - low and bool((np.diff(queries) == 1).all())
        places = torch.from_numpy(queries - low)
        step = max(1, BLOCK_BYTES // max(1, file.bytes_each))
        try:
            with safe_open(file.path, "pt") as opened:
                source = opened.get_slice("logits" if self.keep == "logits" else _kept(field))
                blocks = within // step
                for begin, end in pairwise([*np.flatnonzero(np.diff(blocks, prepend=-1)), len(within)]):
                    part = within[begin:end]
                    first, last = int(part[0]), int(part[-1]) + 1
                    values = source[first:last, low:high]
                    if last - first != len(part) or (np.diff(part) != 1).any():
                        values = values[torch.from_numpy(part - first)]
                    if not straight:
                        values = values[:, places]
                    yield slice(begin, end), self._field(field, values, target)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{file.path} cannot be read: {error}.", _REMEDY) from error

    def _field(self, field: str, values: Tensor, target: Tensor) -> Tensor:
        if self.keep == "logits":
            return derive_field(self.task, field, values, target)
        if field == "confidence":
            return (-values).exp()
        if field == "correct":
            return values > (-0.5 if self.task.name == "regression" else 0)
        return values

    def _check_field(self, field: str) -> None:
        if field not in FIELDS:
            raise EvidenceError(f"There is no field '{field}'.", f"Fields: {', '.join(FIELDS)}.")
        if self.keep == "summary" and field not in SUMMARY:
            raise EvidenceError(
                f"This fleet kept margin and loss, from which '{field}' does not follow.",
                "Train it again into another folder with keep='logits'; from what was kept follow "
                + ", ".join(SUMMARY)
                + ".",
            )

    def parameters(self, number: int) -> dict[str, Tensor]:
        """The trained parameters of a member."""
        path = self.parameters_path(number)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read: {error}.", _REMEDY) from error


_REMEDY = (
    "Call imprint.fleet(...) again with the same path: it sets damaged files aside and trains their members again."
)


def _kept(field: str) -> str:
    return {"confidence": "loss", "correct": "margin"}.get(field, field)


def _header(path: Path, names: Sequence[str]) -> File:
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = file.metadata() or {}
            numbers = file.get_tensor("numbers").numpy()
            shape = file.get_slice(names[0]).get_shape()
            if len(numbers) != shape[0] or any(file.get_slice(name).get_shape() != shape for name in names):
                raise ValueError("its tensors do not belong together")
            seconds = file.get_tensor("seconds").numpy()
            return File(path, numbers, seconds, json.loads(about["metrics"]), 4 * int(np.prod(shape[1:])))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}.", _REMEDY) from error


def _check(path: Path) -> None:
    """Compare a file's tensors with their sum."""
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {})["crc32"]
        if str(_sum(load_file(path))) != expected:
            raise RunError(f"{path} is damaged: its sum differs.", _REMEDY)
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}.", _REMEDY) from error


def _sum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors' bytes, by name."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, found)
    return found


def _save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"crc32": str(_sum(tensors)), **(about or {})})
        except SafetensorError as error:  # raised for a full disk too, with the system's words
            raise OSError(str(error)) from error
