"""What goes to another process, and what comes back: a member's training without the corpus, its encoder or its store.

Big matrices do not travel with it: a process maps them from a file, or from Ray's object store. What travels is pickled in memory, by
value where it must be (a model defined in a notebook or by a lambda), between processes of one job only; nothing pickled is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from imprint.fitting import Data, Learner
from imprint.fleets.member import Member
from imprint.fleets.shared import Shared
from imprint.models.encoder import Normalisation
from imprint.tasks import Task


@dataclass(frozen=True)
class Form:
    """What a module needs to know of the encoder: what its outputs look like."""

    name: str
    shape: tuple[int, ...]
    normalisation: Normalisation | None
    frozen_features: bool
    codes: int = 0


@dataclass(frozen=True)
class Job:
    """What all members of a fleet have in common but the matrices: small, and the same for every process."""

    learner: Learner
    task: Task
    form: Form

    @classmethod
    def of(cls, shared: Shared) -> Job:
        """The job of what is shared."""
        encoder = shared.encoder
        form = Form(
            encoder.name, tuple(encoder.shape), encoder.normalisation, bool(encoder.frozen_features),
            getattr(encoder, "codes", 0),
        )  # fmt: skip
        return cls(shared.learner, shared.task, form)

    def shared(self, tensors: Mapping[str, Tensor]) -> Shared:
        """What is shared, in the process that received the job and maps the tensors."""
        return Shared(self.learner, self.task, self.form, data_of(tensors))


def why_not_sent(shared: Shared) -> str | None:
    """Why the learner cannot go to another process, in words; None if it can."""
    try:
        cloudpickle.dumps(Job.of(shared))
    except Exception as error:
        return (
            f"its model, sampler or task cannot be sent to another process ({type(error).__name__}: {error}); "
            "build what cannot be sent inside the model's factory, or train in this process (processes=1)"
        )
    return None


def tensors_of(data: Data) -> dict[str, Tensor]:
    """The tensors of the encoded examples by name."""
    named = {"inputs": data.inputs, "target": data.target}
    if data.weight is not None:
        named["weight"] = data.weight
    if data.keys is not None:
        named["keys"] = data.keys
    return named | {f"split:{name}": rows for name, rows in data.splits.items()}


def data_of(tensors: Mapping[str, Tensor]) -> Data:
    """What `tensors_of` took apart."""
    splits = {name.removeprefix("split:"): rows for name, rows in tensors.items() if name.startswith("split:")}
    return Data(tensors["inputs"], tensors["target"], tensors.get("weight"), splits, tensors.get("keys"))


def packed(member: Member) -> Member:
    """The member with arrays of its own: a tensor that is a row of a large one would take the large one along."""
    return replace(
        member,
        rows=None if member.rows is None else torch.as_tensor(member.rows).numpy().copy(),
        target=None if member.target is None else member.target.clone(),
        weight=None if member.weight is None else member.weight.clone(),
    )


def threads_of(processes: int) -> int:
    """Threads of each of several processes that share those of this one."""
    return max(1, torch.get_num_threads() // processes)


def environment(threads: int) -> dict[str, str]:
    """Settings that a numerical process needs before it starts: its threads, which sleep while they wait."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    return {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}


def as_arrays(parameters: list[dict[str, Tensor]] | None) -> list[dict[str, np.ndarray]] | None:
    """Trained weights as arrays, which travel without a copy."""
    if parameters is None:
        return None
    return [{name: np.asarray(value) for name, value in one.items()} for one in parameters]


def as_tensors(parameters: list[dict[str, Any]] | None) -> list[dict[str, Tensor]] | None:
    """What `as_arrays` made."""
    if parameters is None:
        return None
    return [{name: torch.from_numpy(np.array(value)) for name, value in one.items()} for one in parameters]
