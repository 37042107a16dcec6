"""One layer of a `DynamicCache` that writes new tokens behind the others, in place.

A `DynamicLayer` joins what it holds and what is new into new memory with every forward pass: the
first one after a reload copies the whole prefix, and the cache is there twice meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

LEAST_ROOM: Final = 64
"""Tokens of room behind those of a layer that moves into new memory."""
GROWTH: Final = 8
"""A layer that moves takes room for one token in so many that it holds: so each token is copied
about as often while it grows."""


@dataclass(eq=False)
class Room:
    """Memory of a layer, `[rows, kv_heads, capacity, head_dim]`. What was written is never written
    again: whoever took tensors of it keeps what they held."""

    keys: Tensor
    values: Tensor
    used: int
    """Leading tokens that were written. Only what ends there may go on in place."""

    @classmethod
    def behind(
        cls, keys: Tensor, values: Tensor, held: int, capacity: int, repeats: int = 1
    ) -> Room:
        """New memory for what a layer holds, whose rest is not written yet.

        Args:
            keys, values: `[rows, kv_heads, n, head_dim]`, whose first `held` tokens are taken.
            held: tokens.
            capacity: tokens.
            repeats: rows of it for each of theirs.
        """
        made = []
        for part in (keys, values):
            rows, heads, _, dim = part.shape
            shape = rows, repeats, heads, capacity, dim
            memory = torch.empty(shape, dtype=part.dtype, device=part.device)
            memory[..., :held, :].copy_(part[:, None, :, :held])
            made.append(memory.flatten(0, 1))
        return cls(made[0], made[1], held)

    @property
    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, views."""
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def takes(self, keys: Tensor, values: Tensor) -> bool:
        """Whether these, `[rows, kv_heads, n, head_dim]`, can be written behind what is there."""
        # Engines allocate under inference_mode, and such tensors may be written only under it.
        writable = torch.is_inference_mode_enabled() or not self.keys.is_inference()
        return (
            writable
            and self.used + keys.shape[2] <= self.keys.shape[2]
            and _alike(self.keys, keys)
            and _alike(self.values, values)
        )

    def ends_with(self, keys: Tensor | None, values: Tensor | None, held: int) -> bool:
        """Whether a layer's tensors are all that was written: else it was cropped, reordered, or
        given others."""
        if held != self.used or held == 0:
            return held == self.used
        pairs = ((keys, self.keys), (values, self.values))
        return all(mine is not None and _begins(mine, whole) for mine, whole in pairs)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Writes tokens that it `takes`."""
        end = self.used + keys.shape[2]
        self.keys[:, :, self.used : end].copy_(keys)
        self.values[:, :, self.used : end].copy_(values)
        self.used = end


class RoomLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that gives the tensors of a `DynamicLayer`, bit for bit, and copies nothing while it
    has room.

    Under autograd and `torch.compile` it does what a `DynamicLayer` does: what is kept for a
    backward pass must not be written behind, and addresses cannot be traced.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: Room | None = None

    def move_in(self, room: Room) -> None:
        """Takes memory, and what is written there as its tokens."""
        keys, values = room.written
        self.lazy_initialization(keys, values)
        if room.used:
            self.keys, self.values = keys, values
        self._room = room

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As of `DynamicLayer`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        room = self._room_for(key_states, value_states)
        if room is None:
            self._room = None
            joined: tuple[Tensor, Tensor] = super().update(
                key_states, value_states, *args, **kwargs
            )
            return joined
        room.append(key_states, value_states)
        self._room = room
        self.keys, self.values = room.written
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As of `DynamicLayer`, into memory that has as much room."""
        held, room = int(self.get_seq_length()), self._room
        if (
            room is None
            or held == 0
            or torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or not room.ends_with(self.keys, self.values, held)
        ):
            super().batch_repeat_interleave(repeats)
            return
        keys: Any = self.keys
        self._room = Room.behind(keys, self.values, held, room.keys.shape[2], repeats)  # type: ignore[arg-type]
        self.keys, self.values = self._room.written

    def reset(self) -> None:
        """Forgets its tokens. What was taken of them stays as it is."""
        self._room = self.keys = self.values = None
        self.is_initialized = False

    def _room_for(self, keys: Tensor, values: Tensor) -> Room | None:
        """Where new tokens go; None where that is not ours to say."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        held, room = int(self.get_seq_length()), self._room
        ours = room is not None and room.ends_with(self.keys, self.values, held)
        if room is not None and ours and room.takes(keys, values):
            return room
        mine: Any = (self.keys, self.values) if held else (keys, values)
        if not (_alike(mine[0], keys) and _alike(mine[1], values)):
            return None  # other rows or another dtype: as `DynamicLayer` joins or refuses them
        tokens = held + keys.shape[2]
        return Room.behind(mine[0], mine[1], held, tokens + max(LEAST_ROOM, tokens // GROWTH))


def _alike(held: Tensor, new: Tensor) -> bool:
    """Whether tensors differ in their number of tokens alone."""
    return (
        new.ndim == 4
        and held.ndim == 4
        and (held.shape[:2], held.shape[3]) == (new.shape[:2], new.shape[3])
        and (held.dtype, held.device) == (new.dtype, new.device)
    )


def _begins(part: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is the leading tokens of another, in the same memory."""
    return _alike(whole, part) and (part.data_ptr(), part.stride()) == (
        whole.data_ptr(),
        whole.stride(),
    )
