"""Forgetting by switching off: what was trained with the examples, in every order of the slices; nothing is trained."""

from __future__ import annotations

from imprint.errors import MethodError
from imprint.fitting.build import build
from imprint.fitting.deletable import scheme
from imprint.fitting.sequenced import EXAMPLE, Sequenced, Sequencing, recorded, touched, train_sequenced
from imprint.forgetting.controls import ENCODER
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.methods import method
from imprint.recording.files import remove


@method(
    "forget",
    "s3t",
    higher="forgets more",
    needs=(),
    source="Chowdhury et al. 2025 (S3T), arXiv:2406.16257",
    exact=True,
)
def s3t(job: Forgetting, *, renew: bool = False) -> Forgotten:
    """Switch off every stage that was trained with the examples: exact, bitwise, without training, in any order of requests.

    Serves runs of a learner with `deletable="s3t(shards=2, slices=4, orders=4)"`, which keep the changes that each stage made
    (`imprint.fitting.sequenced`). Each shard goes on with the longest beginning of an order that never met the examples; a shard that has
    none left does not count. When no shard has any, capacity is spent, and the request is refused unless stages may be trained again.

    Args:
        job: The request.
        renew: Train again, on the retained examples, all stages that are switched off, by this request or earlier ones: the child is then
            bitwise a training that never held any of them, with its full capacity.
    """
    learner = job.learner
    if learner.deletable is None or not isinstance(scheme(str(learner.deletable)), Sequencing):
        raise MethodError(
            "'s3t' switches off stages of a training in several orders of slices, and this run was not trained so.",
            f"Fit with Learner(..., deletable='{EXAMPLE}'), or choose another method.",
        )
    plan = Sequencing.read(str(learner.deletable))
    found = job.run.path / "shards"
    kept = recorded(
        found, learner
    )  # a training by another seed, such as a reference, is repeated as far as it is not switched off
    assert job.data.keys is not None
    done = train_sequenced(
        learner,
        build(learner, job.run.encoder, job.task),
        job.task,
        job.without,
        folder=None if job.folder is None else job.folder / "shards",
        found=found,
        training=renew or not kept,
        off=None if renew else touched(plan, job.data.keys[job.forget.rows]),
        progress=job.progress,
    )
    if not done.stages:
        if job.folder is not None:
            remove(job.folder / "shards")
        raise MethodError(
            f"No stage would be left: each of the {plan.orders} orders of each of the {plan.shards} shards has lost an example of its "
            "first slice, by this request or earlier ones.",
            "Train the stages again on the retained examples: renew=True (--set renew=true); or method='retrain'.",
        )
    off = done.total - len(done.stages)
    shorter = "A training anew would use the other examples of the slices that are off as well. " if off else ""
    guarantee = (
        "No parameter that is left was ever updated with one of the examples, as shards/order.json says of each: bitwise what a training "
        f"that never held them makes of the same slices in the same orders (same encoding, machine and number of threads). {shorter}"
        f"{ENCODER}"
    )
    measured = {
        "stages_off": float(off),
        "stages_in_all": float(done.total),
        "shards": float(sum(bool(one) for one in done.served)),
        "capacity": float(done.capacity),
    }
    return Forgotten(done.module, True, guarantee, trained=done.steps, notes=_notes(plan, done, off), measured=measured)


def _notes(plan: Sequencing, done: Sequenced, off: int) -> tuple[str, ...]:
    """What is left, in words."""
    served = ", ".join(str(len(one)) for one in done.served)
    again = f"; {len(done.trained)} were trained again" if done.trained else ""
    shards = "shard serves" if plan.shards == 1 else "shards serve"
    notes = [
        f"{off} of {done.total} stages are off{again}. The {shards} {served} of {plan.slices} slices. At least {done.capacity} more "
        "deletions need no training."
    ]
    empty = [k for k, one in enumerate(done.served) if not one]
    if empty:
        numbers = ", ".join(map(str, empty))
        notes.append(
            f"No order of shard {numbers} has a stage left, so its examples no longer count; renew=True trains it again."
        )
    return tuple(notes)
