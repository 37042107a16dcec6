"""A start of Ray that may take its time, and ends at once where it cannot succeed.

On a busy machine Ray's own limits end it after 30 s, and some of them no setting changes. Nor does
Ray look whether what it waits for still runs.
"""

from __future__ import annotations

import inspect
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from lexico_proto.errors import ConfigurationError

_LIMITS: Final = (
    ("RAY_gcs_server_port_wait_time_s", 1),
    ("RAY_agent_register_timeout_ms", 1000),
    ("RAY_worker_register_timeout_seconds", 1),
)
"""Limits that have settings, and their units in a second."""
_LISTEN_PORT: Final = "dashboard_agent_listen_port"
_AGENTS_PORTS: Final = (
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
    _LISTEN_PORT,
)
_PORTS: Final = range(20_000, 30_000)
"""For those: above those of its workers, below those that the kernel hands out."""
_TRIED_PORTS: Final = 1000
_ASK_EVERY_S: Final = 0.1
_AWAITED: Final = ("gcs_server", "raylet")
_LOOK_EVERY_S: Final = 0.02
_LAST_LOOK_MS: Final = 1000


def set_limits(seconds: float) -> None:
    """Puts the limits that have settings into the environment, where they are not set. To be called
    before Ray is imported.
    """
    for name, units in _LIMITS:
        os.environ.setdefault(name, str(round(seconds * units)))


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """`ray.init` inside starts a Ray whose parts may take so long each.

    It raises ConfigurationError where one of them has ended.
    """
    parts = _Parts()
    with (
        _agents_with_ports(),
        parts.known(),
        _port_waited_for(parts),
        _node_waited_for(seconds, parts),
    ):
        yield


class _Parts:
    """Ray's processes that its start waits for."""

    def __init__(self) -> None:
        self._processes: dict[str, Popen[bytes]] = {}

    def check(self) -> None:
        """Raises ConfigurationError where one has ended: Ray asks again after its own errors."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                raise ConfigurationError(f"its {name} ended {how}")

    @contextmanager
    def known(self) -> Iterator[None]:
        """Takes note of them when Ray starts them."""
        from ray._private import services

        module: Any = services
        own = {name: getattr(module, f"start_{name}") for name in _AWAITED}
        for name, start in own.items():
            setattr(module, f"start_{name}", self._noting(name, start))
        try:
            yield
        finally:
            for name, start in own.items():
                setattr(module, f"start_{name}", start)

    def _noting(self, name: str, start: Callable[..., Any]) -> Callable[..., Any]:
        def started(*arguments: Any, **options: Any) -> Any:
            found = start(*arguments, **options)
            self._processes[name] = found.process
            return found

        return started


@contextmanager
def _port_waited_for(parts: _Parts) -> Iterator[None]:
    """Has Ray wait for the port of its first process only while that runs, and signals be heard.

    Ray's own wait is below Python, and looks for the file alone.
    """
    from ray._private import node

    module: Any = node
    wait = module.wait_for_persisted_port

    def wait_watchfully(session: str, node_id: Any, name: str, timeout_ms: int) -> int:
        file = Path(session, module.get_port_filename(node_id, name))
        deadline = time.monotonic() + timeout_ms / 1e3
        while not file.exists() and time.monotonic() < deadline:
            parts.check()
            time.sleep(_LOOK_EVERY_S)
        port: int = wait(session, node_id, name, timeout_ms=_LAST_LOOK_MS)
        return port

    module.wait_for_persisted_port = wait_watchfully
    try:
        yield
    finally:
        module.wait_for_persisted_port = wait


@contextmanager
def _agents_with_ports() -> Iterator[None]:
    """Gives Ray's agents their ports before they run.

    An agent without one takes a free one and says so in a file. The raylet waits 30 s for the files
    and aborts; agents are Python with much to import, and a busy machine needs longer.
    """
    from ray._private import services
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    start: Any = services.start_raylet

    def start_with_ports(*arguments: Any, **options: Any) -> Any:
        call = inspect.signature(start).bind(*arguments, **options)
        call.arguments |= zip(_AGENTS_PORTS, _free_ports(len(_AGENTS_PORTS)), strict=True)
        session, node = call.arguments["session_dir"], call.arguments["node_id"]
        # The raylet is told the others; for this one it looks into the file alone.
        persist_port(session, node, _LISTEN_PORT, call.arguments[_LISTEN_PORT])
        return start(*call.args, **call.kwargs)

    services.start_raylet = start_with_ports
    try:
        yield
    finally:
        services.start_raylet = start


def _free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago."""
    found: list[int] = []
    for port in random.sample(_PORTS, _TRIED_PORTS):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            break
    return found


@contextmanager
def _node_waited_for(seconds: float, parts: _Parts) -> Iterator[None]:
    """Lets Ray's node take so long to appear.

    `ray.init` asks for it again and again, and gives up after 30 s. So it is the answer that waits.
    """
    from ray._private import services

    ask: Any = services.get_node

    def ask_patiently(*arguments: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > deadline:
                    raise
            parts.check()
            time.sleep(_ASK_EVERY_S)

    services.get_node = ask_patiently
    try:
        yield
    finally:
        services.get_node = ask
