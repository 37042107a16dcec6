"""Turns keys by RoPE, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from lexico_codec.geometry import Rope


def rotate(keys: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Keys as the attention sees them, from keys before RoPE.

    Args:
        keys: `[tokens, heads, head_dim]`, floating point.
        positions: `[tokens]`, integer token positions.
        rope: the model's rotary embedding.

    Returns:
        A new tensor of the same shape and dtype; arithmetic in float32 or the wider input dtype.
    """
    return _turn(keys, positions, rope, inverse=False)


def unrotate(keys: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Keys before RoPE, from keys as the attention sees them: inverts `rotate`, to rounding."""
    return _turn(keys, positions, rope, inverse=True)


def _turn(keys: Tensor, positions: Tensor, rope: Rope, *, inverse: bool) -> Tensor:
    wide = torch.promote_types(keys.dtype, torch.float32)
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=keys.device)
    # The models compute the angle in float32: so must we, or far positions would turn differently.
    angle = positions.to(torch.float32)[:, None] * inv_freq  # [tokens, pairs]
    cos, sin = angle.cos().to(wide)[:, None], angle.sin().to(wide)[:, None]
    if inverse:
        cos, sin = cos / rope.scale, -sin / rope.scale
    else:
        cos, sin = cos * rope.scale, sin * rope.scale
    turned = keys.to(wide).clone()
    first, second = _pairs(turned, rope)
    a, b = first * cos - second * sin, second * cos + first * sin
    first.copy_(a)
    second.copy_(b)
    return turned.to(keys.dtype)


def _pairs(keys: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Views of the first and second components of every pair, `[tokens, heads, pairs]`."""
    pairs = rope.rotary_dim // 2
    if rope.pairing == "half":
        return keys[..., :pairs], keys[..., pairs : 2 * pairs]
    return keys[..., 0 : 2 * pairs : 2], keys[..., 1 : 2 * pairs : 2]
