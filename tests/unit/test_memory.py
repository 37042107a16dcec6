"""Descriptions of memory: what is refused when one is made, and what pages and groups it gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.kernels.aliasing import check_strides, check_tables
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.memory import CacheMemory, source_of, target_of
from lexico_proto.errors import InvalidInput, LexicoError, ShapeMismatch
from tests.support.cache_layouts import LAYOUTS, Layout, Size

POOL = torch.empty(6, 4, 3, 8, dtype=torch.float16)
TABLE = torch.tensor([4, 0, 5])


def offsets_of(part: Tensor) -> list[int]:
    """The address of every byte of a tensor of float16."""
    steps = [
        [2 * stride * i for i in range(size)]
        for size, stride in zip(part.shape, part.stride(), strict=True)
    ]
    starts = [sum(at) + part.data_ptr() for at in itertools.product(*steps)]
    return [start + byte for start in starts for byte in (0, 1)]


# Elements that share memory


@settings(deadline=None, max_examples=300)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    strides=st.lists(st.integers(0, 20), min_size=3, max_size=3),
)
def test_no_tensor_that_shares_memory_with_itself_passes(
    sizes: list[int], strides: list[int]
) -> None:
    part = torch.empty(200, dtype=torch.float16).as_strided(sizes, strides)
    try:
        check_strides(part, "part")
    except InvalidInput:
        return
    offsets = offsets_of(part)
    assert len(set(offsets)) == len(offsets)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_no_tables_that_share_memory_pass(data: st.DataObject) -> None:
    """Permuted and cut out of one another in any way."""
    room = torch.empty(2000, dtype=torch.float16)
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    parts = []
    for _ in range(2):
        wide = [size + data.draw(st.integers(0, 4)) for size in sizes]
        order = data.draw(st.permutations(range(3)))
        strides = [0, 0, 0]
        step = 1
        for axis in order:
            strides[axis] = step
            step *= wide[axis]
        parts.append(room.as_strided(sizes, strides, data.draw(st.integers(0, 40))))
    try:
        check_tables(parts)
    except InvalidInput:
        return
    assert not set(offsets_of(parts[0])) & set(offsets_of(parts[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_tokens", [1, 4, 16])
def test_layouts_of_engines_pass(layout: Layout, block_tokens: int) -> None:
    """Keys and values that lie among one another are no aliases."""
    memory, _ = layout(Size(3, 9, 2, 8, block_tokens=block_tokens))
    check_tables(memory.tables.parts)


@pytest.mark.parametrize(
    "parts",
    [
        [POOL[0], POOL[0]],
        [POOL[:, 0], POOL[:, 0]],
        [POOL[1:3, 0], POOL[2:4, 0]],
        [POOL[0], POOL.view(-1)[8:104].view(4, 3, 8)],
        [POOL[0][:1].expand(4, 3, 8), POOL[1]],
        [POOL[0, :, :, :4], POOL[0, :, :, 3:7]],
    ],
    ids=["same", "same of blocks", "overlapping", "shifted", "expanded", "components"],
)
def test_tables_that_share_memory_are_named(parts: list[Tensor]) -> None:
    with pytest.raises(InvalidInput, match=r"parts\[.\].* share memory"):
        TableMemory.of(parts)


# What a description is made of


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"tokens": 9}, None, ""),
        ({"tokens": 0}, None, ""),
        ({}, None, ""),
        ({"tokens": 13}, ShapeMismatch, "block_table: 3 blocks of 4 slots, 13 tokens"),
        ({"tokens": 10, "first_slot": 3}, ShapeMismatch, "from slot 3 on need 4"),
        ({"first_slot": -1}, ShapeMismatch, "first_slot"),
        ({"tokens": -1}, ShapeMismatch, "block_table"),
        ({"block_table": TABLE.float()}, ShapeMismatch, "block_table: must be"),
        ({"block_table": TABLE[None]}, ShapeMismatch, "block_table: must be"),
        ({"block_table": TABLE.to("meta")}, ShapeMismatch, "block_table: must be on the device"),
        ({"block_table": torch.tensor([4, 6])}, InvalidInput, r"outside 0\.\.5"),
        ({"block_table": torch.tensor([4, -1])}, InvalidInput, r"outside 0\.\.5"),
        ({"block_table": torch.tensor([4, 0, 4])}, InvalidInput, "twice"),
        ({"block_table": torch.tensor([4, 9]), "tokens": 4}, None, ""),  # not used
        ({"block_table": torch.tensor([9, 4]), "tokens": 4, "first_slot": 4}, None, ""),
        ({"first_layer": -1}, ShapeMismatch, "first_layer"),
        ({"first_head": -1}, ShapeMismatch, "first_head"),
    ],
)
def test_block_tables_and_slots(
    given: dict[str, Any], error: type[LexicoError] | None, named: str
) -> None:
    keys, values = [POOL], [POOL.clone()]
    arguments = {"block_table": TABLE, **given}
    if error is None:
        CacheMemory.of(keys, values, **arguments)
        return
    with pytest.raises(error, match=named):
        CacheMemory.of(keys, values, **arguments)


@pytest.mark.parametrize(
    ("keys", "values", "named"),
    [
        ([], [], "parts: none"),
        ([POOL[0]], [], "keys of 1 layers"),
        ([POOL], [POOL], "3 dimensions"),
        ([POOL[0]], [POOL[1, :3]], "must agree"),
        ([POOL[0]], [POOL[1].bfloat16()], "must agree"),
        ([POOL[0]], [POOL[1].to("meta")], "must agree"),
        ([POOL[0].int()], [POOL[1].int()], "floating point"),
        ([POOL[0].double()], [POOL[1].double()], "float64: one of float32, float16, bfloat16"),
        (*([POOL[i].to(torch.float8_e4m3fnuz)] for i in (0, 1)), "float8_e4m3fnuz"),
        ([POOL[0, :, :0]], [POOL[1, :, :0]], "0 heads"),
        ([POOL[0].to_sparse()], [POOL[1]], "dimensions"),
    ],
)
def test_tensors_that_are_no_memory(keys: list[Tensor], values: list[Tensor], named: str) -> None:
    with pytest.raises(ShapeMismatch, match=named):
        CacheMemory.of(keys, values)


@pytest.mark.parametrize(
    "shape", [(2, 2, 4, 3), (2, 1, 4, 3, 8), (0, 2, 4, 3, 8), (2, 2, 1, 4, 3, 8)]
)
def test_one_tensor_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"needs \[layers, 2"):
        CacheMemory.over(torch.empty(shape))
    with pytest.raises(ShapeMismatch, match=r"needs \[layers, 2"):
        target_of(torch.empty(shape))


def test_elements_may_share_memory_where_they_are_only_read() -> None:
    tensor = torch.randn(1, 2, 1, 3, 8).expand(2, 2, 5, 3, 8)
    assert torch.equal(source_of(tensor).read(), tensor)
    with pytest.raises(InvalidInput, match="memory: elements share memory"):
        target_of(tensor)


def test_what_becomes_of_a_block_table_later_counts_for_nothing() -> None:
    """Engines write into theirs; what was checked is what is used."""
    pool = torch.zeros(2, 6, 4, 3, 8, dtype=torch.float16)
    table = TABLE.clone()
    memory = CacheMemory.of([pool[0]], [pool[1]], block_table=table)
    over = CacheMemory.over(pool[None], block_table=table)
    page = memory.at(4, table, 4)
    table.fill_(1 << 40)
    for described, blocks in ((memory, [4, 0, 5]), (over, [4, 0, 5]), (page, [0])):
        pool.zero_()
        described.write(torch.ones(described.shape).half())
        assert pool.amax((0, 2, 3, 4)).nonzero()[:, 0].tolist() == sorted(blocks)


# Pages and groups of one


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_of_one_memory(layout: Layout) -> None:
    """Checked once, then a page is its tokens."""
    memory, _ = layout(Size(2, 21, 3, 8, first_slot=0))
    whole = torch.randn(memory.shape).half()
    memory.write(whole)
    table = memory.tables.block_table
    for first, tokens in [(0, 7), (7, 7), (14, 7), (5, 1), (20, 1), (3, 0)]:
        page = memory.at(tokens, table, first)
        assert torch.equal(page.read(), whole[:, :, first : first + tokens])
    with pytest.raises(ShapeMismatch):
        memory.at(22, table, 7)
    with pytest.raises(ShapeMismatch, match="block_table"):
        memory.at(7, TABLE if table is None else None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_of_one_memory(layout: Layout) -> None:
    """A pipeline rank with layers 3, 4 and 5 of a model, of which frames hold four."""
    memory, _ = layout(Size(3, 5, 2, 8, first_layer=3, first_head=1))
    whole = torch.randn(3, 2, 5, 4, 8).half()
    memory.write(whole)
    for group, own, mine in [
        (range(0, 4), range(3, 4), slice(0, 1)),
        (range(4, 8), range(0, 2), slice(1, 3)),
        (range(0, 8), range(3, 6), slice(0, 3)),
        (range(4, 5), range(0, 1), slice(1, 2)),
    ]:
        part = memory.within(group)
        assert (part.layers, part.heads) == (own, range(1, 3))
        assert torch.equal(part.read(), whole[mine, :, :, 1:3])
    for group in (range(0, 3), range(6, 9)):
        part = memory.within(group)
        assert not part.layers
        assert len(part.tables.addresses().pointers) == 0
        assert part.read().shape == (0, 2, 5, 2, 8)
        part.check((len(group), 2, 5, 4, 8), torch.float16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_addresses_are_those_of_the_parts(layout: Layout) -> None:
    tables = layout(Size(3, 9, 2, 8))[0].tables
    pointers, strides = tables.addresses()
    assert pointers.tolist() == [part.data_ptr() for part in tables.parts]
    paged = tables.block_table is not None
    expected = [part.stride() if paged else (0, *part.stride()) for part in tables.parts]
    assert (strides == torch.tensor(expected).numpy()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_tokens(layout: Layout) -> None:
    memory, held = layout(Size(2, 9, 3, 8))
    which = torch.tensor([True, False, False, True, True, False, False, False, True])
    values = torch.randn(2, 2, 4, 3, 8).half()
    memory.write_tokens(which, values)
    assert torch.equal(memory.read()[:, :, which], values)
    assert sum(int((~part.isnan()).sum()) for part in held) == values.numel()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_leading_and_following_tokens(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    tokens = data.draw(st.integers(0, 12))
    first_slot = data.draw(st.integers(0, 9))
    cut = data.draw(st.integers(0, 13))
    memory, _ = layout(Size(1, tokens, 2, 8, block_tokens=3, first_slot=first_slot))
    assume(memory.tokens == tokens)
    whole = torch.randn(2, tokens, 2, 8).half()
    memory.tables.write(whole)
    assert torch.equal(memory.tables.leading(cut).read(), whole[:, :cut])
    assert torch.equal(memory.tables.behind(cut).read(), whole[:, cut:])
