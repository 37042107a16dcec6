"""Attention over sparse codes on a GPU: five launches a layer, whatever the number of tokens.

No launch waits for the host and every sum has a fixed order: equal input gives equal bits, and a
call can be captured in a CUDA graph (for the numbers of tokens that it was captured with).
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
from torch import Tensor

from lexico_codec.kernels.attend import triton_attend_kernel as kernels
from lexico_codec.kernels.attend.layer import LANES, RUN, CodedLayer
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.variants import Variant

_LOG2E: Final = 1.4426950408889634
_MOST_ROWS: Final = 4  # of a block: 16 bytes of float32, one gather
_TOKENS: Final = 256  # a step of `score`: one a thread
_EXACT: Final = 32  # exact tokens a split
_ATOMS: Final = {"project": 32, "gather": 64}  # a tile
_CHUNKS: Final = 8  # at a time in `gather`
_BATCH: Final = 16  # partial outputs at a time in `merge`
_PROGRAMS: Final = 264  # of `score` and `weigh`: two a multiprocessor of an H200


def attend(
    query: Tensor, coded: CodedLayer, exact_keys: Tensor, exact_values: Tensor, scale: float
) -> Tensor:
    """`coded.attend` for arguments that fit one another."""
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        return _attend(query.contiguous(), coded, exact_keys, exact_values, scale)


def _attend(
    query: Tensor, coded: CodedLayer, exact_keys: Tensor, exact_values: Tensor, scale: float
) -> Tensor:
    (q_heads, q_len, m), (kv_heads, n, _) = query.shape, exact_keys.shape
    keys, values = _inner(exact_keys), _inner(exact_values)
    out = torch.empty_like(query)
    key_atoms, value_atoms = _dictionaries(coded.atoms)
    rows = q_heads // kv_heads * q_len
    width = min(_MOST_ROWS, triton.next_power_of_2(rows))
    row_blocks = triton.cdiv(rows, width)
    parts = kv_heads * row_blocks
    count = coded.tokens
    steps = max(1, min(8, triton.cdiv(count * parts, _TOKENS * _PROGRAMS)))
    exact_splits = triton.cdiv(n, _EXACT)
    splits = triton.cdiv(count, _TOKENS * steps) + exact_splits
    BM = max(16, triton.next_power_of_2(m))

    tops, sums = (_scratch(query, parts * width * splits) for _ in range(2))
    exact_outs = _scratch(query, parts * width * exact_splits * m)
    BR = 16 if parts * width <= 16 else 32
    tiles = triton.cdiv(len(key_atoms), _ATOMS["project"]) if count else 0
    row_tiles = triton.cdiv(parts * width, BR)
    half = key_atoms.dtype == torch.float16 and query.dtype != torch.float32
    precision = "tf32" if half else "ieee"  # tf32 holds half types exactly
    table = _scratch(query, parts * len(key_atoms) * width if count else 0)
    kernels.project[(tiles * row_tiles + parts * exact_splits,)](
        query, key_atoms, keys, values, table, tops, sums, exact_outs,
        tiles, row_tiles, exact_splits, splits, n, q_len, rows, row_blocks, parts,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), scale * _LOG2E,
        N=len(key_atoms), M=m, BM=BM, ROWS=width, BN=_ATOMS["project"], BR=BR, BE=_EXACT,
        PRECISION=precision, num_warps=4,
    )  # fmt: skip
    tiles, coded_outs = 0, tops
    if count:
        scores = _scratch(query, parts * count * width)
        kernels.score[(parts, splits - exact_splits)](
            table, coded.key_atoms, coded.key_bits, coded.key_exponents, coded.value_exponents,
            scores, tops, sums, count, coded.key_atoms.shape[2], splits, row_blocks, steps,
            N=len(key_atoms), S=coded.sparsity, ROWS=width, BT=_TOKENS, num_warps=_TOKENS // 32,
        )  # fmt: skip
        _, capacity, run, lanes = coded.value_words.shape
        chunk_blocks = coded.bases.shape[2] - 1
        chunks = triton.cdiv(count, coded.chunk)
        blocks = (chunks - 1) * chunk_blocks + triton.cdiv(
            coded.tokens_in(chunks - 1) * coded.sparsity, run * lanes
        )
        per = max(1, min(chunk_blocks, triton.cdiv(blocks * parts, _PROGRAMS)))
        weights = _scratch(query, parts * chunks * (len(value_atoms) + chunk_blocks) * width)
        kernels.weigh[(parts, triton.cdiv(blocks, per))](
            scores, tops, coded.value_words, coded.value_bits, coded.bases, weights,
            count, capacity, chunks, coded.bases.shape[1], blocks, chunk_blocks, coded.chunk,
            splits, row_blocks, per,
            N=len(value_atoms), ROWS=width, RUN=run, LANES=lanes, num_warps=lanes // 32,
        )  # fmt: skip
        BN = _ATOMS["gather"] if BM <= 128 else 32  # more would not fit registers
        tiles = triton.cdiv(len(value_atoms), BN)
        coded_outs = _scratch(query, parts * tiles * width * m)
        kernels.gather[(parts, tiles)](
            weights, coded.runs, value_atoms, coded_outs,
            chunks, coded.bases.shape[1], chunk_blocks, tiles, row_blocks,
            N=len(value_atoms), M=m, BM=BM, ROWS=width, BN=BN, BC=_CHUNKS,
            num_warps=4,
        )  # fmt: skip
    kernels.merge[(parts * width,)](
        tops, sums, coded_outs, exact_outs, out,
        tiles, exact_splits, splits, rows, row_blocks,
        M=m, BM=BM, ROWS=width, BATCH=_BATCH, num_warps=4,
    )  # fmt: skip
    return out


def _scratch(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _inner(tensor: Tensor) -> Tensor:
    """The tensor, with components side by side and rows where wide loads can begin."""
    head, token, inner = tensor.stride()
    fits = inner == 1 and (head % 8 == token % 8 == 0 or tensor.shape[2] % 8)
    return tensor if fits else tensor.contiguous()


def _dictionaries(atoms: Atoms) -> tuple[Tensor, Tensor]:
    """The key and the value dictionary, in fp16 where that loses nothing."""

    def half() -> Tensor:
        stack = atoms.stack.half()
        return stack if torch.equal(stack.float(), atoms.stack) else atoms.stack

    stack = atoms.form("half", half)
    first, second, end = atoms.starts
    return stack[first:second], stack[second:end]


def variants(architecture: int) -> list[Variant]:
    """What the compile report builds: 4096 atoms, sparsity 8 and 16, head_dim 64 and 128."""
    wide = _variants(4096, 128, 8, 4)
    longer = [variant for variant in _variants(4096, 128, 16, 4) if " score " in variant.name]
    return [*wide, *longer, *_variants(4096, 64, 8, 4), *_variants(4096, 128, 8, 1)]


def _variants(N: int, m: int, s: int, rows: int) -> list[Variant]:
    shape = {"N": N, "ROWS": rows}
    wide = {"M": m, "BM": triton.next_power_of_2(m), "ROWS": rows}
    tile = {"BN": _ATOMS["project"], "BR": 32, "BE": _EXACT, "PRECISION": "tf32"}
    types = {
        **dict.fromkeys(("query", "atoms", "keys", "values", "out"), "*fp16"),
        **dict.fromkeys(("table", "tops", "sums", "outs", "scores", "weights"), "*fp32"),
        **dict.fromkeys(("coded_outs", "exact_outs"), "*fp32"),
        **dict.fromkeys(("key_atoms", "value_words", "runs"), "*i16"),
        **dict.fromkeys(("key_bits", "value_bits"), "*u8"),
        **dict.fromkeys(("key_exponents", "value_exponents"), "*i8"),
        "bases": "*i32",
        "factor": "fp32",
    }

    def one(kernel: Any, warps: int, constexprs: dict[str, Any]) -> Variant:
        signature = {
            name: "constexpr" if name in constexprs else types.get(name, "i32")
            for name in kernel.arg_names
        }
        name = f"attend {kernel.fn.__name__} m{m} N{N} s{s} rows{rows}"
        return Variant(name, kernel, signature, constexprs, warps, 3)

    return [
        one(kernels.project, 4, {"N": N, **wide, **tile}),
        one(kernels.score, _TOKENS // 32, {**shape, "S": s, "BT": _TOKENS}),
        one(kernels.weigh, LANES // 32, {**shape, "RUN": RUN, "LANES": LANES}),
        one(kernels.gather, 4, {"N": N, **wide, "BN": _ATOMS["gather"], "BC": _CHUNKS}),
        one(kernels.merge, 4, {**wide, "BATCH": _BATCH}),
    ]
