"""Servers for tests: a real redis-server over TCP, and a fake one that misbehaves as told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar

import pytest

from lexico_proto.errors import StoreUnavailable
from lexico_store import EmbeddedServer, StoreSettings
from lexico_store.child import spawn_bound
from tests.support.waiting import PATIENCE_S, wait_until

PASSWORD = "p@ss/w:rd#1"  # every character that a URL gives a meaning to
PASSWORD_IN_URL = "p%40ss%2Fw%3Ard%231"
PATIENT = StoreSettings(
    timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S, start_timeout_s=PATIENCE_S
)
"""For calls that must succeed."""

T = TypeVar("T")


@dataclass
class RedisServer:
    """A running redis-server of Debian on loopback TCP, with a password."""

    port: int
    process: Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD_IN_URL}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def redis_server(
    directory: Path, *options: str, below: int = 1 << 16, tls: bool = False
) -> Iterator[RedisServer]:
    """Starts redis-server in `directory` on a free port; `options`: `--name`, `value` pairs.

    Args:
        below: the port is lower than this.
        tls: it is for TLS alone; `options` have the certificates.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError(
            "redis-server is not on PATH: run `make test`, or apt install redis-server"
        )
    for _ in range(5):  # another process may take the free port before the server does
        port = wait_until(lambda: free_port_below(below), f"a free port below {below}")
        listen = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
        argv = [binary, *listen, "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        argv += ["--save", "", "--appendonly", "no", *options]
        process = spawn_bound(argv, directory, directory / "redis.log")
        if _listens(port, process):
            break
    else:
        said = (directory / "redis.log").read_text()
        if tls and "Failed finding TLS support" in said:
            pytest.skip("this redis-server was built without TLS")
        raise RuntimeError(f"redis-server does not start: {said}")
    try:
        yield RedisServer(port, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def embedded_server(directory: Path | None = None) -> EmbeddedServer:
    """The server of the wheel, given all the time it needs to start."""
    return EmbeddedServer(directory, server="wheel", start_timeout_s=PATIENCE_S)


def answer_of(call: Callable[[], T]) -> T:
    """The first answer of a store whose deadlines may be too short for a busy machine."""
    answers: list[T] = []

    def answered() -> bool:
        with contextlib.suppress(StoreUnavailable):
            answers.append(call())
        return bool(answers)

    wait_until(answered, "an answer of the store")
    return answers[0]


def unread_bytes() -> int:
    """Bytes that sockets of this process have sent and no peer has taken."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(entry).startswith("socket:"):
                count = fcntl.ioctl(int(entry.name), termios.TIOCOUTQ, bytes(4))
                total += int.from_bytes(count, sys.byteorder)
    return total


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_port_below(bound: int) -> int:
    """As `free_port`; 0 if the system gave a higher one."""
    port = free_port()
    return port if port < bound else 0


def _listens(port: int, process: Popen[bytes]) -> bool:
    def decided() -> bool:
        if process.poll() is not None:
            return True
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_until(decided, "a redis-server that listens or has ended")
    return process.poll() is None


def address_of(
    process: Popen[Any], file: Path, said: Callable[[], object] | None = None
) -> dict[str, str]:
    """Service → `host:port` that a server of ours announces, once it listens.

    Args:
        process: the server; its end fails the test.
        file: its address file.
        said: its log, for the failure.
    """

    def listens() -> bool:
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {said() if said else 'no log'}")
        return file.exists()

    wait_until(listens, f"the address file of {process.args!r}", said)
    addresses: dict[str, str] = json.loads(file.read_text())
    return addresses


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is there and its sockets accept, but it does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


Answer = Callable[[int, list[bytes]], bytes | None]


class FakeServer:
    """A server on a unix socket that answers each command as `answer(connection, command)` says.

    An answer of None closes the connection; b"" says nothing. The handshake's CLIENT commands are
    answered here.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self.url = f"unix://{path}"
        self.connections = 0
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection, self.connections))
                self.connections += 1
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with (
            contextlib.suppress(OSError, ValueError),
            connection,
            connection.makefile("rb") as lines,
        ):
            while header := lines.readline():
                command = []
                for _ in range(int(header[1:])):
                    command.append(lines.read(int(lines.readline()[1:]) + 2)[:-2])
                reply = b"+OK\r\n" if command[0] == b"CLIENT" else self._answer(number, command)
                if reply is None:
                    return
                connection.sendall(reply)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
