"""Settings, tenants, budgets and statuses of the services."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest

from lexico_proto import errors
from lexico_proto.v1 import reload_pb2, reload_pb2_grpc
from lexico_services import server
from lexico_services.admission import ByteBudget, Slots
from lexico_services.auth import DEFAULT_TENANT, Tenants
from lexico_services.cli import main
from lexico_services.config import ListenConfig, OffloadConfig, ReloadConfig
from lexico_services.process import address, announce
from lexico_services.status import STATUS_CODES
from lexico_store.scopes import SHARED_SCOPE, tenant_scope
from lexico_worker.config import EncoderConfig
from tests.support.servers import address_of
from tests.support.waiting import PATIENCE_S, settle, wait_until


def test_every_error_has_a_grpc_status() -> None:
    assert {cls.status for cls in errors.ERRORS.values()} <= STATUS_CODES.keys()
    assert all(STATUS_CODES[n].value[0] == n for n in STATUS_CODES)
    assert len(STATUS_CODES) == len(grpc.StatusCode)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_tokens(host: str) -> None:
    assert ListenConfig(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example"])
def test_beyond_loopback_needs_tokens_or_a_word(host: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="token-file"):
        ListenConfig(host=host)
    ListenConfig(host=host, allow_anonymous=True)
    ListenConfig(host=host, token_file=Path("tokens"))


def test_ipv6_hosts_are_bracketed() -> None:
    assert address("::1", 7) == "[::1]:7"
    assert address("127.0.0.1", 7) == "127.0.0.1:7"


@pytest.mark.parametrize("port", [-1, 1 << 16])
def test_bad_ports(port: int) -> None:
    with pytest.raises(errors.ConfigurationError):
        ListenConfig(port=port)


def test_tenants_come_from_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# who\n\nred: 0123456789abcdef\nblue:fedcba9876543210\n")
    tenants = Tenants.of(ListenConfig(token_file=file))
    red = tenants.caller_of((("authorization", "Bearer 0123456789abcdef"),))
    blue = tenants.caller_of((("authorization", b"bearer fedcba9876543210"),))
    assert (red.scope, blue.scope) == (tenant_scope("red"), tenant_scope("blue"))
    for metadata in (None, (), (("authorization", "Basic 0123456789abcdef"),)):
        with pytest.raises(errors.Unauthenticated):
            tenants.caller_of(metadata)
    scopes = {tenant_scope("red"), tenant_scope("blue"), SHARED_SCOPE}
    assert len(scopes) == 3
    assert Tenants().caller_of(None).scope == tenant_scope(DEFAULT_TENANT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nobody\n",
        "no colon at all\n",
        ":0123456789abcdef\n",
        "red:short\n",
        "red:0123456789abcdef\nblue:0123456789abcdef\n",
    ],
)
def test_bad_token_files_are_refused_without_showing_tokens(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(errors.ConfigurationError) as caught:
        Tenants.of(ListenConfig(token_file=file))
    assert "0123456789abcdef" not in caught.value.message
    with pytest.raises(errors.ConfigurationError):
        Tenants.of(ListenConfig(token_file=tmp_path / "absent"))


def test_byte_budget() -> None:
    budget = ByteBudget(100)
    assert budget.take(30, 2) == 2
    assert budget.take(30, 2) == 1
    with pytest.raises(errors.Busy):
        budget.take(30, 1)
    with pytest.raises(errors.InvalidInput):
        budget.take(101, 1)
    budget.give_back(90)
    assert (budget.used, budget.peak) == (0, 90)


def test_slots() -> None:
    slots = Slots(1, "streams")
    with slots.held():
        with pytest.raises(errors.Busy, match="streams"), slots.held():
            pass
    with slots.held():
        pass


def test_settings_are_checked() -> None:
    refused: list[dict[str, Any]] = [{"max_inflight_bytes": 0}, {"pages_ahead": 0}]
    for bad in refused:
        with pytest.raises(errors.ConfigurationError):
            OffloadConfig(**bad)
    for url in ("memory://", "embedded://"):
        with pytest.raises(errors.ConfigurationError):
            EncoderConfig(url)
    for options in ({"min_replicas": 0}, {"min_replicas": 3}, {"page_ttl_s": 0.0}):
        with pytest.raises(errors.ConfigurationError):
            EncoderConfig("redis://127.0.0.1", **options)


def test_addresses_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    announce({"offload": "127.0.0.1:1", "reload": "127.0.0.1:2"})
    assert capsys.readouterr().out == "offload  127.0.0.1:1\nreload   127.0.0.1:2\n"
    announce({"offload": "127.0.0.1:1", "reload": "127.0.0.1:2"}, to_programs := io.StringIO())
    assert to_programs.getvalue() == '{"offload": "127.0.0.1:1", "reload": "127.0.0.1:2"}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["reload-server", "--store", "memory-less://x"],
        ["reload-server", "--store", "redis://127.0.0.1", "--host", "0.0.0.0"],
        ["reload-server", "--store", "memory://", "--token-file", "/absent"],
        ["serve", "--store", "memory://"],
        ["offload-server", "--store", "embedded://"],
        ["serve", "--encoders", "0"],
    ],
)
def test_unusable_settings_exit_2_and_say_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lexico: ")


def test_a_reload_server_starts_before_its_store_and_ends_with_0(tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    command = [sys.executable, "-m", "lexico_services", "reload-server", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--store", "redis://127.0.0.1:1", "--address-file", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LEXICO_CACHE": str(tmp_path)},
    )
    try:
        with grpc.insecure_channel(address_of(process, file)["reload"]) as channel:
            request = reload_pb2.MatchRequest(page_keys=[b"k" * 32])
            codes = []

            def refused() -> bool:
                with pytest.raises(grpc.RpcError) as caught:
                    reload_pb2_grpc.ReloadStub(channel).Match(request, timeout=PATIENCE_S)
                codes.append(caught.value.code())
                return codes[-1] is not grpc.StatusCode.DEADLINE_EXCEEDED

            wait_until(refused, "a Match that the server had time for")
            assert codes[-1] is grpc.StatusCode.UNAVAILABLE
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert said.count("built-in sets wait for the store") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [field.name for field in fields(ReloadConfig)])
def test_bounds_of_the_reload_server_are_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(errors.ConfigurationError, match=name):
        ReloadConfig(**{name: value})  # type: ignore[arg-type]


def test_the_buffers_of_the_reload_server_hold_at_least_one_frame_and_one_set() -> None:
    ReloadConfig(max_buffered_bytes=64 << 20)
    for bad in ({"max_buffered_bytes": 1 << 20}, {"max_dictionary_bytes": 1 << 30}):
        with pytest.raises(errors.ConfigurationError, match="max_buffered_bytes"):
            ReloadConfig(**bad)


async def test_bytes_are_waited_for_in_turn() -> None:
    budget = ByteBudget(100)
    assert budget.take_spare(40, 3) == 2
    order: list[str] = []

    async def wait(name: str, unit: int) -> None:
        assert await budget.wait(unit, 1) == 1
        order.append(name)

    names = {"large": 90, "gone": 10, "small": 15}
    tasks = {name: asyncio.create_task(wait(name, unit)) for name, unit in names.items()}
    await settle()
    assert budget.take_spare(10, 1) == 0  # others wait
    tasks["gone"].cancel()
    budget.give_back(40)
    await settle()
    assert order == []  # nobody passes the first
    budget.give_back(40)
    await settle()
    assert order == ["large"]
    budget.give_back(90)
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order == ["large", "small"]
    assert budget.used == 15
    with pytest.raises(errors.InvalidInput):
        await budget.wait(101, 1)


def test_servers_ask_whether_their_peers_are_there() -> None:
    options = dict(server._OPTIONS)
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_timeout_ms"] == 10_000
