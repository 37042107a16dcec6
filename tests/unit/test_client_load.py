"""What a load does when something is wrong: a shorter prefix and a reason, never an exception."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, InMemoryTransport, Loaded
from lexico_codec.keys import page_keys
from lexico_codec.pages import encode_group
from lexico_codec.spec import CacheSpec
from lexico_proto import errors
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    first_pages,
    flipped,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.newer_frames import of_codec, of_version
from tests.support.waiting import PATIENCE_S, settle, skip_ahead, until

SPEC = small_spec()
KEYS = page_keys(SPEC, TOKENS)


@pytest.fixture
def memory() -> InMemoryTransport:
    return InMemoryTransport()


@pytest.fixture
async def client(memory: InMemoryTransport, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        yield client


async def offloaded(client: AsyncClient, spec: CacheSpec = SPEC) -> Tensor:
    cache = random_cache(spec, 4)
    await client.offload(spec, TOKENS, views_of(spec, cache))
    return cache


def check(loaded: Loaded, landing: Landing, cache: Tensor, pages: int) -> None:
    assert (loaded.pages, loaded.tokens) == (pages, pages * PAGE_TOKENS)
    good = first_pages(landing.cache, SPEC, pages)
    assert torch.equal(good, first_pages(cache, SPEC, pages))


async def test_a_miss_has_no_reason_and_allocates_nothing(client: AsyncClient) -> None:
    landing = Landing(SPEC)
    loaded = await client.load(SPEC, TOKENS, landing)
    assert (loaded.tokens, loaded.reason, landing.pages) == (0, None, [])


async def test_a_prompt_shorter_than_a_page_asks_nobody(client: AsyncClient) -> None:
    loaded = await client.load(SPEC, TOKENS[: PAGE_TOKENS - 1], Landing(SPEC))
    assert (loaded.tokens, loaded.reason) == (0, None)
    report = await client.offload(SPEC, [], views_of(SPEC, torch.empty(0)))
    assert (report.pages, report.tokens, report.bytes_sent) == ((), 0, 0)


@pytest.mark.parametrize("page", range(4))
@pytest.mark.parametrize("group", range(3))
async def test_a_damaged_frame_ends_the_prefix(
    client: AsyncClient, memory: InMemoryTransport, page: int, group: int
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)
    frames = memory.pages[KEYS[page]]
    frames[group] = flipped(frames[group])
    loaded = await client.load(SPEC, TOKENS, landing)
    check(loaded, landing, cache, page)
    assert type(loaded.reason) is errors.DamagedFrame
    assert loaded.matched_pages == 4


async def test_the_earliest_of_two_damaged_pages_counts(
    client: AsyncClient, memory: InMemoryTransport
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)
    memory.pages[KEYS[3]][0] = flipped(memory.pages[KEYS[3]][0])
    memory.pages[KEYS[1]][2] = b"x" * 200
    loaded = await client.load(SPEC, TOKENS, landing)
    check(loaded, landing, cache, 1)
    assert "magic" in str(loaded.reason)


async def test_a_sound_frame_of_another_page_is_refused(
    client: AsyncClient, memory: InMemoryTransport
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)
    memory.pages[KEYS[2]] = memory.pages[KEYS[3]]
    loaded = await client.load(SPEC, TOKENS, landing)
    check(loaded, landing, cache, 2)
    assert type(loaded.reason) is errors.FrameMismatch


async def test_frames_of_another_geometry_are_refused(
    client: AsyncClient, memory: InMemoryTransport
) -> None:
    other = small_spec(dtype="bfloat16")
    await offloaded(client)
    tensor = views_of(other, random_cache(other, 1))(0, 0).contiguous()
    memory.pages[KEYS[0]][0] = bytes(encode_group(other, KEYS[0], 0, 0, tensor))
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
    assert loaded.tokens == 0
    assert type(loaded.reason) is errors.FrameMismatch


@pytest.mark.parametrize("newer", [partial(of_version, version=3), partial(of_codec, codec_id=999)])
async def test_a_newer_frame_ends_the_prefix_and_says_so(
    client: AsyncClient,
    memory: InMemoryTransport,
    caplog: pytest.LogCaptureFixture,
    newer: Callable[[bytes], bytes],
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)
    frames = memory.pages[KEYS[2]]
    frames[1] = newer(frames[1])
    kept = list(frames)
    loaded = await client.load(SPEC, TOKENS, landing)
    check(loaded, landing, cache, 2)
    assert type(loaded.reason) is errors.NewerFrame
    assert "newer page=2 group=1: left alone" in caplog.text
    report = await client.offload(SPEC, TOKENS, views_of(SPEC, cache))
    assert report.pages == ("present",) * 4
    assert memory.pages[KEYS[2]] == kept


async def test_a_page_that_goes_between_match_and_get(
    client: AsyncClient, memory: InMemoryTransport
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)

    def target(pages: int) -> Callable[[int, int], Tensor]:
        del memory.pages[KEYS[2]]
        return landing(pages)

    loaded = await client.load(SPEC, TOKENS, target)
    check(loaded, landing, cache, 2)
    assert isinstance(loaded.reason, errors.Unavailable)


async def test_a_dictionary_that_cannot_be_had_is_a_miss(
    client: AsyncClient, memory: InMemoryTransport, tmp_path: Path
) -> None:
    dictionary = small_dictionary()
    spec = small_spec("lexico", dictionary=dictionary.digest)
    await client.register_dictionary(dictionary)
    await offloaded(client, spec)
    memory.dictionaries.clear()
    async with AsyncClient(
        transport=memory, dictionaries_dir=tmp_path / "empty", timeouts=PATIENT
    ) as other:
        loaded = await other.load(spec, TOKENS, Landing(spec))
    assert (loaded.tokens, loaded.matched_pages) == (0, 4)
    assert type(loaded.reason) is errors.UnknownDictionary


async def test_a_decoder_that_breaks_is_a_miss(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, landing = await offloaded(client), Landing(SPEC)

    def broken(*arguments: object) -> None:
        raise RuntimeError("codec defect")

    with monkeypatch.context() as patch:
        patch.setattr("lexico_client._load.decode_group", broken)
        loaded = await client.load(SPEC, TOKENS, landing)
    check(loaded, landing, cache, 0)
    assert type(loaded.reason) is errors.InternalError
    assert isinstance(loaded.reason.__cause__, RuntimeError)


async def test_faults_of_the_caller_are_raised(client: AsyncClient) -> None:
    await offloaded(client)
    with pytest.raises(errors.ShapeMismatch, match="needs"):
        await client.load(SPEC, TOKENS, lambda pages: lambda page, group: torch.empty(3))
    with pytest.raises(TypeError, match=r"no torch\.Tensor"):
        await client.load(SPEC, TOKENS, lambda pages: lambda page, group: None)  # type: ignore
    with pytest.raises(ZeroDivisionError):
        await client.load(SPEC, TOKENS, lambda pages: 1 // 0)  # type: ignore
    with pytest.raises(TypeError, match="callable"):
        await client.load(SPEC, TOKENS, lambda pages: None)  # type: ignore
    with pytest.raises(errors.TokenCountMismatch):
        await client.load(SPEC, [1.5] * 16, Landing(SPEC))  # type: ignore[list-item]
    with pytest.raises(errors.ConfigurationError, match="timeout"):
        await client.load(SPEC, TOKENS, Landing(SPEC), timeout=-1)


@pytest.mark.parametrize("codec", ["raw", "lexico"])
async def test_strided_and_inference_memory_can_be_filled(client: AsyncClient, codec: str) -> None:
    dictionary = small_dictionary()
    spec = small_spec(codec, dictionary=dictionary.digest if codec == "lexico" else b"")
    await client.register_dictionary(dictionary)
    await offloaded(client, spec)
    g, landing = spec.geometry, Landing(spec)
    with torch.inference_mode():  # [2, tokens, heads, layers, dim]: no two axes can be merged
        memory = torch.zeros(2, 4 * PAGE_TOKENS, g.kv_heads, g.layers, g.head_dim).half()

    def view(page: int, group: int) -> Tensor:
        return views_of(spec, memory.permute(3, 0, 1, 2, 4))(page, group)

    loaded = await client.load(spec, TOKENS, lambda pages: view)
    assert (loaded.pages, loaded.reason) == (4, None)
    await client.load(spec, TOKENS, landing)
    assert torch.equal(memory.permute(3, 0, 1, 2, 4), landing.cache)


class Halting(InMemoryTransport):
    """Gives a few messages, then nothing; the deadline comes at once."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self.messages = messages

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        given = 0
        async for message in super().get(request, timeout):
            if given == self.messages:
                skip_ahead()
                await asyncio.Event().wait()
            given += 1
            yield message


async def test_what_came_before_the_deadline_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexico_client._load.SETTLE_SECONDS", PATIENCE_S)
    memory = Halting(messages=10)  # of 12: pages 0 and 1 are whole
    async with AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        cache, landing = await offloaded(client), Landing(SPEC)
        loaded = await client.load(SPEC, TOKENS, landing, timeout=PATIENCE_S)
    check(loaded, landing, cache, 2)
    assert type(loaded.reason) is errors.DeadlineExpired


async def test_a_cancelled_load_leaves_no_thread_in_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, inside, release = InMemoryTransport(), threading.Event(), threading.Event()
    written = []

    def slow(*arguments: object) -> None:
        inside.set()
        release.wait(PATIENCE_S)
        written.append(True)

    async with AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        await offloaded(client)
        monkeypatch.setattr("lexico_client._load.decode_group", slow)
        task = asyncio.create_task(client.load(SPEC, TOKENS, Landing(SPEC)))
        await until(inside.is_set, "a thread in the memory")
        task.cancel()
        await settle()
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert written == [True]
