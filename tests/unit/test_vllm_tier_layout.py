"""Chunks of vLLM's primary tier lie where its engines read them, in every layout that is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexico_client.engines.vllm._layout import recognised
from lexico_client.engines.vllm.tier._layout import (
    LAYOUTS,
    Chunks,
    ChunkShape,
    check_found,
    expected,
)
from lexico_proto.errors import InvalidInput, Unsupported
from tests.support.vllm_caches import Make, cpu, flash, packed, packed_by_token
from tests.support.vllm_tiers import ENGINES, PrimaryTier

shapes = st.builds(
    ChunkShape,
    st.permutations(range(3)).map(tuple),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([16, 32, 48, 256]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([8, 16, 48]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(list(LAYOUTS)),
)


def kv(shape: ChunkShape, seed: int = 0) -> torch.Tensor:
    """`[layers, 2, tokens, heads, dim]`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = shape.blocks * shape.block_tokens
    size = (len(shape.places), 2, tokens, shape.heads, shape.dim)
    return torch.randn(size, generator=generator).to(shape.dtype)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, slot=st.integers(0, 2))
def test_what_an_engine_computed_is_read_and_what_is_written_it_finds(
    shape: ChunkShape, slot: int
) -> None:
    one, other = PrimaryTier(shape, 3), PrimaryTier(shape, 3)
    cache = kv(shape)
    one.compute(slot, cache)
    assert torch.equal(Chunks(one.rows, shape).memory(slot).read(), cache)
    Chunks(other.rows, shape).memory(2 - slot).write(cache)
    assert torch.equal(other.computed(2 - slot), cache)
    assert other.is_whole()
    for untouched in {0, 1, 2} - {2 - slot}:
        assert other.computed(untouched).isnan().all()


def test_rows_that_hold_no_chunk_are_refused() -> None:
    shape = ChunkShape((0, 1), 2, 16, 2, 8, torch.float32, "heads-first")
    for rows in (
        torch.zeros((3, shape.bytes - 1), dtype=torch.int8),
        torch.zeros((3, shape.bytes), dtype=torch.int16),
        torch.zeros((3, shape.bytes + 2), dtype=torch.int8),  # no whole number to the next row
        torch.zeros(shape.bytes, dtype=torch.int8),
    ):
        with pytest.raises(Unsupported, match="a primary tier"):
            Chunks(rows, shape)
    chunks = Chunks(torch.zeros((3, shape.bytes), dtype=torch.int8), shape)
    for slot in (-1, 3):
        with pytest.raises(InvalidInput, match="slot"):
            chunks.memory(slot)


@pytest.mark.parametrize(
    ("given_", "engine", "device", "name"),
    [
        ("", "LBHNC", "cuda", "heads-first"),
        ("", "LBNHC", "cuda", "tokens-first"),
        ("", "LBHNC", "cpu", "vllm-cpu"),
        ("tokens-first", None, "", "tokens-first"),
        ("vllm-cpu", "BLHNC", "cuda", "vllm-cpu"),
    ],
)
def test_the_layout_to_expect(given_: str, engine: str | None, device: str, name: str) -> None:
    assert expected(given_, engine, device) == name


@pytest.mark.parametrize("engine", ["BLHNC", "LHBNC", "", None])
def test_blocks_that_lie_in_pieces_are_refused(engine: str | None) -> None:
    with pytest.raises(Unsupported, match="VLLM_KV_CACHE_LAYOUT=LBHNC or LBNHC"):
        expected("", engine, "cuda")


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("make", [cpu, packed, packed_by_token, flash])
def test_a_worker_takes_the_layout_in_which_it_writes_and_no_other(name: str, make: Make) -> None:
    engine = make(4, 32, 2, 16, torch.bfloat16)
    found = recognised(engine.tensor, 32, 2, 16, engine.write)[1]
    if make is ENGINES[name]:
        check_found(name, found, "layer", engine.tensor, 32, 2, 16)
        single = make(4, 32, 1, 16, torch.bfloat16)
        found = recognised(single.tensor, 32, 1, 16, single.write)[1]
        check_found(name, found, "layer", single.tensor, 32, 1, 16)
        return
    with pytest.raises(Unsupported, match=r"layer: the engine .*is not layout"):
        check_found(name, found, "layer", engine.tensor, 32, 2, 16)


def test_blocks_that_kernels_split_are_refused() -> None:
    engine = packed(8, 16, 2, 16, torch.float32)
    found = recognised(engine.tensor, 32, 2, 16, engine.write)[1]
    with pytest.raises(Unsupported, match="start with --block-size 16"):
        check_found("heads-first", found, "layer", engine.tensor, 32, 2, 16)
