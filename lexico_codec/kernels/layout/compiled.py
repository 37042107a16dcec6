"""`layout`, compiled: `native/layout.inl` through ctypes."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.rope import Turn


def serves(memory: TableMemory) -> bool:
    """Whether the library reads and writes a memory."""
    return memory.m <= library.MAX_HEAD and library.reaches(memory)


def gather(memory: TableMemory, means: Tensor, turn: Turn | None) -> Tensor:
    """See `layout.gather`; shapes checked."""
    shape = (memory.tables, memory.tokens, memory.heads * memory.m)
    rows = torch.empty(shape, dtype=torch.float32, device="cpu")
    means, cos, sin = contiguous(means, turn)
    reached = library.Reached.of(memory)
    status = library.loaded().lexico_gather(
        library.isa_number(),
        torch.get_num_threads(),
        sizes_of(memory, turn),
        library.dtype_number(memory.dtype),
        *reached.arguments(),
        means.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        rows.data_ptr(),
    )
    if status:
        library.fail(status)
    return rows


def scatter(rows: Tensor, means: Tensor, turn: Turn | None, memory: TableMemory) -> None:
    """See `layout.scatter`; shapes checked."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        rows = rows.float()
    rows = rows.contiguous()
    means, cos, sin = contiguous(means, turn)
    reached = library.Reached.of(memory)
    status = library.loaded().lexico_scatter(
        library.isa_number(),
        torch.get_num_threads(),
        sizes_of(memory, turn),
        library.dtype_number(memory.dtype),
        *reached.arguments(),
        means.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        rows.data_ptr(),
        library.dtype_number(rows.dtype),
    )
    if status:
        library.fail(status)


def arrange(values: Tensor, scales: Tensor, sparse: Sparse, places: Tensor, out: Tensor) -> None:
    """See `layout.arrange`; indices and places in range."""
    s, tokens = sparse.indices.shape
    indices = sparse.indices.to(torch.int32).contiguous()
    atoms, values, scales = sparse.atoms.contiguous(), values.contiguous(), scales.contiguous()
    places = places.contiguous()
    status = library.loaded().lexico_arrange(
        library.isa_number(),
        torch.get_num_threads(),
        len(places),
        tokens,
        len(values) - s,
        values.data_ptr(),
        scales.data_ptr(),
        s,
        *atoms.shape,
        indices.data_ptr(),
        atoms.data_ptr(),
        sparse.coefficient_step,
        places.data_ptr(),
        library.dtype_number(out.dtype),
        out.data_ptr(),
    )
    if status:
        library.fail(status)


def contiguous(means: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
    """Means, cosines and sines as the library reads them."""
    means = means.contiguous()
    if turn is None:
        return means, means, means  # not read
    return means, turn.cos.contiguous(), turn.sin.contiguous()


def sizes_of(memory: TableMemory, turn: Turn | None) -> ctypes.Array[ctypes.c_int64]:
    """What the library calls sizes: of the memory, of its blocks and of the turn."""
    pairs = 0 if turn is None else turn.cos.shape[1]
    interleaved = turn is not None and turn.pairing == "interleaved"
    shape = (memory.tables, memory.tokens, memory.heads, memory.m)
    return (ctypes.c_int64 * 8)(*shape, memory.block_tokens, memory.first_slot, pairs, interleaved)
