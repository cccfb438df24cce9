"""The child of a run: a folder like any run's, made from its parent without a byte of the parent being written.

    manifest.json      as of any run, and `parent` {path, weights}, `origin` (the first ancestor), `forgot` {count, ...}, `lineage`
    request.json       what was asked, written first: a call with the same request goes on, one with another is refused
    trials.jsonl       only while settings are searched for: each that was tried; a search that was killed goes on with the others
    examples.lance     the parent's examples less the forgotten rows
    encoder/           the parent's, where the method keeps it
    checkpoints/       "last": the child's weights; "first": the parent's, for methods that only change them
    corpus/            only where the parent's corpus has no folder of its own; else the manifest names it and `part` says: less some rows

A child is complete when its manifest says so, which is written last. Killed before, it is an interrupted run, and the same call again
goes on with it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imprint.corpus.edits import Edit
from imprint.errors import RunError
from imprint.fitting import Data
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.lineage import drift, origin_of, placed, weights_of
from imprint.forgetting.request import hashed, holds
from imprint.forgetting.telling import sealed
from imprint.recording.checkpoints import Checkpoints
from imprint.recording.curves import Curves
from imprint.recording.files import read_json, remove, replacing, save_tensors, write_json
from imprint.recording.fit import CONTENTS, finish, update_manifest, write_examples, write_manifest
from imprint.recording.lock import held
from imprint.recording.model import Reordered
from imprint.recording.run import Run

if TYPE_CHECKING:
    from imprint.corpus import Corpus

REQUEST = "request.json"
# Settings that were tried before the method, a line each, until the child is complete and its manifest has them.
TRIALS = "trials.jsonl"
# Entries of the parent's manifest that are true of the child as well.
INHERITED = ("module", "solved", "estimator", "order", "watched", "deletable")


def begin(
    path: Path, asked: dict[str, Any], ids: pl.Series, resume: bool, told: dict[str, Any] | None = None
) -> Run | None:
    """Prepare a child's folder, under its lock.

    Args:
        path: The folder.
        asked: What is asked, as JSON: parent, method, settings, seed.
        ids: The ids to forget.
        resume: Go on with the same request; False starts over.
        told: How the examples were named, in words; the same examples named in another way are the same request.

    Returns:
        The child, if it is there already and complete.

    Raises:
        RunError: The folder holds another run, or the child of another request.
    """
    if not resume:
        for name in (*CONTENTS, TRIALS, *(["corpus"] if (path / REQUEST).exists() else [])):
            remove(path / name)
    remove(path / "scratch")
    if not (path / REQUEST).exists():
        held = next((name for name in CONTENTS if name != "scratch" and (path / name).exists()), None)
        if held is not None:
            raise RunError(
                f"{path} holds a run, or a part of one ({held}).",
                "Choose another folder for the child, or use resume=False to replace what is there.",
            )
        request = hashed(ids)
        write_json(path / REQUEST, {**asked, "request": request, "told": sealed(told or {}, request["salt"])})
        return None
    there = read_json(path / REQUEST)
    different = [name for name in asked if name != "parent" and asked[name] != there.get(name)]
    if there.get("parent", {}).get("weights") != asked["parent"]["weights"]:
        different.append("parent")  # by its weights, since a folder may move
    if len(there["request"]["hashes"]) != len(ids) or not all(holds(there["request"], ids.to_list())):
        different.append("request")
    if different:
        said = ", ".join(
            "other examples" if name == "request" else f"{name} {there.get(name)!r} there, {asked[name]!r} here"
            for name in different
        )
        raise RunError(
            f"{path} holds the child of another request: {said}.",
            "Choose another folder for the child, or use resume=False to replace what is there.",
        )
    if (path / "manifest.json").exists():
        found = Run(path)
        if found.status == "complete" and "forgot" in found.manifest:
            return found
    return None


def abandon(path: Path) -> None:
    """Leave a folder as it was before a request that cannot be served; of one that was begun, nothing is taken."""
    if (path / "manifest.json").exists() or held(path):
        return
    for name in (REQUEST, TRIALS, "scratch"):
        remove(path / name)
    if not any(one.name != "lock" for one in path.iterdir()):
        shutil.rmtree(path)


def write(job: Forgetting, done: Forgotten, asked: dict[str, Any], seconds: float) -> Run:
    """Write the child: what the method did not write itself, and last the manifest that makes it complete.

    Args:
        job: The request.
        done: What the method made of it.
        asked: As for `begin`.
        seconds: What the method took.
    """
    parent, path, corpus = job.run, job.folder, job.corpus
    assert path is not None
    assert corpus is not None
    kept = np.delete(np.arange(len(job.data.target)), job.forget.rows.numpy())
    if not done.recorded:
        write_manifest(path, corpus, parent.task, learner=parent.manifest["learner"])
        inherited = {name: parent.manifest[name] for name in INHERITED if name in parent.manifest}
        update_manifest(path, **inherited)
        _copy(parent.path / "encoder", path / "encoder")
        write_examples(path, corpus, job.data.target[torch.from_numpy(kept)])
        _checkpoints(job, done, path, seconds)
        for name, tensors in (done.evidence or {}).items():
            save_tensors(path / "evidence" / name, tensors)
    asking = read_json(path / REQUEST)
    own = Run(path, corpus, parent.learner) if done.recorded else None
    origin = origin_of(parent)
    moved = drift(job, done.module, parent, own)
    forgot = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "told": asking.get("told"),
        "count": len(job.forget),
        "retained": len(job.retain),
        **{name: asked[name] for name in ("method", "settings", "seed", "corrective")},
        "exact": done.exact,
        "guarantee": done.guarantee,
        "trained": done.trained,
        "measured": dict(done.measured),
        "notes": list(done.notes),
        "seconds": round(seconds, 3),
        **({"search": asked["searched"]} if "searched" in asked else {}),
        "drift": moved,
        "drift_from_first": moved if origin is parent else origin and drift(job, done.module, origin, own),
        "encoder": "fitted again" if done.recorded else "kept",
        "weights": weights_of(own or Run(path, corpus, parent.learner)),
        "request": asking["request"],
    }
    before = [one for one in (*parent.manifest.get("lineage", []), parent.manifest.get("forgot")) if one]
    about = read_json(path / "manifest.json")["corpus"]
    update_manifest(
        path,
        parent={**asked["parent"], "beside": os.path.relpath(parent.path.resolve(), path.resolve())},
        origin=_origin(parent, origin, path),
        forgot=forgot,
        lineage=before,
        corpus={**about, **_placed(parent, corpus, path)},
    )
    finish(path)
    remove(path / "scratch")
    remove(path / TRIALS)
    data = None if done.recorded else _less(job.data, kept)
    return Run(path, corpus, parent.learner, data)


def _origin(parent: Run, origin: Run | None, path: Path) -> dict[str, Any] | None:
    """Where the first ancestor is found, seen from here; as the parent says it where it is not at hand."""
    return parent.manifest.get("origin") if origin is None else placed(origin, path)


def kept(run: Run, name: str) -> dict[str, Tensor] | None:
    """Tensors that a run keeps as evidence; None if it has none of this name."""
    path = run.path / "evidence" / name
    return load_file(path) if path.exists() else None


def _checkpoints(job: Forgetting, done: Forgotten, path: Path, seconds: float) -> None:
    """The parent's weights as the first checkpoint, where the method only changed them, and the child's as the last."""
    if job.run.manifest.get("estimator"):
        with replacing(path / "checkpoints") as temporary:
            _estimator(done.module).save(temporary)
        return
    remove(path / "checkpoints")
    if not done.exact:
        before = Checkpoints(path / "checkpoints")
        before.save_weights(plain(job.run.model().module), epoch=0, step=0, seconds=0.0)
    curves = Curves(path / "evidence" / "curves.json", job.task, job.without, None, str(job.device))
    curves.once(done.module, seconds)
    after = Checkpoints(path / "checkpoints", score=curves.headline)
    after.save_weights(plain(done.module), epoch=1, step=max(1, done.trained), seconds=seconds)
    update_manifest(
        path,
        checkpoints={
            "rule": "last: what the method gave" + ("" if done.exact else "; first: the parent's final weights"),
            "judged_on": curves.judge,
            "kept": [one.name for one in after.all()],
        },
    )


def plain(module: nn.Module) -> nn.Module:
    """The module whose weights a checkpoint holds: without the wrapper that orders the outputs of a user's own."""
    return module.module if isinstance(module, Reordered) else module


def _estimator(module: nn.Module) -> Any:
    return module


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        with replacing(target) as temporary:
            shutil.copytree(source, temporary)


def _placed(parent: Run, corpus: Corpus, path: Path) -> dict[str, Any]:
    """Where the child's corpus is found again: in the folder of the parent's, less some rows, or in a copy of its own."""
    about = parent.manifest["corpus"]
    places = [Path(about["folder"])] if about.get("folder") else []
    places += [parent.path / about["beside"]] if about.get("beside") else []
    folder = next((one.resolve() for one in places if (one / "corpus.json").exists()), None)
    if folder is None:
        folder = scrubbed(corpus).save(path / "corpus")
    return {
        "folder": str(folder),
        "beside": os.path.relpath(folder, path.resolve()),
        "part": folder != (path / "corpus").resolve(),
    }


def scrubbed(corpus: Corpus) -> Corpus:
    """The same version, whose history names no example: an edit says how many, and nothing else."""
    return replace(corpus, edits=tuple(Edit(one.action, one.rows) for one in corpus.edits))


def _less(data: Data, kept: np.ndarray) -> Data | None:
    """Encoded examples of the child; None where they would have to be copied from a file, and are encoded again when needed."""
    if not isinstance(data.inputs, Tensor) or data.inputs.numel() * data.inputs.element_size() > 2**30:
        return None
    rows = torch.from_numpy(kept)
    place = torch.full((len(data.target),), -1)
    place[rows] = torch.arange(len(rows))
    splits = {name: place[old][place[old] >= 0] for name, old in data.splits.items()}
    weight = None if data.weight is None else data.weight[rows]
    keys = None if data.keys is None else data.keys[rows]
    return Data(data.inputs[rows], data.target[rows], weight, splits, keys)
