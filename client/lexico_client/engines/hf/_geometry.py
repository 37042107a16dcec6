"""Geometry of the cache that a model in memory fills."""

from __future__ import annotations

from transformers import PreTrainedModel

from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_proto.errors import Unsupported


def own_geometry(model: PreTrainedModel) -> Geometry:
    """Of a cache in the model's own element type, as transformers keeps it.

    Raises:
        Unsupported: as `geometry_of`; a model in 8 bits, whose cache has another type.
    """
    if model.dtype.itemsize < 2:
        raise Unsupported(f"{type(model).__name__} in {model.dtype}: its cache is of another type")
    return geometry_of(model.config, model.dtype)
