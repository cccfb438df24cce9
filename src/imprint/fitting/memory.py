"""How much memory a job may take: what is free, under every limit that the machine sets."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import psutil

from imprint.errors import LearnerError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def parse_size(text: str) -> int:
    """Bytes of "512", "4GiB", "4G", "1.5 GB" (binary units).

    >>> parse_size("4GiB") == 4 * 2**30
    True
    """
    letters = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = letters[-1:] if letters[-1:].isalpha() else ""
    try:
        return int(float(letters.removesuffix(unit)) * UNITS[unit])
    except (ValueError, KeyError) as error:
        raise LearnerError(f"{text!r} is not a size.", "Write for example 4GiB.") from error


def available_memory() -> int:
    """Bytes that this process may still take: the least of free memory, the cgroup's and the process's limits, and
    `IMPRINT_MEMORY` (a limit on the whole process, such as "4GiB")."""
    free = [psutil.virtual_memory().available]
    used = psutil.Process().memory_info().rss
    for limit, current in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            free.append(int(Path(limit).read_text()) - int(Path(current).read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        free.append(soft - used)
    if "IMPRINT_MEMORY" in os.environ:
        free.append(parse_size(os.environ["IMPRINT_MEMORY"]) - used)
    return max(0, min(free))
