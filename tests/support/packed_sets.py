"""Small random sets for codec lexico-packed: int8 atoms, means, and errors where they are asked
for."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lexico_codec.sets.dictionary import AtomSet
from tests.support.dictionaries import set_info, unit_rows

HEADS = 8
"""Of every set: at least as many as any group of the tests has."""


def as_int8(rows: Tensor) -> Tensor:
    """Unit rows as an artefact of format 2 may hold them."""
    return (rows * (127 / rows.abs().amax(1, keepdim=True))).round().to(torch.int8)


@functools.cache
def packed_set(
    layers: int,
    head_dim: int,
    atoms: int = 96,
    seed: int = 0,
    mean: float = 0.5,
    falls: tuple[float, ...] | None = None,
    heads: int = HEADS,
) -> AtomSet:
    """Key and value atoms of every layer; value dictionaries have one atom less, which is legal.

    Args:
        mean: size of the means; 0 for none to speak of.
        falls: for each table how fast its error falls with the atoms; None for a set without.
    """
    pairs = [
        (
            as_int8(unit_rows(atoms, head_dim, seed + 2 * layer)),
            as_int8(unit_rows(atoms - 1, head_dim, seed + 2 * layer + 1)),
        )
        for layer in range(layers)
    ]
    means = [
        (
            mean * unit_rows(heads, head_dim, 900 + layer) * head_dim**0.5,
            mean * unit_rows(heads, head_dim, 950 + layer) * head_dim**0.5,
        )
        for layer in range(layers)
    ]
    errors = None
    if falls is not None:
        steps = torch.arange(65, dtype=torch.float32)
        curves = torch.stack([(-steps * fall).exp() for fall in falls])
        errors = curves.view(layers, 2, 65)
    return AtomSet.build(pairs, set_info(heads), means, errors)
