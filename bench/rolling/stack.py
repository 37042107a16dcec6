"""Servers behind names, and how one of them is replaced."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.names import Names
from tests.support.servers import free_port

START_S: Final = 600
DRAIN_S: Final = 10.0
TOLD_S: Final = 1.0
"""Between the moment in which a name leaves out a server, and its SIGTERM: a cluster has no order
there, and a pod waits for its preStop."""
KINDS: Final = {
    "reload": ("reload-server",),
    "offload": ("offload-server", "--encoders", "2", "--encoder-cpus", "0.3"),
}
ENCODER: Final = "ray::ServeReplica:lexico:Encoder"


@dataclass
class Server:
    """One server, on a loopback address of its own."""

    host: str
    process: subprocess.Popen[bytes]
    address_file: Path
    log: Path

    def wait_until_up(self) -> None:
        """Until it announces its address.

        Raises:
            SystemExit: it does not start.
        """
        deadline = time.monotonic() + START_S
        while not self.address_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.host} does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DRAIN_S + 60)

    def encoder(self) -> psutil.Process | None:
        """One of its encoders."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if ENCODER in " ".join(child.cmdline()[:1]):
                        return child
        return None


class Tier:
    """The servers of one kind, that one name stands for."""

    def __init__(self, kind: str, names: Names, store: str, folder: Path) -> None:
        """
        Args:
            kind: of `KINDS`.
            names: where the name is.
            store: URL.
            folder: for logs and address files.
        """
        self.kind = kind
        self._names = names
        self._store = store
        self._folder = folder
        self._port = free_port()
        self._hosts = (f"127.0.{2 + list(KINDS).index(kind)}.{i}" for i in itertools.count(1))
        self._started: list[Server] = []
        self.servers: list[Server] = []
        """Those that the name stands for, the oldest first."""

    def start(self, count: int) -> None:
        """So many servers; returns once the name stands for them."""
        self.servers = [self._start() for _ in range(count)]
        for server in self.servers:
            server.wait_until_up()
        self._tell()

    def stop(self) -> None:
        """Ends what still runs, however far the run came."""
        left = [server for server in self._started if server.process.poll() is None]
        for server in left:
            server.process.terminate()
        for server in left:
            server.process.wait()

    @property
    def target(self) -> str:
        """The address for clients."""
        return self._names.target(f"{self.kind}.lexico.test", self._port)

    def replace_first(self) -> dict[str, Any]:
        """As a cluster does: one more, which serves before the oldest goes."""
        began = time.time()
        new, old = self._start(), self.servers[0]
        new.wait_until_up()
        self.servers = [*self.servers[1:], new]
        self._tell()
        ready = time.time()
        time.sleep(TOLD_S)
        code = old.end()
        return {
            "what": self.kind,
            "at": began,
            "start_s": round(ready - began, 2),
            "drain_s": round(time.time() - ready - TOLD_S, 2),
            "exit_code": code,
        }

    def end(self) -> list[int]:
        """Exit codes of all of them."""
        return [server.end() for server in self.servers]

    def complaints(self) -> int:
        """Tracebacks in their logs."""
        logs = self._folder.glob(f"{self.kind}-*.log")
        return sum(log.read_text(errors="replace").count("Traceback") for log in logs)

    def _tell(self) -> None:
        self._names.set(f"{self.kind}.lexico.test", [server.host for server in self.servers])

    def _start(self) -> Server:
        host = next(self._hosts)
        file = self._folder / f"{self.kind}-{host}.json"
        command, *options = KINDS[self.kind]
        line = [sys.executable, "-m", "lexico_services", command, "--host", host]
        line += ["--port", str(self._port), "--address-file", str(file)]
        line += ["--drain-seconds", f"{DRAIN_S:g}", *options]
        if self.kind == "offload":
            line += ["--start-seconds", f"{START_S}"]
        environment = {**os.environ, "LEXICO_STORE": self._store, "OMP_NUM_THREADS": "1"}
        log = file.with_suffix(".log")
        with log.open("wb") as out:
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=out, env=environment)
        self._started.append(Server(host, process, file, log))
        return self._started[-1]


def restart_encoder(server: Server) -> dict[str, Any]:
    """SIGTERM to one encoder; Ray Serve starts another in its place."""
    began, encoder = time.time(), server.encoder()
    if encoder is None:
        raise SystemExit(f"{server.host} has no encoder")
    encoder.terminate()
    with suppress(psutil.TimeoutExpired):
        encoder.wait(30)
    return {"what": "encoder", "at": began, "drain_s": round(time.time() - began, 2)}
