"""A TCP proxy on loopback that misbehaves as networks do: it swallows, delays, or refuses."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Passes bytes between those who connect to `port` and a server on loopback.

    It never resets a connection: what it has forgotten stays open and silent.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        """Made so far."""
        self.delay_s = 0.0
        """Of what a server sends, a piece."""
        self._forgotten = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def forget(self) -> None:
        """Swallows from now on what either end of the present connections sends."""
        self._forgotten = self.connections

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server_port))
                self.connections += 1
                self._sockets += [near, far]
                for source, sink, delayed in ((near, far, False), (far, near, True)):
                    thread = threading.Thread(
                        target=self._pass,
                        args=(source, sink, self.connections, delayed),
                        daemon=True,
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, number: int, delayed: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if number <= self._forgotten:
                    continue
                if delayed and self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
        if number > self._forgotten:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)
