"""`synthesis`, compiled: `native/synthesis.inl` through ctypes.

Most levels of a page are zero: on a CPU without fast products of bfloat16 it is several times
faster to add up the matrices' rows that belong to the others (ADR 0067).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from lexico_codec.kernels import library

_PANEL: Final = 64  # kPanel of native/synthesis.h
_HALF: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class PackedFactors:
    """`products.Factors` as the library reads them."""

    selected: Tensor
    """`[R]` int64, rising."""
    cross: Tensor
    """Q transposed, in `pairs_of` its panels."""
    bases: Tensor
    """`[tables, blocks, ...]`: the turned bases, in panels."""


def panels_of(matrices: Tensor) -> Tensor:
    """`[..., (n + 63) // 64, k, 64]` of `[..., k, n]`: columns that lie together, then zeros."""
    *lead, k, n = matrices.shape
    panels = -(-n // _PANEL)
    padded = pad(matrices, (0, panels * _PANEL - n))
    return padded.view(*lead, k, panels, _PANEL).transpose(-3, -2).contiguous()


def pairs_of(panels: Tensor) -> Tensor:
    """`[..., 32]` int32 of `[..., 64]`, rounded to bfloat16.

    Column i of sixteen lies in the low half of integer i, column i + 16 in its high half.
    """
    halves = panels.to(torch.bfloat16).view(torch.int16).view(*panels.shape[:-1], 2, 2, _HALF)
    wide = halves.to(torch.int32)
    pairs = wide[..., 0, :] & 0xFFFF | wide[..., 1, :] << 16
    return pairs.reshape(*panels.shape[:-1], _PANEL // 2).contiguous()


def synthesise(
    arranged: Tensor, factors: PackedFactors, kept: int, wanted: range, columns: range
) -> Tensor:
    """See `products.synthesise`; `arranged` float32 on the CPU, left as it is; float32 is made."""
    blocks, d = factors.bases.shape[1], factors.bases.shape[3]
    tokens, second = arranged.shape[1], len(factors.selected)
    out = torch.empty(len(wanted), tokens, len(columns), dtype=torch.float32, device="cpu")
    sizes = (len(arranged) - second, tokens, second, kept, blocks, d)
    ends = (wanted.start, len(wanted), columns.start, columns.stop)
    status = library.loaded().lexico_synthesise(
        library.isa_number(),
        torch.get_num_threads(),
        (ctypes.c_int64 * 10)(*sizes, *ends),
        arranged.contiguous().data_ptr(),
        factors.selected.data_ptr(),
        factors.cross.data_ptr(),
        factors.bases.data_ptr(),
        out.data_ptr(),
    )
    if status:
        library.fail(status)
    return out
