"""A page for Prometheus: `GET /metrics` over plain HTTP, on a port of its own.

It has names, numbers and tenants' names, and asks nobody who they are: keep it to loopback, or to
those who scrape.
"""

from __future__ import annotations

import logging
import socket
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from lexico_proto.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_log = logging.getLogger(__name__)

PATH: Final = "/metrics"
IDLE_S: Final = 5.0
"""Longest silence, in seconds, of a reader that sends its request or takes the answer."""
READERS: Final = 4
"""Readers at a time; one more is hung up on."""
_AGAIN_S: Final = 1.0
_POLL_S: Final = 0.5


class Exposition:
    """Shows metrics until it is closed, from threads of its own.

    A port that is taken is waited for: an ingress that Serve replaces may still hold it, and an
    ingress without metrics is better than none.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Returns at once.

        Args:
            metrics: what is shown.
            host: address to listen on.
            port: 0 takes a free one.
        """
        from lexico_proto.prometheus import registry_of  # needs an optional package

        self._app = _app(registry_of(metrics))
        self._where = host, port
        self._closed = threading.Event()
        self._bound = threading.Event()
        self._handing_over = threading.Lock()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def port(self, within_s: float = 5.0) -> int | None:
        """The port taken; None where it is not bound within that time."""
        self._bound.wait(within_s)
        return None if self._server is None else self._server.server_port

    def close(self) -> None:
        """Ends it. Idempotent."""
        with self._handing_over:
            self._closed.set()
            server = self._server
        if server is not None:
            server.shutdown()
        self._thread.join(2 * IDLE_S)

    def _run(self) -> None:
        told = False
        while not self._closed.is_set():
            try:
                server = _Server(self._where, self._app)
            except OSError as error:
                if not told:
                    _log.warning("metrics wait for their port=%d: %s", self._where[1], error)
                told = True
                self._closed.wait(_AGAIN_S)
                continue
            with server:
                with self._handing_over:
                    if self._closed.is_set():
                        return
                    self._server = server
                self._bound.set()
                _log.info("metrics=%s port=%d", self._where[0], server.server_port)
                server.serve_forever(_POLL_S)  # from here on `close` ends it
                return


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = READERS

    def __init__(self, where: tuple[str, int], app: WSGIApplication) -> None:
        self._free = threading.BoundedSemaphore(READERS)
        family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self.address_family = family
        super().__init__(where, _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Without the look-up of the host's name that HTTPServer makes, which may hang."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "lexico", int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a reader of metrics went away", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("metrics " + format, *args)


def _app(registry: Any) -> WSGIApplication:
    from prometheus_client.exposition import make_wsgi_app

    show = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Any:
        if environ.get("REQUEST_METHOD") in ("GET", "HEAD") and environ.get("PATH_INFO") == PATH:
            return show(environ, start)
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"metrics are at /metrics\n"]

    return answer
