"""`lexico serve`: the whole service on one machine, with embedded defaults."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lexico_proto.errors import Busy, ConfigurationError, LexicoError, Unavailable
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.offload.server import OffloadServer
from lexico_services.process import address, announce, end_with_parent, stop_event
from lexico_services.reload.dictionaries_servicer import register_builtin_sets
from lexico_services.reload.server import ReloadServer
from lexico_store import PageStore, StoreSettings, open_store, reachable_store
from lexico_worker.malloc import keep_freed_memory

_log = logging.getLogger(__name__)

FIRST_TRY_S = 2.0
RETRY_S = 3.0
WATCH_EVERY_S = 0.5
PING_EVERY_S = 2.0
PINGS_MISSED = 3
"""Pings in a row without an answer, after which the embedded store counts as gone."""


def run_offload(server: OffloadServer, host: str, address_file: Path | None) -> int:
    """Serves Offload until a signal; exit code 0.

    Raises:
        Unavailable: Ray or the ingress is gone for good.
    """
    stopped = stop_event()
    with ExitStack() as stack:
        stack.callback(server.stop)
        if not server.start(stopped):
            return 0
        announce({"offload": address(host, server.port)}, address_file)
        _watch([server.check], stopped)
    return 0


def run_reload(
    store_url: str,
    listen: ListenConfig,
    config: ReloadConfig,
    address_file: Path | None,
    parent: int = 0,
) -> int:
    """Serves Reload and Dictionaries until a signal; exit code 0.

    Args:
        store_url: page store that other processes reach.
        listen: where to listen.
        config: bounds.
        address_file: where to write the address, or None.
        parent: process to end with, or 0.

    Raises:
        ConfigurationError: a setting that cannot be used, or the store answers and refuses us. A
            store that is away is waited for: calls meanwhile get StoreUnavailable.
    """
    end_with_parent(parent)
    stopped = stop_event()
    keep_freed_memory()
    with open_store(store_url) as store:
        asyncio.run(_serve_reload(store, listen, config, address_file, stopped))
    return 0


async def _serve_reload(
    store: PageStore,
    listen: ListenConfig,
    config: ReloadConfig,
    address_file: Path | None,
    stopped: threading.Event,
) -> None:
    server = ReloadServer(store, listen, config)
    await server.start()
    tried = asyncio.Event()
    registering = asyncio.create_task(_register_when_possible(store, tried))
    try:
        # Whoever reads the address finds the sets there, if the store is well.
        await asyncio.wait([asyncio.create_task(tried.wait())], timeout=FIRST_TRY_S)
        if not registering.done() or registering.exception() is None:
            announce({"reload": address(listen.host, server.port)}, address_file)
        while not stopped.is_set():  # a signal handler may only set an event
            if registering.done():
                registering.result()
            await asyncio.sleep(0.05)
    finally:
        registering.cancel()
        await server.drain()


async def _register_when_possible(store: PageStore, tried: asyncio.Event) -> None:
    """Registers the built-in sets, again and again while the store is away.

    Args:
        store: where they go.
        tried: set once the first try is over.

    Raises:
        ConfigurationError: the store refuses us; waiting does not change that.
    """
    while True:
        try:
            await asyncio.to_thread(register_builtin_sets, store)
            return
        except ConfigurationError:
            raise
        except LexicoError as error:
            if not tried.is_set():
                _log.warning("built-in sets wait for the store reason=%s", error.reason)
        finally:
            tried.set()
        await asyncio.sleep(RETRY_S)


class ReloadChild:
    """A reload server as a child process, ended with this one."""

    def __init__(self, store_url: str, arguments: Sequence[str]) -> None:
        """
        Args:
            store_url: page store; it may hold a password, so it travels in the environment.
            arguments: further options of `lexico reload-server`.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="lexico-reload-")
        self._file = Path(self._scratch.name) / "address.json"
        command = [sys.executable, "-m", "lexico_services", "reload-server", *arguments]
        command += ["--address-file", str(self._file), "--parent", str(os.getpid())]
        environment = {**os.environ, "LEXICO_STORE": store_url}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    def address(self, stopped: threading.Event, within_s: float) -> str | None:
        """`host:port`, once the child listens; None if `stopped` was set before.

        Raises:
            ConfigurationError: it ended instead, or took over `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while not self._file.exists():
            if stopped.wait(0.02):
                return None
            if self._process.poll() is not None:
                raise ConfigurationError("the reload server did not start; its error is above")
            if time.monotonic() > deadline:
                raise ConfigurationError(f"the reload server took over {within_s:g} s")
        return str(json.loads(self._file.read_text())["reload"])

    def check(self) -> None:
        """Raises Unavailable where the process is gone."""
        if self._process.poll() is not None:
            raise Unavailable("the reload server ended by itself; its error is above")

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s` seconds. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()


class StoreWatch:
    """Asks the embedded store now and then whether it is there."""

    def __init__(self, store: PageStore) -> None:
        """
        Args:
            store: a handle with short timeouts; it stays the caller's.
        """
        self._store = store
        self._due = time.monotonic() + PING_EVERY_S
        self._missed = 0

    def check(self) -> None:
        """To be called every second or so; blocks for the store's timeout at most.

        Raises:
            Unavailable: the store has not answered several times in a row.
        """
        if time.monotonic() < self._due:
            return
        try:
            self._store.ping()
            self._missed = 0
        except (Busy, Unavailable) as error:
            self._missed += 1
            if self._missed >= PINGS_MISSED:
                raise Unavailable(f"the embedded store is gone: {error}") from error
        self._due = time.monotonic() + PING_EVERY_S


def _watch(checks: Sequence[Callable[[], None]], stopped: threading.Event) -> None:
    """Waits for a signal, or for the first part that is gone: its check raises."""
    while not stopped.wait(WATCH_EVERY_S):
        for check in checks:
            check()
    _log.info("stopping")


def run_all(
    store_url: str,
    offload: Callable[[str], OffloadServer],
    reload_arguments: Sequence[str],
    host: str,
    drain_s: float,
    start_s: float,
    address_file: Path | None,
) -> int:
    """Starts store, reload server, Ray and ingress; serves until a signal; exit code 0.

    A part that is gone for good ends the rest: to start all of it again is the supervisor's part.

    Args:
        store_url: where pages go; `embedded://` starts a server here.
        offload: makes the offload server for a store URL that other processes reach.
        reload_arguments: options of `lexico reload-server` but the store.
        host: where both servers listen.
        drain_s: seconds that running calls are given at shutdown.
        start_s: seconds that the reload server is given once the ingress listens.
        address_file: where to write the addresses, or None.

    Raises:
        Unavailable: the reload server, the embedded store, Ray or the ingress is gone for good.
    """
    stopped = stop_event()
    with ExitStack() as stack:
        url = stack.enter_context(reachable_store(store_url))
        server = offload(url)
        child = ReloadChild(url, reload_arguments)
        # Unwound in reverse: ingress and encoders first, then reload, then the store.
        stack.callback(child.stop, drain_s + 5)
        stack.callback(server.stop)
        checks = [child.check, server.check]
        if store_url.startswith("embedded:"):
            settings = StoreSettings(timeout_s=1.0, connect_timeout_s=1.0, max_connections=1)
            checks.append(StoreWatch(stack.enter_context(open_store(url, settings))).check)
        if not server.start(stopped):
            return 0
        reload = child.address(stopped, start_s)
        if reload is None:
            return 0
        announce({"offload": address(host, server.port), "reload": reload}, address_file)
        _watch(checks, stopped)
    return 0
