"""`layout`, compiled: `native/layout.inl` through ctypes."""

from __future__ import annotations

import ctypes
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.rope import Turn

MAX_HEAD: Final = 1024  # kMostHead of native/layout.h


def serves(tensor: Tensor) -> bool:
    """Whether the library reads and writes a tensor: a group, or components."""
    fits = tensor.device.type == "cpu" and library.takes(tensor.dtype)
    return fits and (tensor.ndim < 5 or (tensor.stride(-1) == 1 and tensor.shape[-1] <= MAX_HEAD))


def gather(group: Tensor, means: Tensor, turn: Turn | None) -> Tensor:
    """See `layout.gather`; shapes checked."""
    layers, _, tokens, heads, dim = group.shape
    rows = torch.empty(2 * layers, tokens, heads * dim, dtype=torch.float32, device="cpu")
    means, cos, sin = _contiguous(means, turn)
    status = library.loaded().lexico_gather(
        library.isa_number(),
        torch.get_num_threads(),
        _sizes(group, turn),
        library.dtype_number(group.dtype),
        group.data_ptr(),
        means.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        rows.data_ptr(),
    )
    if status:
        library.fail(status)
    return rows


def scatter(rows: Tensor, means: Tensor, turn: Turn | None, out: Tensor) -> None:
    """See `layout.scatter`; shapes checked."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        rows = rows.float()
    rows = rows.contiguous()
    means, cos, sin = _contiguous(means, turn)
    status = library.loaded().lexico_scatter(
        library.isa_number(),
        torch.get_num_threads(),
        _sizes(out, turn),
        library.dtype_number(out.dtype),
        out.data_ptr(),
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


def _contiguous(means: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
    means = means.contiguous()
    if turn is None:
        return means, means, means  # not read
    return means, turn.cos.contiguous(), turn.sin.contiguous()


def _sizes(group: Tensor, turn: Turn | None) -> ctypes.Array[ctypes.c_int64]:
    layers, _, tokens, heads, dim = group.shape
    pairs = 0 if turn is None else turn.cos.shape[1]
    interleaved = turn is not None and turn.pairing == "interleaved"
    strides = group.stride()[:4]
    return (ctypes.c_int64 * 10)(layers, tokens, heads, dim, *strides, pairs, interleaved)
