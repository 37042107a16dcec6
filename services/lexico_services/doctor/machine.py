"""Whether the machine, or the container, has what a start needs. Nothing heavy is imported."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lexico_proto import cgroup
from lexico_services import supervisor
from lexico_services.doctor.finding import Finding, fail, ok, size, warn
from lexico_services.doctor.needs import Needs
from lexico_worker.ray_runtime import SHARED, shared_bytes

LEAST_FREE: Final = 64 << 20
"""Bytes that Ray's logs and sockets need at the least."""
ENOUGH_FREE: Final = 1 << 30
LEAST_FILES: Final = 512
ENOUGH_FILES: Final = 4096
"""Files and connections of one process: a reload server has two for each of its callers."""
_SHARE: Final = 0.9
"""Of the memory that pages may take; the rest is for the processes themselves."""


def machine(needs: Needs) -> Iterator[Finding]:
    """Everything that a start looks at too."""
    yield temporary(needs)
    if needs.shared_bytes:
        yield shared(needs)
    yield memory(needs)
    yield cores(needs)
    yield open_files()
    yield user()


def temporary(needs: Needs) -> Finding:
    """Where sockets, logs and, without shared memory, pages go."""
    name, given = "tmp", supervisor.given_tmpdir()
    own = supervisor.folder()
    where = supervisor.place() if own is None else own.parent
    if where is None:
        return fail(
            name,
            f"no folder for temporary files can be written (TMPDIR={given or 'not set'})",
            f"set TMPDIR to a folder that can be written, such as a tmpfs or an emptyDir, its path "
            f"no longer than {supervisor.LONGEST_PLACE} bytes",
        )
    found = os.statvfs(where)
    free = found.f_bavail * found.f_frsize
    text = f"{where} has {size(free)} free"
    least = LEAST_FREE
    if needs.shared_bytes > shared_bytes():
        least += needs.shared_bytes
    mend = "free some, or set TMPDIR to a folder with more"
    if free < least:
        return fail(name, f"{text}, {size(least)} are needed", mend)
    if found.f_files and found.f_favail < 1000:
        return fail(name, f"{text}, but only {found.f_favail} inodes", mend)
    if given and len(os.fsencode(given)) <= supervisor.LONGEST_PLACE and where != Path(given):
        return warn(name, f"{text}, TMPDIR={given} cannot be written", "make it, or free some")
    if free < ENOUGH_FREE:
        return warn(name, f"{text}: Ray's logs may fill it", mend)
    return ok(name, text)


def shared(needs: Needs) -> Finding:
    """Whether pages in flight find room in the memory that processes share."""
    free = shared_bytes()
    text = f"{SHARED} has {size(free)} free, pages in flight need {size(needs.shared_bytes)}"
    if free >= needs.shared_bytes:
        return ok("shm", text)
    return warn(
        "shm",
        f"{text}, so they go to a file in the temporary folder, which is slower",
        f"give {SHARED} {size(needs.shared_bytes * 1.1)} (docker --shm-size, an emptyDir of medium "
        "Memory), or lower --max-inflight-mib and ray.object_store_bytes",
    )


def memory(needs: Needs) -> Finding:
    """Whether pages in flight and the embedded store fit the machine, or the container's limit."""
    total, pages = cgroup.memory(), needs.shared_bytes + needs.store_bytes
    if total is None:
        return ok("memory", "the system does not tell how much there is")
    limit = "the cgroup allows" if cgroup.memory_limit() == total else "the machine has"
    text = f"{limit} {size(total)}, pages in flight and store may take {size(pages)}"
    mend = (
        "raise the limit, or lower --max-inflight-mib, ray.object_store_bytes and the maxmemory "
        "of embedded://?maxmemory="
    )
    if needs.shared_bytes > total:
        return fail("memory", text, mend)
    if pages > total * _SHARE:
        return warn("memory", f"{text}: the kernel may kill the service", mend)
    return ok("memory", text)


def cores(needs: Needs) -> Finding:
    """Threads against what may run at a time."""
    there, quota = cgroup.cores(), cgroup.cpu_quota()
    text = f"{there} cores" + ("" if quota is None else f", by a quota of {quota:g} CPUs")
    if quota is not None and quota < 1:
        return warn(
            "cpu", f"{text}: a start may take minutes", "give 1 CPU or more, or --start-seconds"
        )
    asked = needs.encoder_threads or _omp_threads()
    if asked > there:
        return warn(
            "cpu",
            f"{text}, {asked} threads are asked for, which wait for each other",
            "lower encoder.threads, --max-encoders or OMP_NUM_THREADS",
        )
    return ok("cpu", text)


def _omp_threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() else 0


def open_files() -> Finding:
    """The limit of open files; a start raises its own to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        return ok("files", f"{'any number of' if hard < 0 else hard} open files")
    text = f"a process may open {hard} files"
    mend = f"raise the hard limit to {ENOUGH_FILES} or more (ulimit -Hn, LimitNOFILE=, --ulimit)"
    if hard < LEAST_FILES:
        return fail("files", text, mend)
    return warn("files", f"{text}: callers beyond that are refused", mend)


def user() -> Finding:
    """Who runs it, and where libraries may keep things."""
    home = os.environ.get("HOME", "")
    if supervisor.folder() is not None or (home and os.access(home, os.W_OK | os.X_OK)):
        return ok("user", f"uid {os.getuid()}, home {home or 'none'}")
    text = f"home {home} cannot be written" if home else "HOME is not set"
    return ok("user", f"uid {os.getuid()}, {text}: libraries get a temporary one")


def raise_file_limit() -> None:
    """Lets this process, and what it starts, open as many files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def readable_by_others(path: Path) -> bool:
    """Whether a file of secrets can be read by users who are not its owner."""
    return bool(path.stat().st_mode & 0o077)
