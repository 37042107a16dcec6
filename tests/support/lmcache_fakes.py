"""LMCache's keys and objects, without LMCache; and its objects as engines fill them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.tensors import bytes_of
from tests.support.lmcache_memory import RANK
from tests.support.vllm_caches import cpu

LAYERS, HEADS, HEAD_DIM = 2, 2, 8
"""Of the model that `save_tiny` makes."""
LOCKS: Final = {"l1_read_ttl_seconds": 7200, "l1_write_ttl_seconds": 7200}
"""Settings of an adapter whose calls have the patience of tests."""
TOKENS: Final = 24
BLOCK_TOKENS: Final = 8


@dataclass(frozen=True)
class Key:
    """As `ObjectKey`."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int = RANK
    object_group_id: int = 0
    cache_salt: str = ""


def key_of(model: str, chunk: int = 0, **changes: object) -> Key:
    """The name of a chunk."""
    fields = {"chunk_hash": hashlib.sha256(b"%d" % chunk).digest(), "model_name": model}
    return Key(**{**fields, **changes})  # type: ignore[arg-type]


def page_of(
    seed: int = 0,
    *,
    layers: int = LAYERS,
    tokens: int = TOKENS,
    heads: int = HEADS,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Keys and values, `[layers, 2, tokens, heads, head_dim]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, 2, tokens, heads, HEAD_DIM, generator=generator).to(dtype)


def keys_first(page: Tensor) -> Tensor:
    """`[2, layers, tokens, heads * head_dim]`."""
    return torch.stack([page[:, 0].flatten(2), page[:, 1].flatten(2)])


def side_by_side(page: Tensor) -> Tensor:
    """`[layers, tokens, heads * 2 * head_dim]`."""
    return torch.cat([page[:, 0], page[:, 1]], dim=-1).flatten(2)


def one_plane(page: Tensor) -> Tensor:
    """The same, as LMCache has it where it reads a device's memory itself."""
    return side_by_side(page)[None]


def vllm_on_cpu(page: Tensor) -> Tensor:
    """What vLLM's CPU attention wrote, cut into rows of tokens as LMCache does."""
    layers, _, tokens, heads, dim = page.shape
    blocks, slots = tokens // BLOCK_TOKENS, torch.arange(tokens)
    rows = []
    for layer in range(layers):
        cache = cpu(blocks, BLOCK_TOKENS, heads, dim, page.dtype)
        cache.write(page[layer, 0], page[layer, 1], slots)
        rows.append(torch.cat([block.transpose(0, 1).flatten(1) for block in cache.tensor]))
    return torch.stack(rows)


OBJECTS: Final[Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    "apart": ("", keys_first),
    "keys-first": ("keys-first", keys_first),
    "side-by-side": ("side-by-side", side_by_side),
    "one-plane": ("side-by-side", one_plane),
    "vllm-cpu": ("vllm-cpu", vllm_on_cpu),
}
"""Name → layout as a user gives it, and what makes an object of a page."""


class Memory:
    """As `MemoryObj`: a tensor in a buffer."""

    def __init__(self, tensor: Tensor, more: int = 0) -> None:
        self.tensor: Tensor | None = tensor
        self.shapes = [tensor.shape] * (1 + more)

    @classmethod
    def of(cls, size: int) -> Memory:
        """A buffer of bytes."""
        return cls(torch.full((size,), 0xA5, dtype=torch.uint8))

    @property
    def byte_array(self) -> memoryview:
        assert self.tensor is not None
        return bytes_of(self.tensor.reshape(-1))

    def get_shapes(self) -> list[torch.Size]:
        return self.shapes
