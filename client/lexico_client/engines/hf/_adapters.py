"""Adapters, and whatever else was put into a model: what its modules keep beside tensors.

Which adapters are active, merged or disabled, and how they are scaled, are plain attributes of
their modules. So every plain attribute of a module that is not the model's own is part of the
model's identity; no library of adapters is known by name.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Number
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lexico_client.engines.hf._functions import array_in_words
from lexico_client.engines.hf._plain_models import base_model, plain_name

Modules: TypeAlias = Sequence[tuple[str, nn.Module]]
"""Modules by name."""

OF_EVERY_MODULE: Final = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
_ACTIVE: Final = ("active_adapter", "_active_adapter")
_SAYS_NOTHING: Final = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    )
)
"""Entries of adapters' configs that keys and values do not depend on."""


def added_state(model: nn.Module, modules: Modules) -> list[Any]:
    """What modules that are not the model's own keep beside tensors, as plain JSON values.

    A module is the model's own where its class comes from PyTorch, from transformers, or from where
    the model's class comes from. Empty for a model into which nothing was put.

    Args:
        model: the model, in its wrappers.
        modules: all of its modules, from below the wrapper of `torch.compile`.
    """
    return [
        [plain_name(name), type(module).__name__, dict(_plain_items(_attributes(module)))]
        for name, module in foreign(model, modules)
    ]


def foreign(model: nn.Module, modules: Modules) -> Modules:
    """Those of the modules that did not come with the model, but were put into it."""
    own = ("torch", "transformers", _package(base_model(model)))
    return [(name, module) for name, module in modules if _package(module) not in own]


def passive_layer(module: nn.Module) -> str | None:
    """Name within an adapter layer of the module that it stands before, if the layer hands
    everything on to it; duck-typed after PEFT's layers.

    A layer does so once its adapters are disabled, unless one of them is merged.
    """
    kept = vars(module)
    if kept.get("_disable_adapters") is not True or kept.get("merged_adapters"):
        return None
    if _package(module) != "peft" or "forward" in kept:
        return None
    inner = ("base_layer", "original_module")
    return next((name for name in inner if name in module._modules), None)


def passive_base(model: nn.Module) -> nn.Module:
    """The model that PEFT wraps where none of its adapters does anything, else the model itself."""
    if _package(model) != "peft" or not callable(getattr(model, "get_base_model", None)):
        return model
    base, passive = base_model(model), ""
    for name, module in base.named_modules():  # a layer comes before all that is within it
        if passive and name.startswith(passive):
            continue
        if passive_layer(module) is not None:
            passive = f"{name}."
        elif _package(module) == "peft":
            return model
    return base


def active_adapters(model: nn.Module) -> list[str]:
    """Names of adapters that are active or merged somewhere; duck-typed after PEFT's layers."""
    names: set[str] = set()
    for module in model.modules():
        kept = vars(module)
        if not kept.get("_disable_adapters", False):
            names.update(_names(kept.get("_active_adapter")))
        names.update(_names(kept.get("merged_adapters")))
    return sorted(names)


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _attributes(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    return ((name, value) for name, value in vars(module).items() if name not in OF_EVERY_MODULE)


def _plain_items(items: Iterator[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(items, key=lambda item: str(item[0])):
        plain = plain_value(value)
        if plain is not OTHER and name not in _SAYS_NOTHING:
            # PEFT has one name there after `set_adapter`, and a list of one before.
            yield str(name), _names(plain) if name in _ACTIVE else plain


OTHER: Final = object()
"""In place of what JSON cannot say."""
_SIMPLE: Final = frozenset((type(None), bool, int, float, str))


def plain_value(value: Any) -> Any:
    """A value as JSON can say it; `OTHER` for tensors, large arrays, modules, functions and other
    objects."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, Tensor | nn.Module):
        return OTHER
    if isinstance(value, Enum | torch.dtype | str | Number | np.generic):
        return str(value)
    if isinstance(value, np.ndarray):
        return array_in_words(value) or OTHER
    if isinstance(value, SimpleNamespace | Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return dict(_plain_items(iter(value.items())))
    if is_dataclass(value) and not isinstance(value, type):
        return dict(_plain_items((f.name, getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, list | tuple | deque):
        return [plain for one in value if (plain := plain_value(one)) is not OTHER]
    if isinstance(value, set | frozenset):
        said = (plain_value(one) for one in value)
        return sorted(json.dumps(plain) for plain in said if plain is not OTHER)
    return OTHER
