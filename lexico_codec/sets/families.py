"""Families of tensors in a dictionary set, each with a prefix of its own.

A new family is a parser in a module of its own and one line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from lexico_codec.sets.tensors import SetShape, View, read_tensor, refuse
from lexico_codec.sets.transform_tensors import parse_transform

MAX_ERRORS: Final = 256
"""Numbers of atoms that `packed.errors` tells of, 0 included."""


def parse_families(views: dict[str, View], shape: SetShape) -> dict[str, Any]:
    """What each family's parser makes of its tensors: family → result, for those that are there.

    Raises:
        InvalidInput: a tensor of no family, or one that its parser refuses.
    """
    found: dict[str, dict[str, View]] = {}
    for name, view in views.items():
        family, _, rest = name.partition(".")
        if family not in FAMILIES:
            refuse(f"a tensor that is none of ours: {name[:80]!r}")
        found.setdefault(family, {})[rest] = view
    return {family: FAMILIES[family](members, shape) for family, members in found.items()}


def _parse_packed(views: dict[str, View], shape: SetShape) -> Tensor:
    """`packed.errors`: `[layers, 2, S + 1]` float32, what is left of each table after s atoms."""
    if views.keys() != {"errors"}:
        refuse("of the family packed there is packed.errors alone")
    sizes = views["errors"]["shape"]
    if len(sizes) != 3 or not 2 <= sizes[2] <= MAX_ERRORS:
        refuse(f"packed.errors must be [layers, 2, S + 1], S in 1..{MAX_ERRORS - 1}")
    errors = read_tensor("packed.errors", views["errors"], "F32", (shape.layers, 2, sizes[2]))
    if bool((errors < 0).any()) or bool((errors.diff(dim=2) > 0).any()):
        refuse("packed.errors must be positive and must not grow with the atoms")
    return errors


FAMILIES: Final[dict[str, Callable[[dict[str, View], SetShape], Any]]] = {
    "packed": _parse_packed,
    "residual": parse_transform,
}
"""Prefix of names, up to the first dot → parser of the tensors of that prefix, by the rest of the
name."""
