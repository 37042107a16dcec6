"""How an engine itself writes keys and values of a layer: what the layout is found out with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lexico_client.engines.vllm._layout import Write
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import Unsupported


def writing(layers: Mapping[str, Any], name: str, tensor: Tensor, dtype: torch.dtype) -> Write:
    """The kernel of a layer's attention.

    Args:
        layers: name → `AttentionLayerBase` of the engine.
        name: of the layer.
        tensor: that it keeps its cache in.
        dtype: that the model computes keys and values in: the kernel rounds them to 8 bits, where
            the cache has those.

    Raises:
        Unsupported: an attention that does not say how it writes, or one that divides by scales
            before it rounds. Those of a checkpoint are read by each engine in its own way, and sets
            were not made for such vectors.
    """
    layer = layers.get(name)
    update = getattr(getattr(layer, "impl", None), "do_kv_cache_update", None)
    if update is None:
        raise Unsupported(
            f"{name}: its attention does not say how it writes its cache, so the layout cannot be "
            "found out"
        )
    scales = [float(getattr(layer, f"_{part}_scale", torch.ones(1)).max()) for part in "kv"]
    least = [float(getattr(layer, f"_{part}_scale", torch.ones(1)).min()) for part in "kv"]
    if tensor.itemsize == 1 and scales + least != [1.0] * 4:
        raise Unsupported(
            f"{name}: keys and values are divided by {scales[0]:g} and {scales[1]:g} before they "
            "are rounded to 8 bits: only caches of scale 1 are covered; take kv_cache_dtype "
            f"{str(dtype).removeprefix('torch.')}, or leave the connector out"
        )

    def write(keys: Tensor, values: Tensor, slots: Tensor) -> None:
        if keys.dtype in FLOAT8:
            keys, values = keys.to(dtype), values.to(dtype)
        update(layer, keys, values, tensor, slots)

    return write
