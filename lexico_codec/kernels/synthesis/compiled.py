"""`synthesis`, compiled: `native/synthesis.inl` through ctypes.

Most levels of a page are zero: on a CPU without fast products of bfloat16 it is several times
faster to add up the matrices' rows that belong to the others (ADR 0067).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from lexico_codec.kernels import library
from lexico_codec.kernels.entropy.compiled import raise_for
from lexico_codec.kernels.entropy.streams import Streams
from lexico_codec.kernels.entropy.tables import LANES
from lexico_codec.kernels.layout import compiled as layout
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.rope import Turn

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


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """Decoded components where the products look for them."""

    length: int
    """How many rows there are."""
    tokens: int
    values: Tensor
    """`[rows, tokens]` float32 on the CPU, or with `where` `[blocks, rows, 32]`."""
    where: Tensor | None
    """`[blocks, rows]` int32: at which place of its block of 32 tokens a row's values lie, from 1
    on; 0: they are 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """Memory that the products' rows go to, as of `layout.scatter`."""

    means: Tensor
    """`[tables, heads * m]` float32: added."""
    turn: Turn | None
    """What is done to keys after that."""
    memory: TableMemory


def arranged(
    streams: Streams, scales: Tensor, sparse: Sparse, places: Tensor, length: int
) -> Arranged:
    """`entropy.decode` and `layout.arrange` in one, a few components at a time: what is 0 in a
    block of tokens is neither written nor read again.

    Args:
        streams: of all tokens' values, coefficients first.
        scales, sparse, places, length: see `layout.arrange`.

    Raises:
        DamagedFrame: see `entropy.decode`.
    """
    tokens, tables = streams.tokens, streams.tables
    blocks = -(-tokens // LANES)
    values = torch.empty(blocks, length, LANES, dtype=torch.float32, device="cpu")
    where = torch.zeros(blocks, length, dtype=torch.int32, device="cpu")
    indices = sparse.indices.to(torch.int32).contiguous()
    atoms, scales, places = sparse.atoms.contiguous(), scales.contiguous(), places.contiguous()
    classes, offsets = streams.classes.contiguous(), streams.offsets.contiguous()
    status = library.loaded().lexico_entropy_arrange(
        library.isa_number(),
        torch.get_num_threads(),
        streams.body.ctypes.data,
        streams.begins.ctypes.data,
        classes.data_ptr(),
        offsets.data_ptr(),
        len(classes),
        tokens,
        tables.slots().data_ptr(),
        tables.starts().data_ptr(),
        tables.values().data_ptr(),
        tables.form("shifts", lambda: tables.shifts).data_ptr(),
        tables.classes,
        scales.data_ptr(),
        len(indices),
        *atoms.shape,
        indices.data_ptr(),
        atoms.data_ptr(),
        sparse.coefficient_step,
        places.data_ptr(),
        length,
        where.data_ptr(),
        values.data_ptr(),
    )
    raise_for(status)
    return Arranged(length, tokens, values, where)


def synthesise(
    arranged: Tensor, factors: PackedFactors, kept: int, wanted: range, columns: range
) -> Tensor:
    """See `products.synthesise`; `arranged` float32 on the CPU, left as it is; float32 is made."""
    shape = (len(wanted), arranged.shape[1], len(columns))
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    if out.numel():
        length, tokens = arranged.shape
        given = Arranged(length, tokens, arranged.contiguous(), None)
        _synthesise(given, factors, kept, wanted, columns, out)
    return out


def synthesise_into(
    arranged: Arranged,
    factors: PackedFactors,
    kept: int,
    wanted: range,
    columns: range,
    laid: Laid,
) -> None:
    """`synthesise` and `layout.scatter` in one: a table's rows are finished while a cache has them.

    Args:
        arranged, factors, kept, wanted, columns: see `products.synthesise`.
        laid: where they go; its memory one that `layout.compiled.serves`.
    """
    _synthesise(arranged, factors, kept, wanted, columns, laid)


def _synthesise(
    arranged: Arranged,
    factors: PackedFactors,
    kept: int,
    wanted: range,
    columns: range,
    to: Tensor | Laid,
) -> None:
    blocks, d = factors.bases.shape[1], factors.bases.shape[3]
    second, places = len(factors.selected), arranged.where
    sizes = (arranged.length - second, arranged.tokens, second, kept, blocks, d)
    ends = (wanted.start, len(wanted), columns.start, columns.stop)
    where = _plain(to) if isinstance(to, Tensor) else _reached(to)
    status = library.loaded().lexico_synthesise(
        library.isa_number(),
        torch.get_num_threads(),
        (ctypes.c_int64 * 10)(*sizes, *ends),
        arranged.values.data_ptr(),
        None if places is None else places.data_ptr(),
        factors.selected.data_ptr(),
        factors.cross.values.data_ptr(),
        factors.cross.units.data_ptr(),
        factors.bases.data_ptr(),
        *where.arguments,
    )
    if status:
        library.fail(status)


class _Where(NamedTuple):
    """Arguments that say where rows go, and what they point to."""

    arguments: tuple[Any, ...]
    kept: tuple[Any, ...]


def _plain(out: Tensor) -> _Where:
    return _Where((out.data_ptr(), None, 0, None, None, 0, None, None, None, None), (out,))


def _reached(laid: Laid) -> _Where:
    memory = laid.memory
    means, cos, sin = layout.contiguous(laid.means, laid.turn)
    reached = library.Reached.of(memory)
    arguments = (
        None,
        (ctypes.c_int64 * 6)(*layout.sizes_of(memory, laid.turn)[2:]),
        library.dtype_number(memory.dtype),
        *reached.arguments(),
        means.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
    )
    return _Where(arguments, (means, cos, sin, reached))
