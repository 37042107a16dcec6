"""Loads of pages that a match has found: a part of a prompt, and nobody is asked again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, InMemoryTransport
from lexico_codec.keys import page_keys
from lexico_proto.errors import DamagedFrame, TokenCountMismatch, Unavailable
from lexico_proto.metrics import CLIENT_TOKENS, Metrics
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    flipped,
    random_cache,
    small_spec,
    views_of,
)

SPEC = small_spec()
KEYS = page_keys(SPEC, TOKENS)


class Transport(InMemoryTransport):
    """Notes who was asked what."""

    matches = 0

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matches += 1
        return await super().match(request, timeout)


@pytest.fixture
def memory() -> Transport:
    return Transport()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(memory: Transport, metrics: Metrics, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    made = AsyncClient(
        transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT, metrics=metrics
    )
    async with made as client:
        yield client


async def offloaded(client: AsyncClient, memory: Transport) -> Tensor:
    cache = random_cache(SPEC, 4)
    await client.offload(SPEC, TOKENS, views_of(SPEC, cache))
    memory.matches = 0
    return cache


@pytest.mark.parametrize("pages", [range(4), range(1, 3), range(3, 4), range(2, 2)])
async def test_only_those_pages_come_and_nobody_is_asked(
    client: AsyncClient, memory: Transport, metrics: Metrics, pages: range
) -> None:
    cache = await offloaded(client, memory)
    out = torch.full_like(cache, float("nan"))
    loaded = await client.load(SPEC, TOKENS, lambda _: views_of(SPEC, out), pages=pages)
    assert (loaded.pages, loaded.matched_pages, loaded.reason) == (len(pages), len(pages), None)
    there = slice(pages.start * PAGE_TOKENS, pages.stop * PAGE_TOKENS)
    assert torch.equal(out[:, :, there], cache[:, :, there])
    assert out.isfinite().sum() == out[:, :, there].numel()
    assert memory.matches == 0
    counts = metrics.snapshot()[CLIENT_TOKENS]
    tokens = len(pages) * PAGE_TOKENS
    assert [counts["raw", what] for what in ("asked", "matched", "loaded")] == [tokens] * 3


async def test_a_damaged_page_ends_them(client: AsyncClient, memory: Transport) -> None:
    cache = await offloaded(client, memory)
    frames = memory.pages[KEYS[2]]
    frames[-1] = flipped(frames[-1])
    out = torch.full_like(cache, float("nan"))
    loaded = await client.load(SPEC, TOKENS, lambda _: views_of(SPEC, out), pages=range(1, 4))
    assert (loaded.pages, loaded.tokens) == (1, PAGE_TOKENS)
    assert isinstance(loaded.reason, DamagedFrame)


async def test_a_page_that_is_gone_is_named_by_its_place(
    client: AsyncClient, memory: Transport
) -> None:
    cache = await offloaded(client, memory)
    del memory.pages[KEYS[3]]
    loaded = await client.load(SPEC, TOKENS, lambda _: views_of(SPEC, cache), pages=range(2, 4))
    assert loaded.pages == 1
    assert isinstance(loaded.reason, Unavailable)
    assert "page 3" in str(loaded.reason)


@pytest.mark.parametrize("pages", [range(3, 5), range(-1, 2), range(0, 4, 2), range(3, 1)])
async def test_pages_that_are_not_there_are_refused(client: AsyncClient, pages: range) -> None:
    with pytest.raises(TokenCountMismatch, match="4 full pages"):
        await client.load(SPEC, TOKENS, lambda _: views_of(SPEC, torch.empty(0)), pages=pages)
