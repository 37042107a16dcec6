"""KIVI (Liu et al., arXiv 2402.02750): keys per channel, values per token, asymmetric.

Keys, with RoPE on as KIVI stores them, share scale and minimum along a channel over `group`
consecutive tokens; values over `group` consecutive channels of one token's head. Both are float16.
Tokens that fill no group of keys stay float16 and are counted.

Details are those of the authors' code (jy-yuan/KIVI), not checked in the paper's text. Where this
differs or goes beyond it:
- KIVI keeps a window of the latest tokens exact (its residual length), of values as well. Here the
  window of keys is what fills no group and that of values is empty: which tokens stay exact outside
  the coders is the benchmark's matter and alike for all methods.
- Their code packs 2, 4 or 8 bits into 32-bit words. 3 bits are packed here without gaps.
- Groups of 64, with half the scales of those of 32, are plotted as well.
"""

from __future__ import annotations

import torch

from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.per_token import Uniform, as_float16


class Kivi(Coder):
    """KIVI at one width for keys and values."""

    def __init__(self, bits: int, group: int = 32) -> None:
        """`group`: tokens of keys, channels of values that share a scale and a minimum."""
        self.bits, self.group = bits, group
        self.name = f"KIVI {bits} bit" + (f", groups of {group}" if group != 32 else "")

    def code(self, prefix: Prefix) -> Stored:
        """Raises ValueError: head_dim is no multiple of the group."""
        layers, tokens, kv_heads, head_dim = prefix.keys.shape
        if head_dim % self.group:
            raise ValueError(f"head_dim {head_dim} is no multiple of the group, {self.group}")
        groups = tokens // self.group
        full, rest = prefix.keys.tensor_split((groups * self.group,), dim=1)
        by_channel = full.reshape(layers, groups, self.group, kv_heads, head_dim)
        by_token = prefix.values.reshape(
            layers, tokens, kv_heads, head_dim // self.group, self.group
        )
        keys = Uniform.encode(by_channel, self.bits, dim=2)
        values = Uniform.encode(by_token, self.bits, dim=-1)
        return Stored(
            as_float16(torch.cat([keys.decode().flatten(1, 2), rest], dim=1)),
            as_float16(values.decode().flatten(-2)),
            keys.size + 2 * rest.numel() + values.size,
        )


def coders() -> list[Coder]:
    """Every setting worth plotting."""
    return [Kivi(bits, group) for group in (32, 64) for bits in (2, 3, 4)]
