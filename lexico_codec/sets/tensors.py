"""The tensors of a dictionary set, read from an artefact that need not be trusted.

Atoms and means belong to layers; everything else comes in families (`set_families`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import UNIT_NORM_SLACK
from lexico_proto.errors import InvalidInput

Part = Literal["key", "value"]
PARTS: Final[tuple[Part, ...]] = ("key", "value")

MAX_ATOMS: Final = 16384
MAX_HEAD_DIM: Final = 512
View = dict[str, Any]
"""A tensor of the artefact: its dtype, shape and bytes, as safetensors names them."""

_DTYPES: Final = {
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
}


@dataclass(frozen=True, slots=True)
class SetShape:
    """What the parsers of families may rely on."""

    layers: int
    kv_heads: int
    head_dim: int


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


def read_tensor(name: str, view: View, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of exactly that type and shape, all its numbers finite: a copy of its own.

    Raises:
        InvalidInput: naming the tensor.
    """
    if view["dtype"] != dtype or tuple(view["shape"]) != shape:
        refuse(f"{name} must be {dtype} {list(shape)}")
    data = bytearray(view["data"])
    if 0 in shape and not data:
        return torch.empty(shape, dtype=_DTYPES[dtype])
    if not data or len(data) != math.prod(shape) * _DTYPES[dtype].itemsize:
        refuse(f"{name} must be {dtype} {list(shape)}")
    tensor = torch.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)
    if not bool(tensor.isfinite().all()):
        refuse(f"{name} has a number that is not finite")
    return tensor


def tensor_name(layer: int, part: str, what: str) -> str:
    """Name of a layer's tensor in the artefact."""
    return f"layers.{layer:02d}.{part}.{what}"


def refuse(why: str) -> NoReturn:
    """Raises the error of every artefact that is not as it must be."""
    raise InvalidInput(f"dictionary set: {why}")


def _parse_atoms(name: str, view: View) -> Tensor:
    shape = view["shape"]
    if view["dtype"] not in ("F16", "I8") or len(shape) != 2:
        refuse(f"{name} must be a matrix of F16 or I8")
    if not 1 <= shape[0] <= MAX_ATOMS or not 1 <= shape[1] <= MAX_HEAD_DIM:
        refuse(f"{name} is {shape}; at most [{MAX_ATOMS}, {MAX_HEAD_DIM}]")
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


def unit_rows(stored: Tensor) -> Tensor:
    """Atoms `[N, m]` as they are used: float32; those stored as int8 are brought to unit norm.

    The sum of squares is an integer, the root and the quotient are rounded once each: every machine
    gets the same atoms.
    """
    atoms = stored.float()
    if stored.dtype != torch.int8:
        return atoms
    return atoms / stored.int().square().sum(1, keepdim=True).float().sqrt()
