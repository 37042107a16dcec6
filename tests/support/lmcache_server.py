"""LMCache's MP server, in a process of its own, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from lexico_proto.metrics import ENGINE_PAGES
from tests.support.lmcache_fakes import LOCKS
from tests.support.vllm_engine import ROOT
from tests.support.waiting import wait_until

PYTHON: Final = os.environ.get("LEXICO_TEST_LMCACHE", "")
"""The Python that has vLLM and LMCache."""
MODULE: Final = "lexico_client.engines.lmcache"
CHUNK_TOKENS: Final = 64
SENT: Final = f"{ENGINE_PAGES.name} sent"

ENVIRONMENT: Final = {
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}
_LOOK_S: Final = 0.2


@dataclass
class LMCacheServer:
    """A running server."""

    port: int
    http: int
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def connector(self, patience: dict[str, Any] | None = None) -> dict[str, Any]:
        """`kv_transfer_config` of a vLLM engine that shares by it.

        Args:
            patience: what else the connector is told.
        """
        return {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": self.port,
                **(patience or {}),
            },
        }

    def start(self) -> None:
        """A process, once it answers. It may be started again after it ended."""
        path = [ROOT, ROOT / "proto", ROOT / "client"]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": ":".join(map(str, path))}
        with self.log.open("ab") as written:
            self.process = subprocess.Popen(
                self.command, stdout=written, stderr=written, env=environment, cwd=self.log.parent
            )
        wait_until(self._answers, "LMCache's server", self.said, every_s=_LOOK_S)

    def end(self) -> int:
        """Ends the process, as an operator would; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait()

    def status(self) -> dict[str, Any]:
        """What the server says of itself."""
        found: dict[str, Any] = json.loads(self._ask("status"))
        return found

    def adapter(self) -> dict[str, Any]:
        """What its one L2 adapter says of itself."""
        found: dict[str, Any]
        (found,) = self.status()["storage_manager"]["l2_adapters"]
        return found

    def counts(self) -> Counter[str]:
        """What our adapter counted: family and label values → number."""
        return Counter(self.adapter()["counted"])

    def stored(self, sent: int) -> None:
        """Waits until so many objects were sent to the service, as our adapter counts them."""

        def reached() -> bool:
            return self.counts()[SENT] >= sent

        wait_until(reached, f"{sent} objects to be sent", self.said, every_s=_LOOK_S)
        assert self.counts()[SENT] == sent

    def settle(self) -> None:
        """Waits until nothing is being stored."""

        def settled() -> bool:
            storing = self.status()["storage_manager"]["store_controller"]
            return not storing["pending_keys_count"] and not storing["in_flight_task_count"]

        wait_until(settled, "everything to be stored", every_s=_LOOK_S)

    def forget(self) -> None:
        """Empties the server's own memory."""
        self._ask("cache/clear", b"{}")

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"LMCache's server ended: {self.said()[-4000:]}")
        try:
            self._ask("healthcheck")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}/{path}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            found: bytes = answer.read()
        return found


@contextlib.contextmanager
def lmcache_server(
    adapter: dict[str, Any], log: Path, flags: Sequence[str] = ()
) -> Iterator[LMCacheServer]:
    """A server with an L2 adapter, for the block.

    Args:
        adapter: its specification.
        log: where it writes.
        flags: others of its command.
    """
    port, http, metrics = _free_ports(3)
    command = [
        *(PYTHON, "-m", "lmcache.cli.main", "server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--http-host", "127.0.0.1", "--http-port", str(http)),
        *("--prometheus-port", str(metrics)),
        *("--chunk-size", str(CHUNK_TOKENS), "--supported-transfer-mode", "auto"),
        *("--l1-size-gb", "0.5", "--eviction-policy", "LRU", "--max-workers", "2"),
        *(part for name, s in LOCKS.items() for part in (_option(name), str(s))),
        *("--l2-adapter", json.dumps(adapter), *flags),
    ]
    server = LMCacheServer(port, http, command, log)
    try:
        server.start()
        yield server
    finally:
        server.end()


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in made:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in made]
