"""Sparse codes of tokens, as `rows.arrange` puts them back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The sparse code of some tokens: s atoms each, over the first components."""

    indices: Tensor
    """`[s, tokens]` int64, under N."""
    atoms: Tensor
    """`[m, N]` float32, an atom a column."""
    coefficient_step: float
    """What a coefficient of 1 stands for, in the units of components."""
