"""What is done to vectors before they are coded, and undone when they are reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_codec.rope import rotate, unrotate
from lexico_proto.errors import InvalidInput, ShapeMismatch


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """Vectors `[tables, tokens, heads, m]` are coded as `(unrotate(x) - mean) * scale`."""

    rope: Rope | None = None
    """Rotary embedding to take off, or None."""
    turned: tuple[bool, ...] = ()
    """For each table whether it holds keys, which RoPE turned; needed with `rope`."""
    first_position: int = 0
    """Position of the first token in its sequence."""
    mean: Tensor | None = None
    """`[tables, heads, m]` float32, subtracted after un-rotation, or None."""
    scale: Tensor | None = None
    """`[tables, heads]` float32, positive, multiplied in last, or None."""

    def part(self, tables: range, heads: range) -> Preparation:
        """Of some consecutive tables and heads alone."""
        own, some = slice(tables.start, tables.stop), slice(heads.start, heads.stop)
        return replace(
            self,
            turned=self.turned[own],
            mean=None if self.mean is None else self.mean[own, some],
            scale=None if self.scale is None else self.scale[own, some],
        )

    def check(self, tables: int, heads: int, m: int) -> None:
        """Refuses what does not fit vectors of that shape.

        Raises:
            ShapeMismatch, InvalidInput: naming the field.
        """
        if self.rope is not None and len(self.turned) != tables:
            raise ShapeMismatch(f"turned: {len(self.turned)} entries for {tables} tables")
        if self.rope is not None and self.rope.rotary_dim > m:
            raise ShapeMismatch(f"rope: turns {self.rope.rotary_dim} components, vectors have {m}")
        if self.first_position < 0:
            raise InvalidInput(f"first_position: {self.first_position} is negative")
        if self.mean is not None:
            if self.mean.shape != (tables, heads, m):
                raise ShapeMismatch(f"mean: {list(self.mean.shape)}, needs {[tables, heads, m]}")
            if not bool(self.mean.isfinite().all()):
                raise InvalidInput("mean: must be finite")
        if self.scale is not None:
            if self.scale.shape != (tables, heads):
                raise ShapeMismatch(f"scale: {list(self.scale.shape)}, needs {[tables, heads]}")
            if not bool(((self.scale > 0) & self.scale.isfinite()).all()):
                raise InvalidInput("scale: must be positive and finite")

    def angles(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of every token and pair, without the rope's scale: `[tokens, pairs]` float32.

        Raises:
            InvalidInput: no rope is set.
        """
        if self.rope is None:
            raise InvalidInput("rope: none is set")
        inv_freq = torch.tensor(self.rope.inv_freq, dtype=torch.float32, device=device)
        last = self.first_position + tokens
        positions = torch.arange(self.first_position, last, device=device, dtype=torch.float32)
        angle = positions[:, None] * inv_freq  # float32, as the models compute it
        return angle.cos(), angle.sin()

    def apply(self, vectors: Tensor) -> Tensor:
        """`[tables, tokens, heads, m]` as they are coded: float32, a new tensor."""
        prepared = vectors.to(torch.float32, copy=True)
        if self.rope is not None:
            positions = self._positions(vectors)
            for table in self._turned_tables():
                prepared[table] = unrotate(prepared[table], positions, self.rope)
        if self.mean is not None:
            prepared -= self.mean[:, None]
        if self.scale is not None:
            prepared *= self.scale[:, None, :, None]
        return prepared

    def undo(self, prepared: Tensor) -> Tensor:
        """What `apply` was given, to rounding: float32, a new tensor."""
        vectors = prepared.to(torch.float32, copy=True)
        if self.scale is not None:
            vectors /= self.scale[:, None, :, None]
        if self.mean is not None:
            vectors += self.mean[:, None]
        if self.rope is not None:
            positions = self._positions(vectors)
            for table in self._turned_tables():
                vectors[table] = rotate(vectors[table], positions, self.rope)
        return vectors

    def _positions(self, vectors: Tensor) -> Tensor:
        last = self.first_position + vectors.shape[1]
        return torch.arange(self.first_position, last, device=vectors.device)

    def _turned_tables(self) -> list[int]:
        return [table for table, turned in enumerate(self.turned) if turned]
