"""The products that make keys and values of decoded components, with dense matrices.

What serves where products of bfloat16 are fast (a GPU, AMX), and the twin of `compiled`, which
multiplies what is not zero alone. `sets.transform` says what the matrices are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The matrices of a run of layers."""

    selected: Tensor
    """`[r]` int64, rising: rows of z that Q makes, those of the tables that are wanted at least."""
    cross: Tensor
    """`[r, R]`: rows of Q, which gives them from the second components."""
    bases: Tensor
    """`[tables, blocks, d, d]`: each B turned, a component of z a row."""


def synthesise(
    arranged: Tensor, factors: Factors, kept: int, wanted: range, columns: range
) -> Tensor:
    """`[tables, tokens, columns]` of the matrices' type, from components at their places.

    Args:
        arranged: `[tables * blocks * d + R, tokens]`: z, then the second components; overwritten.
            Rows of z that Q makes are not read.
        factors: of the type of `arranged`.
        kept: second components from which on all are zero.
        wanted: consecutive tables. columns: consecutive ones of a table's `blocks * d`.
    """
    tables, blocks, d = factors.bases.shape[:3]
    tokens = arranged.shape[1]
    rows = slice(wanted.start * blocks * d, wanted.stop * blocks * d)
    z = arranged[: tables * blocks * d]
    if len(factors.selected):
        second = arranged[len(z) : len(z) + kept]
        z.index_copy_(0, factors.selected, torch.matmul(factors.cross[:, :kept], second))
    z = z[rows].view(len(wanted), blocks, d, tokens)
    bases = factors.bases[wanted.start : wanted.stop]
    if blocks == 1:
        return torch.matmul(z[:, 0].mT, bases[:, 0, :, columns.start : columns.stop])
    first, end = columns.start // d, -(-columns.stop // d)  # whole blocks
    x = torch.matmul(z[:, first:end].mT, bases[:, first:end])  # [.., blocks, tokens, d]
    whole = x.transpose(1, 2).reshape(len(wanted), tokens, (end - first) * d)
    return whole[:, :, columns.start - first * d : columns.stop - first * d]
