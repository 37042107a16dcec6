"""What this process may use of its machine: a container's limits stand in cgroups, v1 or v2.

The kernel tells a process in a container how many cores and how much memory the *machine* has. Both
are limited by the cgroup of the process and by each one above it, as far as they can be seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_UNLIMITED: Final = 1 << 60
"""cgroup v1 writes a limit above this for none."""


def cores(proc: Path = PROC) -> int:
    """Threads that can run at a time: by affinity, and no more than the CPU quota, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    allowed = allowed or os.cpu_count() or 1
    quota = cpu_quota(proc)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(proc: Path = PROC) -> float | None:
    """CPUs that the quota allows, such as 1.5; None where there is no quota."""
    found = []
    for folder in _folders(proc, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                found.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            us = int((folder / "cpu.cfs_quota_us").read_text())
            if us > 0:
                found.append(us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(found, default=None)


def memory_limit(proc: Path = PROC) -> int | None:
    """Bytes that the processes of this cgroup may hold together; None where there is no limit."""
    found = []
    for folder in _folders(proc, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                found.append(int((folder / name).read_text()))
    return min((limit for limit in found if limit < _UNLIMITED), default=None)


def memory(proc: Path = PROC) -> int | None:
    """Bytes of memory: the machine's, or the limit where that is less; None where none is told."""
    found = [memory_limit(proc)]
    with suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        total = next(line for line in lines if line.startswith("MemTotal:"))
        found.append(int(total.split()[1]) << 10)
    return min((each for each in found if each is not None), default=None)


def _folders(proc: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroup that limits this process and of those above it, v1 and v2."""
    paths: dict[str, str] = {}
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            paths |= dict.fromkeys(controllers.split(","), path)  # "" is v2
    with suppress(OSError):
        for line in (proc / "self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            root, mount = before.split()[3:5]
            kind, _, options = after.partition(" ")
            is_v1 = kind == "cgroup" and controller in options.split()[-1].split(",")
            if is_v1 or kind == "cgroup2":
                path = paths.get(controller if is_v1 else "", "/")
                yield from _up(Path(mount), root, path)


def _up(mount: Path, root: str, path: str) -> Iterator[Path]:
    """From the cgroup at `path` up to the mount, which shows the tree below `root`."""
    below = Path(path.removeprefix(root) if path.startswith(root) else path).as_posix().strip("/")
    folder = mount / below
    if ".." in below.split("/") or not folder.is_dir():
        folder = mount  # a container sees its own cgroup here, by whatever name
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent
