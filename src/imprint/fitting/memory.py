"""How much memory a job may take: what is free, under every limit that the machine sets."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import psutil

from imprint.errors import LearnerError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# Controllers named in /proc/self/cgroup -> where their groups are, and the files that hold limit and use.
CGROUPS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


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
    for folder, limit, current in _own_groups():
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            free.append(int((folder / limit).read_text()) - _in_use(folder, current))
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        free.append(soft - used)
    if "IMPRINT_MEMORY" in os.environ:
        free.append(parse_size(os.environ["IMPRINT_MEMORY"]) - used)
    return max(0, min(free))


def _own_groups() -> list[tuple[Path, str, str]]:
    """The memory control groups that this process is in, with those around them: each may set a limit."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers in CGROUPS:
                root, limit, current = CGROUPS[controllers]
                group = Path(root) / place.strip("/")
                # In a container the group may be shown as the root itself.
                found += [(one, limit, current) for one in (group, *group.parents) if one.is_relative_to(root)]
    return found


def _in_use(folder: Path, current: str) -> int:
    """Bytes that a group holds and cannot give back: its use without the page cache that nobody waits for."""
    used = int((folder / current).read_text())
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return used
