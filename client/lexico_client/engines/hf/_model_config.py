"""What of a model's config keys and values depend on, as far as the model's code tells."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from typing import Any, Final

from torch import nn

from lexico_client._config_meaning import is_dropout, meaning
from lexico_client.engines.hf._adapters import Modules

_READERS: Final = tuple(
    f"transformers.{name}"
    for name in (
        "activations",
        "cache_utils",
        "configuration_utils",
        "generation.utils",
        "integrations.eager_paged",
        "integrations.flash_attention",
        "integrations.flex_attention",
        "integrations.sdpa_attention",
        "masking_utils",
        "modeling_flash_attention_utils",
        "modeling_layers",
        "modeling_rope_utils",
        "modeling_utils",
    )
)
"""Modules that read configs of any model."""


def config_meaning(modules: Modules, config: Any) -> dict[str, Any]:
    """Entries of a config that differ from its class's defaults and matter to keys and values.

    An entry that stands in no source that could read it does not matter.

    Args:
        modules: those of the model that runs under it.
        config: a `transformers.PreTrainedConfig`, or None for a model without.
    """
    if config is None:
        return {}
    entries = meaning(json.loads(config.to_json_string(use_diff=True)))
    read = _words_of(modules, config)
    return {name: entries[name] for name in entries if read is None or name in read}


def drops(model: nn.Module, config: Any) -> bool:
    """Whether the model leaves out what dropout draws: it is in training, and has dropout."""
    modules = list(model.modules())
    if not any(module.training for module in modules):
        return False
    entries = vars(config).items() if config is not None else ()
    probabilities = [value for name, value in entries if is_dropout(name)]
    kind = nn.modules.dropout._DropoutNd
    probabilities += [module.p for module in modules if isinstance(module, kind)]
    return any(isinstance(value, float | int) and value > 0 for value in probabilities)


def _words_of(modules: Modules, config: Any) -> set[str] | None:
    """Every word of the sources that read the config; None where one is not to be had."""
    sources = {type(module).__module__ for _, module in modules}
    sources |= {each.__module__ for each in type(config).__mro__}
    sources = {name for name in sources if name.partition(".")[0] not in ("torch", "builtins")}
    sources |= {name for name in _READERS if name in sys.modules}
    read: set[str] = set()
    for source in sources:
        words = _words(source)
        if words is None:
            return None
        read |= words
    return read


@functools.lru_cache(maxsize=256)
def _words(module: str) -> frozenset[str] | None:
    try:
        return frozenset(re.findall(r"\w+", inspect.getsource(sys.modules[module])))
    except (OSError, TypeError, KeyError):
        return None
