"""Attention of many queries over sparse codes: reconstructed a block at a time, never as a whole.

For the prefill of what follows a reloaded prefix. There a dense product a block costs less than
gathers for every query, and memory stays bounded whatever the number of coded tokens is.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.attend.layer import BLOCK, CodedLayer
from lexico_codec.kernels.attend.naive import causal

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

    for _, keys, values in coded.blocks(wide, BLOCK):
        add(keys, values, None)
    for first in range(0, n, BLOCK):
        part = slice(first, first + BLOCK)
        add(exact_keys[:, part].to(wide), exact_values[:, part].to(wide), first)
    return (out / total).view(q_heads, q_len, m).to(query.dtype)
