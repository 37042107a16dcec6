"""Pages between the service and engines' memory: paged, and of ranks that hold a part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient, CacheMemory, InMemoryTransport, PageView
from lexico_codec.geometry import DTYPES
from lexico_codec.spec import CacheSpec
from lexico_proto import errors
from tests.support.cache_layouts import LAYOUTS, Layout, Size, vllm_cpu, vllm_hnd
from tests.support.client_fixtures import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)

SPEC = small_spec()
PAGES = 4
SIZE = Size(LAYERS, PAGES * PAGE_TOKENS, KV_HEADS, HEAD_DIM, DTYPES["float16"], block_tokens=3)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        yield client


def pages_of(
    spec: CacheSpec, memory: CacheMemory, first_slot: int
) -> Callable[[int, int], CacheMemory]:
    """As an adapter gives them: the whole memory once, then its pages and groups."""

    def view(page: int, group: int) -> CacheMemory:
        first, table = first_slot + page * PAGE_TOKENS, memory.tables.block_table
        return memory.within(spec.group_range(group)).at(PAGE_TOKENS, table, first)

    return view


def _same(view: PageView, pages: int) -> PageView:
    return view


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_from_any_memory_into_any(client: AsyncClient, layout: Layout) -> None:
    cache = random_cache(SPEC, PAGES)
    source, _ = layout(SIZE)
    source.write(cache)
    report = await client.offload(SPEC, TOKENS, pages_of(SPEC, source, SIZE.first_slot))
    assert report.tokens == PAGES * PAGE_TOKENS
    landing = Landing(SPEC)
    await client.load(SPEC, TOKENS, landing)
    assert torch.equal(landing.cache, cache)
    target, held = layout(replace(SIZE, first_slot=1))
    loaded = await client.load(SPEC, TOKENS, lambda pages: pages_of(SPEC, target, 1))
    assert (loaded.pages, loaded.reason) == (PAGES, None)
    assert torch.equal(target.read(), cache)
    assert sum(int((~part.isnan()).sum()) for part in held) == cache.numel()


@pytest.mark.parametrize("codec", ["lossless", "lexico"])
async def test_ranks_take_their_share_of_one_page(client: AsyncClient, codec: str) -> None:
    """Pages of the whole model; two pipeline stages, each of ranks of one and two KV heads."""
    spec = small_spec("lossless")
    if codec == "lexico":
        dictionary = small_dictionary()
        await client.register_dictionary(dictionary)
        spec = small_spec("lexico", dictionary=dictionary.digest)
    await client.offload(spec, TOKENS, views_of(spec, random_cache(spec, PAGES)))
    landing = Landing(spec)
    await client.load(spec, TOKENS, landing)
    for first_layer, layers in [(0, 3), (3, 2)]:
        for first_head, heads in [(0, 1), (1, 2)]:
            size = replace(SIZE, layers=layers, heads=heads)
            memory, held = vllm_hnd(replace(size, first_layer=first_layer, first_head=first_head))
            view = pages_of(spec, memory, SIZE.first_slot)
            loaded = await client.load(spec, TOKENS, partial(_same, view))
            assert (loaded.pages, loaded.reason) == (PAGES, None)
            own = landing.cache[first_layer : first_layer + layers]
            assert torch.equal(memory.read(), own[:, :, :, first_head : first_head + heads])
            written = sum(int((~part.isnan()).sum()) for part in held)
            assert written == memory.read().numel()


async def test_memory_that_does_not_fit_is_the_callers_fault(client: AsyncClient) -> None:
    await client.offload(SPEC, TOKENS, views_of(SPEC, random_cache(SPEC, PAGES)))
    memory, held = vllm_cpu(replace(SIZE, first_head=1))
    with pytest.raises(errors.ShapeMismatch, match="the view of page 0 group 0 has heads 1"):
        await client.load(SPEC, TOKENS, lambda pages: pages_of(SPEC, memory, 0))
    shape = SPEC.group_shape(0)
    same = torch.full((1, *shape[1:]), float("nan"), dtype=torch.float16)
    with pytest.raises(errors.InvalidInput, match="share memory"):
        await client.load(SPEC, TOKENS, lambda pages: lambda page, group: same.expand(shape))
    assert all(bool(part.isnan().all()) for part in [*held, same])


async def test_a_source_holds_all_of_a_group(client: AsyncClient) -> None:
    def part(first_head: int, heads: int) -> Callable[[int, int], CacheMemory | Tensor]:
        memory, _ = vllm_cpu(replace(SIZE, heads=heads, first_head=first_head))
        return pages_of(SPEC, memory, 0)

    for first_head, heads in [(0, 2), (1, 2), (1, KV_HEADS)]:
        with pytest.raises(errors.ShapeMismatch, match=r"page 0 group 0|heads 1\.\.3"):
            await client.offload(SPEC, TOKENS, part(first_head, heads))
    memory, _ = vllm_cpu(SIZE)  # nothing was written there
    with pytest.raises(errors.NonFiniteCache, match="page 0 group 0"):
        await client.offload(SPEC, TOKENS, pages_of(SPEC, memory, 0))
