"""Which atoms a context adds to its dictionaries: those that its vectors lack most.

The paper (arXiv 2412.08890) makes an atom of every vector whose error is over delta after s atoms.
Here a table may add only so many, so the worst vectors come first, and vectors that an atom serves
are not made atoms of again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lexico_codec.codecs.adaptive.added_atoms import directions, joined, to_levels
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_proto.errors import InternalError

_FLOOR: Final = 2.0**-5
"""Relative error below which a vector is served: FP8 rounds its coefficient no finer."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Codes of a group's vectors and what they leave."""

    codes: Codes
    """Quantised, of `tables * rows` vectors."""
    excess: Tensor
    """`[tables, rows]` energy of what decoded vectors lack, over what the tolerance allows, in the
    table's unit."""


class Adaptation:
    """Finds the atoms that one group adds, and its codes with them.

    A table's unit is a power of two over its largest component, so that no energy overflows.
    """

    def __init__(
        self,
        vectors: Tensor,
        atoms: Atoms,
        sparsity: int,
        tolerance: float | None,
        *,
        most: int,
        bits: int,
    ) -> None:
        """Takes in the group.

        Args:
            vectors: `[tables, tokens, heads, m]`, finite.
            atoms: a dictionary for each table, on the same device.
            sparsity, tolerance: as `encode` takes them.
            most: atoms that a table may add.
            bits: of a level of an added atom.
        """
        self._vectors, self._atoms = vectors, atoms
        self._sparsity, self._tolerance = sparsity, tolerance
        self._most, self._bits = min(most, vectors.shape[1] * vectors.shape[2]), bits
        rows = vectors.flatten(1, 2).float()
        largest = rows.abs().flatten(1).amax(1) if rows.numel() else rows.new_zeros(len(rows))
        self._exponents = -torch.frexp(largest).exponent.clamp(-126, 126)[:, None, None]
        self._rows = torch.ldexp(rows, self._exponents)  # [tables, rows, m]
        self._energy = self._rows.square().sum(-1)
        self._allowed = (tolerance or 0.0) ** 2 * self._energy
        self._sizes = torch.tensor(atoms.sizes, device=vectors.device)[:, None]

    def find(self) -> tuple[Codes, list[Tensor]]:
        """Codes of all vectors and the levels `[n, m]` int8 that each table adds.

        A vector keeps its code without added atoms unless one with them is better. Only atoms that
        some vector uses are handed over.
        """
        plain = self._code(self._atoms)
        levels, taken = self._choose(plain)
        if not bool(taken.any()):
            return plain.codes, list(levels[:, :0])
        coded = self._code(self._joined(levels, taken))
        better = (coded.excess < plain.excess) | (
            (coded.excess == plain.excess) & self._fewer(coded.codes, plain.codes)
        )
        return self._trimmed(_either(better.flatten(), coded.codes, plain.codes), levels, taken)

    def _code(self, atoms: Atoms) -> Coded:
        codes = encode(self._vectors, atoms, self._sparsity, self._tolerance, quantised=True)
        decoded = reconstruct(codes, atoms).view(self._rows.shape)
        residual = self._rows - torch.ldexp(decoded, self._exponents)
        excess = (residual.square().sum(-1) - self._allowed).clamp_min(0)
        return Coded(codes, excess)

    def _choose(self, plain: Coded) -> tuple[Tensor, Tensor]:
        """Levels `[tables, most, m]` int8, and which of them are atoms, `[tables, most]` bool.

        Each step makes an atom of every table's worst vector. How well it serves the others is
        what it leaves of them by itself.
        """
        tables, _, m = self._rows.shape
        table = torch.arange(tables, device=self._rows.device)
        served = self._energy * max(_FLOOR, self._tolerance or 0.0) ** 2
        ended = plain.codes.counts.view(served.shape) < self._sparsity
        left = plain.excess.masked_fill(ended | (plain.excess + self._allowed <= served), 0)
        levels = torch.zeros(tables, self._most, m, dtype=torch.int8, device=left.device)
        taken = torch.zeros(tables, self._most, dtype=torch.bool, device=left.device)
        for k in range(self._most):
            worst = left.argmax(1)
            levels[:, k] = to_levels(self._rows[table, worst], self._bits)
            taken[:, k] = (left[table, worst] > 0) & levels[:, k].any(1)
            along = torch.bmm(self._rows, directions(levels[:, k])[..., None])[..., 0]
            alone = self._energy - along.square()
            left = torch.minimum(left, alone.masked_fill(alone <= served, 0))
            left[table, worst] = 0
        return levels, taken

    def _joined(self, levels: Tensor, taken: Tensor) -> Atoms:
        added = [rows[here] for rows, here in zip(directions(levels), taken, strict=True)]
        return joined(self._atoms, added)

    def _slots(self, indices: Tensor, taken: Tensor) -> Tensor:
        """`[tables, rows * s]` rows of `levels` that indices mean; their number for other atoms."""
        which = indices.view(len(taken), -1).long() - self._sizes
        slots = (~taken).int().argsort(dim=1, stable=True)  # those taken in front, in their order
        found = slots.gather(1, which.clamp_min(0))  # no index is over those taken
        return torch.where(which >= 0, found, taken.shape[1])

    def _fewer(self, one: Codes, other: Codes) -> Tensor:
        return (one.counts < other.counts).view(self._energy.shape)

    def _trimmed(self, codes: Codes, levels: Tensor, taken: Tensor) -> tuple[Codes, list[Tensor]]:
        """Codes over the added atoms that they use, and the levels of those."""
        slots = self._slots(codes.indices, taken)
        used = torch.zeros_like(torch.nn.functional.pad(taken, (0, 1)))
        used.scatter_(1, slots, True)
        used[:, -1] = False  # the set's atoms
        moved = (used.cumsum(1) - 1 + self._sizes).gather(1, slots)
        known = codes.indices.view(len(taken), -1)
        indices = torch.where(slots < taken.shape[1], moved.to(torch.int16), known)
        found = [rows[here] for rows, here in zip(levels, used[:, :-1], strict=True)]
        return replace(codes, indices=indices.view(codes.indices.shape)), found


def _either(first: Tensor, one: Codes, other: Codes) -> Codes:
    """Row by row the one quantised code, or the other."""

    def rows(of: Tensor | None, instead: Tensor | None) -> Tensor:
        if of is None or instead is None:  # cannot be: the type is shared with plain codes
            raise InternalError("quantised codes without exponents")
        return torch.where(first.view(-1, *[1] * (of.ndim - 1)), of, instead)

    return Codes(
        rows(one.indices, other.indices),
        rows(one.coefficients, other.coefficients),
        rows(one.counts, other.counts),
        rows(one.exponents, other.exponents),
    )
