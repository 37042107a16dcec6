"""Match, Get and the dictionary calls against a real server."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lexico_client import GrpcTransport
from lexico_proto import errors
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_proto.v1 import reload_pb2 as pb
from lexico_services.config import ReloadConfig
from lexico_services.reload import frame_reader
from lexico_store import MemoryStore, open_store
from lexico_store.room import Frame, Room
from lexico_store.scopes import SHARED_SCOPE
from tests.support.dictionaries import random_set
from tests.support.newer_frames import of_version
from tests.support.reload_pages import (
    KEYS,
    MIB,
    SCOPE,
    TTL_S,
    fill,
    filled,
    frame_of,
    raises,
    registration,
    stream_of,
)
from tests.support.services import Services, prompt, running_services
from tests.support.waiting import PATIENCE_S


async def get(services: Services, keys: Sequence[bytes], groups: int) -> list[pb.GetResponse]:
    request = pb.GetRequest(page_keys=keys, groups=groups)
    return [part async for part in services.reload.Get(request, timeout=PATIENCE_S)]


async def through_client(services: Services, call: str, messages: list[Any]) -> None:
    """An upload through the client's transport: bare grpc.aio loses some statuses on its way."""
    transport = GrpcTransport(services.reload_address, services.offload_address)
    try:
        await getattr(transport, call)(stream_of(messages), PATIENCE_S)
    finally:
        await transport.close()


async def test_match_counts_leading_pages() -> None:
    store = filled(2)
    fill(store, 3)
    async with running_services(store) as services:
        response = await services.reload.Match(pb.MatchRequest(page_keys=KEYS[:5]))
        assert response.leading == 2
        assert list(response.present) == [True, True, False, True, False]
        assert (await services.reload.Match(pb.MatchRequest())).leading == 0


async def test_get_sends_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "BATCH_BYTES", 1000)  # three frames
    async with running_services(filled(20)) as services:
        parts = await get(services, KEYS, 3)
    seen = [(part.frame.group, part.frame.page) for part in parts]
    assert seen == [(group, page) for group in range(3) for page in range(20)]
    for part in parts:
        assert part.frame.data == bytes(frame_of(part.frame.page, part.frame.group))
        assert part.frame.frame_bytes == 300


async def test_a_long_frame_comes_in_pieces() -> None:
    async with running_services(filled(1, 1, (2 << 20) + 5)) as services:
        parts = await get(services, KEYS[:1], 1)
    assert [len(part.frame.data) for part in parts] == [1 << 20, 1 << 20, 5]
    assert {part.frame.frame_bytes for part in parts} == {(2 << 20) + 5}


async def test_a_missing_page_ends_the_prefix() -> None:
    store = filled(2)
    fill(store, 3)
    async with running_services(store) as services:
        parts = await get(services, KEYS[:4], 3)
    assert [p.miss.page for p in parts if p.HasField("miss")] == [2]
    assert {p.frame.page for p in parts if p.HasField("frame")} == {0, 1}


async def test_a_page_that_goes_meanwhile_ends_the_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Evicting(MemoryStore):
        def read_frames(
            self, scope: bytes, places: Sequence[tuple[bytes, int]], room: Room | None = None
        ) -> list[Frame | None]:
            frames = super().read_frames(scope, places, room)
            pairs = zip(places, frames, strict=True)
            return [None if place == (KEYS[1], 1) else frame for place, frame in pairs]

    store = Evicting()
    for page in range(4):
        fill(store, page)
    monkeypatch.setattr(frame_reader, "BATCH_BYTES", 700)  # two frames
    async with running_services(store) as services:
        parts = await get(services, KEYS[:4], 3)
    assert [p.miss.page for p in parts if p.HasField("miss")] == [1]
    late = [p.frame for p in parts if p.HasField("frame") and p.frame.group > 0]
    assert {frame.page for frame in late} == {0}


@pytest.mark.parametrize("frame_bytes", [299, 301, 5000])
async def test_a_page_that_is_replaced_meanwhile_ends_the_prefix(frame_bytes: int) -> None:
    class Replacing(MemoryStore):
        def read_frames(
            self, scope: bytes, places: Sequence[tuple[bytes, int]], room: Room | None = None
        ) -> list[Frame | None]:
            if any(group == 1 for _, group in places):
                fill(self, 2, 3, frame_bytes)  # other lengths than were said before
            return super().read_frames(scope, places, room)

    store = Replacing()
    for page in range(4):
        fill(store, page)
    async with running_services(store) as services:
        parts = await get(services, KEYS[:4], 3)
        assert store.present(SCOPE, KEYS[:4]) == [True] * 4  # it is sound, and there for the next
    assert [p.miss.page for p in parts if p.HasField("miss")] == [2]
    assert {p.frame.page for p in parts if p.HasField("frame") and p.frame.group == 2} == {0, 1}


@pytest.mark.parametrize("how", ["flipped bit", "another page's", "no frame at all"])
async def test_a_damaged_page_is_a_miss_and_is_removed(how: str) -> None:
    store = filled(3)
    bad = bytearray(frame_of(1, 2))
    bad[200] ^= 1
    other = {
        "flipped bit": bytes(bad),
        "another page's": frame_of(2, 2),
        "no frame at all": b"junk",
    }[how]
    store.commit(SCOPE, KEYS[1], [frame_of(1, 0), frame_of(1, 1), other], TTL_S)
    async with running_services(store) as services:
        parts = await get(services, KEYS[:3], 3)
        assert [p.miss.page for p in parts if p.HasField("miss")] == [1]
        last = [p.frame.page for p in parts if p.HasField("frame") and p.frame.group == 2]
        assert last == [0]
        # It can be offloaded again: it is no longer said to be there.
        match = await services.reload.Match(pb.MatchRequest(page_keys=KEYS[:3]))
        assert list(match.present) == [True, False, True]


async def test_a_newer_page_is_a_miss_and_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    store, newer = filled(3), of_version(frame_of(1, 2), 3)
    store.commit(SCOPE, KEYS[1], [frame_of(1, 0), frame_of(1, 1), newer], 60)
    async with running_services(store) as services:
        for _ in range(2):
            parts = await get(services, KEYS[:3], 3)
            assert [p.miss.page for p in parts if p.HasField("miss")] == [1]
        match = await services.reload.Match(pb.MatchRequest(page_keys=KEYS[:3]))
        assert list(match.present) == [True] * 3
    assert store.read(SCOPE, KEYS[1:2], 2) == [newer]
    assert "newer pages=1 group=2: left alone" in caplog.text
    assert "removed" not in caplog.text


async def test_a_version_that_was_damaged_is_no_newer_one() -> None:
    store, bad = filled(1, 1), bytearray(frame_of(0, 0))
    bad[4] ^= 2  # version 3
    store.commit(SCOPE, KEYS[0], [bad], 60)
    async with running_services(store) as services:
        parts = await get(services, KEYS[:1], 1)
        assert [p.miss.page for p in parts] == [0]
    assert store.present(SCOPE, KEYS[:1]) == [False]


async def test_newer_and_damaged_pages_in_one_read(caplog: pytest.LogCaptureFixture) -> None:
    store = filled(4, 1)
    store.commit(SCOPE, KEYS[1], [of_version(frame_of(1, 0), 3)], 60)
    store.commit(SCOPE, KEYS[2], [b"junk"], 60)
    async with running_services(store) as services:
        parts = await get(services, KEYS[:4], 1)
        assert [p.miss.page for p in parts if p.HasField("miss")] == [1]
    assert store.present(SCOPE, KEYS[:4]) == [True, True, False, True]


async def test_a_reload_server_needs_not_know_a_codec() -> None:
    """Nodes that do get their pages through servers that are older than the codec."""
    store, frame = filled(0), frame_of(0, 0, codec_id=999)
    store.commit(SCOPE, KEYS[0], [frame], 60)
    async with running_services(store) as services:
        (part,) = await get(services, KEYS[:1], 1)
    assert part.frame.data == frame


async def test_reading_renews_the_expiry() -> None:
    now = 1000.0
    store = MemoryStore(clock=lambda: now)
    fill(store, 0)
    async with running_services(store, reload=ReloadConfig(page_ttl_s=TTL_S)) as services:
        now += TTL_S - 10
        await get(services, KEYS[:1], 1)
        now += TTL_S - 10
        assert store.present(SCOPE, KEYS[:1]) == [True]


async def test_bad_requests() -> None:
    async with running_services(filled(1), reload=ReloadConfig(max_pages=4)) as services:
        with raises(errors.InvalidInput):
            await services.reload.Match(pb.MatchRequest(page_keys=KEYS[:5]))
        with raises(errors.InvalidInput):
            await services.reload.Match(pb.MatchRequest(page_keys=[b"short"]))
        for keys, groups in (([], 1), (KEYS[:1], 0), (KEYS[:1], 100_000), ([b"short"], 1)):
            with raises(errors.InvalidInput):
                await get(services, keys, groups)


async def test_streams_are_bounded() -> None:
    store = filled(20, 1, MIB)  # more than what lies between a server and who does not read
    async with running_services(store, reload=ReloadConfig(max_streams=1)) as services:
        first = services.reload.Get(pb.GetRequest(page_keys=KEYS, groups=1))
        await first.read()
        with raises(errors.Busy):
            await get(services, KEYS[:1], 1)
        first.cancel()


async def test_a_store_that_is_not_there_is_unavailable_at_once() -> None:
    with open_store("redis://127.0.0.1:1") as store:
        async with running_services(store) as services:
            with raises(errors.StoreUnavailable):  # not DeadlineExpired: nobody waited for it
                await services.reload.Match(pb.MatchRequest(page_keys=KEYS[:1]))
            with raises(errors.StoreUnavailable):
                await get(services, KEYS[:1], 1)
            with pytest.raises(errors.StoreUnavailable):
                await through_client(
                    services, "put", [m.SerializeToString() for m in prompt().upload()]
                )


async def test_a_dictionary_set_is_registered_fetched_and_listed() -> None:
    dictionary = random_set(layers=2, head_dim=8, atoms=16)
    data, digest = dictionary.to_bytes(), dictionary.digest
    async with running_services() as services:
        stub = services.dictionaries
        messages = registration(data, digest)
        assert (await stub.Register(stream_of(messages))).added
        assert not (await stub.Register(stream_of(messages))).added
        parts = [p async for p in stub.Fetch(dict_pb.FetchRequest(digest=digest))]
        assert b"".join(p.data for p in parts) == data
        (info,) = (await stub.List(dict_pb.ListRequest())).dictionaries
        assert (info.digest, info.layers, info.head_dim, info.shared) == (digest, 2, 8, False)


async def test_the_operators_sets_are_shared() -> None:
    dictionary = random_set(layers=1, head_dim=8, atoms=16)
    store = MemoryStore()
    store.put_dictionary(SHARED_SCOPE, dictionary.digest, dictionary.to_bytes())
    async with running_services(store) as services:
        (info,) = (await services.dictionaries.List(dict_pb.ListRequest())).dictionaries
        assert info.shared
        messages = registration(dictionary.to_bytes(), dictionary.digest)
        assert not (await services.dictionaries.Register(stream_of(messages))).added


async def test_bad_registrations() -> None:
    dictionary = random_set(layers=1, head_dim=8, atoms=16)
    data, digest = dictionary.to_bytes(), dictionary.digest
    junk = b"junk" * 10
    junk_digest = blake2b(junk, digest_size=32).digest()
    cases: list[tuple[list[dict_pb.RegisterRequest], type[errors.LexicoError]]] = [
        ([], errors.InvalidInput),
        (registration(data, digest)[1:], errors.InvalidInput),
        (registration(data, b"short"), errors.InvalidInput),
        (registration(data, b"d" * 32), errors.InvalidInput),
        (registration(data, digest, 0), errors.InvalidInput),
        (registration(data, digest, 1 << 40), errors.InvalidInput),
        (registration(data, digest, len(data) + 1), errors.StreamTruncated),
        (registration(data, digest, len(data) - 1), errors.StreamTooLong),
        (registration(junk, junk_digest), errors.InvalidInput),
    ]
    async with running_services() as services:
        for messages, expected in cases:
            with pytest.raises(expected):
                await through_client(services, "register", messages)
        with raises(errors.UnknownDictionary):
            _ = [p async for p in services.dictionaries.Fetch(dict_pb.FetchRequest(digest=digest))]


async def test_registrations_are_bounded() -> None:
    sets = [random_set(layers=1, head_dim=8, atoms=16, seed=i) for i in range(2)]
    async with running_services(reload=ReloadConfig(max_dictionaries=1)) as services:
        first, second = (registration(s.to_bytes(), s.digest) for s in sets)
        await services.dictionaries.Register(stream_of(first))
        with pytest.raises(errors.Busy):
            await through_client(services, "register", second)


async def test_health_and_reflection() -> None:
    async with running_services() as services:
        for address, names in (
            (services.offload_address, ["Offload", "Operations", "Versions"]),
            (
                services.reload_address,
                ["Admin", "Dictionaries", "Operations", "Reload", "Versions"],
            ),
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                services_there = [f"lexico_proto.v1.{name}" for name in names]
                for name in ("", *services_there):
                    request = health_pb2.HealthCheckRequest(service=name)
                    status = (await health.Check(request)).status
                    assert status == health_pb2.HealthCheckResponse.SERVING
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                ask = reflection_pb2.ServerReflectionRequest(list_services="")
                call = stub.ServerReflectionInfo(stream_of([ask]))
                (answer,) = [a async for a in call]
                found = [s.name for s in answer.list_services_response.service]
                assert [n for n in found if n.startswith("lexico")] == services_there
