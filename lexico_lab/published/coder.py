"""What a published method that codes gives: a prompt cache stored, and read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_codec.rope import rotate, unrotate


@dataclass(frozen=True, eq=False)
class Prefix:
    """The part of one text's cache that is to be stored, in float32 holding float16 values."""

    keys: Tensor
    """`[layers, tokens, kv_heads, head_dim]`, as attention sees them: RoPE is on."""
    values: Tensor
    """`[layers, tokens, kv_heads, head_dim]`."""
    positions: Tensor
    """`[tokens]` int64, where the tokens stand in the text."""
    rope: Rope
    """Of the model."""
    importance: Tensor
    """`[layers, tokens]`: mean attention that later tokens of the prefix pay to the token, over
    heads and over the tokens that can see it (normalised attention score of ZipCache,
    arXiv 2405.14256)."""

    def unrotated_keys(self) -> Tensor:
        """Keys before RoPE, shaped as `keys`."""
        return torch.stack([unrotate(layer, self.positions, self.rope) for layer in self.keys])

    def rotated(self, keys: Tensor) -> Tensor:
        """Keys with RoPE on again, from keys before it."""
        return torch.stack([rotate(layer, self.positions, self.rope) for layer in keys])


@dataclass(frozen=True, eq=False)
class Stored:
    """What comes back of a prefix, and what it took to store it."""

    keys: Tensor
    """Shaped as those of the prefix, RoPE on."""
    values: Tensor
    size: int
    """Bytes that would lie in the store for this prefix: codes, scales, zero points, indices,
    bitmaps, lengths. What all prefixes share (transforms, tables) is not counted."""


class Coder(ABC):
    """One method at one setting."""

    name: str
    """Method and setting, as reports show it: `KIVI 2 bit`."""
    learns: ClassVar[int] = 0
    """Prefixes that it learns from: as many as make a difference."""
    weighs: ClassVar[bool] = False
    """Whether it asks for `Prefix.importance`, which is zero where no coder does."""

    def calibrate(self, training: Sequence[Prefix]) -> Self:
        """Learns what the method learns from training text; most learn nothing."""
        return self

    @abstractmethod
    def code(self, prefix: Prefix) -> Stored:
        """Stores and reads back a prefix."""
