"""What the services make of a store that cannot work, or will disappoint."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexico_proto.errors import ConfigurationError
from lexico_services.cli import main
from lexico_services.store_look import look_at_start, look_before_start
from lexico_store import Finding, Level, MemoryStore
from lexico_store.redis_rights import RULE
from tests.support.servers import RedisServer, address_of, free_port, redis_server
from tests.support.topologies import client_of
from tests.support.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    """Of a user that may not use scripts."""
    with client_of(server) as client:
        rights = f"{RULE} -@scripting".split()
        client.execute_command("ACL", "SETUSER", "pages", "reset", "on", ">secret", *rights)
    return f"redis://pages:secret@127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "command", [["reload-server", "--port", "0"], ["offload-server", "--port", "0"], ["serve"]]
)
def test_a_store_that_cannot_work_ends_the_start(
    url: str, command: list[str], tmp_path: Path
) -> None:
    """In one line that says what is missing, before Ray is started."""
    done = subprocess.run(
        [sys.executable, "-m", "lexico_services", *command],
        env={**os.environ, "LEXICO_STORE": url, "LEXICO_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert "may not use EVALSHA, EVAL: allow it +evalsha +eval" in said
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_will_disappoint_is_logged_once(server: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    command = [sys.executable, "-m", "lexico_services", "reload-server", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--address-file", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LEXICO_STORE": server.url, "LEXICO_CACHE": str(tmp_path)},
    )
    try:
        address_of(process, file)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert said.count("store finding=the store has no maxmemory") == 1


class _Found(MemoryStore):
    def look(self) -> list[Finding]:
        return [
            Finding(Level.WARNING, "a is so", "do b"),
            Finding(Level.NOTE, "c is so", ""),
        ]


def test_findings_become_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lexico_services.store_look"):
        look_at_start(_Found())
        look_at_start(_Found(), log=False)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("WARNING", "store finding=a is so: do b"), ("INFO", "store finding=c is so")]


def test_a_store_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    look_before_start(f"redis://127.0.0.1:{free_port()}")
    assert "store is away reason=" in caplog.text


def test_a_wrong_password_is_refused(server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="password"):
        look_before_start(f"redis://:wrong@127.0.0.1:{server.port}")
    assert main(["reload-server", "--store", f"redis://:wrong@127.0.0.1:{server.port}"]) == 2
