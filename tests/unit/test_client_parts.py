"""Sequences of any length: in parts, each within a call's bounds, and a prefix as long as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_client import AsyncClient, InMemoryTransport, _load, _match, _offload, _parts
from lexico_client._offload import PageOffer
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.put_messages import header_message, parse_put
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto import errors
from lexico_proto.limits import MAX_CALL_PAGES, MESSAGE_BYTES
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT


def tiny(page_tokens: int) -> CacheSpec:
    """Pages of four bytes a token."""
    geometry = Geometry(layers=1, kv_heads=1, head_dim=1, dtype="float16")
    return make_spec(weights=bytes(32), geometry=geometry, codec="raw", page_tokens=page_tokens)


def token_ids(count: int, below: int = 1 << 17) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, below, count, dtype=np.uint32)


class Counting(InMemoryTransport):
    """Notes how much each call asks for, and refuses what a server would."""

    def __init__(self) -> None:
        super().__init__()
        self.matched: list[int] = []
        self.got: list[int] = []
        self.headers: list[offload.PutHeader] = []

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matched.append(self.checked(len(request.page_keys)))
        return await super().match(request, timeout)

    async def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        self.got.append(self.checked(len(request.page_keys)))
        async for message in super().get(request, timeout):
            yield message

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        async def seen() -> AsyncGenerator[bytes, None]:
            async for message in messages:
                assert len(message) <= MESSAGE_BYTES
                part = parse_put(message)
                if isinstance(part, offload.PutHeader):
                    self.headers.append(part)
                yield message

        return await super().put(seen(), timeout)

    def checked(self, pages: int) -> int:
        if pages > MAX_CALL_PAGES:
            raise errors.InvalidInput("too many pages in one call")
        return pages


@pytest.fixture
def memory() -> Counting:
    return Counting()


@pytest.fixture
def client(memory: Counting, tmp_path: Path) -> AsyncClient:
    return AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT)


class Sequence:
    """Cache of a long sequence that is made where it is read."""

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.landed: dict[int, torch.Tensor] = {}

    def page(self, page: int, group: int) -> torch.Tensor:
        shape = self.spec.group_shape(group)
        return torch.arange(page, page + 2 * shape[2]).to(torch.float16).view(shape) % 1000

    def target(self, pages: int) -> Any:
        def view(page: int, group: int) -> torch.Tensor:
            return self.landed.setdefault(page, torch.zeros(self.spec.group_shape(group)).half())

        return view

    def check(self, pages: int) -> None:
        for page in range(pages):
            assert torch.equal(self.landed[page], self.page(page, 0))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of at most 5 pages, headers of at most 5 pages' ids."""
    few = lambda pages, most=5: _parts.parts(pages, most)  # noqa: E731
    for module in (_match, _load):
        monkeypatch.setattr(module, "parts", few)
    monkeypatch.setattr(_offload, "pages_of_put", lambda spec: 5)
    monkeypatch.setattr(_parts, "CHAIN_BYTES", 8 * 3 * 8)


async def test_a_prompt_of_more_pages_than_a_call_takes(
    client: AsyncClient, memory: Counting
) -> None:
    """The kind that was found: 4096 pages and a few more, all of them stored."""
    spec, ids = tiny(1), token_ids(MAX_CALL_PAGES + 70)
    keys = page_keys(spec, ids)
    memory.pages.update({key: [] for key in keys})  # stored, and not to be read
    match = await client.match(spec, ids)
    assert (match.tokens, match.page_keys) == (len(ids), tuple(keys))
    report = await client.offload(spec, ids, Sequence(spec).page)
    assert (report.tokens, set(report.pages)) == (len(ids), {"present"})
    loaded = await client.load(spec, ids, Sequence(spec).target)
    assert (loaded.matched_pages, loaded.pages) == (len(ids), 0)
    assert "page 0 is no longer in the store" in str(loaded.reason)
    assert (memory.matched, memory.got) == ([MAX_CALL_PAGES, 70] * 3, [MAX_CALL_PAGES])
    await client.close()


async def test_a_million_tokens_are_matched_in_parts_and_loaded_as_far_as_they_are_stored(
    client: AsyncClient, memory: Counting
) -> None:
    spec, ids = tiny(64), token_ids(1_000_000)
    match = await client.match(spec, ids)
    assert (match.pages, len(match.present)) == (0, 15_625)
    assert memory.matched == [4096, 4096, 4096, 3337]
    memory.matched.clear()
    loaded = await client.load(spec, ids, Sequence(spec).target)
    assert (loaded.pages, loaded.reason, memory.matched) == (0, None, [4096])
    await client.close()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("absent", [0, 4, 5, 7, 12])
async def test_a_prefix_ends_where_a_page_is_absent(
    client: AsyncClient, memory: Counting, absent: int
) -> None:
    spec, cache = tiny(8), Sequence(tiny(8))
    ids = token_ids(13 * 8)
    await client.offload(spec, ids, cache.page)
    assert [list(header.pages) for header in memory.headers] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12],
    ]
    assert [header.first_page for header in memory.headers] == [0, 5, 10]
    whole = await client.load(spec, ids, cache.target)
    assert (whole.pages, whole.reason, memory.got) == (13, None, [5, 5, 3])
    cache.check(13)
    cache.landed.clear()
    del memory.pages[page_keys(spec, ids)[absent]]
    memory.matched.clear()
    loaded = await client.load(spec, ids, cache.target)
    assert (loaded.pages, loaded.matched_pages, loaded.reason) == (absent, absent, None)
    cache.check(absent)
    assert len(memory.matched) == absent // 5 + 1, "it stops at the first that is not whole"
    memory.headers.clear()
    again = await client.offload(spec, ids, cache.page)
    assert again.pages.index("stored") == absent
    assert again.pages.count("stored") == 1
    assert [list(header.pages) for header in memory.headers] == [[absent]]
    await client.close()


@pytest.mark.usefixtures("small_parts")
async def test_a_page_that_goes_meanwhile_ends_the_prefix_in_its_part(
    client: AsyncClient, memory: Counting
) -> None:
    spec, cache = tiny(8), Sequence(tiny(8))
    ids = token_ids(13 * 8)
    await client.offload(spec, ids, cache.page)

    def target(pages: int) -> Any:
        del memory.pages[page_keys(spec, ids)[7]]
        return cache.target(pages)

    loaded = await client.load(spec, ids, target)
    assert (loaded.pages, loaded.matched_pages) == (7, 13)
    assert "page 7 is no longer in the store" in str(loaded.reason)
    assert memory.got == [5, 5]
    cache.check(7)
    await client.close()


@pytest.mark.usefixtures("small_parts")
async def test_all_parts_have_one_deadline(
    client: AsyncClient, memory: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seconds = tiny(8), list[float]()

    async def slow(request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        seconds.append(timeout)
        if len(seconds) == 2:
            await asyncio.Event().wait()
        present = [True] * len(request.page_keys)
        return reload.MatchResponse(leading=len(present), present=present)

    monkeypatch.setattr(memory, "match", slow)
    loaded = await client.load(spec, token_ids(13 * 8), Sequence(spec).target, timeout=0.3)
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)
    assert 0 < seconds[1] <= seconds[0] <= 0.3
    await client.close()


@given(
    page_tokens=st.sampled_from([1, 2, 3, 63, 64, 1000, MAX_PAGE_TOKENS]),
    below=st.sampled_from([1 << 7, 1 << 14, 1 << 17, 1 << 32]),
    pages=st.integers(1, 400),
    seed=st.integers(0, 9),
    room=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_part_has_a_header_that_fits_and_that_a_server_proves(
    page_tokens: int, below: int, pages: int, seed: int, room: int
) -> None:
    """Whatever is missing, ids and keys of a part alone give its page keys; the room for them is
    what bounds a header."""
    spec = tiny(page_tokens)
    chain = room * _parts._PAGE_BYTES + room * 5 * page_tokens
    pages = min(pages, 3000 // page_tokens + 3)
    ids, random = token_ids(pages * page_tokens, below), np.random.default_rng(seed)
    keys = page_keys(spec, ids)
    offer = PageOffer(spec, ids, keys, lambda page, group: torch.empty(0), 0)  # type: ignore
    seen = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parts, "CHAIN_BYTES", chain)
        most = _parts.pages_of_put(spec)
        assert 1 <= most <= max(1, room)
        for part in _parts.parts(pages, most):
            missing = [page for page in part if random.random() < 0.7]
            seen += part
            if not missing:
                continue
            header = offer.header(part, missing)
            size = len(header_message(header)) - header.spec.ByteSize()
            assert size <= chain + 64
            first, parent = header.first_page, header.parent_key
            assert first in (0, part.start)
            assert parent == (keys[first - 1] if first else b"")
            known = page_keys(spec, list(header.token_ids), parent=parent)
            assert [known[page - first] for page in missing] == list(header.page_keys)
            assert len(known) == missing[-1] + 1 - first
    assert seen == list(range(pages))


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 256, MAX_PAGE_TOKENS])
def test_the_longest_header_of_all_fits_into_a_message(page_tokens: int) -> None:
    spec = tiny(page_tokens)
    most = _parts.pages_of_put(spec)
    assert most >= 1
    ids = np.full(2 * most * page_tokens, 2**32 - 1, dtype=np.uint32)
    offer = PageOffer(spec, ids, [bytes(32)] * 2 * most, lambda p, g: torch.empty(0), 0)  # type: ignore
    part = range(most, 2 * most)
    assert len(header_message(offer.header(part, list(part)))) <= MESSAGE_BYTES


class Former(InMemoryTransport):
    """A server of before `first_page`: it takes the ids for those from position 0 on."""

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        async def former() -> AsyncGenerator[bytes, None]:
            async for message in messages:
                part = parse_put(message)
                if isinstance(part, offload.PutHeader):
                    part.ClearField("first_page")
                    part.ClearField("parent_key")
                    message = header_message(part)
                yield message

        return await super().put(former(), timeout)


@pytest.mark.usefixtures("small_parts")
async def test_a_former_server_refuses_parts_and_stores_nothing_wrong(tmp_path: Path) -> None:
    spec, cache, memory = tiny(8), Sequence(tiny(8)), Former()
    client = AsyncClient(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT)
    ids = token_ids(13 * 8)
    with pytest.raises(
        errors.Unsupported, match=r"has the first 5 pages.*earlier release"
    ) as caught:
        await client.offload(spec, ids, cache.page)
    assert isinstance(caught.value.__cause__, errors.TokenCountMismatch)
    assert list(memory.pages) == page_keys(spec, ids)[:5]
    assert (await client.load(spec, ids, cache.target)).pages == 5
    cache.check(5)
    await client.close()


async def test_keys_are_made_without_keeping_the_loop_busy() -> None:
    spec, ids = tiny(1), token_ids(3 * MAX_CALL_PAGES)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await _parts.keys_of(spec, ids) == page_keys(spec, ids)
    task.cancel()
    assert turns >= 3
