"""The tensors of an `AtomSet`, read from an artefact that need not be trusted.

    layers.00.key.atoms   F16 or I8 [N, head_dim]       rows of unit norm, or divided by their norm
    layers.00.key.mean    F16 [kv_heads, head_dim]      for every layer, or for none
    packed.errors         F32 [layers, 2, S + 1]        left of keys and values after s = 0..S atoms

and so on, for the keys and the values of every layer. N may differ from tensor to tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import UNIT_NORM_SLACK
from lexico_codec.limits import MAX_SET_ATOMS, MAX_SET_ERRORS, MAX_SET_HEAD_DIM
from lexico_codec.sets.tensors import View, read_tensor, refuse

Part = Literal["key", "value"]
PARTS: Final[tuple[Part, ...]] = ("key", "value")

ERRORS: Final = "packed.errors"


@dataclass(frozen=True, slots=True, eq=False)
class LayerTensors:
    """What the layers have, keys before values in each."""

    atoms: list[Tensor]
    """2 layers of `[N, head_dim]` float32, rows of unit norm."""
    means: Tensor | None
    """`[2 layers, kv_heads, head_dim]` float32, or None."""


def parse_layers(views: dict[str, View], layers: int, kv_heads: int) -> LayerTensors:
    """Atoms of every layer, and means of every layer or of none.

    Raises:
        InvalidInput: other tensors than these, or one that is not as it must be.
    """
    places = [(layer, part) for layer in range(layers) for part in PARTS]
    named = {tensor_name(layer, part, "atoms") for layer, part in places}
    of_means = {tensor_name(layer, part, "mean") for layer, part in places}
    if views.keys() not in (named, named | of_means):
        refuse(f"tensors are not the key and value atoms of {layers} layers")
    names = [tensor_name(layer, part, "atoms") for layer, part in places]
    atoms = [_parse_atoms(name, views[name]) for name in names]
    if len({table.shape[1] for table in atoms}) != 1:
        refuse("head_dim differs between tensors")
    if len(views) == len(names):
        return LayerTensors(atoms, None)
    names = [tensor_name(layer, part, "mean") for layer, part in places]
    shape = (kv_heads, atoms[0].shape[1])
    means = [read_tensor(name, views[name], "F16", shape) for name in names]
    return LayerTensors(atoms, torch.stack(means).float())


def parse_errors(views: dict[str, View], layers: int) -> Tensor | None:
    """`packed.errors`: `[layers, 2, S + 1]` float32, or None where there are no tensors.

    Raises:
        InvalidInput: another tensor, or errors that are negative or grow with the atoms.
    """
    for name in views.keys() - {ERRORS}:
        refuse(f"a tensor that is none of ours: {name[:80]!r}")
    if not views:
        return None
    sizes = views[ERRORS]["shape"]
    if len(sizes) != 3 or not 2 <= sizes[2] <= MAX_SET_ERRORS:
        refuse(f"packed.errors must be [layers, 2, S + 1], S in 1..{MAX_SET_ERRORS - 1}")
    errors = read_tensor(ERRORS, views[ERRORS], "F32", (layers, 2, sizes[2]))
    if bool((errors < 0).any()) or bool((errors.diff(dim=2) > 0).any()):
        refuse("packed.errors must be positive and must not grow with the atoms")
    return errors


def tensor_name(layer: int, part: str, what: str) -> str:
    """Name of a layer's tensor in the artefact."""
    return f"layers.{layer:02d}.{part}.{what}"


def unit_rows(stored: Tensor) -> Tensor:
    """Atoms `[N, m]` as they are used: float32; those stored as int8 are brought to unit norm.

    The sum of squares is an integer, the root and the quotient are rounded once each: every machine
    gets the same atoms.
    """
    atoms = stored.float()
    if stored.dtype != torch.int8:
        return atoms
    return atoms / stored.int().square().sum(1, keepdim=True).float().sqrt()


def _parse_atoms(name: str, view: View) -> Tensor:
    shape = view["shape"]
    if view["dtype"] not in ("F16", "I8") or len(shape) != 2:
        refuse(f"{name} must be a matrix of F16 or I8")
    if not 1 <= shape[0] <= MAX_SET_ATOMS or not 1 <= shape[1] <= MAX_SET_HEAD_DIM:
        refuse(f"{name} is {shape}; at most [{MAX_SET_ATOMS}, {MAX_SET_HEAD_DIM}]")
    stored = read_tensor(name, view, view["dtype"], tuple(shape))
    atoms = stored.float()
    squares = atoms.square().sum(1)
    if stored.dtype == torch.int8:
        if not bool((squares > 0).all()):
            refuse(f"{name} has an atom without direction")
        return unit_rows(stored)
    if not bool(((squares - 1).abs() <= UNIT_NORM_SLACK).all()):
        refuse(f"{name} has an atom that is not of unit norm")
    return atoms
