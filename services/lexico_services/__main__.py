"""The `lexico` command. Signals are answered before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

SERVERS = ("serve", "offload-server", "reload-server")
"""Commands that SIGTERM and SIGINT end with exit code 0, and SIGHUP does not end."""
SUPERVISED = ("serve", "offload-server")
"""Those that start other processes."""


def run() -> int:
    """Runs the command of `sys.argv`; returns its exit code."""
    command = next(iter(sys.argv[1:]), "")
    _answer_signals(command in SERVERS)
    _open_standard_streams()
    if command not in SERVERS:
        # An error is one line, ours: gRPC tells of handshakes that failed beside it.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if command in SUPERVISED:
        # Ray forks this process to start each of its own. gRPC would start a thread in each child,
        # which ends it where Python closes its files first: docs/adr/0081. It is read when gRPC is
        # imported.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from lexico_services import supervisor

    def work() -> int:
        from lexico_services.cli import main

        return main()

    return supervisor.run(work) if command in SUPERVISED else work()


def _answer_signals(server: bool) -> None:
    """Until a command takes them over, there is nothing to end in order."""

    def end(number: int, _: FrameType | None) -> None:
        os._exit(0 if server else 128 + number)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or server:
        signal.signal(signal.SIGINT, end)
    if server:
        signal.signal(signal.SIGTERM, end)
        # A handler, where SIG_IGN would be handed down to Ray and the store.
        signal.signal(signal.SIGHUP, lambda *_: None)


def _open_standard_streams() -> None:
    """Gives the null device to each that is closed, or a socket would take its number, and with it
    what a library or a child writes to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


if __name__ == "__main__":
    raise SystemExit(run())
