"""Attention over sparse codes in plain PyTorch: oracle of the Triton kernels, and the CPU path.

Scores are `q · D_k` once, then a gather, product and sum a token; outputs are the weights of the
atoms, a sum over tokens each, times `D_v` (Lexico, arXiv 2412.08890, which does the first alone).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.attend.layer import CodedLayer, e4m3

_TOKENS: Final = 4096  # at a time: what is made of them stays in the cache


def attend(
    query: Tensor, coded: CodedLayer, exact_keys: Tensor, exact_values: Tensor, scale: float
) -> Tensor:
    """`coded.attend` for arguments that fit one another."""
    kv_heads, n, m = exact_keys.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = query.to(wide).reshape(kv_heads, -1, m) * scale  # [kv_heads, group * q_len, m]
    scores = rows @ exact_keys.to(wide).transpose(1, 2)
    row, token = (torch.arange(size, device=query.device) for size in (rows.shape[1], n))
    hidden = causal(row, query.shape[1], token, n)
    scores = scores.masked_fill_(hidden, -torch.inf)
    if coded.tokens:
        scores = torch.cat([_scores(rows, coded), scores], 2)  # [kv_heads, rows, tokens + n]
    weights = torch.softmax(scores, 2)
    out = weights[:, :, coded.tokens :] @ exact_values.to(wide)
    if coded.tokens:
        out += _outputs(weights[:, :, : coded.tokens], coded)
    return out.view(query.shape).to(query.dtype)


def causal(rows: Tensor, q_len: int, tokens: Tensor, n: int) -> Tensor:
    """Which of the exact `tokens` of n these rows must not see: bool `[rows, tokens]`."""
    newest = n - q_len + rows % q_len  # rows: head, then query
    return tokens > newest[:, None]


def _scores(rows: Tensor, coded: CodedLayer) -> Tensor:
    """Scores of coded tokens, `[kv_heads, rows, tokens]`."""
    heads, n = coded.kv_heads, coded.tokens
    atoms = coded.atoms.dictionary(0).to(rows.dtype)
    table = (atoms @ rows.transpose(1, 2)).flatten(0, 1)  # [kv_heads * N, rows]
    head = torch.arange(heads, dtype=torch.int32, device=rows.device)[:, None, None] * len(atoms)
    scores = rows.new_empty(heads, n, rows.shape[1])
    for first in range(0, n, _TOKENS):
        part = slice(first, min(first + _TOKENS, n))
        picked = coded.key_atoms[:, :, part].transpose(1, 2) + head  # [kv_heads, tokens, s]
        sums = torch.nn.functional.embedding_bag(
            picked.reshape(-1, coded.sparsity),
            table,
            per_sample_weights=e4m3(coded.key_bits[:, :, part], rows.dtype)
            .transpose(1, 2)
            .reshape(-1, coded.sparsity),
            mode="sum",
        )
        exponents = coded.key_exponents[:, part, None].int()
        torch.ldexp(sums.view(heads, -1, rows.shape[1]), -exponents, out=scores[:, part])
    return scores.transpose(1, 2)


def _outputs(weights: Tensor, coded: CodedLayer) -> Tensor:
    """`[kv_heads, rows, m]`: the coded values under `[kv_heads, rows, tokens]` weights."""
    heads, n = coded.kv_heads, coded.tokens
    atoms = coded.atoms.dictionary(1).to(weights.dtype)
    scaled = torch.ldexp(weights.transpose(1, 2), -coded.value_exponents[:, :n, None].int())
    total = weights.new_zeros(heads, len(atoms), weights.shape[1])
    head = torch.arange(heads, dtype=torch.int32, device=weights.device)[:, None]
    for chunk in range(-(-n // coded.chunk)):
        first, size = chunk * coded.chunk, coded.tokens_in(chunk)
        token, bits, bags = coded.value_bags(chunk)
        total += torch.nn.functional.embedding_bag(
            (token + head * size).flatten(),
            scaled[:, first : first + size].flatten(0, 1),
            bags,
            per_sample_weights=e4m3(bits, weights.dtype).flatten(),
            mode="sum",
        ).view_as(total)
    return total.transpose(1, 2) @ atoms
