"""How a Hugging Face model is given a cache: the one place that knows the keyword."""

from __future__ import annotations

import inspect
from typing import Any, Final

from lexico_proto.errors import Unsupported

_KEYWORDS: Final = ("cache", "past_key_values")
"""What transformers calls a cache: from 5.24 on, and before."""


def cache_keyword(module: Any) -> str:
    """The keyword under which a model, or one of its layers, takes a cache.

    It is read from the signature of `forward`, and not from a version: models with code of their
    own have names of their own time. Where `forward` does not say (a wrapper that hands everything
    on), it is what `generate` takes.
    """
    from transformers import GenerationMixin

    for function in (type(module).forward, GenerationMixin.prepare_inputs_for_generation):
        parameters = inspect.signature(function).parameters
        for keyword in _KEYWORDS:
            if keyword in parameters:
                return keyword
    raise Unsupported(f"{type(module).__name__} takes no cache by a name that is known here")


def cache_inputs(module: Any, cache: Any) -> dict[str, Any]:
    """A cache as keyword arguments: `model(input_ids, **cache_inputs(model, cache))`."""
    return {cache_keyword(module): cache}
