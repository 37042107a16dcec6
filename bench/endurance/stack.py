"""The service as an operator runs it: Redis, a network, and `lexico serve` that is started again
whenever it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from lexico_store.child import spawn_bound
from tests.support.proxy import Proxy
from tests.support.servers import free_port

START_S: Final = 600
PASSWORD: Final = "endurance"


class Stack:
    """Redis, the proxy before it, and the service behind it."""

    def __init__(self, folder: Path, *, maxmemory: str, lease_s: float) -> None:
        """
        Args:
            folder: a short path: Ray's sockets lie below it.
            maxmemory: of Redis.
            lease_s: `encoder.lease_ttl_s`.
        """
        self.folder = folder
        self.restarts = 0
        self._maxmemory = maxmemory
        self._lease_s = lease_s
        self._port = free_port()
        self.redis = self._start_redis()
        self.proxy = Proxy(self._port)
        self.reload, self.offload = free_port(), free_port()
        self.serve = self._start_serve()

    def direct(self) -> redis.Redis:
        """A client of Redis itself, past the proxy."""
        return redis.Redis(port=self._port, password=PASSWORD, socket_timeout=5)

    def restart_redis(self) -> None:
        """Kills Redis; a new one takes its port, empty."""
        self.redis.kill()
        self.redis.wait()
        self.redis = self._start_redis()

    def revive(self) -> None:
        """Starts the service again where it ended: the supervisor's part."""
        if self.serve.poll() is not None:
            self.restarts += 1
            self.serve = self._start_serve()

    def wait_until_up(self) -> None:
        """Until both ports are announced, also after an end at the start.

        Raises:
            SystemExit: the service does not start any more.
        """
        deadline = time.monotonic() + START_S
        while not self._address.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"lexico serve does not start:\n{self._tail()}")
            self.revive()
            time.sleep(0.2)

    def processes(self) -> dict[str, psutil.Process]:
        """Title → process, of all that serve: children of the service, and Redis."""
        found = {"redis": psutil.Process(self.redis.pid)}
        with suppress(psutil.Error):
            serve = psutil.Process(self.serve.pid)
            found["serve"] = serve
            for child in serve.children(recursive=True):
                with suppress(psutil.Error):
                    found[f"{_title(child)} {child.pid}"] = child
        return found

    def one(self, words: str) -> psutil.Process | None:
        """A living process of the service whose title holds these words."""
        return next((p for title, p in self.processes().items() if words in title), None)

    def close(self) -> list[str]:
        """Ends all of it; what is left of the service afterwards."""
        family = list(self.processes().values())
        with suppress(psutil.Error):
            psutil.Process(self.serve.pid).terminate()
        code = self.serve.wait()
        self.proxy.close()
        self.redis.kill()
        self.redis.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        left = [f"{process}" for process in alive]
        temporary = self.folder / "tmp"
        left += [f"folder {path.name}" for path in temporary.iterdir()]
        return left + ([] if code == 0 else [f"exit code {code}"])

    def kill(self) -> None:
        """Ends all of it at once, whatever state it is in; nothing where it is closed."""
        for process in self.processes().values() if self.serve.returncode is None else ():
            with suppress(psutil.Error):
                process.kill()
        self.redis.kill()
        for child in (self.serve, self.redis):
            child.wait()

    @property
    def _address(self) -> Path:
        return self.folder / "address.json"

    def _start_redis(self) -> subprocess.Popen[bytes]:
        argv = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1"]
        argv += ["--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]
        argv += ["--maxmemory", self._maxmemory, "--maxmemory-policy", "volatile-ttl"]
        argv += ["--maxmemory-samples", "64"]
        started = spawn_bound(argv, self.folder, self.folder / "redis.log")
        deadline = time.monotonic() + START_S
        while True:
            with suppress(redis.RedisError):
                if self.direct().ping():
                    return started
            if time.monotonic() > deadline:
                raise SystemExit("redis-server does not start")
            time.sleep(0.05)

    def _start_serve(self) -> subprocess.Popen[bytes]:
        self._address.unlink(missing_ok=True)
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        line = [sys.executable, "-m", "lexico_services", "serve", "--drain-seconds", "5"]
        line += ["--offload-port", str(self.offload), "--reload-port", str(self.reload)]
        line += ["--start-seconds", str(START_S), "--address-file", str(self._address)]
        url = f"redis://:{PASSWORD}@127.0.0.1:{self.proxy.port}/0"
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "LEXICO_STORE": url,
            "LEXICO_ENCODER__LEASE_TTL_S": str(self._lease_s),
            "LEXICO_STORE__TIMEOUT_S": "2",
        }
        with (self.folder / "serve.log").open("ab") as log:
            return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log, env=environment)

    def _tail(self) -> str:
        return (self.folder / "serve.log").read_text(errors="replace")[-3000:]


class Nodes:
    """Node processes; one that ends is started again."""

    def __init__(self, stack: Stack, count: int, seed: int) -> None:
        self._stack = stack
        self._seed = seed
        self._started = 0
        self.ended: list[int] = []
        """Exit codes of those that ended before they were to."""
        self.living = [self._start() for _ in range(count)]

    def revive(self) -> None:
        """Starts those again that ended."""
        self.ended += [node.returncode for node in self.living if node.poll() is not None]
        self.living = [node if node.returncode is None else self._start() for node in self.living]

    def end(self) -> list[str]:
        """Lets each end its call; those that did not."""
        for node in self.living:
            node.terminate()
        hung = []
        for node in self.living:
            try:
                if (code := node.wait(120)) not in (0, -signal.SIGTERM):  # as it began
                    self.ended.append(code)
            except subprocess.TimeoutExpired:
                hung.append(f"node {node.pid}")
                node.kill()
                node.wait()
        return hung

    def kill(self) -> None:
        """Ends those that still live at once."""
        for node in self.living:
            node.kill()
            node.wait()

    def record(self) -> Iterator[dict[str, Any]]:
        """Every call of every node; a line that a kill cut short is left out."""
        for path in sorted(self._stack.folder.glob("node-*.jsonl")):
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    yield json.loads(line)

    def complaints(self) -> str:
        """What the nodes wrote to stderr, but for warnings of the client."""
        return "".join(
            path.read_text(errors="replace")[-2000:]
            for path in sorted(self._stack.folder.glob("node-*.err"))
            if "Traceback" in path.read_text(errors="replace")
        )

    def said(self, word: str) -> list[str]:
        """Different lines with a word that the nodes wrote to stderr, a few of them."""
        lines = {
            line[:300]
            for path in self._stack.folder.glob("node-*.err")
            for line in path.read_text(errors="replace").splitlines()
            if word in line.lower()
        }
        return sorted(lines)[:20]

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        name = self._stack.folder / f"node-{self._started}"
        line = [sys.executable, "-m", "bench.endurance.node"]
        line += [f"127.0.0.1:{port}" for port in (self._stack.reload, self._stack.offload)]
        line += [str(self._stack.folder / "sets"), str(self._seed * 1000 + self._started)]
        with name.with_suffix(".jsonl").open("wb") as out, name.with_suffix(".err").open("wb") as e:
            return subprocess.Popen(line, stdout=out, stderr=e)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short path, gone after the block unless it raises."""
    folder = Path(tempfile.mkdtemp(prefix="lxe", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    """Name and command line, of paths the last part."""
    words = [word.rpartition("/")[2] or word for word in process.cmdline()[1:]]
    return " ".join([process.name(), *words])[:80]
