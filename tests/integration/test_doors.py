"""A reload server as a process of its own: what it says of its doors, and SIGHUP."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lexico_client import Client, Tls
from lexico_proto.errors import StoreUnavailable, Unauthenticated, Unavailable
from tests.support.authorities import Authority
from tests.support.servers import address_of
from tests.support.waiting import PATIENCE_S, wait_until

TOKEN = "token-of-tenant-red"


@contextmanager
def _started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server without a store: whoever is let in is told that it is away."""
    line = [sys.executable, "-m", "lexico_services", "reload-server", "--port", "0"]
    line += ["--store", f"unix://{folder}/no-store", "--address-file", f"{folder}/address"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*line, *options], stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield process, folder / "log"
    finally:
        process.terminate()
        process.wait()


def test_hangup_reads_the_files_again(tmp_path: Path) -> None:
    authority, new = Authority(), Authority("new")
    pair = authority.issue().write(tmp_path, "server")
    known = (authority.write(tmp_path), new.write(tmp_path))
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{TOKEN}\n")
    options = ["--tls-certificate", f"{pair[0]}", "--tls-key", f"{pair[1]}"]
    with _started(tmp_path, *options, "--token-file", f"{tokens}") as (process, log):
        address = address_of(process, tmp_path / "address", log.read_text)["reload"]

        def refused(ca: Path) -> type[Exception]:
            with Client(
                reload=address, token=TOKEN, tls=Tls(ca=ca), dictionaries_dir=tmp_path
            ) as client:
                with pytest.raises((Unavailable, Unauthenticated)) as caught:
                    client.list_dictionaries(timeout=PATIENCE_S)
                return caught.type

        assert refused(known[0]) is StoreUnavailable
        tokens.write_text(f"red:{TOKEN[::-1]}\n")
        new.issue().write(tmp_path, "server")
        process.send_signal(signal.SIGHUP)
        # Until the signal has reached the files, no handshake fits the new authority.
        wait_until(lambda: refused(known[1]) is Unauthenticated, "the new certificate and tokens")
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_at_the_start_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    authority = Authority()
    certificate, _ = authority.issue().write(tmp_path, "server")
    _, key = authority.issue().write(tmp_path, "other")
    options = ["--tls-certificate", f"{certificate}", "--tls-key", f"{key}"]
    with _started(tmp_path, *options) as (process, log):
        assert process.wait(PATIENCE_S) == 2
        assert log.read_text() == f"lexico: key {key}: is not the key of {certificate}\n"


@pytest.mark.parametrize("token_file", [True, False])
def test_what_stands_open_is_said_at_the_start(tmp_path: Path, token_file: bool) -> None:
    (tmp_path / "tokens").write_text(f"red:{TOKEN}\n")
    who = ["--token-file", f"{tmp_path}/tokens"] if token_file else ["--allow-anonymous"]
    # A way to write loopback that is not known for one: nobody else can connect.
    with _started(tmp_path, "--host", "127.1", *who) as (process, log):

        def said() -> str:
            return log.read_text()

        def ended_or_said() -> bool:
            return process.poll() is not None or "travel in clear" in said()

        wait_until(ended_or_said, "the lines of the doors", said)
        assert ("tokens and caches travel in clear" in said()) is token_file
        assert ("read and write every page" in said()) is not token_file
        assert TOKEN not in said()
