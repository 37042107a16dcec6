"""An engine's memory of keys and values: what a codec decodes into, and what it encodes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lexico_codec.geometry import DTYPES
from lexico_codec.kernels.memory import TableMemory
from lexico_proto.errors import InvalidInput, ShapeMismatch


@dataclass(frozen=True, slots=True, eq=False)
class CacheMemory:
    """Where some layers and KV heads of a page lie in the memory of an engine, on any device.

    Keys and values of a layer are each `[tokens, kv_heads, head_dim]` of any strides, or with a
    block table a pool `[blocks, block_tokens, kv_heads, head_dim]` of any strides: transposed keys,
    heads before tokens, keys and values side by side are all only strides. Make one with `of` or
    `over`, once for an engine's whole memory; `at` and `within` give the memory of a page and of a
    layer group without looking at it again.
    """

    tables: TableMemory
    """Keys before values in each layer."""
    first_layer: int = 0
    """The first of the layers that lie here. For a codec it counts from the group's first layer."""
    first_head: int = 0
    """The first of the KV heads that lie here, among those of the frame."""

    @classmethod
    def of(
        cls,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        tokens: int | None = None,
        *,
        block_table: Tensor | None = None,
        first_slot: int = 0,
        first_layer: int = 0,
        first_head: int = 0,
    ) -> CacheMemory:
        """Memory that lies in a tensor a layer for keys, and one for values, checked.

        Args:
            keys: a tensor a layer, see the class; of one of `geometry.DTYPES`. Shapes, types
                and devices of all agree, strides need not.
            values: as many.
            tokens: to read or write; None for all that follow the first slot.
            block_table: `[n]` int32 or int64, on the device of the memory: slot j is
                `pool[block_table[j // block_tokens], j % block_tokens]`. It may be longer than
                needed, names no block twice, and is copied: what becomes of it later counts for
                nothing.
            first_slot: slot of the first token; without a block table its index.
            first_layer, first_head: see the class.

        Raises:
            ShapeMismatch: tensors that do not fit one another, of another type, or too small.
            InvalidInput: elements that share memory, or a block table that names a block twice or
                one that is not there.
        """
        if len(keys) != len(values):
            raise ShapeMismatch(f"memory: keys of {len(keys)} layers, values of {len(values)}")
        parts = [part for layer in zip(keys, values, strict=True) for part in layer]
        tables = TableMemory.of(parts, tokens, block_table, first_slot)
        return cls._checked(tables, first_layer, first_head)

    @classmethod
    def over(
        cls,
        memory: Tensor,
        tokens: int | None = None,
        *,
        block_table: Tensor | None = None,
        first_slot: int = 0,
        first_layer: int = 0,
        first_head: int = 0,
    ) -> CacheMemory:
        """Memory that is one tensor, checked; for many layers it is cheaper than `of`.

        Args:
            memory: `[layers, 2, …]`, keys first, behind them the dimensions of the class; any
                strides.
            tokens, block_table, first_slot, first_layer, first_head: as for `of`.

        Raises:
            ShapeMismatch, InvalidInput: as for `of`.
        """
        rank = 5 if block_table is None else 6
        if memory.ndim != rank or memory.shape[1] != 2 or not memory.shape[0]:
            rest = "tokens" if block_table is None else "blocks, block_tokens"
            raise ShapeMismatch(
                f"memory: {list(memory.shape)}, needs [layers, 2, {rest}, kv_heads, head_dim]"
            )
        tables = TableMemory.over(memory, tokens, block_table, first_slot)
        return cls._checked(tables, first_layer, first_head)

    @classmethod
    def _checked(cls, tables: TableMemory, first_layer: int, first_head: int) -> CacheMemory:
        if tables.dtype not in DTYPES.values():
            raise ShapeMismatch(f"memory: {tables.dtype}: one of {', '.join(DTYPES)} is needed")
        if first_layer < 0 or first_head < 0:
            raise ShapeMismatch(f"memory: first_layer={first_layer}, first_head={first_head}")
        if not tables.heads or not tables.m:
            raise ShapeMismatch(f"memory: {tables.heads} heads of {tables.m} components")
        return cls(tables, first_layer, first_head)

    def at(
        self, tokens: int | None = None, block_table: Tensor | None = None, first_slot: int = 0
    ) -> CacheMemory:
        """Other tokens of the same memory: a page of it.

        Args:
            tokens, block_table, first_slot: as for `of`; memory that is paged stays so.

        Raises:
            ShapeMismatch, InvalidInput: as for `of`, of what is given here alone.
        """
        return replace(self, tables=self.tables.at(tokens, block_table, first_slot))

    def within(self, layers: range) -> CacheMemory:
        """What lies here of some layers, counted from the first of those. Where that is none, a
        frame is checked and nothing is written.

        Args:
            layers: of a layer group, counted as `first_layer` is: `spec.group_range(group)` where
                that counts within the shard.
        """
        first = min(max(layers.start, self.layers.start), layers.stop)
        count = max(0, min(layers.stop, self.layers.stop) - first)
        tables = self.tables
        if count < len(self.layers):
            tables = tables.narrow(2 * (first - self.first_layer), 2 * count)
        return replace(self, tables=tables, first_layer=first - layers.start)

    @property
    def layers(self) -> range:
        """The layers that lie here."""
        return range(self.first_layer, self.first_layer + self.tables.tables // 2)

    @property
    def heads(self) -> range:
        """The KV heads of the frame that lie here."""
        return range(self.first_head, self.first_head + self.tables.heads)

    @property
    def tokens(self) -> int:
        """Tokens that are read or written."""
        return self.tables.tokens

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """`(layers, 2, tokens, kv_heads, head_dim)` of what lies here."""
        tables = self.tables
        return (tables.tables // 2, 2, tables.tokens, tables.heads, tables.m)

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.tables.dtype

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self.tables.device

    def is_inference(self) -> bool:
        """Whether the memory was allocated under `torch.inference_mode`, as engines do."""
        held = self.tables.held
        return any(part.is_inference() for part in (held if isinstance(held, tuple) else (held,)))

    def leading(self, tokens: int) -> CacheMemory:
        """The memory of the first tokens alone."""
        return replace(self, tables=self.tables.leading(tokens))

    def read(self) -> Tensor:
        """What lies here, `[layers, 2, tokens, kv_heads, head_dim]`: a view of memory that is one
        tensor without blocks, else a copy.
        """
        dense = self.tables.dense()
        if dense is not None and dense.ndim == 5:
            return dense
        return self.tables.read().view(self.shape)

    def write(self, layers: Tensor) -> None:
        """Copies what lies here out of exact keys and values, bit for bit.

        Args:
            layers: `[layers, 2, tokens, kv_heads, head_dim]` of the layers that lie here, and of
                all heads of the frame.
        """
        first, count = self.first_head, self.tables.heads
        whole = count == layers.shape[3]
        self.tables.write(layers if whole else layers.narrow(3, first, count))

    def write_tokens(self, which: Tensor, values: Tensor) -> None:
        """Copies exact keys and values of single tokens, bit for bit.

        Args:
            which: `[tokens]` bool, in the CPU's memory.
            values: `[layers, 2, count, kv_heads, head_dim]` of what lies here, of those tokens.
        """
        self.tables.write_tokens(which.nonzero()[:, 0], values)

    def check(self, shape: Sequence[int], dtype: torch.dtype, name: str = "memory") -> None:
        """Refuses memory that holds no part of a group.

        Args:
            shape: `(layers, 2, tokens, kv_heads, head_dim)` of the group.
            dtype: its element type.
            name: what an error calls the memory.

        Raises:
            ShapeMismatch: naming what does not fit.
        """
        layers, _, tokens, heads, dim = shape
        if (self.tokens, self.tables.m, self.dtype) != (tokens, dim, dtype):
            raise ShapeMismatch(
                f"{name} has {self.tokens} tokens, head_dim {self.tables.m}, {self.dtype}: needs "
                f"{tokens}, {dim}, {dtype}"
            )
        for what, mine, most in (("layers", self.layers, layers), ("heads", self.heads, heads)):
            if mine.stop > most:
                raise ShapeMismatch(
                    f"{name} has {what} {mine.start}..{mine.stop - 1}: needs some of 0..{most - 1}"
                )


def target_of(out: Tensor | CacheMemory) -> CacheMemory:
    """The memory that a caller wants filled; a tensor stands for a whole group.

    Args:
        out: `[layers, 2, tokens, kv_heads, head_dim]` of any strides, or a description.

    Raises:
        ShapeMismatch, InvalidInput: a tensor as `CacheMemory.over` refuses it.
    """
    return CacheMemory.over(out) if isinstance(out, Tensor) else out


def source_of(group: Tensor | CacheMemory) -> CacheMemory:
    """The memory that a caller wants coded, as `target_of`; here elements of a tensor may share
    memory: what is only read may be expanded.
    """
    if not isinstance(group, Tensor):
        return group
    try:
        return CacheMemory.over(group)
    except InvalidInput:
        return CacheMemory.over(group.contiguous())
