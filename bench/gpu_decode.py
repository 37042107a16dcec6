"""Sections of `bench.gpu` on what reads codes: reconstruction, and attention over them."""

from __future__ import annotations

from typing import Final

import torch

from bench.gpu_timing import (
    KV_HEADS,
    LAYERS,
    Q_HEADS,
    VECTORS_A_TOKEN,
    Limits,
    M,
    Row,
    median_ms,
    random_atoms,
    replayed_ms,
)
from lexico_codec.kernels.attend.coded import attend
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import reconstruct_into

CONTEXTS: Final = (4096, 8192, 16384, 32768, 65536, 131072)


def decode(limits: Limits, quick: bool) -> list[Row]:
    """Bytes written a second, as a share of what a copy moves (it reads as many as it writes).

    Of whole calls, which check every index and wait for that, and of the kernel alone.
    """
    from lexico_codec.kernels.pursuit import triton_decode

    rows = []
    tokens, tables = 4096, 2 * LAYERS
    for size, sparsity in ((1024, 8), (4096, 8), (4096, 16)):
        atoms = random_atoms(size, tables=tables)
        codes = _random_codes(tables * tokens * KV_HEADS, size, sparsity)
        block_table = torch.randperm(tokens // 16, device="cuda")
        whole = torch.empty(tables, tokens, KV_HEADS, M, dtype=torch.bfloat16, device="cuda")
        plain = list(whole.unbind())
        heads = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in plain]
        pools = [part.view(tokens // 16, 16, KV_HEADS, M).clone() for part in plain]
        for layout, target in (
            ("tokens, heads, dim", TableMemory.of(plain, tokens)),
            ("heads, tokens, dim", TableMemory.of(heads, tokens)),
            ("paged, blocks of 16", TableMemory.of(pools, tokens, block_table)),
        ):
            ms = median_ms(reconstruct_into, codes, atoms, target, kernel="triton")
            alone = replayed_ms(triton_decode.reconstruct, codes, atoms, target, None)
            written = tables * tokens * KV_HEADS * M * 2
            rows.append(
                {
                    "N": size,
                    "s": sparsity,
                    "layout": layout,
                    "tokens_s": tables * tokens * KV_HEADS / VECTORS_A_TOKEN / ms * 1e3,
                    "share_of_copy": written / ms / 1e9 / (limits["copy_tbytes"] / 2),
                    "kernel_share_of_copy": written / alone / 1e9 / (limits["copy_tbytes"] / 2),
                }
            )
    return rows


def _random_codes(count: int, size: int, sparsity: int) -> Codes:
    generator = torch.Generator(device="cuda").manual_seed(count)
    indices = torch.randint(size, (count, sparsity), generator=generator, device="cuda")
    coefficients = torch.randn(count, sparsity, generator=generator, device="cuda")
    counts = torch.full((count,), sparsity, dtype=torch.int32, device="cuda")
    return Codes(indices.int(), coefficients, counts).quantised()


def attention(limits: Limits, quick: bool) -> list[Row]:
    """One decode step of one layer: over codes, and dense through torch's SDPA in fp16.

    Both without the host's part, which would hide the short ones.
    """
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = []
    query = torch.randn(Q_HEADS, 1, M, device="cuda", dtype=torch.float16)
    tail = torch.randn(2, KV_HEADS, 132, M, device="cuda", dtype=torch.float16)
    for tokens in CONTEXTS[:3] if quick else CONTEXTS:
        dense = torch.randn(2, 1, KV_HEADS, tokens + 132, M, device="cuda", dtype=torch.float16)
        grouped = query.view(1, KV_HEADS, Q_HEADS // KV_HEADS, M)  # the same, for one query token
        whole = min(
            replayed_ms(sdpa, query[None], dense[0], dense[1], enable_gqa=True),
            replayed_ms(sdpa, grouped, dense[0], dense[1]),
        )
        for sparsity in (8, 16):
            atoms = random_atoms(4096, tables=2)
            coded = CodedLayer.empty(atoms, KV_HEADS, sparsity)
            coded.append(_random_codes(2 * tokens * KV_HEADS, 4096, sparsity))
            ms = replayed_ms(attend, query, coded, tail[0], tail[1], M**-0.5, kernel="triton")
            rows.append(
                {
                    "tokens": tokens,
                    "s": sparsity,
                    "us": 1e3 * ms,
                    "sdpa_us": 1e3 * whole,
                    "times_faster": whole / ms,
                    "share_of_dense_bytes": coded.held_bytes / (2 * tokens * KV_HEADS * M * 2),
                }
            )
    return rows
