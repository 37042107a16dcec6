"""What commands say where no server answers as they want it: one line, and what to do."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from lexico_services.config import ListenConfig
from lexico_services.door_config import TlsConfig
from lexico_services.server import GrpcServer
from tests.integration.test_commands import saved
from tests.support.authorities import Authority
from tests.support.lexico_command import Lexico
from tests.support.services import Services, running_services
from tests.support.waiting import PATIENCE_S

TOKEN = "token-of-a-node-0123"
COMMANDS = (
    ("status",),
    ("quota",),
    ("tenants",),
    ("inspect", "--prompt", "FILE"),
    ("explain", "--prompt", "FILE"),
    ("put", "FILE"),
    ("get", "--prompt", "FILE", "--out", "x.safetensors"),
    ("dictionaries", "list"),
    ("pin", "--prompt", "FILE"),
    ("forget", "--everything"),
    ("version", "--servers"),
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEXICO_OFFLOAD", "127.0.0.1:1")
    monkeypatch.delenv("LEXICO_TOKEN", raising=False)
    monkeypatch.setattr("lexico_client._async_client.cache_folder", lambda name: tmp_path / name)


def words_of(command: tuple[str, ...], folder: Path) -> list[str]:
    return [str(saved(folder)) if word == "FILE" else word for word in command]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Services]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{TOKEN}\n")
    async with running_services(token_file=tokens) as services:
        yield services


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_nobody_there(
    guarded: Services,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    lexico = Lexico(guarded, capsys)
    away = ("--reload", "127.0.0.1:1", "--timeout", PATIENCE_S)
    ended = await lexico(*words_of(command, tmp_path), *away, servers=False)
    assert (ended.code, ended.out) == (5, "")
    assert ended.err.startswith("lexico: ")
    assert ended.err.count("\n") == 1
    assert "127.0.0.1:1" in ended.err
    assert "Connection refused" in ended.err
    assert "does it run there?" in ended.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_a_token_that_nobody_knows(
    guarded: Services,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    (tmp_path / "bearer").write_text("token-of-a-stranger\n")
    lexico = Lexico(guarded, capsys)
    ended = await lexico(*words_of(command, tmp_path), "--bearer-file", tmp_path / "bearer")
    assert (ended.code, ended.out) == (4, "")
    assert "LEXICO_TOKEN" in ended.err
    assert "stranger" not in ended.err
    assert ended.err.count("\n") == 1


async def test_a_role_that_the_token_lacks(
    guarded: Services,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEXICO_TOKEN", TOKEN)
    lexico = Lexico(guarded, capsys)
    for command in COMMANDS:
        ended = await lexico(*words_of(command, tmp_path))
        if command[0] in ("status", "quota", "tenants", "inspect", "pin", "forget"):
            assert (ended.code, "docs/tenants.md" in ended.err) == (4, True), command
        else:
            assert ended.code in (0, 3), (command, ended)
    assert (await lexico("version", "--servers")).code == 0


async def test_tls_that_one_side_lacks(
    authority: Authority, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    served = TlsConfig(*authority.issue().write(tmp_path, "server"))
    known = authority.write(tmp_path)
    async with running_services(tls=served) as services:
        lexico = Lexico(services, capsys)
        plain = await lexico("quota")
        assert plain.code == 5
        assert "--tls" in plain.err
        assert (await lexico("quota", "--tls-ca", known)).code == 0
        strange = await lexico("quota", "--tls")
        assert strange.code == 5
        assert "no authority of --tls-ca made the server's certificate" in strange.err
        other = await lexico("quota", "--tls-ca", known, "--tls-server-name", "elsewhere.example")
        assert "--tls-server-name" in other.err
    async with running_services() as services:
        ended = await Lexico(services, capsys)("quota", "--tls-ca", known)
        assert ended.code == 5
        assert "leave --tls and --tls-ca out" in ended.err


async def test_grpc_writes_nothing_beside_the_line(authority: Authority, tmp_path: Path) -> None:
    """In a process of its own: it writes past Python's streams."""
    served = TlsConfig(*authority.issue().write(tmp_path, "server"))
    async with running_services(tls=served) as services:
        line = [sys.executable, "-m", "lexico_services", "quota", "--tls"]
        line += ["--reload", services.reload_address, "--timeout", str(PATIENCE_S)]
        run = partial(subprocess.run, line, capture_output=True, text=True, check=False)
        ended = await asyncio.to_thread(run)
    assert (ended.returncode, ended.stdout) == (5, "")
    assert ended.stderr.startswith("lexico: ")
    assert ended.stderr.count("\n") == 1


async def test_a_server_of_an_earlier_release(
    guarded: Services, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It knows none of the calls that this release adds."""
    server = GrpcServer(ListenConfig(drain_s=0), lambda _: None, ())
    await server.start()
    try:
        lexico = Lexico(guarded, capsys)
        there = ("--reload", f"127.0.0.1:{server.port}", "--timeout", PATIENCE_S)
        for command in (("status",), ("tenants",), ("inspect", "--prompt", "FILE")):
            ended = await lexico(*words_of(command, tmp_path), *there, servers=False)
            assert (ended.code, ended.out) == (1, "")
            assert "does not know this call: the server is of an earlier release" in ended.err
    finally:
        await server.drain()


async def test_watching_until_ctrl_c() -> None:
    """In a process of its own: its signals are what is looked at."""
    async with running_services() as services:
        line = [sys.executable, "-m", "lexico_services", "status", "--watch", "0.01", "--json"]
        line += ["--reload", services.reload_address, "--offload", services.offload_address]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for _ in range(2):
                seen = json.loads(await asyncio.to_thread(process.stdout.readline))
                assert all(each["over_s"] > 0 for each in seen["servers"])
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 130
            assert process.stderr.read() == ""
