"""Where a child comes from: its parent, the first run of its stream of requests, and how far it has moved from each.

A stream of requests makes a child of a child of a run. Exact methods end at the same model in any order; approximate ones drift, and a
record that speaks of the last step alone would hide how far many small steps have gone. So the distance is measured twice: from the
parent, and from the *first ancestor*, which has forgotten nothing. Both are looked for where the manifest says and held against the
fingerprints of weights that it keeps: another model that has taken the place of an ancestor is not measured against.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import ImprintError, RunError
from imprint.forgetting.job import Forgetting, Part
from imprint.recording.run import Run, load, values_of
from imprint.tasks import Task
from imprint.tasks.regression import Regression

# Retained examples on which distances are measured.
DRIFT = 4096


def weights_of(run: Run) -> str:
    """Fingerprint of a run's final weights: 16 hexadecimal digits.

    Raises:
        RunError: The run has no checkpoint.
    """
    digest = hashlib.blake2b(digest_size=8)
    if run.manifest.get("estimator"):
        for path in sorted(p for p in (run.path / "checkpoints").rglob("*") if p.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    else:
        last = run.checkpoints.named("last")
        digest.update(last.description["files"][f"{last.name}.safetensors"]["blake2b"].encode())
    return digest.hexdigest()


def check_child(run: Run, otherwise: str) -> None:
    """Raise `RunError` unless a run is a complete child of `imprint.forget`.

    Args:
        run: The run.
        otherwise: What follows where it has forgotten nothing, for the message.
    """
    if run.status != "complete":
        problem = f"The run {run.path} is {run.status}."
    elif "forgot" not in run.manifest:
        problem = f"The run {run.path} has forgotten nothing, {otherwise}."
    else:
        return
    raise RunError(problem, "Make a child first: imprint.forget(run, ids=...).")


def placed(run: Run, path: Path) -> dict[str, Any]:
    """Where a run is found from a child's folder, and its fingerprints."""
    own = run.path.resolve()
    return {
        "path": str(own),
        "beside": os.path.relpath(own, path.resolve()),
        "weights": weights_of(run),
        "corpus": run.fingerprint,
    }


def found_at(about: dict[str, Any], run: Run) -> Run | None:
    """The run of a place that the manifest of a child names, if it is there; a user's own model is the child's."""
    own = None if isinstance(run.learner.model, str) else run.learner.model
    for folder in (Path(about["path"]), run.path / about.get("beside", "")):
        if (folder / "manifest.json").exists() and folder.resolve() != run.path.resolve():
            try:
                return load(folder, model=own)
            except ImprintError:
                continue
    return None


def parent_of(run: Run) -> Run | None:
    """The run that this one was made from, if it is where the manifest says."""
    about = run.manifest.get("parent")
    return found_at(about, run) if about else None


def origin_of(run: Run) -> Run | None:
    """The first ancestor, which has forgotten nothing, if it is where the manifest says and has the weights that it had; of one
    that has forgotten nothing, itself."""
    if "forgot" not in run.manifest:
        return run
    about = run.manifest.get("origin")
    if about is None:
        return None
    found = found_at(about, run)
    try:
        return found if found is not None and weights_of(found) == about["weights"] else None
    except ImprintError:
        return None


def drift(job: Forgetting, module: nn.Module, before: Run, after: Run | None = None) -> dict[str, float] | None:
    """How far outputs on retained examples are from those of an ancestor: root mean square, and share of equal predictions.

    Args:
        job: The request; its retained examples are read, at most 4,096 of them.
        module: The child's.
        before: The ancestor.
        after: The child, where it has an encoder and a task of its own; None where it has its parent's.

    Returns:
        `outputs`, `examples`, and for classification `agreement`; None where the two cannot be compared. Classes that only one of the
        two knows are left out of `outputs`.
    """
    places = job.retain.places
    some = places[torch.linspace(0, len(places) - 1, min(DRIFT, len(places))).long()]
    part = Part(job.data, job.retain.split, some)
    try:
        ancestor = before.model()
        if after is None and (before is job.run or _encoder(before.path) == _encoder(job.run.path)):
            earlier, later = job.outputs(part, ancestor.module), job.outputs(part, module)
        else:  # raw rows, each by the encoder of its own
            frame = job.run.corpus.read(part.rows.numpy())
            later = job.outputs(part, module) if after is None else after.model().outputs(frame)
            earlier = ancestor.outputs(frame)
    except ImprintError:
        return None
    task = job.task if after is None else after.task
    found = {"outputs": _distance(before.task, earlier, task, later), "examples": float(len(some))}
    if task.name == "classification":
        said, says = (one.decode(one.predict(value)) for one, value in ((before.task, earlier), (task, later)))
        found["agreement"] = float((said == says).to_numpy().mean())
    return found


def _distance(
    before: Task, earlier: Float[Tensor, "example ..."], after: Task, later: Float[Tensor, "example ..."]
) -> float:
    """Root mean square difference of outputs, in the ancestor's units, over the classes that both have."""
    if isinstance(before, Regression) and isinstance(after, Regression):
        later = (later.double() * after.scale + after.mean - before.mean) / before.scale
    elif (was := values_of(before)) != (now := values_of(after)):
        both = [value for value in was if value in now]
        earlier = earlier[:, [was.index(value) for value in both]]
        later = later[:, [now.index(value) for value in both]]
    return float((later.double() - earlier.double()).square().mean().sqrt())


def _encoder(run: Path) -> str:
    """Fingerprint of a run's encoder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in (run / "encoder").rglob("*") if p.is_file()):
        digest.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
