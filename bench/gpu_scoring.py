"""The encoder's scoring loop alone: products of a row tile with every atom, with and without the
argmax. Only for `bench.gpu`, to tell the two apart.
"""

# Triton functions are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import Atoms


@triton.jit
def _score(
    vectors,
    atoms,
    out,
    N,
    M: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ARGMAX: tl.constexpr,
):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column, part = tl.arange(0, BN), tl.arange(0, M)
    x = tl.load(vectors + row.to(tl.int64)[:, None] * M + part[None, :])  # [BM, M]
    best = tl.zeros([BM], tl.int32)
    at = tl.zeros([BM], tl.int32)
    total = tl.zeros([BM, BN], tl.float32)
    for first in range(0, N, BN):
        tile = tl.load(atoms + (first + column)[:, None] * M + part[None, :])  # [BN, M]
        if ARGMAX:
            scores = tl.dot(x, tl.trans(tile))
            bits = scores.to(tl.int32, bitcast=True)
            key = tl.max((bits & (0x7FFFFFFF & ~(BN - 1))) | column[None, :], axis=1)
            at = tl.where(key > best, first, at)
            best = tl.maximum(best, key)
        else:
            total = tl.dot(x, tl.trans(tile), total)
    if ARGMAX:
        tl.store(out + row, at + (best & (BN - 1)))
    else:
        tl.store(out + row, tl.max(total, axis=1).to(tl.int32, bitcast=True))


def score_alone(vectors: Tensor, atoms: Atoms, *, argmax: bool) -> Tensor:
    """One scoring pass of `[B, m]` bfloat16 vectors, B a multiple of 128: `[B]` int32."""
    table = atoms.form("bench bf16", lambda: atoms.stack.bfloat16())
    out = torch.empty(len(vectors), dtype=torch.int32, device=vectors.device)
    _score[(len(vectors) // 128,)](
        vectors,
        table,
        out,
        len(table),
        M=vectors.shape[1],
        BM=128,
        BN=128,
        ARGMAX=argmax,
        num_warps=8,
        num_stages=3,
    )
    return out
