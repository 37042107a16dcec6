"""Small duties of a server process: signals, parents, ports, announcements, logs."""

from __future__ import annotations

import _thread
import ctypes
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from lexico_proto.errors import ConfigurationError

_PR_SET_PDEATHSIG = 1


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. To be called from the main thread, before anything that
    must end in order is started.
    """
    event = threading.Event()

    def ask(*_: object) -> None:
        # The handler may interrupt this thread inside the event's own lock: set from another one.
        _thread.start_new_thread(event.set, ())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return event


def end_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM to this process when its parent is gone, however it went.

    Args:
        parent: process id of the parent that started this one.
    """
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it went before the call above
            os.kill(os.getpid(), signal.SIGTERM)


def take_port(host: str, port: int) -> int:
    """The port to listen on: `port` if it can be bound now, or for 0 one that is free.

    It is not held. What this is for is an answer at once and not after everything has started.

    Raises:
        ConfigurationError: the port is taken, or the host is not one of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections of a server that just ended do not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            if port:
                probe.listen(1)  # a bind alone may share with one that does not listen yet
            taken: int = probe.getsockname()[1]
            return taken
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(f"port {port} is taken on {host}") from error
        raise ConfigurationError(f"cannot listen on {address(host, port)}: {error}") from error


def address(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def announce(addresses: Mapping[str, str], file: Path | None) -> None:
    """Tells people and programs where the servers listen.

    Args:
        addresses: service → `host:port`.
        file: also written as JSON, whole or not at all; None for no file.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    for service, address in addresses.items():
        sys.stdout.write(f"{service:8} {address}\n")
    sys.stdout.flush()
    if file is not None:
        scratch = file.with_name(file.name + ".part")
        try:
            scratch.write_text(json.dumps(dict(addresses)))
            scratch.replace(file)
        except OSError as error:
            raise ConfigurationError(f"address file {file}: {error}") from error


def log_to_stderr(level: str) -> None:
    """Logs as `time level logger message`, the message key=value."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
