"""Turns keys by RoPE, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """How keys at some positions are turned: pair (a, b) to (a cos - b sin, b cos + a sin)."""

    cos: Tensor
    """`[tokens, pairs]`, the scale multiplied in."""
    sin: Tensor
    pairing: Pairing
    scale: float
    """How many times longer vectors become."""


def turn_at(
    positions: Tensor, rope: Rope, *, inverse: bool = False, dtype: torch.dtype = torch.float32
) -> Turn:
    """What `rope` does to keys at `[tokens]` positions, or with `inverse` what undoes it."""
    inv_freq = _inv_freq(rope.inv_freq).to(positions.device)
    # The models compute the angle in float32: so must we, or far positions would turn differently.
    angle = positions.to(torch.float32)[:, None] * inv_freq  # [tokens, pairs]
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    if inverse:
        return Turn(cos / rope.scale, -sin / rope.scale, rope.pairing, 1 / rope.scale)
    if rope.scale == 1:
        return Turn(cos, sin, rope.pairing, rope.scale)
    return Turn(cos * rope.scale, sin * rope.scale, rope.pairing, rope.scale)


@lru_cache(64)
def _inv_freq(numbers: tuple[float, ...]) -> Tensor:
    """Not under inference mode, whose tensors serve there alone."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float32, device="cpu")


def turned(keys: Tensor, turn: Turn) -> Tensor:
    """`[tokens, heads, head_dim]` turned: a new tensor; arithmetic in the wider of the dtypes."""
    made = keys.to(torch.promote_types(keys.dtype, turn.cos.dtype)).clone()
    first, second = pairs_of(made, turn.pairing, turn.cos.shape[1])
    cos, sin = turn.cos[:, None], turn.sin[:, None]
    a, b = first * cos - second * sin, second * cos + first * sin
    first.copy_(a)
    second.copy_(b)
    return made.to(keys.dtype)


def rotate(keys: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Keys as the attention sees them, from keys before RoPE.

    Args:
        keys: `[tokens, heads, head_dim]`, floating point.
        positions: `[tokens]`, integer token positions.
        rope: the model's rotary embedding.

    Returns:
        A new tensor of the same shape and dtype; arithmetic in float32 or the wider input dtype.
    """
    return turned(keys, turn_at(positions, rope, dtype=_wide(keys)))


def unrotate(keys: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Keys before RoPE, from keys as the attention sees them: inverts `rotate`, to rounding."""
    return turned(keys, turn_at(positions, rope, inverse=True, dtype=_wide(keys)))


def _wide(keys: Tensor) -> torch.dtype:
    return torch.promote_types(keys.dtype, torch.float32)


def pairs_of(keys: Tensor, pairing: Pairing, pairs: int) -> tuple[Tensor, Tensor]:
    """Views of the first and second components of pairs, `[..., pairs]` of `[..., head_dim]`."""
    if pairing == "half":
        return keys[..., :pairs], keys[..., pairs : 2 * pairs]
    return keys[..., 0 : 2 * pairs : 2], keys[..., 1 : 2 * pairs : 2]
