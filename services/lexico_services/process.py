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
from collections.abc import Callable, Mapping
from typing import TextIO

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.logs import formatter

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

_reload_hooks: dict[str, Callable[[], None]] = {}
_reloading = threading.Lock()


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. To be called from the main thread, before anything that
    must end in order is started.

    SIGHUP, which a terminal sends that is closed, ends nothing from here on: it calls `reload`.
    """
    event = threading.Event()

    def ask(*_: object) -> None:
        # The handler may interrupt this thread inside the event's own lock: set from another one.
        _thread.start_new_thread(event.set, ())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    # The same is true of whatever the hooks lock.
    signal.signal(signal.SIGHUP, lambda *_: _thread.start_new_thread(reload, ()))
    return event


def end_by_interrupt() -> None:
    """Has SIGINT raise KeyboardInterrupt, unless this process was started with SIGINT ignored. For
    the main thread: in another one, which no signal reaches, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def on_reload(what: str, read_again: Callable[[], None]) -> None:
    """Has SIGHUP call a function that reads something again, in a thread of its own.

    Args:
        what: is read, for the log, such as `tokens`; a second hook of this name takes the place of
            the first.
        read_again: keeps what it had where it raises. It may block; the next hook waits for it.
    """
    _reload_hooks[what] = read_again


def reload() -> None:
    """Calls every hook, one after another. One that fails is logged, and the rest is called too."""
    with _reloading:
        for what, read_again in list(_reload_hooks.items()):
            try:
                read_again()
            except LexicoError as error:
                _log.error("reload=%s kept what it had: %s", what, error.message)
            except Exception:  # noqa: BLE001 - SIGHUP ends nothing, whatever a hook does
                _log.exception("reload=%s kept what it had", what)
            else:
                _log.info("reload=%s done", what)


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


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, the host without brackets.

    Raises:
        ConfigurationError: it is none.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    plain = bare == host and ":" in host  # IPv6 wants brackets, or the port is not told apart
    if not colon or not bare or plain or not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigurationError(f"address {text!r}: write HOST:PORT, such as 127.0.0.1:7413")
    return bare, int(port)


def announce(addresses: Mapping[str, str], to_programs: TextIO | None = None) -> None:
    """Tells people where the servers listen, or programs, as the address file has it.

    Args:
        addresses: service → `host:port`.
        to_programs: see `alone_on_stdout`; None for people.
    """
    if to_programs is not None:
        say(to_programs, f"{json.dumps(dict(addresses))}\n")
        return
    say(sys.stdout, "".join(f"{service:8} {address}\n" for service, address in addresses.items()))


def alone_on_stdout() -> TextIO:
    """Standard output for what programs read. What others print, as Ray does, goes to standard
    error from here on, and so does what processes print that are started later.
    """
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def say(stream: TextIO | None, text: str) -> None:
    """Writes to standard output or error, which may lead nowhere: to a terminal that was closed, or
    a program that has ended. What cannot be written is lost, and so is what follows: left in the
    buffer, it would make Python end with an exit code of its own.
    """
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except ValueError:  # it is closed
        pass


def log_to_stderr(level: str, form: str = "text") -> None:
    """Logs as `lexico_proto.logs` has it.

    Args:
        level: debug, info, warning or error.
        form: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler])
