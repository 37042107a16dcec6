"""How an engine itself writes keys and values of a layer: what the layout is found out with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lexico_client.engines.vllm._layout import Write
from lexico_proto.errors import Unsupported


def writing(layers: Mapping[str, Any], name: str, tensor: Tensor) -> Write:
    """The kernel of a layer's attention.

    Args:
        layers: name → `AttentionLayerBase` of the engine.
        name: of the layer.
        tensor: that it keeps its cache in.

    Raises:
        Unsupported: an attention that does not say how it writes.
    """
    layer = layers.get(name)
    update = getattr(getattr(layer, "impl", None), "do_kv_cache_update", None)
    if update is None:
        raise Unsupported(
            f"{name}: its attention does not say how it writes its cache, so the layout cannot be "
            "found out"
        )

    def write(keys: Tensor, values: Tensor, slots: Tensor) -> None:
        update(layer, keys, values, tensor, slots)

    return write
