"""Coefficients of sparse codes as a sign, one of a few sizes and a scale a vector.

Sizes are closer where they are smaller, x^1.5 of even steps: linear ones triple what rounding adds
in a first layer, where one atom has most of a vector, and are as good elsewhere. Scales are powers
of the root of two: finer ones gain less than the bit they cost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes

MEAN_SCALE: Final = 128
"""Code e of a scale is 2^((e - 128) / 2)."""

LEAST_BITS: Final = 2
MOST_BITS: Final = 8
"""Of a coefficient, its sign among them."""

_FRACTION: Final = 1 / 8  # of the error that is left, that rounding may add
_CANDIDATES: Final = 3  # scales tried: at 2^0, 2^-½ and 2^-1 of what holds the largest coefficient
_GATHERED: Final = 1 << 23  # components of atoms gathered at once: 32 MiB
_WIDTHS: Final = (4, 8, 12, 16, 24, 32, 48)  # most atoms of tables that are rounded together


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes as they are written, all int64 and in the CPU's memory; atoms of a vector ascend."""

    indices: Tensor
    """`[B, width]`."""
    levels: Tensor
    """`[B, width]`: twice the number of the size, plus the sign."""
    counts: Tensor
    """`[B]` atoms; entries after them mean nothing."""
    scales: Tensor
    """`[B]` codes of scales."""
    bits: Tensor
    """`[tables]` bits of a level."""

    def codes(self) -> Codes:
        """The codes as they come back, in the CPU's memory."""
        rows, width = self.levels.shape
        used = torch.arange(width) < self.counts[:, None]
        bits = self.bits.repeat_interleave(rows // max(1, len(self.bits)))
        sizes = torch.zeros(rows, width)
        for some in set(self.bits.tolist()):
            at = bits == some
            sizes[at] = sizes_of(some, sizes.device)[self.levels[at] >> 1]
        values = torch.where(self.levels & 1 > 0, -sizes, sizes)
        values *= scales_of(sizes.device)[self.scales][:, None]
        indices, values = torch.where(used, self.indices, 0), torch.where(used, values, 0.0)
        return Codes(indices.int(), values, self.counts.int())


def quantise(codes: Codes, atoms: Atoms, squares: Tensor, bits: int) -> Quantised:
    """The codes with coefficients of `bits` bits, of more in tables that would suffer from it.

    A table takes the least bits with which rounding adds no more than an eighth of the squared
    error that the pursuit left, or 8. The first layers need that: a few sizes are coarse where one
    atom has nearly all of a vector.

    Args:
        codes: plain, of the tables of `atoms` one after another.
        atoms: the dictionaries.
        squares: `[B]`, squared norms of the vectors.
        bits: least bits, `LEAST_BITS`..`MOST_BITS`.
    """
    tables = atoms.tables
    rows, width = len(codes.counts) // tables, codes.indices.shape[1]
    indices = torch.zeros_like(codes.indices, dtype=torch.int64)
    levels, counts = torch.zeros_like(indices), codes.counts.long()
    scales = torch.zeros_like(counts)
    chosen = torch.full((tables,), bits, device=counts.device)
    for some, wide in _alike(counts.view(tables, rows), width, atoms.m):
        at = (some[:, None] * rows + torch.arange(rows, device=some.device)).flatten()
        found = _quantise_tables(
            codes.indices[at, :wide].long(),
            codes.coefficients[at, :wide],
            counts[at],
            atoms.starts_tensor()[some].repeat_interleave(rows),
            squares[at],
            stack=atoms.stack,
            rows=rows,
            least_bits=bits,
        )
        indices[at, :wide], levels[at, :wide], counts[at], scales[at], chosen[some] = found
    return Quantised(*(column.cpu() for column in (indices, levels, counts, scales, chosen)))


def _alike(counts: Tensor, width: int, m: int) -> Iterator[tuple[Tensor, int]]:
    """Tables to round together, and how many atoms their vectors have at most.

    Work grows with the cube of that, and tables differ where a set shares out their atoms.

    Args:
        counts: `[tables, rows]` atoms.
        width: at least the largest of them.
        m: components of an atom.
    """
    rows = counts.shape[1]
    most = counts.amax(1) if rows else counts.new_zeros(0)
    least = 0
    for wide in sorted({*_WIDTHS, width}):
        tables = ((most > least) & (most <= wide)).nonzero()[:, 0]
        if len(tables):
            for some in torch.split(tables, max(1, _GATHERED // (rows * wide * m))):
                yield some, min(wide, width)
        least = wide


def _quantise_tables(
    indices: Tensor,
    coefficients: Tensor,
    counts: Tensor,
    starts: Tensor,
    squares: Tensor,
    *,
    stack: Tensor,
    rows: int,
    least_bits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Quantised` for some whole tables."""
    largest = torch.nn.functional.pad(coefficients.abs(), (1, 0)).amax(1).double()
    top = (2 * largest.clamp_min(2.0**-200).log2()).ceil().long() + MEAN_SCALE
    counts = torch.where(top < 0, 0, counts)  # below the least scale: nothing to speak of
    used = torch.arange(indices.shape[1], device=counts.device) < counts[:, None]
    triangle = _triangle(stack[indices + starts[:, None]], used)
    aims = torch.einsum("bij,bj->bi", triangle, coefficients.double() * used)
    left = (squares.double() - aims.square().sum(1)).clamp_min(0).view(-1, rows).sum(1)
    levels, scales = torch.zeros_like(indices), torch.zeros_like(top)
    bits = torch.full_like(left, least_bits, dtype=torch.int64)
    table = torch.arange(len(top), device=top.device) // rows
    for tried in range(least_bits, MOST_BITS + 1):
        at = (bits[table] == tried).nonzero()[:, 0]
        levels[at], scales[at], error = _best_scale(
            triangle[at], aims[at], used[at], top[at], tried
        )
        if tried == MOST_BITS:
            break
        pending = (bits == tried).nonzero()[:, 0]
        added = error.view(-1, rows).sum(1)
        bits[pending] += added > _FRACTION * left[pending]
        if not bool((bits > tried).any()):
            break
    order = torch.where(used, indices, 1 << 30).argsort(1)
    return indices.gather(1, order), levels.gather(1, order), counts, scales, bits


def _best_scale(
    triangle: Tensor, aims: Tensor, used: Tensor, top: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, scale codes and squared errors under the best of the scales from `top` down.

    Coefficients are rounded last atom first, and those before it make up for what rounding did to
    it (Babai's nearest plane): with `atoms = Q R` the error is `||R (q - c)||`, and row k of R sees
    the atoms from k on alone.
    """
    levels, scales = torch.zeros_like(aims, dtype=torch.int64), torch.zeros_like(top)
    best = torch.full_like(top, torch.inf, dtype=torch.float64)
    for down in range(_CANDIDATES):
        code = (top - down).clamp(0, 255)
        scale = scales_of(code.device)[code].double()
        tried, error = _nearest_plane(triangle, aims, used, scale, bits)
        better = error < best
        best = torch.where(better, error, best)
        levels = torch.where(better[:, None], tried, levels)
        scales = torch.where(better, code, scales)
    return levels, scales, best


def _triangle(picked: Tensor, used: Tensor) -> Tensor:
    """R of the QR decomposition of each vector's atoms, float64 `[B, width, width]`.

    Where an entry is not used, and where atoms depend on one another, R is that of the identity.
    """
    both = used[:, :, None] & used[:, None, :]
    eye = torch.eye(used.shape[1], dtype=torch.float64, device=used.device)
    gram = torch.where(both, (picked @ picked.transpose(1, 2)).double(), eye)
    lower, failed = torch.linalg.cholesky_ex(gram)
    return torch.where(failed[:, None, None] > 0, eye, lower.transpose(1, 2))


def _nearest_plane(
    triangle: Tensor, aims: Tensor, used: Tensor, scale: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Levels `[B, width]` for one scale a vector, and the squared error that they add, `[B]`.

    Entries that are not used have an aim of 0 and no value.
    """
    sizes = sizes_of(bits, aims.device).double()
    between = (sizes[1:] + sizes[:-1]) / 2
    left = aims.clone()
    levels = torch.zeros_like(aims, dtype=torch.int64)
    for k in reversed(range(aims.shape[1])):
        wish = left[:, k] / (triangle[:, k, k] * scale)
        level = torch.bucketize(wish.abs(), between)
        levels[:, k] = 2 * level + (wish < 0)
        value = torch.copysign(sizes[level], wish) * scale * used[:, k]
        left -= triangle[:, :, k] * value[:, None]  # column k reaches up to row k
    return levels, left.square().sum(1)


@functools.cache
def sizes_of(bits: int, device: torch.device) -> Tensor:
    """Magnitudes of coefficients in units of the scale, float32 `[2^(bits - 1)]`, ascending."""
    steps = 1 << (bits - 1)
    linear = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return (linear * linear.sqrt()).float().to(device)


@functools.cache
def scales_of(device: torch.device) -> Tensor:
    """The 256 scales, float32: even powers of two, and those times the root of two."""
    codes = torch.arange(256, device=device)
    roots = torch.where(codes % 2 == 0, 1.0, 2**0.5)
    return torch.ldexp(roots, (codes - MEAN_SCALE) // 2)
