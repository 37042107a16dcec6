"""`synthesis`, compiled: `native/synthesis.inl` through ctypes.

Most levels of a page are zero: on a CPU without fast products of bfloat16 it is several times
faster to add up the matrices' rows that belong to the others (ADR 0067).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from lexico_codec.kernels import library

_PANEL: Final = 64  # kPanel of native/synthesis.h
_LISTED, _STRONG = 128, 32  # kListed and kStrong there
_MOST: Final = 32767


class Shorts(NamedTuple):
    """Panels of a matrix in 16 bits."""

    values: Tensor
    """`[..., panels, k, 64]` int16."""
    units: Tensor
    """`[..., panels, tiles]` float32: what 2^15 of a value is, of the rows of a tile."""

    def of(self, run: int) -> Self:
        """Those of a run, where they are of many."""
        return type(self)(self.values[run], self.units[run])


@dataclass(frozen=True, slots=True, eq=False)
class PackedFactors:
    """`products.Factors` as the library reads them."""

    selected: Tensor
    """`[R]` int64, rising."""
    cross: Shorts
    """Q transposed, `shorts_of` its panels."""
    bases: Tensor
    """`[tables, blocks, ...]`: the turned bases, in panels."""


def panels_of(matrices: Tensor) -> Tensor:
    """`[..., (n + 63) // 64, k, 64]` of `[..., k, n]`: columns that lie together, then zeros."""
    *lead, k, n = matrices.shape
    panels = -(-n // _PANEL)
    padded = pad(matrices, (0, panels * _PANEL - n))
    return padded.view(*lead, k, panels, _PANEL).transpose(-3, -2).contiguous()


def tile_ends(rows: int) -> list[int]:
    """Where tiles of a panel end: small ones first, because the first components are the strongest
    and rounding is in proportion to a tile's.
    """
    return [*range(_STRONG, min(rows, _LISTED), _STRONG), *range(_LISTED, rows, _LISTED), rows]


def shorts_of(panels: Tensor) -> Shorts:
    """16 bits for each number of `[..., panels, k, 64]`.

    Rows of a panel, a tile, have a unit of their own: no column of a tile is longer than 32767 of
    its units, so that no product with values of length 32767 is more than 32767 of both.
    """
    values, units, first = torch.empty_like(panels, dtype=torch.int16), [], 0
    for end in tile_ends(panels.shape[-2]):
        tile = panels[..., first:end, :]
        longest = tile.square().sum(-2).amax(-1).sqrt()  # [..., panels]
        longest = torch.where(longest > 0, longest, 1.0)
        scaled = (tile * (_MOST / longest)[..., None, None]).round_().clamp_(-_MOST, _MOST)
        values[..., first:end, :] = scaled
        units.append(longest * (2.0**15 / _MOST))
        first = end
    return Shorts(values, torch.stack(units, -1))


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
        factors.cross.values.data_ptr(),
        factors.cross.units.data_ptr(),
        factors.bases.data_ptr(),
        out.data_ptr(),
    )
    if status:
        library.fail(status)
    return out
