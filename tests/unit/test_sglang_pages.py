"""Pages of an SGLang host pool: every layout, type and page size, read and written bit by bit."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lexico_client.engines.sglang._pages import LAYOUTS, HostPages
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import InvalidInput, ShapeMismatch, Unsupported
from tests.support.groups import bits
from tests.support.sglang_pools import HostPool

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_page(pool: HostPool, seed: int = 0) -> Tensor:
    """Numbers that are all different, as far as the type has so many."""
    generator = torch.Generator().manual_seed(seed)
    shape = (pool.layer_num, 2, pool.page_size, pool.head_num, pool.head_dim)
    return torch.randn(shape, generator=generator).to(pool.dtype)


def random_pool(layout: str, seed: int) -> HostPool:
    """Of odd sizes."""
    chosen = random.Random(seed)
    return HostPool(
        layout,
        page_size=chosen.choice([16, 32, 48, 64, 100, 256]),
        dtype=chosen.choice(DTYPES),
        layer_num=chosen.choice([1, 2, 5]),
        head_num=chosen.choice([1, 3, 4]),
        head_dim=chosen.choice([4, 8, 24]),
        pages=chosen.choice([2, 3, 7]),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_page_is_read_and_written_where_the_engine_has_it(layout: str, seed: int) -> None:
    pool = random_pool(layout, seed)
    pages, computed = HostPages.of(pool), random_page(pool, seed)
    pool.compute(1, computed)
    (memory,) = pages.pages(pool.slots(1), 1)
    assert torch.equal(memory.read(), computed)
    (other,) = pages.pages(pool.slots(0), 1)
    other.write(computed)
    assert torch.equal(pool.computed(0), computed)
    assert all(pool.computed(page).isnan().all() for page in range(2, pool.pages))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_page_by_itself_lies_as_the_pool_gives_it(layout: str, dtype: torch.dtype) -> None:
    pool = HostPool(layout, dtype=dtype)
    pages, computed = HostPages.of(pool), random_page(pool)
    pool.compute(3, computed)
    flat = pool.get_data_page(3 * pool.page_size)
    assert torch.equal(pages.flat(flat).read(), computed)
    room = pool.get_dummy_flat_data_page()
    pages.flat(room).write(computed)
    assert torch.equal(room, flat)


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pool_in_eight_bits_has_bytes(layout: str, dtype: torch.dtype) -> None:
    pool = HostPool(layout, dtype=dtype)
    computed = random_page(pool)
    pool.compute(3, computed)
    pool.dtype, pool.kv_buffer = torch.uint8, pool.kv_buffer.view(torch.uint8)
    pages = HostPages.of(pool, dtype)
    assert torch.equal(bits(pages.page(3 * pool.page_size).read()), bits(computed))
    pages.page(0).write(computed)
    assert torch.equal(pool.get_data_page(0), pool.get_data_page(3 * pool.page_size))
    room = pages.room()
    assert (room.dtype, room.shape) == (torch.uint8, pool.get_data_page(0).shape)
    pages.flat(room).write(computed)
    assert torch.equal(room, pool.get_data_page(0))


def test_layers_of_a_group_are_those_of_the_page() -> None:
    pool = HostPool()
    computed = random_page(pool)
    pool.compute(2, computed)
    memory = HostPages.of(pool).page(2 * pool.page_size)
    assert torch.equal(memory.within(range(1, 3)).read(), computed[1:3])


@pytest.mark.parametrize("slot", [1, 15, -16, 12 * 16])
def test_a_slot_where_no_page_begins_is_refused(slot: int) -> None:
    with pytest.raises(InvalidInput, match=f"host index {slot}"):
        HostPages.of(HostPool()).page(slot)


@pytest.mark.parametrize(
    "slots",
    [torch.arange(31), torch.arange(32).flip(0), torch.arange(32) * 2, torch.arange(8, 40)],
    ids=["short", "backwards", "apart", "in-the-middle"],
)
def test_slots_that_are_no_whole_pages_are_refused(slots: Tensor) -> None:
    with pytest.raises(InvalidInput, match="host ind"):
        HostPages.of(HostPool()).pages(slots, 2)


def test_pages_need_not_be_neighbours() -> None:
    pool = HostPool()
    computed = [random_page(pool, seed) for seed in range(3)]
    for page, each in zip((7, 0, 4), computed, strict=True):
        pool.compute(page, each)
    found = HostPages.of(pool).pages(pool.slots(7, 0, 4), 3)
    assert all(torch.equal(m.read(), each) for m, each in zip(found, computed, strict=True))


def test_a_pool_of_another_shape_is_refused() -> None:
    pool = HostPool()
    pool.head_dim = 4
    with pytest.raises(Unsupported, match="has another shape"):
        HostPages.of(pool)
    pool = HostPool("page_head")
    pool.layout = "page_first_direct"
    with pytest.raises(Unsupported, match="has another shape"):
        HostPages.of(pool)
    pool.layout = "page_first_kv_split"
    with pytest.raises(Unsupported, match="hicache_mem_layout=page_first_kv_split: not known"):
        HostPages.of(pool)
    with pytest.raises(Unsupported, match="without one buffer"):
        HostPages.of(object())


def test_a_page_by_itself_of_another_size_or_type_is_refused() -> None:
    pages = HostPages.of(HostPool())
    for page in (torch.zeros(7), torch.zeros(pages.page_numel, dtype=torch.float16)):
        with pytest.raises(ShapeMismatch, match="a page of"):
            pages.flat(page)
