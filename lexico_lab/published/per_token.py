"""Per-token uniform quantisation: each token's head vector by itself, asymmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits, packed without gaps."""
    return (count * bits + 7) // 8


def as_float16(x: Tensor) -> Tensor:
    """What a cache in float16 would hold, in float32."""
    return x.to(torch.float16).to(torch.float32)


@dataclass(frozen=True, eq=False)
class Uniform:
    """Asymmetric uniform codes of a tensor, one scale and minimum for each slice along a dimension.

    The minimum is the zero point, in units of the values: x is `minimum + scale * code`. The codes
    are those nearest under scale and minimum as stored, in float16, not as computed.
    """

    codes: Tensor
    """uint8, shaped as the tensor."""
    scale: Tensor
    """float16, shaped as the tensor but 1 along the dimension."""
    minimum: Tensor
    """float16, shaped as `scale`."""
    bits: int

    @classmethod
    def encode(cls, x: Tensor, bits: int, dim: int) -> Self:
        """Codes of x, float32, sharing scale and minimum along `dim`."""
        low, high = torch.aminmax(x, dim=dim, keepdim=True)
        levels = 2**bits - 1
        minimum = low.to(torch.float16)
        scale = ((high - low) / levels).to(torch.float16)
        # A scale of 0 (constant slice, or a range below float16): all codes are 0.
        step = torch.where(scale == 0, torch.inf, scale.to(torch.float32))
        codes = (x - minimum.to(torch.float32)).div_(step).round_().clamp_(0, levels)
        return cls(codes.to(torch.uint8), scale, minimum, bits)

    def decode(self) -> Tensor:
        """float32, shaped as the codes."""
        return self.codes.to(torch.float32).mul_(self.scale).add_(self.minimum)

    @property
    def size(self) -> int:
        """Bytes of the codes, packed, and of scales and minimums."""
        codes = packed_size(self.codes.numel(), self.bits)
        return codes + 2 * (self.scale.numel() + self.minimum.numel())


class PerToken(Coder):
    """Uniform quantisation of each token's head, whole or in groups of neighbouring channels.

    The plain scheme that papers on cache quantisation compare with, of no single source. Keys are
    taken as they lie in the cache, with RoPE on.
    """

    def __init__(self, bits: int, group: int | None = None) -> None:
        """`group`: channels that share a scale and a minimum; None: a whole head."""
        self.bits, self.group = bits, group
        self.name = f"per token {bits} bit" + (f", groups of {group}" if group else "")

    def code(self, prefix: Prefix) -> Stored:
        """Raises ValueError: head_dim is no multiple of the group."""
        keys, key_size = self._round_trip(prefix.keys)
        values, value_size = self._round_trip(prefix.values)
        return Stored(keys, values, key_size + value_size)

    def _round_trip(self, x: Tensor) -> tuple[Tensor, int]:
        head_dim = x.shape[-1]
        group = self.group or head_dim
        if head_dim % group:
            raise ValueError(f"head_dim {head_dim} is no multiple of the group, {group}")
        stored = Uniform.encode(x.reshape(*x.shape[:-1], -1, group), self.bits, dim=-1)
        return as_float16(stored.decode().flatten(-2)), stored.size


def coders(head_dim: int = 64) -> list[Coder]:
    """Every setting worth plotting; groups that are a whole head or more are left out.

    8 bits take more than half of float16: the point near which all error vanishes.
    """
    groups = [g for g in (32, 64) if g < head_dim and head_dim % g == 0]
    whole = [PerToken(bits) for bits in (2, 3, 4, 8)]
    return [*whole, *(PerToken(bits, group) for group in groups for bits in (2, 3, 4))]
