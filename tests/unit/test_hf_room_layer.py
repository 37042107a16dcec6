"""Cache layers that grow in place: the tensors of a `DynamicLayer`, and no copies while they have
room."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lexico_client.engines.hf._room_layer import GROWTH, LEAST_ROOM, Room, RoomLayer

ROWS, HEADS, DIM, CAPACITY = 2, 3, 5, 41


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def states(tokens: int, seed: int = 0, rows: int = ROWS, **kind: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, rows, HEADS, tokens, DIM, generator=generator).to(**kind)
    return made[0], made[1]


def roomy(tokens: int = 7) -> tuple[RoomLayer, Tensor]:
    """A layer in memory that nobody wrote to behind its tokens, and that memory."""
    memory = torch.full((2, ROWS, HEADS, CAPACITY, DIM), float("nan"))
    for part, given in zip(memory, states(tokens, seed=9), strict=True):
        part[:, :, :tokens] = given
    layer = RoomLayer()
    layer.move_in(Room(memory[0], memory[1], tokens))
    return layer, memory


def plain(tokens: int = 7) -> DynamicLayer:
    layer = DynamicLayer()
    if tokens:
        layer.update(*states(tokens, seed=9))
    return layer


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    if theirs.get_seq_length():
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_it_holds_what_a_dynamic_layer_holds(seed: int) -> None:
    """And what anybody took of it stays what it was."""
    choices = random.Random(seed)
    tokens = choices.choice([0, 7])
    ours: Any = roomy(tokens)[0]
    theirs: Any = plain(tokens)
    taken: list[tuple[Tensor, Tensor]] = []
    for step in range(60):
        way = choices.randrange(10)
        rows = ROWS if not theirs.get_seq_length() else theirs.keys.shape[0]
        if way < 6:
            new = states(choices.choice([1, 1, 1, 4, 30]), seed=100 * seed + step, rows=rows)
            for got, wanted in zip(ours.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(got, wanted)
                taken.append((got, got.clone()))
        elif way == 6 and theirs.get_seq_length() > 3:
            ours.crop(-3), theirs.crop(-3)
        elif way == 7 and theirs.get_seq_length():
            order = torch.tensor([choices.randrange(rows) for _ in range(rows)])
            ours.reorder_cache(order), theirs.reorder_cache(order)
        elif way == 8 and rows < 5:
            ours.batch_repeat_interleave(2), theirs.batch_repeat_interleave(2)
        elif way == 9:
            ours = copy.deepcopy(ours)
        assert_same(ours, theirs)
    for got, wanted in taken:
        assert torch.equal(got, wanted)


def test_room_is_written_in_place_and_growth_is_seldom() -> None:
    layer, memory = roomy()
    for step in range(CAPACITY - 7):
        keys, _ = layer.update(*states(1, seed=step))
        assert keys.data_ptr() == memory.data_ptr()
    assert not memory.isnan().any()
    moves, place = 0, memory.data_ptr()
    for step in range(2000):
        keys, _ = layer.update(*states(1, seed=step))
        moves, place = moves + (keys.data_ptr() != place), keys.data_ptr()
    assert moves < 2 * GROWTH * 4
    assert keys.untyped_storage().nbytes() < keys.nbytes * (1 + 1 / GROWTH) + 4 * DIM * 6 * (
        LEAST_ROOM
    )


def test_two_layers_of_one_memory_part_ways() -> None:
    """As a copy that shares its tensors: only one of them goes on in place."""
    layer, memory = roomy()
    twin = copy.copy(layer)
    layer.update(*states(3, seed=1))
    other: Any = plain()
    other.update(*states(3, seed=2))
    twin.update(*states(3, seed=2))
    assert_same(twin, other)
    assert torch.equal(memory[0, :, :, 7:10], states(3, seed=1)[0])


@pytest.mark.parametrize("allocated", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_memory_of_inference_mode(allocated: bool, used: bool) -> None:
    """Tensors that were made under it can be written only under it."""
    with torch.inference_mode() if allocated else nullcontext():
        layer, _ = roomy()
    theirs = plain()
    for mode in (used, not used):
        with torch.inference_mode() if mode else nullcontext():
            layer.update(*states(2, seed=1))
            theirs.update(*states(2, seed=1))
            assert_same(layer, theirs)


def test_under_autograd_a_backward_pass_finds_what_it_kept() -> None:
    layer, memory = roomy()
    before = memory.clone()
    with torch.enable_grad():
        query = torch.ones(ROWS, HEADS, 1, DIM, requires_grad=True)
        total = torch.zeros(())
        for step in range(3):
            keys, values = layer.update(*states(1, seed=step))
            total = (
                total + torch.nn.functional.scaled_dot_product_attention(query, keys, values).sum()
            )
        total.backward()
    assert query.grad is not None
    torch.testing.assert_close(memory, before, equal_nan=True, rtol=0, atol=0)
    theirs = plain()
    for step in range(3):
        theirs.update(*states(1, seed=step))
    assert_same(layer, theirs)


def test_what_a_dynamic_layer_refuses_or_converts() -> None:
    layer, theirs = roomy()[0], plain()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layer.update(*states(1, rows=1))
    layer, theirs = roomy()[0], plain()
    for each in (layer, theirs):
        each.update(*states(1, dtype=torch.float64))
    assert layer.keys is not None
    assert layer.keys.dtype == torch.float64
    assert_same(layer, theirs)


def test_a_layer_that_was_reset_begins_anew() -> None:
    layer, memory = roomy()
    keys = layer.keys
    before = memory.clone()
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(*states(2))
    assert layer.get_seq_length() == 2
    torch.testing.assert_close(memory, before, equal_nan=True, rtol=0, atol=0)
    assert keys is not None
    assert torch.equal(keys, before[0, :, :, :7])


def test_a_traced_step_writes_nothing_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses cannot be traced."""
    (layer, memory), theirs = roomy(), plain()
    before = memory.clone()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for each in (layer, theirs):
        each.update(*states(1))
    assert_same(layer, theirs)
    torch.testing.assert_close(memory, before, equal_nan=True, rtol=0, atol=0)
