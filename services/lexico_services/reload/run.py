"""`lexico reload-server`: Reload and Dictionaries until a signal."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.watched import look_again
from lexico_services import beginning
from lexico_services.address_file import AddressFile, claimed
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.doors import check_doors, warn_of_doors
from lexico_services.health import HealthPort, health_port
from lexico_services.process import (
    address,
    announce,
    end_with_parent,
    on_reload,
    stop_event,
    take_port,
)
from lexico_services.reload.dictionaries_servicer import register_builtin_sets
from lexico_services.reload.server import ReloadServer
from lexico_services.settings import Settings
from lexico_services.store_look import look_at_start
from lexico_services.store_pings import pinged
from lexico_services.telemetry.config import INGRESS, RELOAD_BESIDE
from lexico_services.telemetry.running import Telemetry
from lexico_store import PageStore, open_store
from lexico_worker.malloc import keep_freed_memory

_log = logging.getLogger(__name__)

FIRST_TRY_S = 2.0
RETRY_S = 3.0


def run_reload(
    settings: Settings,
    address_file: Path | None,
    parent: int = 0,
    to_programs: TextIO | None = None,
) -> int:
    """Serves Reload and Dictionaries until a signal; exit code 0.

    Args:
        settings: its store is one that other processes reach.
        address_file: where to write the address, or None.
        parent: process to end with, or 0.
        to_programs: where the address goes as JSON; None has it printed for people.

    Raises:
        ConfigurationError: a setting that cannot be used, or the store answers and refuses us. A
            store that is away is waited for: calls meanwhile get StoreUnavailable.
    """
    url, listen, config = settings.store_url, settings.listen_reload, settings.reload
    if url.startswith("memory:"):
        raise ConfigurationError(
            "memory:// lives in one process, so no page could get there: give a URL that encoders "
            "reach too, such as unix:///path or redis://host"
        )
    check_doors(listen)
    end_with_parent(parent)
    if not parent:  # which has looked
        beginning.check(settings, ray=False)
        take_port(listen.host, listen.port)  # in one line; gRPC says more
    stopped = stop_event()
    on_reload("files", look_again)
    warn_of_doors(listen)
    keep_freed_memory()
    if not parent:
        settings.telemetry.check(INGRESS)
    with ExitStack() as stack:
        place = RELOAD_BESIDE if parent else INGRESS
        telemetry = Telemetry(settings.telemetry, "reload-server", place)
        stack.callback(telemetry.close)
        file = stack.enter_context(claimed(address_file))
        health = stack.enter_context(health_port(listen.health_address, ("reload",)))
        if health.address is not None:
            stack.enter_context(pinged(url, health.store))
        store = stack.enter_context(open_store(url, settings.store))
        tell = partial(announce, to_programs=to_programs)
        asyncio.run(_serve_reload(store, listen, config, file, health, stopped, telemetry, tell))
    return 0


async def _serve_reload(
    store: PageStore,
    listen: ListenConfig,
    config: ReloadConfig,
    address_file: AddressFile,
    health: HealthPort,
    stopped: threading.Event,
    telemetry: Telemetry,
    tell: Callable[[Mapping[str, str]], None],
) -> None:
    server = ReloadServer(store, listen, config)
    await server.start()
    tried = asyncio.Event()
    registering = asyncio.create_task(_register_when_possible(store, tried))
    try:
        # Whoever reads the address finds the sets there, if the store is well.
        await asyncio.wait([asyncio.create_task(tried.wait())], timeout=FIRST_TRY_S)
        if not registering.done() or registering.exception() is None:
            addresses = {"reload": address(listen.host, server.port)}
            if health.address is not None:
                addresses["health"] = health.address
            health.turn("reload", True)
            if (metrics := await asyncio.to_thread(telemetry.address)) is not None:
                addresses["reload-metrics"] = address(*metrics)
            address_file.write(addresses)
            tell(addresses)
        while not stopped.is_set():  # a signal handler may only set an event
            if registering.done():
                registering.result()
            health.beat()
            await asyncio.sleep(0.05)
    finally:
        health.drain()  # before anything closes
        registering.cancel()
        await server.drain()


async def _register_when_possible(store: PageStore, tried: asyncio.Event) -> None:
    """Looks at the store, then registers the built-in sets; again and again while it is away.

    Args:
        store: where they go.
        tried: set once the first try is over.

    Raises:
        ConfigurationError: the store refuses us, or cannot work as it is; waiting does not change
            that.
    """
    looked = False
    while True:
        try:
            if not looked:
                await asyncio.to_thread(look_at_start, store)
                looked = True
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
