"""Attention functions of a user's own: transformers calls whatever is registered under the name
that a model's config has."""

from __future__ import annotations

from typing import Any, Final

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lexico_client.engines.hf._adapters import Modules
from lexico_client.engines.hf._functions import said_of

_REGISTRIES: Final[tuple[Any, ...]] = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
_KNOWN: Final = ("transformers", "lexico_client")
"""Packages whose functions all compute the same attention."""


def own_attention(modules: Modules) -> list[str]:
    """What is said of attention functions, and of those that make their masks, that are neither
    transformers' nor ours; empty as a rule.

    Args:
        modules: of a model.
    """
    configs = {id(config): config for _, each in modules if (config := vars(each).get("config"))}
    names = {getattr(config, "_attn_implementation", None) for config in configs.values()}
    said = []
    for name in sorted(name for name in names if isinstance(name, str)):
        for registry in _REGISTRIES:
            function = registry.get(name)
            if function is not None and _package_of(function) not in _KNOWN:
                said.append(said_of(function))
    return said


def _package_of(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]
