"""`lexico status` and Operations.Status: who sees which numbers, and what they add up to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lexico_client._endpoint import Endpoint
from lexico_client.commands import status as command
from lexico_client.commands.status import Said
from lexico_proto.errors import Unavailable
from lexico_proto.metrics import OTHER, TENANT_BYTES, Metrics
from lexico_proto.v1 import operations_pb2, operations_pb2_grpc, reload_pb2
from lexico_services.telemetry.process_status import ProcessStatus
from lexico_store import MemoryStore, StoreUsage
from tests.support.lexico_command import Lexico
from tests.support.services import Services, prompt, running_services, stream
from tests.support.waiting import PATIENCE_S

RED, BLUE, ALL = "red-token-0123456789", "blue-token-0123456789", "operator-token-0123"
NODE = "node-token-0123456789"
MADE = prompt()


class Counting(MemoryStore):
    """Has numbers, as a server has."""

    def usage(self) -> StoreUsage:
        return StoreUsage(used_bytes=3 << 20, max_bytes=12 << 20, evictions=7, connections=2)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(
        f"red:{NODE}\nred:{RED}:admin\nblue:{BLUE}:offload,reload,admin\nops:{ALL}:operator\n"
    )
    return file


@asynccontextmanager
async def used(tokens: Path) -> AsyncIterator[Services]:
    """Services that red has put two pages into, and loaded them from; blue asked in vain."""
    async with running_services(Counting(), token_file=tokens) as services:
        await use(services, NODE)
        await match(services, BLUE)
        yield services


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def match(services: Services, token: str) -> None:
    asked = reload_pb2.MatchRequest(
        page_keys=MADE.keys, namespace=MADE.spec.namespace, page_tokens=5, codec="raw"
    )
    await services.reload.Match(asked, metadata=bearer(token))


async def use(services: Services, token: str) -> None:
    await services.offload.Put(stream(MADE.upload()), metadata=bearer(token), timeout=PATIENCE_S)
    await match(services, token)
    request = reload_pb2.GetRequest(
        page_keys=MADE.keys, groups=MADE.spec.groups, namespace=MADE.spec.namespace
    )
    assert [part async for part in services.reload.Get(request, metadata=bearer(token))]


async def told(address: str, token: str) -> operations_pb2.StatusResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        answer: operations_pb2.StatusResponse
        answer = await stub.Status(operations_pb2.StatusRequest(), metadata=bearer(token))
        return answer


async def test_an_operator_sees_whole_servers(tokens: Path) -> None:
    async with used(tokens) as services:
        up = await told(services.offload_address, ALL)
        down = await told(services.reload_address, ALL)
    raw = MADE.spec.page_bytes
    assert (up.part, down.part) == ("ingress", "reload-server")
    assert (up.ingress.pages_stored, up.ingress.received_bytes) == (2, 2 * raw)
    assert (up.ingress.encoders, up.ingress.pages_waiting, up.ingress.inflight_bytes) == (2, 0, 0)
    assert up.ingress.inflight_limit_bytes > 0
    one = down.reload
    assert (one.matches_all, one.matches_none) == (1, 1)
    assert (one.match_tokens, one.hit_tokens, one.sent_pages) == (20, 10, 2)
    assert one.sent_bytes == up.ingress.stored_bytes > 2 * raw
    assert (one.store.up, one.store.numbers.used_bytes) == (True, 3 << 20)
    by_name = {each.tenant: each for each in down.tenants}
    assert by_name.keys() == {"red", "blue"}
    assert (by_name["red"].hit_tokens, by_name["blue"].hit_tokens) == (10, 0)


async def test_an_admin_sees_its_tenant_alone(tokens: Path) -> None:
    """And the same bytes, whatever another tenant did."""
    async with used(tokens) as services, running_services(token_file=tokens) as quiet:
        await use(quiet, NODE)
        for busy, alone in (
            (services.offload_address, quiet.offload_address),
            (services.reload_address, quiet.reload_address),
        ):
            seen = [await told(address, RED) for address in (busy, alone)]
            for each in seen:
                assert each.own.tenant == "red"
                each.ClearField("running_s")
            assert seen[0] == seen[1]
            assert not seen[0].HasField("ingress")
            assert not seen[0].HasField("reload")
            assert not seen[0].tenants
        mine = (await told(services.reload_address, BLUE)).own
        assert (mine.matches, mine.match_tokens, mine.sent_bytes) == (1, 10, 0)


async def test_tenants_that_share_a_series_are_told_nothing_of_it() -> None:
    metrics = Metrics(max_open=1)
    for tenant in ("red", "blue", "green"):
        metrics.counter(TENANT_BYTES, tenant, "received").add(5)
    status = ProcessStatus(metrics)
    assert [each.tenant for each in status.tenants()] == ["red", OTHER]
    red = status.tenant("red")
    assert red is not None
    assert red.received_bytes == 5
    assert status.tenant("blue") is None
    assert status.tenant(OTHER) is None, "though a tenant has that name"
    silent = Metrics()
    silent.configure(max_open=5, count=False)
    assert ProcessStatus(silent).tenant("red") is None


async def test_the_command_shows_it(
    tokens: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with used(tokens) as services:
        lexico = Lexico(services, capsys)
        monkeypatch.setenv("LEXICO_TOKEN", ALL)
        ended = await lexico("status", "--interval", "0")
        assert (ended.code, ended.err) == (0, "")
        lines = ended.out.splitlines()
        assert [each for each in lines if each.startswith(services.reload_address)]
        for word in ("Offload", "Reload", "3.0 MiB (25 %)", "Tenants", "blue", "50 %"):
            assert word in ended.out
        monkeypatch.setenv("LEXICO_TOKEN", RED)
        ended = await lexico("status", "--interval", "0")
        assert ended.code == 0
        assert "100 %" in ended.out
        for word in ("blue", "Offload", "Store", "3.0 MiB"):
            assert word not in ended.out
        monkeypatch.setenv("LEXICO_TOKEN", NODE)
        ended = await lexico("status")
        assert (ended.code, ended.out) == (4, "")
        assert "needs the role operator or admin" in ended.err
        assert (await lexico("tenants")).code == 4
        monkeypatch.setenv("LEXICO_TOKEN", ALL)
        found = (await lexico("tenants", "--json")).document["tenants"]
        assert {each["tenant"] for each in found} == {"red", "blue", "ops"}
        assert next(each for each in found if each["tenant"] == "red")["stored_bytes"] > 0


async def test_a_server_that_is_away_is_a_line_among_the_others(
    tokens: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXICO_TOKEN", ALL)
    async with used(tokens) as services:
        lexico = Lexico(services, capsys)
        ended = await lexico("status", "--interval", "0", "--json", "--reload", "127.0.0.1:1")
        assert ended.code == 5
        servers = {each["address"]: each for each in ended.document["servers"]}
        assert servers["127.0.0.1:1"]["reason"] == "unavailable"
        assert "does it run there?" in servers["127.0.0.1:1"]["error"]
        assert servers[services.offload_address]["reachable"] is True


def _said(running_s: float, **counters: int) -> Said:
    reload = operations_pb2.ReloadStatus()
    for name, number in counters.items():
        setattr(reload, name, number)
    response = operations_pb2.StatusResponse(
        part="reload-server", running_s=running_s, reload=reload
    )
    response.tenants.add(tenant="red", sent_bytes=counters.get("sent_bytes", 0))
    return Said(Endpoint("there:1"), response)


def test_rates_are_differences_by_the_servers_clock() -> None:
    before = _said(10.0, sent_pages=5, sent_bytes=1000, match_tokens=10, hit_tokens=0)
    after = _said(14.0, sent_pages=25, sent_bytes=1000, match_tokens=20, hit_tokens=5)
    (server,) = command._answer([before], [after]).document["servers"]
    assert server["over_s"] == 4.0
    assert server["reload"]["per_s"]["sent_pages"] == 5.0
    assert server["reload"]["per_s"]["sent_bytes"] == 0.0
    assert server["tenants"][0]["per_s"]["sent_bytes"] == 0.0
    shown = command._answer([before], [after]).parts
    assert any(
        "50 %" in line for part in shown if not isinstance(part, str) for line in part.lines()
    )


def test_a_server_that_began_anew_has_no_rates() -> None:
    (server,) = command._answer([_said(90.0, sent_pages=9)], [_said(2.0)]).document["servers"]
    assert (server["over_s"], server["reload"]["per_s"]) == (None, None)
    (server,) = command._answer([_said(1.0, sent_pages=9)], [_said(2.0)]).document["servers"]
    assert server["reload"]["per_s"] is None, "a counter went back"
    lost = Said(Endpoint("there:1"), error=Unavailable("away"))
    (server,) = command._answer([lost], [_said(2.0)]).document["servers"]
    assert (server["reachable"], server["over_s"]) == (True, None)
    json.dumps(server)
