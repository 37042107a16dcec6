"""Child processes that end with this process, also when it ends by SIGKILL and runs no handler.

On Linux the kernel does it (PR_SET_PDEATHSIG). The trap: the signal is tied to the *thread* that
forked, and fires when that thread ends. So every child is forked by one thread that lives until the
process does.
"""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1

_Popen = subprocess.Popen[bytes]


def spawn_bound(
    argv: Sequence[str], directory: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `argv` in `directory`, as a child that the kernel kills when this process ends.

    Its output goes to `log`, never to ours: a child that lives on for a moment would hold a pipe
    open that someone waits on. It gets its own session, so that Ctrl-C in a terminal leaves it to
    us. Where the kernel cannot bind (not Linux), the child is not bound.

    Args:
        environment: what the child's environment has beside ours.

    Raises:
        OSError: it cannot be started.
    """
    return _spawner().run(lambda: _spawn(argv, directory, log, environment or {}))


def _spawn(
    argv: Sequence[str], directory: Path, log: Path, environment: Mapping[str, str]
) -> _Popen:
    prefix, hook = _binding(shutil.which("setpriv"))
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, *argv],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hook,
            env={**os.environ, **environment},
        )


@functools.cache
def _binding(setpriv: str | None) -> tuple[list[str], Callable[[], None] | None]:
    """What binds a child to us: a command in front of it, or else a hook between fork and exec."""
    if not sys.platform.startswith("linux"):
        return [], None
    if setpriv is not None and _knows_pdeathsig(setpriv):
        return [setpriv, "--pdeathsig", "KILL", "--"], None
    libc = ctypes.CDLL(None)
    return [], lambda: _bind_after_fork(libc, os.getppid())


def _knows_pdeathsig(setpriv: str) -> bool:
    """BusyBox's setpriv and util-linux before 2.33 do not have the option."""
    shown = subprocess.run([setpriv, "--help"], capture_output=True, text=True, check=False)
    return "--pdeathsig" in shown.stdout + shown.stderr


def _bind_after_fork(libc: ctypes.CDLL, parent: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before the call: nobody would ever end us.
        os._exit(1)


class _Spawner:
    """The thread that forks. A daemon, and it never returns: it ends when the process does."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], _Popen], Future[_Popen]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._serve, name="lexico-spawner", daemon=True).start()

    def run(self, job: Callable[[], _Popen]) -> _Popen:
        future: Future[_Popen] = Future()
        self._jobs.put((job, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  (it is raised again in the caller's thread)
                future.set_exception(error)
            # Or the last job's child and error would live as long as the thread.
            del job, future


@functools.cache
def _spawner() -> _Spawner:
    return _Spawner()


if hasattr(os, "register_at_fork"):
    # A forked copy of this process has no spawner thread, so it must make its own.
    os.register_at_fork(after_in_child=_spawner.cache_clear)
