"""`lexico serve`: the whole service on one machine, with embedded defaults."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from lexico_proto.errors import Busy, ConfigurationError, LexicoError, Unavailable
from lexico_proto.metrics import PROCESS
from lexico_services import beginning, supervisor
from lexico_services.address_file import claimed
from lexico_services.config import ListenConfig
from lexico_services.doors import check_doors, warn_of_doors
from lexico_services.ending import Ending
from lexico_services.health import HealthPort, health_port
from lexico_services.offload.server import OffloadServer
from lexico_services.process import (
    address,
    announce,
    on_reload,
    split_address,
    stop_event,
    take_port,
)
from lexico_services.reload.child import ReloadChild
from lexico_services.settings import Settings
from lexico_services.store_look import look_before_start
from lexico_services.store_pings import PING_EVERY_S, PINGS_MISSED, QUICK, pinged
from lexico_services.telemetry.config import INGRESS, RELOAD_BESIDE, SERVICE
from lexico_services.telemetry.gauges import watch_parts
from lexico_services.telemetry.running import Telemetry
from lexico_store import PageStore, open_store, reachable_store

_log = logging.getLogger(__name__)

WATCH_EVERY_S = 0.5


def run_offload(
    settings: Settings, address_file: Path | None, to_programs: TextIO | None = None
) -> int:
    """Serves Offload until a signal; exit code 0.

    Args:
        settings: of the service.
        address_file: where to write the addresses, or None.
        to_programs: where they go as JSON; None has them printed for people.

    Raises:
        ConfigurationError: a setting that cannot be used, a store that cannot work, or something
            that the machine lacks.
        Unavailable: Ray or the ingress is gone for good.
    """
    check_doors(settings.listen_offload)  # Ray takes long to start
    warn_of_doors(settings.listen_offload)
    look_before_start(settings.store_url)
    server = offload_server(settings, settings.store_url)
    beginning.check(settings)
    stopped = stop_event()
    ending = Ending(settings.listen_offload.drain_s)
    listen = settings.listen_offload
    with ExitStack() as stack:
        file = stack.enter_context(claimed(address_file))
        health = stack.enter_context(health_port(listen.health_address, ("offload",)))
        if health.address is not None:
            stack.enter_context(pinged(settings.store_url, health.store))
        telemetry = stack.enter_context(_telling(settings, INGRESS))
        watch_parts(PROCESS, {"ingress": lambda: server.answers, "ray": lambda: server.ray_runs})
        stack.callback(server.stop, ending)
        stack.callback(ending.begin)
        stack.callback(health.drain)  # before anything closes
        if not server.start(stopped):
            return 0
        addresses = {"offload": address(listen.host, server.port)} | _told(health)
        addresses |= _metrics_addresses(server, telemetry)
        on_reload("ingress", server.read_again)
        health.turn("offload", True)
        file.write(addresses)
        announce(addresses, to_programs)
        _watch([server.check, *_beats(health, server)], stopped)
    return 0


def _health_port(listen: ListenConfig) -> int:
    """Its number; 0 where any will do, or there is none."""
    return 0 if listen.health_address is None else split_address(listen.health_address)[1]


def _told(health: HealthPort) -> dict[str, str]:
    """What the address file says of it."""
    return {} if health.address is None else {"health": health.address}


def _beats(health: HealthPort, server: OffloadServer) -> list[Callable[[], None]]:
    """What the loop of this process tells the port."""
    return [health.beat, lambda: health.turn("offload", server.answers)]


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

    @property
    def answers(self) -> bool:
        """Whether it answered when it was asked last."""
        return not self._missed

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
            try:
                check()
            except LexicoError as error:
                supervisor.ends_because(error.message)
                raise
    _log.info("stopping")


def run_all(
    settings: Settings, address_file: Path | None, to_programs: TextIO | None = None
) -> int:
    """Starts store, reload server, Ray and ingress; serves until a signal; exit code 0.

    A part that is gone for good ends the rest: to start all of it again is the supervisor's part.

    Args:
        settings: `embedded://` as the store starts a server here.
        address_file: where to write the addresses, or None.
        to_programs: where they go as JSON; None has them printed for people.

    Raises:
        ConfigurationError: a setting or a store that cannot be used, or something that the machine
            lacks; nothing was started then.
        Unavailable: the reload server, the embedded store, Ray or the ingress is gone for good.
    """
    settings.check()
    listen = settings.listen_offload
    check_doors(listen)  # the reload server warns, in the same log
    ports = [listen.port, settings.listen_reload.port]
    given = [port for port in (*ports, _health_port(listen)) if port]
    twice = [port for port in given if given.count(port) > 1]
    if twice:
        raise ConfigurationError(f"port {twice[0]} is given twice")
    for port in ports:  # what cannot be used is said before anything is started
        take_port(listen.host, port)
    beginning.check(settings, store=True)
    stopped = stop_event()
    ending = Ending(listen.drain_s)
    with ExitStack() as stack:
        file = stack.enter_context(claimed(address_file))
        health = stack.enter_context(health_port(listen.health_address, ("offload", "reload")))
        telemetry = stack.enter_context(_telling(settings, INGRESS, RELOAD_BESIDE))
        url = stack.enter_context(reachable_store(settings.store_url, settings.store))
        look_before_start(url, log=False)  # the reload server says what it finds
        if health.address is not None:
            stack.enter_context(pinged(url, health.store))
        server = offload_server(settings, url)
        child = ReloadChild(settings.with_store(url).without_health())
        # Unwound in reverse: reload drains while ingress and encoders do, the store goes last.
        stack.callback(child.stop, ending)
        stack.callback(server.stop, ending)
        stack.callback(child.drain)
        stack.callback(ending.begin)
        stack.callback(health.drain)  # before anything closes
        checks = [child.check, server.check, *_beats(health, server)]
        parts = {
            "reload-server": lambda: child.runs,
            "ingress": lambda: server.answers,
            "ray": lambda: server.ray_runs,
        }
        if settings.store_url.startswith("embedded:"):
            watch = StoreWatch(stack.enter_context(open_store(url, QUICK)))
            checks.append(watch.check)
            parts["store"] = lambda: watch.answers
        watch_parts(PROCESS, parts)
        if not server.start(stopped):
            return 0
        reload = child.address(stopped, listen.start_s)
        if reload is None:
            return 0
        on_reload("ingress", server.read_again)
        on_reload("reload server", child.read_again)
        for part in ("offload", "reload"):
            health.turn(part, True)
        addresses = {"offload": address(listen.host, server.port), "reload": reload}
        addresses |= _told(health) | _metrics_addresses(server, telemetry) | child.metrics
        file.write(addresses)
        announce(addresses, to_programs)
        _watch(checks, stopped)
    return 0


def offload_server(settings: Settings, store_url: str) -> OffloadServer:
    """The ingress and its encoders, not started.

    Args:
        settings: of the service.
        store_url: of the store, as other processes reach it.
    """
    return OffloadServer(
        settings.listen_offload,
        settings.offload,
        settings.encoder(store_url),
        settings.ray,
        settings.telemetry,
    )


@contextmanager
def _telling(settings: Settings, *parts: int) -> Iterator[Telemetry]:
    """Telemetry of this process, the parent of the others, which are `parts` as `MetricsConfig.at`
    has them.
    """
    settings.telemetry.check(SERVICE, *parts)
    telemetry = Telemetry(settings.telemetry, "service", SERVICE, spans=False)
    try:
        yield telemetry
    finally:
        telemetry.close()


def _metrics_addresses(server: OffloadServer, telemetry: Telemetry) -> dict[str, str]:
    """Where the metrics of ingress and service are shown, if they are."""
    own = telemetry.address()
    if own is None:
        return {}
    port = server.metrics_port()
    found = {"service-metrics": address(*own)}
    return found if port is None else {"offload-metrics": address(own[0], port), **found}
