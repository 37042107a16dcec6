"""The process above a service that starts others: whatever ends, and however, nothing is left.

`lexico serve` is two processes. The one that people see stays small: it passes signals on, holds
the whole shutdown to its deadline, and removes the temporary files at the end. The other one, in a
session of its own, is the service, the parent of everything else.

    killed                  who ends the rest
    the service             the supervisor: what the service started is handed to it by the kernel
    the supervisor          the service, which the kernel tells with SIGTERM
    one of the others       the service, as docs/lifecycle.md has it (Shutdown)
    supervisor and service  the kernel most of it; the next start removes the folder

Standard library alone: this process starts before anything heavy is imported, and never does it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "lx-"
LOCK_NAME: Final = "lock"

LONGEST_PLACE: Final = 16
"""Bytes of the path in which the folder is made: Ray's sockets, whose paths are limited, are in it.
"""
UNTOLD_S: Final = 25.0
"""Seconds that a service is given to end before it has said how long that may take."""
CLEARING_S: Final = 2.0
"""The last of those seconds: for ending what is left."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.05
_IDLE_S: Final = 60.0
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ENDS: Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: Final = {*_PASSED_ON, signal.SIGCHLD}


@dataclass
class _Above:
    """What the service knows of its supervisor."""

    pid: int
    told: int
    """File descriptor that it reads."""
    folder: Path | None
    tmpdir: str
    """TMPDIR as it was given."""


_above: _Above | None = None


def run(work: Callable[[], int]) -> int:
    """Runs `work` in a child process; returns in both.

    In the child the mask of signals and their handlers are those of before, `tempfile` makes its
    files in a folder that is removed when the child has ended, and SIGTERM follows the end of the
    supervisor. Where there is no such kernel (not Linux), `work` runs in this process.

    Returns:
        In the child what `work` returns. In the supervisor the child's exit code, 1 where it was
        killed, 0 where a signal asked it to end and it took too long.
    """
    if not sys.platform.startswith("linux"):
        return work()
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder = _make_folder()
    reader, writer = os.pipe()
    supervisor, child = os.getpid(), os.fork()
    if child == 0:
        os.close(reader)
        return _serve(work, _Above(supervisor, writer, folder, given_tmpdir()))
    os.close(writer)
    os.set_blocking(reader, False)
    above = _Supervisor(child, reader)
    try:
        return above.wait()
    finally:
        _end_descendants()
        for file in above.files:
            _remove_unlocked(file)
        if folder is not None:
            _remove(folder)
        if above.last_words:
            _say(above.last_words)


def ends_within(seconds: float) -> None:
    """Told by the service: how long its end may take in all, from the signal on."""
    _tell("within", seconds)


def ending() -> None:
    """Told by the service: it has begun to end, whoever asked it to."""
    _tell("ending")


def ends_because(reason: str) -> None:
    """Told by the service: what made it end, for the case that it is cut off before it says so."""
    _tell("because", reason)


def leaves(file: Path) -> None:
    """Told by the service: a file that it holds locked, and removes at its end."""
    _tell("leaves", str(file.absolute()))


def _tell(word: str, value: object = None) -> None:
    if _above is not None and os.getppid() == _above.pid:
        with suppress(OSError):  # it is gone
            os.write(_above.told, f"{json.dumps([word, value])}\n".encode())
            os.kill(_above.pid, signal.SIGCHLD)  # wakes it


def _serve(work: Callable[[], int], above: _Above) -> int:
    global _above
    _above = above
    os.setsid()  # a terminal speaks to the supervisor alone, and its end is none of the service
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if above.folder is not None:
        tempfile.tempdir = os.environ["TMPDIR"] = str(above.folder)
        _settle(above.folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    if os.getppid() != above.pid:  # it went before the call above
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        return work()
    finally:
        # It is over: while the interpreter ends, a handler of its own is one that kills.
        for number in _PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        if above.folder is not None and os.getppid() != above.pid:
            _remove(above.folder)


def _settle(folder: Path) -> None:
    """Gives a user whom the system does not know a name and a home, which libraries ask for."""
    home = os.environ.get("HOME", "")
    if not home or not os.access(home, os.W_OK | os.X_OK):
        os.environ["HOME"] = str(folder)
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")


class _Supervisor:
    def __init__(self, child: int, told: int) -> None:
        self._child = child
        self._told = told
        self._heard = ""
        self._within_s = UNTOLD_S
        self._because = ""
        self._asked: float | None = None  # when its end began
        self._by_signal = False
        self.files: list[Path] = []
        """What the child would remove at its end."""
        self.last_words = ""

    def wait(self) -> int:
        """Until the child has ended, or is ended."""
        while True:
            status = self._collect()
            if status is not None:
                return self._code(status)
            self._listen()
            left = _IDLE_S
            if self._asked is not None:
                left = self._asked + self._within_s - CLEARING_S - time.monotonic()
                if left <= 0:
                    return self._cut_off()
            info = signal.sigtimedwait(_HEARD, left)
            if info is not None and info.si_signo in _PASSED_ON:
                self._pass_on(info.si_signo)

    def _collect(self) -> int | None:
        """Status of the child if it has ended; collects every other child that has, as the kernel
        hands over those whose own parents ended.
        """
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self._child:
                    return status
                if pid == 0:
                    break
        return None

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            self._heard += os.read(self._told, 4096).decode()
        *lines, self._heard = self._heard.split("\n")
        for word, value in map(json.loads, lines):
            if word == "within":
                self._within_s = float(value)
            elif word == "because":
                self._because = f"{value}; "
            elif word == "leaves":
                self.files.append(Path(value))
            elif self._asked is None:
                self._asked = time.monotonic()

    def _pass_on(self, number: int) -> None:
        if number in _ENDS:
            self._by_signal = True
            self._asked = self._asked or time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _code(self, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        self.last_words = f"the service was killed by {name}; the rest was ended"
        return 1

    def _cut_off(self) -> int:
        seconds = self._within_s - CLEARING_S
        self.last_words = (
            f"{self._because}the end took over {seconds:g} s: what still ran was killed"
        )
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        return 0 if self._by_signal else 1


def _end_descendants() -> None:
    """Ends whatever still runs below this process: SIGTERM, and SIGKILL after a second. One that
    the kernel does not end is left: a disk or a device holds it.
    """
    asked: set[int] = set()
    began = time.monotonic()
    while (found := _descendants()) and (took_s := time.monotonic() - began) < 3 * CLEARING_S:
        late = took_s > CLEARING_S / 2
        for pid, dead in found.items():
            if not dead and (late or pid not in asked):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(pid)
        time.sleep(_POLL_S)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _descendants() -> dict[int, bool]:
    """Processes below this one, from /proc, and whether each is dead. The dead count: while the
    threads of one are ending, its children are still its own, and not handed to us.
    """
    parents: dict[int, int] = {}
    dead: dict[int, bool] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone meanwhile
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(entry.name)] = int(parent)
            dead[int(entry.name)] = state in "ZX"
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: dead[pid] for pid in found - {os.getpid()}}


def folder() -> Path | None:
    """The folder for temporary files of this run, known to the service; None where none is."""
    return None if _above is None else _above.folder


def given_tmpdir() -> str:
    """TMPDIR as the user gave it; empty where it is not set."""
    return os.environ.get("TMPDIR", "") if _above is None else _above.tmpdir


def place() -> Path | None:
    """Where the folder is made: `TMPDIR`, or /tmp where its path is too long for Ray's sockets;
    None where nothing can be written.
    """
    try:
        given = tempfile.gettempdir()
    except OSError:
        return None
    for each in (given, "/tmp"):
        if len(os.fsencode(each)) <= LONGEST_PLACE and os.access(each, os.W_OK | os.X_OK):
            return Path(each)
    return None


def _make_folder() -> Path | None:
    """The folder, locked while supervisor or service live; None where there is no place: the
    service says so.
    """
    where = place()
    if where is None:
        return None
    _remove_abandoned(where)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
        new = folder / f"{LOCK_NAME}.new"
        lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by the open file, which the child shares
        new.rename(folder / LOCK_NAME)  # with a lock from the first moment
    except OSError:
        return None
    return folder


def _remove_abandoned(where: Path) -> None:
    """Removes the folders of runs of this user whose supervisor and service were both killed."""
    for folder in where.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if _unlocked(folder / LOCK_NAME):
                shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(file: Path) -> None:
    with suppress(OSError):
        if _unlocked(file):
            file.unlink()


def _unlocked(file: Path) -> bool:
    """Whether no process holds its lock.

    Raises:
        OSError: there is no such file, or it is another user's.
    """
    lock = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + CLEARING_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0 if not folder.exists() else _POLL_S)


def _say(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
        sys.stderr.write(f"lexico: {text}\n")
        sys.stderr.flush()
