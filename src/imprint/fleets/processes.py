"""Members in several processes of this machine, each with its share of the threads.

The matrices are written to a file once and mapped by every process; a member and what became of it travel through a pipe. A process
is started afresh rather than forked (threads do not survive a fork) and does not run the user's script again, so that a script needs
no guard. A process that dies has its member trained by another; no process outlives the one that started it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch
from torch import Tensor

from imprint.engine.failure import Failure
from imprint.errors import ResourceError
from imprint.fitting import Progress, silent
from imprint.fleets.executing import Finished
from imprint.fleets.sending import (
    Job,
    as_arrays,
    as_tensors,
    environment,
    packed,
    tensors_of,
    threads_of,
)

if TYPE_CHECKING:
    from imprint.fleets.member import Member
    from imprint.fleets.shared import Shared

# A member whose process died is trained again, in a new process, until it was tried this often: what dies three times is no accident.
TRIES = 3
START = "from imprint.fleets.processes import serve; serve(int(__import__('sys').argv[1]))"


def run(
    shared: Shared,
    members: Sequence[Member],
    numbers: Sequence[int],
    queries: Tensor,
    *,
    processes: int,
    parameters: bool = False,
    progress: Progress = silent,
) -> Iterator[Finished]:
    """Train `members[number]` for each of `numbers` in several processes; see `Executor.run`.

    Raises:
        ResourceError: A member's process died `TRIES` times.
        ImprintError: What training a member raises.
    """
    count = min(processes, len(numbers))
    waiting, tried = deque(numbers), Counter[int]()
    workers: list[Worker] = []
    scratch = Path(tempfile.mkdtemp(prefix="imprint-processes-"))
    try:
        tensors = tensors_of(shared.data)
        maps = {name: Mapped.of(tensor, scratch / str(place)) for place, (name, tensor) in enumerate(tensors.items())}
        order = cloudpickle.dumps((Job.of(shared), maps, queries.clone(), parameters, threads_of(processes)))
        for _ in range(count):
            workers.append(Worker(order, threads_of(processes)))
            workers[-1].train(members, waiting.popleft())
        done = 0
        while done < len(numbers):
            for pipe in wait([worker.pipe for worker in workers if worker.number is not None]):
                worker = next(one for one in workers if one.pipe is pipe)
                number = worker.number
                assert number is not None
                try:
                    said = worker.answer()
                except (EOFError, OSError):
                    tried[number] += 1
                    if tried[number] == TRIES:
                        raise _gave_up(number, worker.stop()) from None
                    worker.stop()
                    workers[workers.index(worker)] = worker = Worker(order, threads_of(processes))
                    worker.train(members, number)
                    continue
                # It goes on with the next member while this one's outcome is read.
                if waiting:
                    worker.train(members, waiting.popleft())
                if isinstance(said, Failure):
                    raise said.error()
                outputs, seconds, trained = said
                done += 1
                yield Finished([number], torch.from_numpy(outputs), [seconds], as_tensors(trained))
                progress("members", done, len(numbers))
    finally:
        for worker in workers:
            worker.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _gave_up(number: int, status: int) -> ResourceError:
    """The error about a member whose processes died."""
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return ResourceError(
        f"Member {number} could not be trained: its process {how}, {TRIES} times.",
        "Signal 9 mostly means that memory ran out: use fewer processes, or a smaller batch. processes=1 shows other errors.",
    )


@dataclass(frozen=True)
class Mapped:
    """A tensor in a file, which any process on this machine can map."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, path: Path) -> Mapped:
        """Write a tensor to a file, or name the one that it is mapped from already."""
        shape, storage = tuple(tensor.shape), tensor.untyped_storage()
        if storage.filename and tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.itemsize:
            return cls(storage.filename, shape, tensor.dtype)
        try:
            tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            raise ResourceError(
                f"{tensor.nbytes / 2**30:.1f} GiB of encoded examples, which the processes share, cannot be written to "
                f"{path.parent}: {error.strerror or error}.",
                "Free disk space, set TMPDIR to a folder on another disk, or train in one process.",
            ) from error
        return cls(str(path), shape, tensor.dtype)

    def open(self) -> Tensor:
        """Map it."""
        size = torch.Size(self.shape).numel()
        if not size:  # an empty file cannot be mapped
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.from_file(self.path, shared=True, size=size, dtype=self.dtype).view(self.shape)


class Worker:
    """A process that trains one member at a time, seen from the process that started it.

    Args:
        order: What it is told first.
        threads: It may use.
    """

    def __init__(self, order: bytes, threads: int) -> None:
        self.number: int | None = None
        self.order = order
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # it reads the end of this one when we are gone, however we went
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def train(self, members: Sequence[Member], number: int) -> None:
        """Have it train a member. What went wrong shows when its answer is read."""
        self.number = number
        with suppress(BrokenPipeError, ConnectionResetError):
            if self.order:
                self.pipe.send_bytes(self.order)
                self.order = b""
            self.pipe.send_bytes(cloudpickle.dumps(packed(members[number])))

    def answer(self) -> Any:
        """What became of the member.

        Raises:
            EOFError: The process died.
        """
        said = cloudpickle.loads(self.pipe.recv_bytes())
        self.number = None
        return said

    def stop(self) -> int:
        """End it, wherever it stands. Returns its exit status, negative for a signal."""
        self.pipe.close()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.0 if self.number is None else 0.5)  # it may be dying already, of a cause worth telling
        self.process.kill()
        return self.process.wait()


def serve(descriptor: int) -> None:
    """The life of a process that trains members: told a job, then members one by one, until nobody asks any more."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted user is answered by the process that the user started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = Connection(descriptor)
    train = None
    with suppress(EOFError, OSError):
        order = pipe.recv_bytes()
        while True:
            member = pipe.recv_bytes()
            try:
                train = train or _trainer(order)
                said: Any = train(cloudpickle.loads(member))
            except Exception as error:
                said = Failure.of(error)
            pipe.send_bytes(cloudpickle.dumps(said))


def _trainer(order: bytes) -> Any:
    """What turns a member into its outcome, in a process of its own."""
    from imprint.fleets.sequential import train_finished

    job, maps, queries, parameters, threads = cloudpickle.loads(order)
    torch.set_num_threads(threads)
    shared = job.shared(_opened(maps))

    def train(member: Member) -> tuple[Any, float, Any]:
        one = train_finished(shared, member, 0, queries, parameters)
        return one.outputs.numpy(), one.seconds[0], as_arrays(one.parameters)

    return train


def _opened(maps: Mapping[str, Mapped]) -> dict[str, Tensor]:
    return {name: mapped.open() for name, mapped in maps.items()}


def _end_with_parent() -> None:
    """Wait for the end of standard input, which our parent holds open as long as it lives."""
    while os.read(0, 4096):
        pass
    os._exit(1)
