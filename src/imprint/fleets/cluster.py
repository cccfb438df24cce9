"""Members as Ray tasks, on this machine or on many.

The driver puts what is shared into the object store, once; every node keeps one copy, which all tasks there read without copying it. A
task trains a few members, so many that it takes some seconds. A task whose worker or node was lost is asked for again, member by
member. Only a few tasks per CPU are under way, so that results never pile up.
"""

from __future__ import annotations

import math
import os
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from imprint.engine.connection import connected, ray_module
from imprint.engine.failure import Failure
from imprint.engine.loss import cause, must_be_loss, must_have
from imprint.errors import LearnerError, ResourceError, nearest
from imprint.fitting import Progress, silent
from imprint.fitting.memory import available_memory
from imprint.fleets.batched import MEMORY_SHARE, Batched, alike_members
from imprint.fleets.choosing import steady
from imprint.fleets.executing import Executor, Finished
from imprint.fleets.member import Member
from imprint.fleets.sending import Job, as_arrays, as_tensors, packed, tensors_of, why_not_sent
from imprint.fleets.sequential import Sequential

if TYPE_CHECKING:
    from imprint.fleets.shared import Shared

INNER = ("auto", "batched", "sequential")
# A task costs about 10 ms; at some seconds each that is nothing, and a lost one is soon repeated.
TASK_SECONDS = 4.0
# Tasks under way per CPU: one that runs and one that waits for it.
TASKS_PER_CPU = 2
# Bytes of outputs that a task may give back.
OUTPUT_BYTES = 64 * 2**20
# The first tasks are to find out what a member costs: one member, or a few that are stacked.
FIRST_ALONE, FIRST_STACKED = 1, 8
GROWTH = 4
# Seconds between two looks at how many CPUs the cluster has.
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Cluster:
    """The executor that trains members as Ray tasks.

    Attributes:
        address: "host:port" of a Ray cluster, "auto" for the one that runs on this machine, or None for one of our own on this
            machine, which ends with the fleet. A process that is connected to Ray keeps its connection.
        chunk: Members per task; None for so many that a task takes some seconds.
        retries: How often a member is trained again whose worker or node was lost.
        cpus: CPUs, and so threads, of a task. A learner that trains on a GPU gets one as well.
        inner: How a task trains its members: "batched", "sequential", or "auto", which stacks what gains by it.
    """

    address: str | None = None
    chunk: int | None = None
    retries: int = 3
    cpus: int = 1
    inner: str = "auto"
    name: ClassVar[str] = "cluster"

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise LearnerError(f"No way '{self.inner}' to train the members of a task.", nearest(self.inner, INNER))
        for name, least in (("chunk", 1), ("retries", 0), ("cpus", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LearnerError(f"{name}={value} is less than {least}.", f"Give {name} as {least} or more.")

    def why_not(self, shared: Shared) -> str | None:
        """Why these members cannot be trained elsewhere, in words; None if they can."""
        reason = why_not_sent(shared)
        return Batched().why_not(shared) if reason is None and self.inner == "batched" else reason

    def run(
        self,
        shared: Shared,
        members: Sequence[Member],
        numbers: Sequence[int],
        queries: Tensor,
        *,
        parameters: bool = False,
        progress: Progress = silent,
    ) -> Iterator[Finished]:
        """Train `members[number]` for each of `numbers`; see `Executor.run`.

        Raises:
            MissingExtra: Ray is not installed.
            EvidenceError: No cluster answers at the address, or its workers cannot import what they need.
            ResourceError: The workers of a member were lost more often than `retries`.
            ImprintError: What training a member raises.
        """
        size = sum(tensor.nbytes for tensor in tensors_of(shared.data).values())
        with connected(self.address, size):
            done = 0
            for finished in self._drive(shared, members, numbers, queries, parameters):
                done += len(finished.numbers)
                yield finished
                progress("members", done, len(numbers))

    def _drive(
        self, shared: Shared, members: Sequence[Member], numbers: Sequence[int], queries: Tensor, parameters: bool
    ) -> Iterator[Finished]:
        ray = ray_module()
        gpus = int(torch.device(shared.learner.device).type == "cuda")
        must_have(ray, self.cpus, gpus)
        task = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=0)(train_chunk)
        store = Store(shared, queries)
        pace = Pace(self, shared, len(queries))
        waiting, tried, flying = deque(numbers), Counter[int](), dict[Any, tuple[list[int], str]]()
        try:
            while waiting or flying:
                while waiting and len(flying) < pace.most(ray):
                    chunk = pace.take(waiting, tried, ray)
                    told = [(number, packed(members[number])) for number in chunk]
                    ref = task.remote(store.key, store.refs, told, parameters, self.inner, self.cpus)
                    flying[ref] = (chunk, store.key)
                    del told
                for ref in ray.wait(list(flying), num_returns=1, timeout=LOOK_SECONDS)[0]:
                    chunk, key = flying.pop(ref)
                    try:
                        said = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        if key == store.key and isinstance(cause(error), ray.exceptions.ObjectLostError):
                            store.put()
                        must_be_loss(ray, error)
                        tried.update(chunk)
                        _must_go_on(tried, chunk, self.retries, error)
                        waiting.extendleft(reversed(chunk))
                        continue
                    if isinstance(said, Failure):
                        raise said.error()
                    pace.learn([second for one in said for second in one[2]])
                    while said:
                        which, outputs, seconds, trained = said.pop(0)
                        yield Finished(which, torch.from_numpy(np.array(outputs)), seconds, as_tensors(trained))
        finally:
            for ref in flying:
                with suppress(Exception):
                    ray.cancel(ref, force=True)


class Store:
    """What is shared, in Ray's object store; its references, and the key by which a worker knows whether it has it open.

    Args:
        shared: What the members have in common.
        queries: Rows whose outputs are wanted.
    """

    def __init__(self, shared: Shared, queries: Tensor) -> None:
        self.shared, self.queries = shared, queries
        self.put()

    def put(self) -> None:
        """Put all of it, for the first time or because it was lost with a node."""
        ray = ray_module()
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors_of(self.shared.data).items()}
        try:
            self.refs = {name: ray.put(array) for name, array in arrays.items()}
            self.refs["job"] = ray.put(cloudpickle.dumps((Job.of(self.shared), self.queries.numpy().copy())))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
            raise ResourceError(
                f"The examples do not fit into Ray's object store: {str(error).splitlines()[0]}",
                "Start the node with more --object-store-memory, or train on fewer rows.",
            ) from error
        self.key = uuid.uuid4().hex


class Pace:
    """How many members a task should have and how many tasks should be under way.

    Args:
        executor: Its settings.
        shared: What the members have in common.
        queries: How many rows each says something of.
    """

    def __init__(self, executor: Cluster, shared: Shared, queries: int) -> None:
        self.executor = executor
        stacked = executor.inner != "sequential" and Batched().why_not(shared) is None
        self.largest = FIRST_STACKED if stacked else FIRST_ALONE
        self.limit = max(1, OUTPUT_BYTES // (4 * max(1, queries * shared.task.width)))
        self.seconds: float | None = None
        self.tasks, self.looked = 1, -math.inf

    def most(self, ray: Any) -> int:
        """Tasks to have under way, by the CPUs that the cluster has now."""
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.tasks = max(1, int(ray.cluster_resources().get("CPU", 0)) // self.executor.cpus)
            self.looked = time.monotonic()
        return TASKS_PER_CPU * self.tasks

    def take(self, waiting: deque[int], tried: Counter[int], ray: Any) -> list[int]:
        """The members of the next task. One whose worker was lost goes alone: it may have been the cause."""
        if tried[waiting[0]]:
            return [waiting.popleft()]
        size = self.executor.chunk
        if size is None:
            wanted = self.largest if self.seconds is None else int(TASK_SECONDS / self.seconds)
            share = math.ceil(len(waiting) / self.tasks)  # at the end, every CPU has something to do
            size = max(1, min(wanted, GROWTH * self.largest, share, self.limit))
        chunk: list[int] = []
        while waiting and len(chunk) < size and not tried[waiting[0]]:
            chunk.append(waiting.popleft())
        self.largest = max(self.largest, len(chunk))
        return chunk

    def learn(self, seconds: list[float]) -> None:
        """A task took so long for each of its members: half of the estimate is the last task's."""
        latest = max(1e-6, sum(seconds) / len(seconds))
        self.seconds = latest if self.seconds is None else (self.seconds + latest) / 2


def _must_go_on(tried: Counter[int], chunk: list[int], retries: int, error: BaseException) -> None:
    """Raise if a member was tried too often."""
    given_up = [number for number in chunk if tried[number] > retries]
    if given_up:
        which = f"Member {given_up[0]}" if len(given_up) == 1 else f"Members {', '.join(map(str, given_up[:5]))}"
        raise ResourceError(
            f"{which} could not be trained: the worker was lost {retries + 1} times. Ray says: {str(error).strip().splitlines()[0]}",
            "Mostly memory ran out: use a larger node or fewer tasks on each (cpus=...). executor='sequential' shows other errors.",
        ) from error


# In a worker.

# What is shared and the queries, of the fleet that this worker trains: the key of its store, then both.
_opened: tuple[str, Shared, Tensor] | None = None


def train_chunk(
    key: str, refs: dict[str, Any], told: list[tuple[int, Member]], parameters: bool, inner: str, threads: int
) -> list[tuple[list[int], np.ndarray, list[float], Any]] | Failure:
    """The task: train members, and give back their numbers, outputs, seconds and parameters; or what went wrong.

    Args:
        key: Of the store.
        refs: Its references.
        told: The members with their numbers.
        parameters: Whether the trained weights are wanted as well.
        inner: How to train them; see `Cluster`.
        threads: To use.
    """
    values = None if _opened is not None and _opened[0] == key else ray_module().get(refs_of(refs))
    try:
        shared, queries = _open(key, refs, values)
        torch.set_num_threads(threads)
        numbers, members = [number for number, _ in told], [member for _, member in told]
        found = []
        for learner, alike in alike_members(shared, members, range(len(members))):
            executor = _inner(inner, replace(shared, learner=learner), threads)
            for one in executor.run(shared, members, alike, queries, parameters=parameters):
                which = [numbers[place] for place in one.numbers]
                found.append((which, one.outputs.numpy(), one.seconds, as_arrays(one.parameters)))
        return found
    except Exception as error:
        return Failure.of(error)


def refs_of(refs: dict[str, Any]) -> list[Any]:
    """The references in a fixed order."""
    return [refs[name] for name in sorted(refs)]


def _open(key: str, refs: dict[str, Any], values: list[Any] | None) -> tuple[Shared, Tensor]:
    """What is shared and the queries; kept for the next task of the same fleet."""
    global _opened
    if values is not None:
        arrays = dict(zip(sorted(refs), values, strict=True))
        job, queries = cloudpickle.loads(arrays.pop("job"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor does anybody write to it
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        _opened = (key, job.shared(tensors), torch.from_numpy(queries))
    assert _opened is not None
    return _opened[1], _opened[2]


def _inner(name: str, shared: Shared, threads: int) -> Executor:
    """The executor within a task. Its waves share the memory of the machine with those of the other tasks there."""
    executor = {"batched": Batched, "sequential": Sequential}[name]() if name != "auto" else steady(shared)
    if isinstance(executor, Batched):
        share = min(1.0, threads / (os.cpu_count() or 1))
        return Batched(memory=int(MEMORY_SHARE * share * available_memory()))
    return executor
