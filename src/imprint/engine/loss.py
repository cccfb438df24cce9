"""What an error of Ray means: a worker, a node or an object that was lost, which another try mends, or something else."""

from __future__ import annotations

from typing import Any

from imprint.errors import EvidenceError, ResourceError


def must_have(ray: Any, cpus: int, gpus: int) -> None:
    """Raise if no task could ever run: Ray would wait for a node without a word."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        what = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (" and a GPU" if gpus else "")
        raise EvidenceError(
            f"No node of the Ray cluster has {what}, which a task needs.",
            "Add such a node, lower cpus, or train with Learner(device='cpu').",
        )


def cause(error: BaseException) -> BaseException | None:
    """What a task raised, where this error is about a task that raised something."""
    return getattr(error, "cause", None)


def must_be_loss(ray: Any, error: BaseException) -> None:
    """Return where a worker, a node or an object was lost, which another try mends; raise in words of ours if not."""
    kinds = ray.exceptions
    text = str(error)
    if "failed to import on the worker" in text or "No module named 'imprint'" in text:
        raise EvidenceError(
            "The workers of the Ray cluster cannot import imprint.",
            "Install the same version of imprint on every node, in the environment in which `ray start` runs.",
        ) from error
    if isinstance(error, kinds.LocalRayletDiedError):
        raise ResourceError(
            "The Ray node that this process is connected to died.", "Run it again: what is done is kept."
        ) from error
    lost = (kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.ObjectLostError, kinds.OutOfMemoryError)
    if not isinstance(error, lost) and not isinstance(cause(error), lost):
        raise error
