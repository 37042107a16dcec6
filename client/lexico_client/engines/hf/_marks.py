"""What a load writes on the cache that it makes, and on each of its layers: so a cache that someone
builds of these layers is known as well.

Tensors bear nothing: they are made anew whenever a cache grows, is cropped or copied.
"""

from __future__ import annotations

from typing import Any

from lexico_proto.errors import InvalidInput


def write_mark(cache: Any, name: str, mark: object) -> None:
    """Writes an attribute on a cache and its layers. Copies of either have it too."""
    for each in (cache, *_layers_of(cache)):
        setattr(each, name, mark)


def read_mark(cache: Any, name: str) -> Any:
    """What was written on a cache, or else on the layers in it; None for a cache that no load made.

    Raises:
        InvalidInput: its layers are of several loads.
    """
    own = getattr(cache, name, None)
    if own is not None:
        return own
    found = [mark for layer in _layers_of(cache) if (mark := getattr(layer, name, None))]
    if any(mark is not found[0] for mark in found):
        raise InvalidInput(
            "this cache was built of layers of several loads: give the model **hit.inputs of one"
        )
    return found[0] if found else None


def _layers_of(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None)
    return layers if isinstance(layers, list) else []
