"""Attention of many queries over sparse codes: reconstructed a block at a time, never as a whole.

For the prefill of what follows a reloaded prefix. There a dense product a block costs less than
gathers for every query, and memory stays bounded whatever the number of coded tokens is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from lexico_codec.kernels.attend.naive import causal, e4m3

if TYPE_CHECKING:
    from lexico_codec.kernels.attend.coded import CodedLayer

BLOCK: Final = 1024
"""Tokens dense at a time."""
_SCORES: Final = 1 << 24  # float32 scores at a time


def attend(
    query: Tensor, coded: CodedLayer, exact_keys: Tensor, exact_values: Tensor, scale: float
) -> Tensor:
    """`coded.attend` for arguments that fit one another; online softmax over blocks of tokens."""
    (q_heads, q_len, m), (kv_heads, n, _) = query.shape, exact_keys.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = query.to(wide).reshape(kv_heads, -1, m) * scale  # [kv_heads, group * q_len, m]
    top = rows.new_full((*rows.shape[:2], 1), -torch.inf)
    total = torch.zeros_like(top)
    out = torch.zeros_like(rows)
    step = max(1, _SCORES // (kv_heads * BLOCK))

    def add(keys: Tensor, values: Tensor, first: int | None) -> None:
        for begin in range(0, rows.shape[1], step):
            part = slice(begin, begin + step)
            scores = rows[:, part] @ keys.transpose(1, 2)  # [kv_heads, step, block]
            if first is not None:
                row = torch.arange(begin, begin + scores.shape[1], device=keys.device)
                tokens = torch.arange(first, first + keys.shape[1], device=keys.device)
                scores.masked_fill_(causal(row, q_len, tokens, n), -torch.inf)
            newer = torch.maximum(top[:, part], scores.amax(2, keepdim=True))
            base = newer.nan_to_num(neginf=0.0)  # nothing visible so far: all weights are 0
            weights = scores.sub_(base).exp_()
            fade = (top[:, part] - base).exp_()
            total[:, part] = total[:, part] * fade + weights.sum(2, keepdim=True)
            out[:, part] = out[:, part] * fade + weights @ values
            top[:, part] = newer

    for _, keys, values in blocks(coded, wide):
        add(keys, values, None)
    for first in range(0, n, BLOCK):
        part = slice(first, first + BLOCK)
        add(exact_keys[:, part].to(wide), exact_values[:, part].to(wide), first)
    return (out / total).view(q_heads, q_len, m).to(query.dtype)


def blocks(
    coded: CodedLayer, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First token, keys and values `[kv_heads, tokens <= BLOCK, m]` of the coded tokens in turn."""
    keys, values = (coded.atoms.dictionary(part).to(dtype) for part in (0, 1))
    for chunk in range(-(-coded.tokens // coded.chunk)):
        begin, size = chunk * coded.chunk, coded.tokens_in(chunk)
        atoms, bits = coded.value_rows(chunk)
        for first in range(0, size, BLOCK):
            part = slice(first, min(first + BLOCK, size))
            here = slice(begin + part.start, begin + part.stop)
            key = _sum(
                coded.key_atoms[:, :, here].transpose(1, 2),
                coded.key_bits[:, :, here].transpose(1, 2),
                coded.key_exponents[:, here],
                keys,
            )
            value = _sum(atoms[:, part], bits[:, part], coded.value_exponents[:, here], values)
            yield here.start, key, value


def _sum(picked: Tensor, bits: Tensor, exponents: Tensor, atoms: Tensor) -> Tensor:
    """Vectors `[kv_heads, tokens, m]` of codes `[kv_heads, tokens, s]`."""
    shape = picked.shape
    vectors = torch.nn.functional.embedding_bag(
        picked.reshape(-1, shape[2]).long(),
        atoms,
        per_sample_weights=e4m3(bits, atoms.dtype).reshape(-1, shape[2]),
        mode="sum",
    ).view(*shape[:2], -1)
    return torch.ldexp(vectors, -exponents[:, :, None].int())
