"""Where in its sequence a page lies, found from its keys.

RoPE turns each pair of components of a key by an angle that grows with the key's position. Before
that, the mean of a model's keys is far from zero and nearly the same for any text: that is what the
set removes, `Transform.means`. So the mean key of a page, turned back as if the page began its
sequence, is the set's mean turned by where the page does begin. Of all positions the likeliest is
the one that brings the two together best, over all layers, heads and pairs at once (a matched
filter; a pair weighs by how little its keys differ within the page).

What is found is only how a page is coded: it is stored with the page and turns keys back by the
same angles. A position that is wrong by a few would cost bytes, and gives no other keys.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_codec.kernels.layout import rows as layout
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.rope import pairs_of, turn_at
from lexico_proto.errors import DamagedFrame

POSITIONS: Final = 1 << 20
"""Positions that are tried."""
_STORED: Final = struct.Struct("<I")
_BLOCK: Final = 1 << 10
_LEAST_SPREAD: Final = 1e-4
"""Of a pair's mean square, its variance at least: pairs that hardly vary do not decide alone."""


def find_position(memory: TableMemory, means: Tensor, rope: Rope) -> int:
    """The position of the first token of a page, below `POSITIONS`.

    Args:
        memory: consecutive tokens of all heads, keys before values in each layer; keys after RoPE.
        means: `[tables, heads * head_dim]` float32 of the set, keys before RoPE.
        rope: of the model.
    """
    on, tokens = memory.device, memory.tokens
    turn = turn_at(torch.arange(tokens, device=on), rope, inverse=True)
    keys = layout.gather(memory, torch.zeros_like(means), turn)[::2]
    shape = (len(keys), memory.heads, memory.m)
    usual, mean = (_pairs(each.view(shape), rope) for each in (means[::2], keys.mean(1)))
    square = sum(pairs_of(keys.square().mean(1).view(shape), rope.pairing, len(rope.inv_freq)))
    spread = square - mean.abs().square() + _LEAST_SPREAD * square
    weighed = torch.where(spread > 0, usual.conj() * mean / spread, 0)
    return _likeliest(torch.nan_to_num(weighed).sum((0, 1)).cpu(), rope)


def position_bytes(position: int) -> bytes:
    """A position as a body begins with it."""
    return _STORED.pack(position)


def read_position(body: memoryview) -> tuple[int, memoryview]:
    """The position that a body begins with, and what follows.

    Raises:
        DamagedFrame: it is too short, or none that `find_position` gives.
    """
    if len(body) < _STORED.size:
        raise DamagedFrame(f"residual body of {len(body)} bytes: its position alone takes more")
    position: int = _STORED.unpack_from(body)[0]
    if position >= POSITIONS:
        raise DamagedFrame(f"residual body: position {position}, of {POSITIONS} that are tried")
    return position, body[_STORED.size :]


def _likeliest(pairs: Tensor, rope: Rope) -> int:
    """Where the sum of `pairs`, `[pairs]` complex, each turned back, is longest.

    Positions are tried in blocks: of the first of each block the pairs are turned once, and then
    by as many positions as a block has.
    """
    starts, steps = _turns(rope.inv_freq)
    begun = pairs * starts  # [blocks, pairs]
    return int((torch.cat([begun.real, begun.imag], 1) @ steps).argmax())


@lru_cache(8)
def _turns(inv_freq: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Turns back to the first position of each block, `[blocks, pairs]` complex64, and by the
    positions within a block, `[2 pairs, positions]` float32: cosines, then sines."""
    with torch.inference_mode(False):
        angles = torch.tensor(inv_freq, dtype=torch.float64)
        starts = torch.arange(0, POSITIONS, _BLOCK)[:, None] * angles
        steps = angles[:, None] * torch.arange(_BLOCK)
        one = torch.ones((), dtype=torch.float64)
        return (
            torch.polar(one.expand_as(starts), -starts).to(torch.complex64),
            torch.cat([steps.cos(), steps.sin()]).float(),
        )


def _pairs(keys: Tensor, rope: Rope) -> Tensor:
    """The pairs of `[..., head_dim]` that RoPE turns, `[..., pairs]` complex."""
    first, second = pairs_of(keys, rope.pairing, len(rope.inv_freq))
    return torch.complex(first.contiguous(), second.contiguous())
