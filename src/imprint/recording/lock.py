"""One writer per run: an advisory lock that the system releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imprint.errors import RunError, RunLocked

# Locks that this process holds: path -> (descriptor, depth, thread). A thread may enter its own lock again.
_held: dict[Path, list[int]] = {}
_guard = threading.Lock()
TRIES = 3


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Hold the run's write lock. Readers need none.

    Raises:
        RunLocked: Another process (or thread) is writing this run; at once, without waiting.
    """
    path = (run / "lock").resolve()
    with _guard:
        mine = _held.get(path)
        if mine is not None and mine[2] == threading.get_ident():
            mine[1] += 1
        else:
            _held[path] = [_acquire(path), 1, threading.get_ident()]
    try:
        yield
    finally:
        with _guard:
            entry = _held[path]
            entry[1] -= 1
            if not entry[1]:
                del _held[path]
                os.close(entry[0])  # closing releases the lock


def held(run: Path) -> bool:
    """Whether some process is writing the run now."""
    path = (run / "lock").resolve()
    if path in _held:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunError(
            f"{path.parent} cannot be written: {error.strerror}.", "Choose a folder that you may write to."
        ) from error
    for attempt in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if attempt + 1 < TRIES:  # a reader that looks whether the run is being written holds it for an instant
                time.sleep(0.01)
                continue
            holder = {}
            with suppress(OSError, ValueError):
                holder = json.loads(os.pread(descriptor, 4096, 0).decode())
            os.close(descriptor)
            raise RunLocked(
                f"{path.parent} is being written by process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}.",
                "Wait until it ends, stop it, or choose another folder for this run.",
            ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return descriptor
