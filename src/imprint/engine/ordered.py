"""Parts of a job as Ray tasks, whose results come back in the order of the parts.

The job itself (a model, and what to do with it) is put into the object store once and opened once by each worker; a part's inputs travel
with its task. A part whose worker or node was lost is done again. Only so many parts are under way, or wait for one before them, that
what they hold stays within a bound.
"""

from __future__ import annotations

import heapq
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import cloudpickle
import torch

from imprint.engine.connection import connected, ray_module
from imprint.engine.engine import Engine
from imprint.engine.failure import Failure
from imprint.engine.loss import cause, must_be_loss, must_have
from imprint.errors import EvidenceError, ResourceError

# Tasks under way for each that can run at a time: one that runs and one that waits for it.
TASKS_EACH = 2
# Bytes of inputs and results of all parts that are under way or wait for one before them.
AHEAD_BYTES = 2**28
# Seconds between two looks at how many CPUs the cluster has.
LOOK_SECONDS = 2.0

# (inputs of a part) -> its result: what a job is. Both are made of arrays and plain values.
Job = Callable[..., Any]


def in_order(
    job: Job, parts: int, inputs: Callable[[int], Sequence[Any]], engine: Engine, *, gpus: int = 0, part_bytes: int = 1
) -> Generator[Any]:
    """Do the parts of a job on a Ray cluster.

    Args:
        job: Called in the workers with what `inputs` gives of a part. It travels by value.
        parts: How many there are.
        inputs: Number of a part -> its inputs; called here, when the part is about to be sent.
        engine: Whose cluster.
        gpus: GPUs that a task needs.
        part_bytes: Bytes of the inputs and the result of a part, at most.

    Yields:
        The result of each part, in their order.

    Raises:
        MissingExtra: Ray is not installed.
        EvidenceError: The job cannot be sent, no cluster answers, or it has no node for a task.
        ResourceError: The workers of a part were lost more often than `retries`.
        ImprintError: What the job raises.
    """
    try:
        sent = cloudpickle.dumps(job)
    except Exception as error:
        raise EvidenceError(
            f"The model cannot be sent to another process ({type(error).__name__}: {error}).",
            "Build what cannot be sent inside the model's factory, or use the engine 'local'.",
        ) from error
    ahead = max(TASKS_EACH, min(parts, AHEAD_BYTES // part_bytes))
    with connected(engine.address, len(sent) + ahead * part_bytes):
        yield from _drive(sent, parts, inputs, engine, gpus, ahead)


def _drive(
    sent: bytes, parts: int, inputs: Callable[[int], Sequence[Any]], engine: Engine, gpus: int, ahead: int
) -> Generator[Any]:
    ray = ray_module()
    cpus = engine.cpus or _threads(ray)
    must_have(ray, cpus, gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(do_part)
    key, stored = uuid.uuid4().hex, ray.put(sent)
    waiting, flying = list(range(parts)), dict[Any, tuple[int, str]]()  # a sorted list is a heap
    arrived, tried = dict[int, Any](), Counter[int]()
    following, most, looked = 0, 1, -math.inf
    try:
        while following < parts:
            if time.monotonic() - looked > LOOK_SECONDS:
                most = TASKS_EACH * max(1, int(ray.cluster_resources().get("CPU", 0)) // cpus)
                looked = time.monotonic()
            while waiting and len(flying) < most and waiting[0] < following + ahead:
                number = heapq.heappop(waiting)
                flying[task.remote(key, [stored], cpus, *inputs(number))] = (number, key)
            for ref in ray.wait(list(flying), num_returns=1, timeout=LOOK_SECONDS)[0]:
                number, its_key = flying.pop(ref)
                try:
                    said = ray.get(ref)
                except ray.exceptions.RayError as error:
                    if its_key == key and isinstance(cause(error), ray.exceptions.ObjectLostError):
                        key, stored = uuid.uuid4().hex, ray.put(sent)
                    must_be_loss(ray, error)
                    tried[number] += 1
                    if tried[number] > engine.retries:
                        raise _gave_up(number, parts, tried[number], error) from error
                    heapq.heappush(waiting, number)
                    continue
                if isinstance(said, Failure):
                    raise said.error("Work on a Ray cluster")
                arrived[number] = said
                del said
            while following in arrived:
                yield arrived.pop(following)
                following += 1
    finally:
        for ref in flying:
            with suppress(Exception):
                ray.cancel(ref, force=True)


def _threads(ray: Any) -> int:
    """Threads of a task: those of this process, so that sums are rounded alike, but no more than a node has CPUs."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return max(1, min(torch.get_num_threads(), int(largest)))


def _gave_up(number: int, parts: int, times: int, error: BaseException) -> ResourceError:
    said = str(error).strip().splitlines()[0]
    return ResourceError(
        f"Part {number + 1} of {parts} could not be done: its worker was lost {times} times. Ray says: {said}",
        "Mostly memory ran out: use larger nodes, or more CPUs a task: Engine('ray', cpus=...). The engine 'local' shows other errors.",
    )


# In a worker.

# The job that this worker has open, with its key.
_opened: tuple[str, Job] | None = None


def do_part(key: str, stored: list[Any], threads: int, *inputs: Any) -> Any:
    """The task: do a part, and give back its result; or what went wrong.

    Args:
        key: Of the job.
        stored: The reference to it.
        threads: To use.
        inputs: Of the part.
    """
    global _opened
    sent = None if _opened is not None and _opened[0] == key else ray_module().get(stored[0])
    try:
        torch.set_num_threads(threads)
        if sent is not None:
            _opened = (key, _loaded(sent))
        assert _opened is not None
        return _opened[1](*inputs)
    except Exception as error:
        return Failure.of(error)


def _loaded(sent: bytes) -> Job:
    try:
        job: Job = cloudpickle.loads(sent)
    except ModuleNotFoundError as error:
        raise EvidenceError(
            f"The workers of the Ray cluster cannot import '{error.name}', in which the model is defined.",
            "Install it on every node, or define the model in the script or notebook itself, from which it is sent along.",
        ) from error
    return job
