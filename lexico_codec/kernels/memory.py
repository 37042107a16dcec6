"""The caller's memory of several tables of vectors, in the layout of its engine: to read and write.

What kernels are given. A codec is given a `lexico_codec.memory.CacheMemory`, which adds which
layers and heads of a page these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels.aliasing import check_strides, check_tables
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import InvalidInput, ShapeMismatch


class Addresses(NamedTuple):
    """Where kernels find the tables."""

    pointers: npt.NDArray[np.int64]
    """`[tables]`, address of the first value of each."""
    strides: npt.NDArray[np.int64]
    """`[tables, 4]` of blocks (0 without a block table), tokens, heads and components, in values;
    all the same where there is one row."""


@dataclass(frozen=True, slots=True, eq=False)
class TableMemory:
    """Memory of the vectors of several tables. Make one with `of` or `over`.

    A table is `[tokens, heads, m]` of any strides, or with a block table a pool of blocks
    `[blocks, block_tokens, heads, m]` of any strides. Token i lies in slot `first_slot + i`; with a
    block table slot j is `pool[block_table[j // block_tokens], j % block_tokens]`.
    """

    held: Tensor | tuple[Tensor, ...]
    """All tables in one tensor, with one or two dimensions before those of a table; or a tensor a
    table, of one shape, dtype and device, each of its own strides."""
    tokens: int
    """Tokens that are read or written."""
    block_table: Tensor | None = None
    """`[n]` int32 or int64 on the device of the tables, for at least all slots that are used. It
    is a copy of the one that was given: engines write into theirs, and only this one was checked.
    """
    first_slot: int = 0
    """Slot of the first token: a page may begin within a block."""

    @classmethod
    def of(
        cls,
        parts: Sequence[Tensor],
        tokens: int | None = None,
        block_table: Tensor | None = None,
        first_slot: int = 0,
    ) -> TableMemory:
        """Tables that lie in tensors of their own, checked.

        Args:
            parts: a tensor a table, see the class.
            tokens: to read or write; None for all that follow the first slot.
            block_table, first_slot: see the class.

        Raises:
            ShapeMismatch: no parts, parts that differ, have no floating type or are too small, or a
                block table of another kind.
            InvalidInput: elements that share memory, or a block table that names a block twice or
                one that is not there.
        """
        if not parts:
            raise ShapeMismatch("parts: none were given")
        first = parts[0]
        _check_kind(first, 3 if block_table is None else 4, "parts")
        kind = (first.shape, first.dtype, first.device)
        for part in parts:
            if (part.shape, part.dtype, part.device) != kind:
                raise ShapeMismatch("parts: shapes, dtypes and devices must agree")
        check_tables(parts)
        block_table = _copied(block_table)
        tokens = _tokens_there(first, "parts", tokens, block_table, first_slot)
        return cls(tuple(parts), tokens, block_table, first_slot)

    @classmethod
    def over(
        cls,
        whole: Tensor,
        tokens: int | None = None,
        block_table: Tensor | None = None,
        first_slot: int = 0,
    ) -> TableMemory:
        """Tables that lie in one tensor, checked.

        Args:
            whole: the tables, see the class, behind one or two dimensions that number them.
            tokens, block_table, first_slot: as for `of`.

        Raises:
            ShapeMismatch, InvalidInput: as for `of`.
        """
        rank = 3 if block_table is None else 4
        _check_kind(whole, rank + (2 if whole.ndim == rank + 2 else 1), "memory")
        check_strides(whole, "memory")
        block_table = _copied(block_table)
        tokens = _tokens_there(whole, "memory", tokens, block_table, first_slot)
        return cls(whole, tokens, block_table, first_slot)

    def at(
        self, tokens: int | None = None, block_table: Tensor | None = None, first_slot: int = 0
    ) -> TableMemory:
        """Other tokens of the same tables, which are not checked again: for the pages of a pool.

        Args:
            tokens, block_table, first_slot: as for `of`. A pool keeps needing a block table.

        Raises:
            ShapeMismatch, InvalidInput: tokens that are not there, or a block table as `of` refuses
                it.
        """
        if (block_table is None) != (self.block_table is None):
            raise ShapeMismatch("block_table: goes with pools of blocks, and with those alone")
        block_table = _copied(block_table)
        tokens = _tokens_there(self._first(), "memory", tokens, block_table, first_slot)
        return replace(self, tokens=tokens, block_table=block_table, first_slot=first_slot)

    @property
    def tables(self) -> int:
        """Number of tables."""
        if isinstance(self.held, tuple):
            return len(self.held)
        return math.prod(self.held.shape[: -3 if self.block_table is None else -4])

    @property
    def heads(self) -> int:
        """Vectors a token."""
        return self._first().shape[-2]

    @property
    def m(self) -> int:
        """Components of a vector."""
        return self._first().shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._first().dtype

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self._first().device

    @property
    def block_tokens(self) -> int:
        """Slots of a block; 1 without a block table."""
        return 1 if self.block_table is None else self._first().shape[-3]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """A tensor a table, views."""
        if isinstance(self.held, tuple):
            return self.held
        lead = self.held.ndim - (3 if self.block_table is None else 4)
        if lead == 1:
            return self.held.unbind()
        return tuple(part for some in self.held.unbind() for part in some.unbind())

    def narrow(self, first: int, tables: int) -> TableMemory:
        """Only some consecutive tables, or none."""
        parts = self.parts
        return replace(self, held=parts[first : first + tables] if tables else parts[0][None][:0])

    def leading(self, tokens: int) -> TableMemory:
        """The memory of the first tokens alone."""
        return replace(self, tokens=min(tokens, self.tokens))

    def behind(self, tokens: int) -> TableMemory:
        """The memory of what follows the first tokens."""
        passed = min(tokens, self.tokens)
        left, first = self.tokens - passed, self.first_slot + passed
        return replace(self, tokens=left, first_slot=first)

    def addresses(self) -> Addresses:
        """Where kernels find the tables; those of one tensor are not looked at one by one."""
        blocks = self.block_table is not None
        if isinstance(self.held, tuple):
            pointers = np.array([part.data_ptr() for part in self.held], np.int64)
            return Addresses(pointers, _four([part.stride() for part in self.held], blocks))
        strides, rank = self.held.stride(), 4 if blocks else 3
        lead, size = self.held.ndim - rank, self.held.itemsize
        pointers = np.array([self.held.data_ptr()], np.int64)
        for count, apart in zip(self.held.shape[:lead], strides[:lead], strict=True):
            pointers = np.add.outer(pointers, size * apart * np.arange(count)).ravel()
        return Addresses(pointers, _four([strides[lead:]], blocks))

    def dense(self) -> Tensor | None:
        """`[..., tokens, heads, m]`, a view with the dimensions that number the tables in front;
        None where blocks or tensors of their own stand against it.
        """
        if isinstance(self.held, tuple) or self.block_table is not None:
            return None
        if self.tokens == self.held.shape[-3]:
            return self.held
        return self.held.narrow(-3, self.first_slot, self.tokens)

    def views(self) -> list[Tensor] | None:
        """A view `[tokens, heads, m]` a table; None where blocks stand against it."""
        if self.block_table is not None:
            return None
        return [part.narrow(0, self.first_slot, self.tokens) for part in self.parts]

    def read(self) -> Tensor:
        """What is there, `[tables, tokens, heads, m]`: a view where the memory is one tensor that
        allows it, else a copy.
        """
        shape = (self.tables, self.tokens, self.heads, self.m)
        dense = self.dense()
        if dense is not None:
            return dense.reshape(shape)
        at = self._slots()
        if not isinstance(self.held, tuple):
            found = _indexable(self.held)[(..., *at, slice(None), slice(None))].reshape(shape)
        else:
            found = torch.stack([_indexable(part)[at] for part in self.held])
        return found.view(self.dtype)

    def write(self, vectors: Tensor) -> None:
        """Copies `[tables, tokens, heads, m]`, or the same with the tables in two dimensions, into
        the memory, bit for bit where the types agree.
        """
        dense = self.dense()
        if dense is None:
            self._put(self._slots(), vectors)
            return
        with torch.no_grad():
            dense.copy_(vectors if vectors.shape == dense.shape else vectors.reshape(dense.shape))

    def write_tokens(self, tokens: Tensor, vectors: Tensor) -> None:
        """As `write`, of some of the tokens.

        Args:
            tokens: `[n]` int64, which. vectors: `[tables, n, heads, m]`, or as for `write`.
        """
        self._put(self._at_slots(tokens.to(self.device) + self.first_slot), vectors)

    def _put(self, at: tuple[slice] | tuple[Tensor, ...], vectors: Tensor) -> None:
        vectors = _indexable(vectors.to(self.device, self.dtype))
        with torch.no_grad():
            if isinstance(self.held, tuple):
                for part, source in zip(self.held, vectors.flatten(0, -4), strict=True):
                    _indexable(part)[at] = source
                return
            lead = self.held.shape[: -3 if self.block_table is None else -4]
            _indexable(self.held)[(..., *at, slice(None), slice(None))] = vectors.reshape(
                *lead, *vectors.shape[-3:]
            )

    def fill(self, vectors: Tensor) -> None:
        """Writes `[tables, tokens, heads, m]`; values beyond the dtype's range become its largest.

        The plain twin of what the kernels do while they reconstruct.
        """
        most = torch.finfo(self.dtype).max
        self.write(vectors.clamp(-most, most))

    def _slots(self) -> tuple[slice] | tuple[Tensor, ...]:
        """Index of the tokens in a table."""
        last = self.first_slot + self.tokens
        if self.block_table is None:
            return (slice(self.first_slot, last),)
        return self._at_slots(torch.arange(self.first_slot, last, device=self.device))

    def _at_slots(self, slots: Tensor) -> tuple[Tensor, ...]:
        """Index of some slots in a table."""
        if self.block_table is None:
            return (slots,)
        block = self.block_table.long()[slots // self.block_tokens]
        return block, slots % self.block_tokens

    def _first(self) -> Tensor:
        """A tensor whose last dimensions are those of a table."""
        return self.held[0] if isinstance(self.held, tuple) else self.held


def _indexable(tensor: Tensor) -> Tensor:
    """The tensor, that of 8 bits as integers: no release or device has to index it as it is."""
    return tensor.view(torch.uint8) if tensor.dtype in FLOAT8 else tensor


def _copied(block_table: Tensor | None) -> Tensor | None:
    return None if block_table is None else block_table.clone(memory_format=torch.contiguous_format)


def _four(strides: list[tuple[int, ...]], blocks: bool) -> npt.NDArray[np.int64]:
    return np.array(strides if blocks else [(0, *three) for three in strides], np.int64)


def _check_kind(tensor: Tensor, rank: int, name: str) -> None:
    if tensor.layout != torch.strided or tensor.ndim != rank:
        raise ShapeMismatch(f"{name}: must have {rank} dimensions, not {list(tensor.shape)}")
    if tensor.dtype not in FLOAT8 and (not tensor.is_floating_point() or tensor.itemsize < 2):
        raise ShapeMismatch(
            f"{name}: must be floating point of 2 bytes or more, e4m3fn or e5m2, not {tensor.dtype}"
        )


def _tokens_there(
    table: Tensor, name: str, tokens: int | None, block_table: Tensor | None, first_slot: int
) -> int:
    """How many tokens are meant, once they and their block table have proved to be there."""
    if first_slot < 0:
        raise ShapeMismatch(f"first_slot: {first_slot} is negative")
    if block_table is not None:
        return _check_block_table(block_table, table, tokens, first_slot)
    there = table.shape[-3] - first_slot
    tokens = max(there, 0) if tokens is None else tokens
    if not 0 <= tokens <= there:
        raise ShapeMismatch(
            f"{name}: {max(there, 0)} tokens from slot {first_slot} on, needs {tokens}"
        )
    return tokens


def _check_block_table(table: Tensor, pool: Tensor, tokens: int | None, first_slot: int) -> int:
    """How many tokens the table holds, once the part of it that is used has proved sound."""
    blocks, block_tokens = pool.shape[-4], pool.shape[-3]
    if table.ndim != 1 or table.dtype not in (torch.int32, torch.int64):
        raise ShapeMismatch(
            f"block_table: must be [n] int32 or int64, not {list(table.shape)} of {table.dtype}"
        )
    if table.device != pool.device:
        raise ShapeMismatch("block_table: must be on the device of the parts")
    if block_tokens == 0:
        raise ShapeMismatch("parts: blocks of no tokens")
    if tokens is None:
        tokens = max(0, len(table) * block_tokens - first_slot)
    needed = -(-(first_slot + tokens) // block_tokens)
    if tokens < 0 or len(table) < needed:
        raise ShapeMismatch(
            f"block_table: {len(table)} blocks of {block_tokens} slots, {tokens} tokens from slot "
            f"{first_slot} on need {needed}"
        )
    used = table[first_slot // block_tokens : needed].tolist() if tokens else []  # one wait
    if used and not 0 <= min(used) <= max(used) < blocks:
        raise InvalidInput(f"block_table: names a block outside 0..{blocks - 1}")
    if len(set(used)) != len(used):
        raise InvalidInput("block_table: names a block twice")
    return tokens
