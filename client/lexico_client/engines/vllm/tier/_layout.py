"""Where keys and values lie in a block of vLLM's primary tier.

The tier sees bytes: a row for each chunk, in it for each layer the chunk's blocks one behind the
other. What lies where within a block is the engine's doing, and its name for that does not tell
all: attention on a CPU registers the same layout as attention on a GPU, and keeps its keys
transposed. So a layout is expected by its name, and the workers have to find it (`check_found`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_client.engines.vllm._layout import Layout as Viewing
from lexico_client.engines.vllm._layout import (
    Views,
    side_by_side,
    side_by_side_tokens_first,
    transposed_keys,
)
from lexico_codec.memory import CacheMemory
from lexico_proto.errors import InvalidInput, Unsupported

_CPU: Final = "cpu"


@dataclass(frozen=True)
class BlockLayout:
    """How a block of one layer is laid out."""

    heads_first: bool
    """Whether a head's tokens lie together, or a token's heads."""
    view: Viewing

    def views(self, blocks: Tensor, block_tokens: int, heads: int, dim: int) -> Views:
        """Keys and values of blocks, each `[blocks, block_tokens, heads, dim]`, as views.

        Args:
            blocks: `[blocks, n]` of numbers, each block contiguous.
            block_tokens, heads, dim: what a block has.

        Raises:
            Unsupported: blocks of another size.
        """
        inner = (heads, block_tokens) if self.heads_first else (block_tokens, heads)
        shape = (blocks.shape[0], *inner, 2 * dim)
        if blocks.shape[1] != heads * block_tokens * 2 * dim:
            raise Unsupported(f"blocks of {blocks.shape[1]} numbers, {list(shape[1:])} needed")
        found = self.view(blocks.view(shape), block_tokens, heads, dim)
        if found is None:
            raise Unsupported(f"blocks with strides {blocks.stride()}: contiguous ones are needed")
        return found


LAYOUTS: Final[Mapping[str, BlockLayout]] = {
    "heads-first": BlockLayout(True, side_by_side),
    "tokens-first": BlockLayout(False, side_by_side_tokens_first),
    "vllm-cpu": BlockLayout(True, transposed_keys),
}
"""A head's tokens with keys and values side by side; a token's heads with the same; a head's keys,
transposed, and then its values."""

_OF_ENGINE: Final = {"LBHNC": "heads-first", "LBNHC": "tokens-first"}
"""vLLM's names: layers, blocks, heads, tokens (N), components."""


def expected(given: str, engine_layout: str | None, device: str) -> str:
    """The name of the layout to expect.

    Args:
        given: setting `layout`, which counts where it is not empty.
        engine_layout: as vLLM resolved it.
        device: type of the engine's device.

    Raises:
        Unsupported: a layout that cannot be read.
    """
    if given:
        return given
    name = _OF_ENGINE.get(engine_layout or "")
    if name is None:
        raise Unsupported(
            f"kv_cache_layout={engine_layout}: blocks that are not one layer's by themselves are "
            f"not covered; start with VLLM_KV_CACHE_LAYOUT={' or '.join(_OF_ENGINE)}"
        )
    return "vllm-cpu" if device == _CPU and name == "heads-first" else name


def check_found(
    name: str, found: Views, layer: str, tensor: Tensor, block_tokens: int, heads: int, dim: int
) -> None:
    """Refuses an engine that writes its blocks in another way than is expected.

    Args:
        name: of the expected layout.
        found: where the engine's own writing was found, see `vllm._layout.recognised`.
        layer: its name, for messages.
        tensor: of the layer, as the engine registers it.
        block_tokens, heads, dim: what a block has.

    Raises:
        Unsupported: in one line.
    """
    size = heads * block_tokens * 2 * dim
    if found[0].shape[1] != block_tokens:
        raise Unsupported(
            f"{layer}: the engine's kernels split blocks of {block_tokens} tokens into ones of "
            f"{found[0].shape[1]}; start with --block-size {found[0].shape[1]}"
        )
    if tensor.stride(0) == size:  # blocks are contiguous, one behind the other
        raw = tensor.as_strided((found[0].shape[0], size), (size, 1), tensor.storage_offset())
        wanted = LAYOUTS[name].views(raw, block_tokens, heads, dim)
        if [_where(each) for each in wanted] == [_where(each) for each in found]:
            return
    raise Unsupported(
        f"{layer}: the engine writes keys and values of {list(tensor.shape)} with strides "
        f"{found[0].stride()} and {found[1].stride()}, which is not layout {name}; `layout` is one "
        f"of {', '.join(LAYOUTS)}"
    )


def _where(view: Tensor) -> tuple[int, ...]:
    """Where its numbers lie; the stride of a single one counts for nothing."""
    steps = zip(view.stride(), view.shape, strict=True)
    return (view.data_ptr(), *(step for step, count in steps if count > 1))


@dataclass(frozen=True)
class ChunkShape:
    """What a row of the primary tier has."""

    places: tuple[int, ...]
    """Of each layer in order, the place of its blocks in the row."""
    blocks: int
    """Blocks of a chunk."""
    block_tokens: int
    heads: int
    dim: int
    dtype: torch.dtype
    layout: str
    """A name of `LAYOUTS`."""

    @property
    def bytes(self) -> int:
        """Of a chunk; a row may be longer."""
        size = self.block_tokens * self.heads * 2 * self.dim * self.dtype.itemsize
        return len(self.places) * self.blocks * size


class Chunks:
    """The primary tier's memory, in chunks."""

    def __init__(self, rows: Tensor, shape: ChunkShape) -> None:
        """
        Args:
            rows: `[chunks, bytes]` int8, vLLM's own memory.
            shape: what a row has.

        Raises:
            Unsupported: rows of another kind.
        """
        if rows.ndim != 2 or rows.element_size() != 1 or rows.stride(1) != 1:
            raise Unsupported(f"a primary tier of {list(rows.shape)} {rows.dtype}: rows of bytes")
        if rows.shape[1] < shape.bytes or rows.stride(0) % shape.dtype.itemsize:
            raise Unsupported(
                f"a primary tier with rows of {rows.shape[1]} bytes: chunks have {shape.bytes}"
            )
        self._rows = rows
        self._shape = shape
        self._table = torch.arange(shape.blocks)

    def memory(self, slot: int) -> CacheMemory:
        """Where the keys and values of a chunk lie: all layers and heads.

        Args:
            slot: of the primary tier.

        Raises:
            InvalidInput: there is no such slot.
        """
        shape = self._shape
        if not 0 <= slot < self._rows.shape[0]:
            raise InvalidInput(f"slot {slot}: the primary tier has {self._rows.shape[0]}")
        row = self._rows[slot, : shape.bytes].view(shape.dtype)
        layers = row.view(len(shape.places), shape.blocks, -1)
        views = [
            LAYOUTS[shape.layout].views(layers[place], shape.block_tokens, shape.heads, shape.dim)
            for place in shape.places
        ]
        keys, values = (list(each) for each in zip(*views, strict=True))
        if shape.blocks == 1:
            return CacheMemory.of([each[0] for each in keys], [each[0] for each in values])
        return CacheMemory.of(keys, values, block_table=self._table)
