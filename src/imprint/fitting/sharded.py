"""Training in shards and slices, so that an example can be taken back by repeating a small part of it (SISA, arXiv:1912.03817).

The training examples are parted into shards, by a hash of their ids; each shard trains a module of its own, and the model is the
mean of their outputs. A shard is fed in slices, again by a hash: stage `r` goes on from stage `r - 1`, on the slices up to `r`, and its
weights are kept. To forget an example of slice `r`, its shard goes on from stage `r - 1`, which never saw it. Since where an example
stands depends on its id alone, and all randomness on (seed, shard, stage), the result is bitwise that of a training that never held it.

A stage is known by a digest of all that it depends on: the learner, and ids, targets and weights of its examples. So nothing has to be
said about what was forgotten: a stage whose digest is found is loaded, and any other is trained. That also is how an interrupted training
goes on.

A stage takes `2 epochs / (slices + 1)` epochs, so that as many examples are visited as in a training without slices.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.errors import LearnerError
from imprint.fitting.data import Data
from imprint.fitting.progress import Progress, silent
from imprint.fitting.seeds import derive
from imprint.models import features
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.fitting.learner import Learner

WRITTEN = re.compile(r"sisa\(\s*shards\s*=\s*(\d+)\s*(?:,\s*slices\s*=\s*(\d+)\s*)?\)")


@dataclass(frozen=True)
class Sharding:
    """How a training set is parted.

    Attributes:
        shards: Modules, each trained on a part of its own.
        slices: Stages of each.

    >>> Sharding.read("sisa(shards=5, slices=4)")
    Sharding(shards=5, slices=4)
    """

    shards: int
    slices: int = 1

    @classmethod
    def read(cls, text: str) -> Sharding:
        """From `Learner.deletable`.

        Raises:
            LearnerError: It says something else.
        """
        found = WRITTEN.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None or not int(found[1]) or not int(found[2] or 1):
            raise LearnerError(f"deletable={text!r} is unknown.", "Write deletable='sisa(shards=5, slices=4)'.")
        return cls(int(found[1]), int(found[2] or 1))

    def parts(self, keys: Int[Tensor, " example"]) -> tuple[Int[Tensor, " example"], Int[Tensor, " example"]]:
        """Shard and slice of each example, from 0, by the hash of its id."""
        known = keys & (2**62 - 1)
        return known % self.shards, (known // self.shards) % self.slices

    def epochs(self, epochs: int) -> int:
        """Epochs of a stage."""
        return max(1, round(2 * epochs / (self.slices + 1)))


class Sharded(nn.Module):
    """The mean of the outputs of modules that were trained apart; those that have seen no example do not count.

    Args:
        members: The modules.
    """

    present: Tensor

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("present", torch.ones(len(members)))

    def forward(self, inputs: Tensor) -> Float[Tensor, "example ..."]:
        """Mean outputs."""
        total = sum(member(inputs) * here for member, here in zip(self.members, self.present, strict=True))
        assert isinstance(total, Tensor)
        return total / self.present.sum()

    def features(self, inputs: Tensor) -> Float[Tensor, "example feature"]:
        """Features of all members, one after the other."""
        return torch.cat([features(member, inputs) for member in self.members], 1)


@dataclass(frozen=True)
class Stages:
    """What a sharded training did.

    Attributes:
        module: The model.
        steps: Optimizer steps taken now.
        trained: `(shard, stage)` that were trained now, from 0.
        total: Stages that the model is made of.
    """

    module: Sharded
    steps: int
    trained: tuple[tuple[int, int], ...]
    total: int


def train_sharded(
    learner: Learner,
    module: nn.Module,
    task: Task,
    data: Data,
    *,
    folder: Path | None = None,
    found: Path | None = None,
    progress: Progress = silent,
) -> Stages:
    """Train the members of a sharded module, stage by stage.

    Args:
        learner: Resolved, with `deletable`.
        module: From `imprint.fitting.build.build`; it is changed in place.
        task: Gives outputs and losses.
        data: Encoded examples with `keys`.
        folder: Where stages are kept, and found if they were kept before; None keeps none.
        found: Another folder whose stages may be used, such as the parent's.
        progress: Told the stages done.

    Raises:
        LearnerError: The data have no keys.
    """
    from imprint.fitting.loop import train

    sharding = Sharding.read(str(learner.deletable))
    if data.keys is None:
        raise LearnerError("A sharded training parts its examples by their ids, and these have none.", "Use encode().")
    assert isinstance(module, Sharded)
    shard, piece = sharding.parts(data.keys[data.rows])
    steps, trained, total = 0, [], 0
    for k, member in enumerate(module.members):
        digests: list[str] = []
        parts = [data.rows[(shard == k) & (piece <= r)] for r in range(sharding.slices)]
        for r, rows in enumerate(parts):
            digests.append(digest_of(learner, data, rows, [k, r, digests[-1] if digests else ""]))
        last = _resumed(folder, found, k, parts, digests, member)
        for r in range(last + 1, sharding.slices):
            if not len(parts[r]):
                continue
            one = replace(
                learner,
                deletable=None,
                epochs=sharding.epochs(int(learner.epochs or 1)),
                batch_size=min(int(learner.batch_size or 1), len(parts[r])),
                seed=derive(learner.seed, "shard", k, r),
                record="none",
            )
            done = train(member, task, data.train_on(parts[r]), one)
            if done.module is not member:  # the average of the weights
                member.load_state_dict(done.module.state_dict())
            member.eval()
            steps += done.steps
            trained.append((k, r))
            if folder is not None:
                keep(folder / _name(k, r), member.state_dict(), digests[r])
            progress("train", k * sharding.slices + r + 1, sharding.shards * sharding.slices)
        module.present[k] = float(len(parts[-1]) > 0)
        total += sum(bool(len(rows)) for rows in parts)
    return Stages(module.eval(), steps, tuple(trained), total)


def _resumed(
    folder: Path | None, found: Path | None, shard: int, parts: list[Tensor], digests: list[str], member: nn.Module
) -> int:
    """The last stage of a shard that is at hand, loaded into its module; -1 if there is none. Stages found elsewhere are copied."""
    last, place = -1, None
    for r, digest in enumerate(digests):
        if not len(parts[r]):
            last = r if last == r - 1 else last
            continue
        here = take_over(folder, found, _name(shard, r), digest)
        if here is None:
            break
        last, place = r, here
    if place is not None:
        member.load_state_dict(load_file(place))
        member.eval()
    return last


def _name(shard: int, stage: int) -> str:
    return f"shard-{shard:03d}-slice-{stage:03d}.safetensors"


def is_kept(path: Path, digest: str) -> bool:
    """Whether a file holds the stage of this digest."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("stage") == digest
    except (OSError, SafetensorError):
        return False


def take_over(folder: Path | None, found: Path | None, name: str, digest: str) -> Path | None:
    """Where a stage is kept, if it is: in a folder, or in another one, from which it is copied into the first."""
    here = None if folder is None else folder / name
    place = next((one for one in (here, found and found / name) if one and is_kept(one, digest)), None)
    if place is None or here is None or place == here:
        return place
    here.parent.mkdir(parents=True, exist_ok=True)
    temporary = here.with_suffix(".tmp")
    shutil.copyfile(place, temporary)
    return temporary.replace(here)


def keep(path: Path, tensors: Mapping[str, Tensor], digest: str) -> None:
    """Write a stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, {"stage": digest}
    )
    temporary.replace(path)


def digest_of(learner: Learner, data: Data | None, rows: Tensor | None, about: list[Any]) -> str:
    """Of all that a stage depends on but the inputs, which the ids stand for.

    Args:
        learner: With all its settings.
        data: Whose ids, targets and weights it depends on; None for none.
        rows: Of these examples.
        about: Which stage it is, and the digest of the one before.
    """
    said: dict[str, Any] = {name: value for name, value in learner.spec().items() if name not in ("device", "record")}
    state = hashlib.blake2b(json.dumps([said, *about], default=str, sort_keys=True).encode(), digest_size=16)
    for values in () if data is None else (data.keys, data.target, data.weight):
        if values is not None:
            state.update(values[rows].contiguous().numpy().tobytes())
    return state.hexdigest()
