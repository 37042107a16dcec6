"""Caches as vLLM's attention backends keep them, each with a kernel of its own to write into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lexico_client.engines.vllm._layout import Write


@dataclass(frozen=True)
class EngineCache:
    """A layer's tensor, and how the engine writes into it."""

    tensor: Tensor
    """As it is registered; but one in 8 bits is `registered`."""
    write: Write

    @property
    def registered(self) -> Tensor:
        """vLLM says of a cache in 8 bits no more than that."""
        return self.tensor.view(torch.uint8) if self.tensor.itemsize == 1 else self.tensor

    def update(self) -> Update:
        """vLLM's own interface to the kernel: numbers of the model's type are rounded."""

        def update(layer: Any, keys: Tensor, values: Tensor, tensor: Tensor, slots: Tensor) -> None:
            assert tensor.data_ptr() == self.tensor.data_ptr()
            assert keys.dtype == values.dtype == torch.bfloat16
            self.write(keys.to(self.tensor.dtype), values.to(self.tensor.dtype), slots)

        return update


Update = Callable[[Any, Tensor, Tensor, Tensor, Tensor], None]
Make = Callable[[int, int, int, int, torch.dtype], EngineCache]
"""`(blocks, block_tokens, heads, dim, dtype)`; memory is NaN throughout."""


def cpu(blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype) -> EngineCache:
    """CPU attention: a head of a block is its keys transposed, then its values."""
    tensor = _nan((blocks, heads, block_tokens, 2 * dim), dtype)
    run = block_tokens * dim

    def write(keys: Tensor, values: Tensor, slots: Tensor) -> None:
        block, place = (slots // block_tokens)[:, None, None], (slots % block_tokens)[:, None, None]
        head, part = torch.arange(heads)[:, None], torch.arange(dim)
        start = (block * heads + head) * 2 * run  # of a head of a block
        tensor.view(-1)[start + part * block_tokens + place] = keys
        tensor.view(-1)[start + run + place * dim + part] = values

    return EngineCache(tensor, write)


def packed(blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype) -> EngineCache:
    """The same shape with keys and values of a token side by side, heads before tokens."""
    tensor = _nan((blocks, heads, block_tokens, 2 * dim), dtype)
    return EngineCache(tensor, _indexed(tensor[..., :dim], tensor[..., dim:], block_tokens))


def packed_by_token(
    blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> EngineCache:
    """The same shape again, but tokens before heads in memory."""
    tensor = _nan((blocks, block_tokens, heads, 2 * dim), dtype).transpose(1, 2)
    return EngineCache(tensor, _indexed(tensor[..., :dim], tensor[..., dim:], block_tokens))


def flash(blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype) -> EngineCache:
    """`[2, blocks, block_tokens, heads, dim]`."""
    tensor = _nan((2, blocks, block_tokens, heads, dim), dtype)
    keys, values = (part.transpose(1, 2) for part in tensor)
    return EngineCache(tensor, _indexed(keys, values, block_tokens))


def flash_heads_first(
    blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> EngineCache:
    """That shape with heads before tokens in memory."""
    tensor = _nan((2, blocks, heads, block_tokens, dim), dtype).transpose(2, 3)
    keys, values = (part.transpose(1, 2) for part in tensor)
    return EngineCache(tensor, _indexed(keys, values, block_tokens))


def interleaved(
    blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> EngineCache:
    """`[blocks, 2, block_tokens, heads, dim]`."""
    tensor = _nan((blocks, 2, block_tokens, heads, dim), dtype)
    keys, values = (tensor[:, which].transpose(1, 2) for which in (0, 1))
    return EngineCache(tensor, _indexed(keys, values, block_tokens))


def shuffled(
    blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> EngineCache:
    """A layout that nobody knows: pairs of components change places, as in tiles of a processor."""
    made = packed(blocks, block_tokens, heads, dim, dtype)

    def write(keys: Tensor, values: Tensor, slots: Tensor) -> None:
        made.write(keys.flip(-1), values, slots)

    return EngineCache(made.tensor, write)


KNOWN: Final[list[Make]] = [cpu, packed, packed_by_token, flash, flash_heads_first, interleaved]


def _nan(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def _indexed(keys: Tensor, values: Tensor, block_tokens: int) -> Write:
    """Writes into views `[blocks, heads, block_tokens, dim]`."""

    def write(new_keys: Tensor, new_values: Tensor, slots: Tensor) -> None:
        block, place = slots // block_tokens, slots % block_tokens
        keys[block, :, place] = new_keys
        values[block, :, place] = new_values

    return write
