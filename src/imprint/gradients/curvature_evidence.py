"""Curvature as evidence of a run: fitted once to the gradients of its training examples, kept in `RUN/evidence`.

    curvature-APPROXIMATION-FISHER-CHECKPOINT.safetensors

It holds one tensor per `layer/part` (see `LayerCurvature`), and in its metadata the kind, the number of examples, and the digest of the
weights that it was fitted to: for other weights it is fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from imprint.engine import LOCAL, Engine
from imprint.errors import EvidenceError, nearest
from imprint.fitting import Progress, derive, silent
from imprint.gradients.curvature import Curvature
from imprint.gradients.diagonal import Diagonal
from imprint.gradients.ekfac import Ekfac
from imprint.gradients.examples import Examples, check_differentiable, examples_of
from imprint.gradients.fisher import FISHERS, gradients
from imprint.gradients.kfac import Kfac
from imprint.recording.collect import COLLECTORS, SOURCES, Source
from imprint.recording.files import replacing
from imprint.recording.needs import Curvature as CurvatureNeed
from imprint.recording.needs import Need

if TYPE_CHECKING:
    from imprint.recording import Run

KINDS: dict[str, type[Curvature]] = {one.kind: one for one in (Diagonal, Kfac, Ekfac)}


def fitted(kind: str, examples: Examples, fisher: str = "true", seed: int = 0) -> Curvature:
    """Fit curvature to examples.

    Args:
        kind: "diagonal", "kfac" or "ekfac".
        examples: The examples, with the model.
        fisher: "true" or "empirical".
        seed: Of the labels that the true Fisher draws.
    """
    if kind not in KINDS:
        raise EvidenceError(f"No curvature '{kind}'.", nearest(kind, KINDS))
    return KINDS[kind].fit(gradients(examples, fisher, seed, keep=KINDS[kind].passes > 1))


def save(curvature: Curvature, path: Path, **about: str) -> None:
    """Write a curvature, in full or not at all."""
    described = {"kind": curvature.kind, "examples": str(curvature.examples), **about}
    with replacing(path) as temporary:
        save_file(curvature.tensors(), temporary, metadata=described)


def load(path: Path) -> Curvature:
    """Read a curvature.

    Raises:
        EvidenceError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return KINDS[about["kind"]].of_tensors(tensors, int(about["examples"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise EvidenceError(f"{path} is missing or damaged: {error}.", "Delete it; it is fitted again.") from error


def collect(run: Run, needs: Sequence[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Fit what needs ask for to the run's training examples, in this process whatever the engine: sums keep their order."""
    for need in needs:
        _collect(run, need, progress)


def _collect(run: Run, need: Need, progress: Progress) -> None:
    assert isinstance(need, CurvatureNeed)
    examples = examples_of(run, run.rows("train"), need.checkpoint)
    progress("curvature", 0, len(examples))
    found = fitted(need.approximation, examples, need.fisher, derive(run.learner.seed, "curvature"))
    save(found, _path(run, need), weights=_weights(run, need))
    progress("curvature", len(examples), len(examples))


def _path(run: Run, need: Need) -> Path:
    return run.path / "evidence" / f"{need.store}.safetensors"


def _weights(run: Run, need: Need) -> str:
    """Digest of the weights of the need's checkpoint."""
    assert isinstance(need, CurvatureNeed)
    one = run.checkpoints.named(str(need.checkpoint))
    return str(one.description["files"][f"{one.name}.safetensors"]["blake2b"])


def _has(run: Run, need: Need) -> bool:
    path = _path(run, need)
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("weights") == _weights(run, need)
    except (OSError, SafetensorError):
        return False


def _check(run: Run, need: Need) -> None:
    assert isinstance(need, CurvatureNeed)
    check_differentiable(run)
    if need.approximation not in KINDS:
        raise EvidenceError(f"No curvature '{need.approximation}'.", nearest(need.approximation, KINDS))
    if need.fisher not in FISHERS:
        raise EvidenceError(f"No Fisher '{need.fisher}'.", nearest(need.fisher, FISHERS))


def _value(run: Run, need: Need, block: slice) -> Curvature:
    return load(_path(run, need))


COLLECTORS["curvature"] = collect
SOURCES["curvature"] = Source(_has, _check, _value, lambda run, need: (0, ""))
