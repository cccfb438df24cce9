"""Forgetting by going on from before: only the shards that held the examples, from their last slice that never saw them."""

from __future__ import annotations

from imprint.errors import MethodError
from imprint.fitting.build import build
from imprint.fitting.deletable import scheme
from imprint.fitting.sharded import Sharding, train_sharded
from imprint.forgetting.controls import ENCODER
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.methods import method


@method(
    "forget",
    "sisa",
    higher="forgets more",
    needs=(),
    source="Bourtoule et al. 2021 (SISA), arXiv:1912.03817",
    exact=True,
)
def sisa(job: Forgetting) -> Forgotten:
    """Repeat only the stages of a sharded training that saw the examples: exact, bitwise, in any order of requests.

    Serves runs of a learner with `deletable="sisa(shards=5, slices=4)"`, which keep the weights of each stage (`imprint.fitting.sharded`).
    An example of the last slice costs one stage, one of the first slice a whole shard; the child keeps its stages for the next request.
    """
    if job.learner.deletable is None or not isinstance(scheme(str(job.learner.deletable)), Sharding):
        raise MethodError(
            "'sisa' repeats stages of a training in shards and slices, and this run was not trained so.",
            "Fit with Learner(..., deletable='sisa(shards=5, slices=4)'), or choose another method.",
        )
    done = train_sharded(
        job.learner,
        build(job.learner, job.run.encoder, job.task),
        job.task,
        job.without,
        folder=None if job.folder is None else job.folder / "shards",
        found=job.run.path / "shards",
        progress=job.progress,
    )
    shards = len({shard for shard, _ in done.trained})
    guarantee = (
        "Bitwise the model of a sharded training that never held the examples (same encoding, machine and number of threads): no weight "
        f"that is left was ever updated with one of them. {ENCODER}"
    )
    note = f"{len(done.trained)} of {done.total} stages were trained again, of {shards} of {len(done.module.members)} shards."
    measured = {"stages": float(len(done.trained)), "stages_in_all": float(done.total), "shards": float(shards)}
    return Forgotten(done.module, True, guarantee, trained=done.steps, notes=(note,), measured=measured)
