"""The memory of engines, by name: NaN throughout, with room that no page may touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.memory import CacheMemory

FIRST: Final = 3
"""Tokens, or slots of a block, before the page."""
AFTER: Final = 2
"""Tokens behind it."""


@dataclass(frozen=True)
class Size:
    """What lies in an engine's memory."""

    layers: int
    tokens: int
    heads: int
    dim: int
    dtype: torch.dtype = torch.float16
    block_tokens: int = 4
    first_slot: int = FIRST
    first_layer: int = 0
    first_head: int = 0

    @property
    def whole(self) -> int:
        """Tokens of memory without blocks."""
        return self.first_slot + self.tokens + AFTER

    @property
    def blocks(self) -> int:
        """Blocks of a pool: some are of others."""
        return -(-(self.first_slot + self.tokens) // self.block_tokens) + 3

    def table(self) -> Tensor:
        """A shuffled block table, longer by one than needed."""
        order = torch.randperm(self.blocks, generator=torch.Generator().manual_seed(self.tokens))
        return order[: self.blocks - 2].int()

    def none(self, *shape: int) -> Tensor:
        """Memory that nothing was written to."""
        return torch.full(shape, float("nan"), dtype=self.dtype)

    def of(self, keys: list[Tensor], values: list[Tensor], paged: bool) -> CacheMemory:
        return CacheMemory.of(
            keys,
            values,
            self.tokens,
            block_table=self.table() if paged else None,
            first_slot=self.first_slot,
            first_layer=self.first_layer,
            first_head=self.first_head,
        )

    def over(self, memory: Tensor, paged: bool) -> CacheMemory:
        return CacheMemory.over(
            memory,
            self.tokens,
            block_table=self.table() if paged else None,
            first_slot=self.first_slot,
            first_layer=self.first_layer,
            first_head=self.first_head,
        )


Made = tuple[CacheMemory, list[Tensor]]
"""A description, and all that it lies in."""


def dense(s: Size) -> Made:
    """Ours: `[layers, 2, tokens, heads, dim]`."""
    memory = s.none(s.layers, 2, s.whole, s.heads, s.dim)
    return s.over(memory, False), [memory]


def hugging_face(s: Size) -> Made:
    """`[1, heads, tokens, dim]`, keys and values of each layer apart."""
    parts = [s.none(1, s.heads, s.whole, s.dim) for _ in range(2 * s.layers)]
    views = [part[0].transpose(0, 1) for part in parts]
    return s.of(views[::2], views[1::2], False), parts


def sglang(s: Size) -> Made:
    """`[K/V, layer, token, head, dim]`."""
    memory = s.none(2, s.layers, s.whole, s.heads, s.dim)
    return s.over(memory.transpose(0, 1), False), [memory]


def lmcache(s: Size) -> Made:
    """`[layers, tokens, heads * 2 * dim]`."""
    memory = s.none(s.layers, s.whole, s.heads, 2, s.dim)
    return s.over(memory.permute(0, 3, 1, 2, 4), False), [memory]


def padded(s: Size) -> Made:
    """Vectors at odd addresses, of which the components lie three apart."""
    memory = s.none(s.layers, 2, s.whole, s.heads + 1, s.dim + 1, 3)
    return s.over(memory[:, :, :, 1:, 1:, 1], False), [memory]


def vllm_gpu(s: Size) -> Made:
    """`[2, blocks, block_tokens, heads, dim]`, a tensor a layer."""
    parts = [s.none(2, s.blocks, s.block_tokens, s.heads, s.dim) for _ in range(s.layers)]
    return s.of([p[0] for p in parts], [p[1] for p in parts], True), parts


def vllm_interleaved(s: Size) -> Made:
    """`[blocks, 2, block_tokens, heads, dim]`, a tensor a layer."""
    parts = [s.none(s.blocks, 2, s.block_tokens, s.heads, s.dim) for _ in range(s.layers)]
    return s.of([p[:, 0] for p in parts], [p[:, 1] for p in parts], True), parts


def vllm_hnd(s: Size) -> Made:
    """`[blocks, 2, heads, block_tokens, dim]`, a tensor a layer."""
    parts = [s.none(s.blocks, 2, s.heads, s.block_tokens, s.dim) for _ in range(s.layers)]
    keys, values = ([p[:, i].transpose(1, 2) for p in parts] for i in (0, 1))
    return s.of(keys, values, True), parts


def vllm_cpu(s: Size) -> Made:
    """`[blocks, heads, block_tokens, 2 * dim]`, but in a head keys `[dim, token]`, then values."""
    parts = [s.none(s.blocks, s.heads, s.block_tokens * 2 * s.dim) for _ in range(s.layers)]
    run, heads = s.block_tokens * s.dim, (s.blocks, s.heads)
    keys = [p[..., :run].view(*heads, s.dim, s.block_tokens).permute(0, 3, 1, 2) for p in parts]
    values = [p[..., run:].view(*heads, s.block_tokens, s.dim).transpose(1, 2) for p in parts]
    return s.of(keys, values, True), parts


def one_pool(s: Size) -> Made:
    """`[blocks, layers, 2, block_tokens, heads, dim]`: a block holds all layers."""
    memory = s.none(s.blocks, s.layers, 2, s.block_tokens, s.heads, s.dim)
    return s.over(memory.movedim(0, 2), True), [memory]


Layout = Callable[[Size], Made]
RUNS: Final[list[Layout]] = [dense, hugging_face, sglang, lmcache, padded]
PAGED: Final[list[Layout]] = [vllm_gpu, vllm_interleaved, vllm_hnd, vllm_cpu, one_pool]
LAYOUTS: Final = RUNS + PAGED
