"""What a server does with signals, and with a standard output that leads nowhere."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lexico_proto import errors
from lexico_services import process
from tests.support.waiting import PATIENCE_S, wait_until

SERVER = """
import logging, sys
from lexico_services.process import announce, log_to_stderr, say, stop_event
stopped = stop_event()
log_to_stderr("info")
sys.stdin.readline()
announce({"offload": "127.0.0.1:1"})
for _ in range(1000):
    logging.getLogger("x").warning("line")
say(sys.stderr, "lexico: lost\\n")
stopped.wait()
"""


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    kept = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(process, "_reload_hooks", {})
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("hooks")
def test_sighup_calls_every_hook_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def refuse() -> None:
        raise errors.ConfigurationError("line 3 is no token")

    def break_down() -> None:
        raise OSError("no such file")

    process.on_reload("tokens", done.set)
    process.on_reload("tokens", refuse)
    process.on_reload("certificates", break_down)
    process.on_reload("keys", done.set)
    stopped = process.stop_event()
    signal.raise_signal(signal.SIGHUP)
    assert done.wait(PATIENCE_S)
    assert not stopped.is_set()
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == [
        "reload=tokens kept what it had: line 3 is no token",
        "reload=certificates kept what it had",
    ]
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stopped.wait(PATIENCE_S)


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_reader_that_is_gone_ends_nothing(kind: str) -> None:
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.close(ours)
    assert server.stdin is not None
    server.stdin.write(b"\n")
    server.stdin.flush()
    status = f"/proc/{server.pid}/fd/1"
    wait_until(
        lambda: server.poll() is not None or os.readlink(status) == "/dev/null",
        "a standard output that leads nowhere",
    )
    server.terminate()
    server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0


def test_closed_streams_are_opened_before_a_socket_takes_their_number() -> None:
    line = f"exec {sys.executable} -m lexico_services config <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", line], timeout=PATIENCE_S, check=False)
    assert done.returncode == 0
