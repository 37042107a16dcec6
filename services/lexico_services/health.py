"""Health on a port of its own, in plaintext: for probes that cannot show who they are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from lexico_proto.errors import ConfigurationError
from lexico_proto.v1 import (
    admin_pb2,
    dictionaries_pb2,
    offload_pb2,
    operations_pb2,
    reload_pb2,
    versions_pb2,
)
from lexico_services.process import address, split_address, take_port

_log = logging.getLogger(__name__)

LIVE: Final = ("", "live")
"""Names of the process itself, whatever it can serve: what to restart it by."""
READY: Final = "ready"
"""Name of all services together: what to send calls by."""
BEAT_S: Final = 60.0
"""Seconds without a beat, after which the process counts as stuck."""

_VERSIONS: Final = versions_pb2.DESCRIPTOR.services_by_name["Versions"].full_name
_OPERATIONS: Final = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
PARTS: Final[Mapping[str, Sequence[str]]] = {
    "offload": (
        offload_pb2.DESCRIPTOR.services_by_name["Offload"].full_name,
        _VERSIONS,
        _OPERATIONS,
    ),
    "reload": (
        reload_pb2.DESCRIPTOR.services_by_name["Reload"].full_name,
        dictionaries_pb2.DESCRIPTOR.services_by_name["Dictionaries"].full_name,
        admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
        _VERSIONS,
        _OPERATIONS,
    ),
}
"""Part → names of the services on its port."""

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_connection_idle_ms", 60_000),
)
_THREADS: Final = 2
_CALLS: Final = 64
"""Calls at a time, those that watch among them; one more is refused at once."""

_Status = health_pb2.HealthCheckResponse


class HealthPort:
    """Standard gRPC health of a process and nothing else. Any thread may call it.

    The process is live from `start` to `close`, unless it stops beating. A service is ready while
    its part is up and the store answers, until the process drains.
    """

    def __init__(
        self,
        target: str | None,
        parts: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            target: `HOST:PORT` to listen on, port 0 takes a free one; None for nowhere.
            parts: of `PARTS`, those that this process serves.
            clock: seconds; tests inject theirs.
        """
        self._target = target
        self._up = dict.fromkeys(parts, False)
        self._store = True
        self._draining = False
        self._clock = clock
        self._beat: float | None = None
        self._lock = threading.Lock()
        self._told: dict[str, bool] = {}
        self._servicer = _Servicer(self._alive)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="health")
        self._server: Any = None
        self.address: str | None = None
        """`HOST:PORT`, once it listens."""

    def start(self) -> None:
        """Binds and serves, if there is an address.

        Raises:
            ConfigurationError: it is taken or cannot be bound.
        """
        if self._target is None:
            return
        host, port = split_address(self._target)
        take_port(host, port)  # in one line; gRPC says more
        server = grpc.server(self._threads, options=_OPTIONS, maximum_concurrent_rpcs=_CALLS)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        try:
            port = server.add_insecure_port(self._target)
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen on {self._target}: {error}") from error
        for name in LIVE:
            self._servicer.tell(name, True)
        self._tell()
        server.start()
        self._server = server
        self.address = address(host, port)
        _log.info("health=%s", self.address)

    def turn(self, part: str, up: bool) -> None:
        """Says whether a part serves."""
        with self._lock:
            self._up[part] = up
            self._tell()

    def store(self, there: bool) -> None:
        """Says whether the page store answers."""
        with self._lock:
            self._store = there
            self._tell()

    def beat(self) -> None:
        """To be called every second or so from the loop that must go on. From the first beat on,
        a process that has not come by for `BEAT_S` is not live."""
        self._beat = self._clock()

    def drain(self) -> None:
        """No service is ready any more, for good. The process stays live: its end is under way, and
        takes no beats. Idempotent."""
        with self._lock:
            self._draining = True
            self._tell()

    def close(self) -> None:
        """Stops listening. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(None).wait(1.0)
            self._threads.shutdown(wait=False)

    def _alive(self) -> bool:
        beat = self._beat
        return self._draining or beat is None or self._clock() - beat <= BEAT_S

    def _tell(self) -> None:
        """With the lock, or before anyone else knows this object."""
        up = {
            part: there and self._store and not self._draining for part, there in self._up.items()
        }
        states = {READY: all(up.values())}
        for part, there in up.items():
            for name in PARTS[part]:  # of a service in both parts: both
                states[name] = there and states.get(name, True)
        for name, ready in states.items():
            if self._told.get(name) is not ready:
                self._told[name] = ready
                self._servicer.tell(name, ready)


@contextmanager
def health_port(target: str | None, parts: Sequence[str]) -> Iterator[HealthPort]:
    """A port that listens while the block runs; see `HealthPort`.

    Raises:
        ConfigurationError: the address is taken or cannot be bound.
    """
    port = HealthPort(target, parts)
    port.start()
    try:
        yield port
    finally:
        port.close()


class _Servicer(HealthServicer):
    def __init__(self, alive: Callable[[], bool]) -> None:
        super().__init__()
        self._alive = alive

    def tell(self, name: str, serving: bool) -> None:
        status = _Status.SERVING if serving else _Status.NOT_SERVING
        self.set(name, status)

    def Check(self, request: Any, context: Any) -> Any:
        """A process that is stuck cannot say so itself."""
        if request.service in LIVE and not self._alive():
            return _Status(status=_Status.NOT_SERVING)
        return super().Check(request, context)
