"""What callers may do, over real sockets: every call against every role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from lexico_client import AsyncClient, GrpcTransport
from lexico_client._dictionaries import register_messages
from lexico_client.commands.connection import Callers
from lexico_proto.errors import LexicoError, PermissionDenied, Unauthenticated
from lexico_proto.metrics import METHODS
from lexico_proto.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    dictionaries_pb2,
    operations_pb2,
    operations_pb2_grpc,
    reload_pb2,
    versions_pb2,
)
from lexico_proto.watched import look_again
from tests.support.dictionaries import random_set
from tests.support.services import Services, error_of, prompt, running_services, serialised
from tests.support.waiting import PATIENCE_S

ALLOWED = {
    "put": {"offload"},
    "register": {"offload"},
    "get": {"reload"},
    "match": {"offload", "reload"},
    "namespaces": {"offload", "reload"},
    "fetch": {"offload", "reload"},
    "list": {"offload", "reload"},
    "describe": {"offload", "reload"},
    "find": {"offload", "reload"},
    "publish": {"admin"},
    **{key: {"admin"} for key in ("usage", "pin", "unpin", "forget", "inspect")},
    "tenants": {"operator"},
    "status": {"admin", "operator"},
}
ADMIN_CALLS = {
    "usage": admin_pb2.UsageRequest(),
    "pin": admin_pb2.PinRequest(),
    "unpin": admin_pb2.UnpinRequest(pin=bytes(16)),
    "forget": admin_pb2.ForgetRequest(everything=True),
    "inspect": admin_pb2.InspectRequest(),
    "tenants": admin_pb2.TenantsRequest(),
}


def _calls(transport: GrpcTransport) -> dict[str, Callable[[], Awaitable[object]]]:
    sent, made = prompt(), random_set(3, 8)

    async def get() -> object:
        request = reload_pb2.GetRequest(page_keys=sent.keys, groups=sent.spec.groups)
        return [each async for each in transport.get(request, PATIENCE_S)]

    async def fetch() -> object:
        request = dictionaries_pb2.FetchRequest(digest=made.digest)
        return [each async for each in transport.fetch(request, PATIENCE_S)]

    async def status() -> object:
        asked, stub = operations_pb2.StatusRequest(), operations_pb2_grpc.OperationsStub
        async with Callers(PATIENCE_S) as callers:
            servers = (transport._reload, transport._endpoint("offload"))
            return [await callers.ask(each, stub, "Status", asked) for each in servers]

    async def describe() -> object:
        asked = versions_pb2.DescribeRequest()
        return [await transport.describe(s, asked, PATIENCE_S) for s in ("reload", "offload")]

    return {
        "describe": describe,
        "status": status,
        "put": lambda: transport.put(serialised(sent.upload()), PATIENCE_S),
        "register": lambda: transport.register(register_messages(made), PATIENCE_S),
        "get": get,
        "match": lambda: transport.match(reload_pb2.MatchRequest(page_keys=sent.keys), PATIENCE_S),
        "namespaces": lambda: transport.namespaces(
            reload_pb2.NamespacesRequest(namespace=sent.spec.namespace), PATIENCE_S
        ),
        "fetch": fetch,
        "list": lambda: transport.list_dictionaries(PATIENCE_S),
        "find": lambda: transport.find(
            dictionaries_pb2.FindRequest(models=[bytes(32)], codec="lexico"), PATIENCE_S
        ),
        "publish": lambda: transport.publish(
            dictionaries_pb2.PublishRequest(models=[bytes(32)]), PATIENCE_S
        ),
    }


async def test_every_call_asks_for_its_role(tmp_path: Path) -> None:
    assert set(ALLOWED) == set(METHODS)
    roles = ("offload", "reload", "admin", "operator")
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"red:token-with-the-role:of-{r}:{r}\n" for r in roles))
    async with running_services(token_file=tokens) as services:
        for role in roles:
            transport = GrpcTransport(
                services.reload_address, services.offload_address, f"token-with-the-role:of-{role}"
            )
            calls = _calls(transport)
            assert set(calls) | set(ADMIN_CALLS) == set(METHODS)
            for name, call in calls.items():
                if role in ALLOWED[name]:
                    await call()
                else:
                    with pytest.raises(PermissionDenied, match="needs the role"):
                        await call()
            await transport.close()
            await _admin_calls(services, role, f"token-with-the-role:of-{role}")


async def _admin_calls(services: Services, role: str, token: str) -> None:
    """No client makes them: an operator's command does. One that is admitted may refuse more."""
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(services.reload_address) as channel:
        stub = admin_pb2_grpc.AdminStub(channel)
        for name, request in ADMIN_CALLS.items():
            said: LexicoError | None = None
            try:
                await getattr(stub, name.capitalize())(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                said = error_of(error)
            assert isinstance(said, PermissionDenied) is (role not in ALLOWED[name]), (name, said)


async def test_a_load_without_the_role_is_a_miss(tmp_path: Path) -> None:
    sent, tokens = prompt(), tmp_path / "tokens"
    tokens.write_text("red:token-that-writes-alone:offload\n")
    async with (
        running_services(token_file=tokens) as services,
        AsyncClient(
            reload=services.reload_address,
            offload=services.offload_address,
            token="token-that-writes-alone",
            dictionaries_dir=tmp_path,
        ) as client,
    ):
        source = sent.pages
        await client.offload(sent.spec, sent.token_ids, lambda page, group: source[page][group])
        loaded = await client.load(
            sent.spec, sent.token_ids, lambda pages: lambda page, group: source[page][group]
        )
        assert (loaded.pages, type(loaded.reason)) == (0, PermissionDenied)


async def test_a_token_that_leaked_is_taken_out(tmp_path: Path) -> None:
    """Its next call is refused, on a connection that is open already; the others go on."""
    tokens = tmp_path / "tokens"
    leaked, kept = "red:token-that-leaked-out", "red:token-that-is-secret"
    tokens.write_text(f"{leaked}\n{kept}\n")
    async with running_services(token_file=tokens) as services:
        transports = [
            GrpcTransport(services.reload_address, token=line.partition(":")[2])
            for line in (leaked, kept)
        ]
        for transport in transports:
            await transport.list_dictionaries(PATIENCE_S)
        tokens.write_text(f"{kept}\n")
        look_again()
        outcomes: list[object] = []
        for transport in transports:
            try:
                outcomes.append(len((await transport.list_dictionaries(PATIENCE_S)).dictionaries))
            except LexicoError as error:
                outcomes.append(type(error))
            await transport.close()
        assert outcomes == [Unauthenticated, 0]
