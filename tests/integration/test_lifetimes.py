"""How long pages live and who may have how many of them, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lexico_codec.wire import spec_to_wire
from lexico_proto import errors
from lexico_proto.v1 import admin_pb2 as pb
from lexico_proto.v1 import admin_pb2_grpc, offload_pb2, reload_pb2
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_proto.watched import look_again
from lexico_store import MemoryStore
from lexico_store.records import PinNote
from tests.support.services import (
    Prompt,
    Services,
    data_messages,
    error_of,
    page_end,
    prompt,
    running_services,
    stream,
)
from tests.support.waiting import PATIENCE_S

RED, BLUE = "red-token-0123456789", "blue-token-0123456789"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"red:{RED}:offload,reload,admin\nblue:{BLUE}:offload,reload,admin\n")
    return file


def bearer(token: str | None) -> Any:
    return (("authorization", f"Bearer {token}"),) if token else ()


@asynccontextmanager
async def admin_of(services: Services) -> AsyncIterator[admin_pb2_grpc.AdminStub]:
    async with grpc.aio.insecure_channel(services.reload_address) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


async def offload(services: Services, made: Prompt, pages: int, token: str | None = None) -> None:
    """As a client does: a Match that renews, then a Put of what is missing."""
    namespace, metadata = made.spec.namespace, bearer(token)
    request = reload_pb2.MatchRequest(page_keys=made.keys[:pages], namespace=namespace, renew=True)
    matched = await services.reload.Match(request, metadata=metadata)
    missing = [page for page, present in enumerate(matched.present) if not present]
    if not missing:
        return
    header = offload_pb2.PutHeader(
        spec=spec_to_wire(made.spec),
        token_ids=made.token_ids[: (missing[-1] + 1) * made.spec.page_tokens],
        pages=missing,
        page_keys=[made.keys[page] for page in missing],
    )
    messages = [offload_pb2.PutRequest(header=header)]
    for page in missing:
        messages += [*data_messages(made.data(page)), page_end(page, made.data(page))]
    await services.offload.Put(stream(messages), metadata=metadata, timeout=PATIENCE_S)


async def present(services: Services, made: Prompt, token: str | None = None) -> list[bool]:
    request = reload_pb2.MatchRequest(page_keys=made.keys, namespace=made.spec.namespace)
    return list((await services.reload.Match(request, metadata=bearer(token))).present)


async def test_a_prompt_that_grows_is_kept_from_its_beginning(tmp_path: Path) -> None:
    """2 pages at 0 s, 4 at 9 s, 6 at 18 s, a life of 20 s: at 23 s all six are there."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[default]\npage_ttl_s = 20\n")
    now = [0.0]
    made = prompt(pages=6)
    store = MemoryStore(clock=lambda: now[0])
    async with running_services(store, policy_file=policy) as services:
        for seconds, pages in ((0.0, 2), (9.0, 4), (18.0, 6)):
            now[0] = seconds
            await offload(services, made, pages)
        now[0] = 23.0
        assert await present(services, made) == [True] * 6
        now[0] = 37.0
        found = await present(services, made)
        assert sorted(found, reverse=True) == found
        now[0] = 39.0
        assert await present(services, made) == [False] * 6


async def test_an_upload_without_a_match_renews_what_is_before_it(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[default]\npage_ttl_s = 20\n")
    now = [0.0]
    made = prompt(pages=2)
    store = MemoryStore(clock=lambda: now[0])
    async with running_services(store, policy_file=policy) as services:
        await offload(services, made, 1)
        now[0] = 15.0
        header = made.header(pages=[1], page_keys=made.keys[1:])
        messages = [header, *data_messages(made.data(1)), page_end(1, made.data(1))]
        await services.offload.Put(stream(messages), timeout=PATIENCE_S)
        now[0] = 30.0
        assert await present(services, made) == [True, True]


async def test_a_load_renews_what_it_gives(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[default]\npage_ttl_s = 20\n")
    now = [0.0]
    made = prompt(pages=3)
    store = MemoryStore(clock=lambda: now[0])
    async with running_services(store, policy_file=policy) as services:
        await offload(services, made, 3)
        now[0] = 15.0
        assert await present(services, made) == [True] * 3  # a mere question renews nothing
        request = reload_pb2.GetRequest(
            page_keys=made.keys[:2], groups=made.spec.groups, namespace=made.spec.namespace
        )
        assert [part async for part in services.reload.Get(request, timeout=PATIENCE_S)]
        now[0] = 30.0
        assert await present(services, made) == [True, True, False]


@pytest.mark.parametrize("what", ["prompt", "namespace", "everything"])
async def test_what_a_tenant_forgets_is_gone_for_it_alone(tokens: Path, what: str) -> None:
    made = prompt(pages=3)
    asked = {
        "prompt": pb.ForgetRequest(
            prompt=pb.Prompt(namespace=made.spec.namespace, page_keys=made.keys)
        ),
        "namespace": pb.ForgetRequest(namespace=made.spec.namespace),
        "everything": pb.ForgetRequest(everything=True),
    }[what]
    async with running_services(token_file=tokens) as services, admin_of(services) as admin:
        for token in (RED, BLUE):
            await offload(services, made, 3, token)
        assert (await admin.Forget(asked, metadata=bearer(RED))).pages == 3
        assert await present(services, made, RED) == [False] * 3
        assert await present(services, made, BLUE) == [True] * 3
        request = reload_pb2.GetRequest(
            page_keys=made.keys, groups=made.spec.groups, namespace=made.spec.namespace
        )
        parts = [part async for part in services.reload.Get(request, metadata=bearer(RED))]
        assert [part.WhichOneof("part") for part in parts] == ["miss"]
        await offload(services, made, 3, RED)
        assert await present(services, made, RED) == [True] * 3, "and it may be stored anew"


async def test_forget_needs_to_know_what() -> None:
    async with running_services() as services, admin_of(services) as admin:
        for request in (
            pb.ForgetRequest(),
            pb.ForgetRequest(everything=False),
            pb.ForgetRequest(namespace=b"short"),
            pb.ForgetRequest(prompt=pb.Prompt(namespace=b"n" * 32)),
            pb.ForgetRequest(prompt=pb.Prompt(namespace=b"n" * 32, page_keys=[b"short"])),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await admin.Forget(request)
            assert type(error_of(refusal.value)) is errors.InvalidInput


async def test_pins_are_listed_bounded_and_let_go(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[default]\npage_ttl_s = 20\nmax_pinned_bytes = "1 MiB"\n')
    now = [0.0]
    made = prompt(pages=3)
    asked = pb.Prompt(namespace=made.spec.namespace, page_keys=made.keys)
    store = MemoryStore(clock=lambda: now[0])
    async with (
        running_services(store, policy_file=policy) as services,
        admin_of(services) as admin,
    ):
        await offload(services, made, 2)
        pinned = await admin.Pin(pb.PinRequest(prompt=asked, label="system prompt"))
        assert pinned.pages == 2
        usage = await admin.Usage(pb.UsageRequest())
        assert [(pin.label, pin.pages) for pin in usage.pins] == [("system prompt", 2)]
        assert [(use.pages, use.bytes) for use in usage.namespaces] == [(2, pinned.bytes)]
        assert "codec raw" in usage.namespaces[0].about
        assert (usage.page_ttl_s, usage.max_pinned_bytes) == (20, 1 << 20)
        assert "expire" in usage.eviction
        now[0] = 100.0
        assert await present(services, made) == [True, True, False]
        assert (await admin.Unpin(pb.UnpinRequest(pin=pinned.pin))).pages == 2
        now[0] = 200.0
        assert await present(services, made) == [False] * 3


async def test_pins_of_two_servers_at_the_same_time_stay_within_the_bound(tmp_path: Path) -> None:
    """Each finds room for its own, and one of them gets it."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[default]\nmax_pinned_bytes = "1 MiB"\n')
    made, store = prompt(), Together()

    def asked(pages: int) -> pb.PinRequest:
        keys = made.keys[:pages]
        return pb.PinRequest(prompt=pb.Prompt(namespace=made.spec.namespace, page_keys=keys))

    async with (
        running_services(store, policy_file=policy) as services,
        admin_of(services) as admin,
        running_services(store, policy_file=policy) as others,
        admin_of(others) as other,
    ):
        await offload(services, made, 2)
        (use,) = (await admin.Usage(pb.UsageRequest())).namespaces
        policy.write_text(f"[default]\nmax_pinned_bytes = {use.bytes}\n")  # two pages
        look_again()
        pinning = (admin.Pin(asked(1)), other.Pin(asked(2)))
        pinned = await asyncio.gather(*pinning, return_exceptions=True)
        (refused,) = [each for each in pinned if isinstance(each, BaseException)]
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert type(error_of(refused)) is errors.QuotaExceeded
        (pin,) = (await admin.Usage(pb.UsageRequest())).pins
        assert pin.bytes <= use.bytes


class Together(MemoryStore):
    """Two that pin have both read before either notes."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2, timeout=PATIENCE_S)

    def note_pin(self, *given: Any) -> PinNote:
        self.both.wait()
        return super().note_pin(*given)


async def test_calls_a_second_are_of_every_service(tokens: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[tenants.red]\nmax_calls_per_s = 0.001\n")
    fetch, sets = dict_pb.FetchRequest(digest=bytes(32)), dict_pb.ListRequest()

    async def registrations() -> AsyncIterator[dict_pb.RegisterRequest]:
        yield dict_pb.RegisterRequest()

    async with running_services(token_file=tokens, policy_file=policy) as services:
        await present(services, prompt(), RED)  # the one that it has
        stub = services.dictionaries
        for call in (
            stub.List(sets, metadata=bearer(RED)),
            stub.Register(registrations(), metadata=bearer(RED)),
            stub.Fetch(fetch, metadata=bearer(RED)).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call
            assert type(error_of(refusal.value)) is errors.QuotaExceeded
        await stub.List(sets, metadata=bearer(BLUE))


async def test_without_a_policy_nothing_may_be_pinned() -> None:
    made = prompt()
    asked = pb.Prompt(namespace=made.spec.namespace, page_keys=made.keys)
    async with running_services() as services, admin_of(services) as admin:
        await offload(services, made, 2)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await admin.Pin(pb.PinRequest(prompt=asked))
        error = error_of(refusal.value)
        assert type(error) is errors.QuotaExceeded
        assert "max_pinned_bytes" in error.message


async def test_quotas_are_of_one_tenant(tokens: Path, tmp_path: Path) -> None:
    made = prompt()
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f"[tenants.red]\nmax_inflight_bytes = {made.spec.page_bytes - 1}\nmax_calls_per_s = 2\n"
    )
    async with running_services(token_file=tokens, policy_file=policy) as services:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await offload(services, made, 2, RED)
        error = error_of(refusal.value)
        assert type(error) is errors.QuotaExceeded
        assert "max_inflight_bytes" in error.message
        await offload(services, made, 2, BLUE)

        async def often() -> None:
            for _ in range(1000):
                await present(services, made, RED)

        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await often()
        assert "calls a second" in error_of(refusal.value).message
        assert services.ingress.budget.used == 0
        assert await present(services, made, BLUE) == [True, True]
