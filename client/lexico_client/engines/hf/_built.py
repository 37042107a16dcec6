"""What of a model's modules is not what its class builds of the config: an activation that was
replaced, a flag, a number of experts or a scaling that was rewritten, a `forward` that was put over
that of the class. Neither tensors nor the config show it."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lexico_client._config_meaning import is_dropout, meaning
from lexico_client.engines.hf._adapters import OF_EVERY_MODULE, OTHER, Modules, foreign, plain_value
from lexico_client.engines.hf._functions import function_on, unsaid
from lexico_client.engines.hf._plain_models import base_model, plain_name

_SAYS_NOTHING: Final = frozenset(
    (
        "all_tied_weights_keys",
        "config",  # looked at by itself
        "generation_config",
        "gradient_checkpointing",
        "hf_device_map",
        "hf_quantizer",
        "inplace",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
        "is_parallelizable",
        "is_quantized",
        "loss_type",
        "model_parallel",
        "name_or_path",
        "pad_token_id",
        "padding_idx",  # `model.config.pad_token_id` is often set after loading
        "peft_config",  # adapters are said by their layers
        "quantization_method",
        "scale_grad_by_freq",
        "sparse",
        "vocab_size",
        "warnings_issued",
        "_is_hf_initialized",
    )
)
"""Attributes that keys and values do not depend on."""
_PASSED_OVER: Final = OF_EVERY_MODULE | _SAYS_NOTHING
_SIMPLE: Final = frozenset((bool, int, float, str))
_DROPOUT: Final = nn.modules.dropout._DropoutNd
_of_dropout = functools.cache(is_dropout)  # there are few names, and many modules


def altered_modules(model: nn.Module, modules: Modules) -> list[list[Any]]:
    """Of each module that is not as it was built its name, class, and what it keeps otherwise, as
    plain JSON values. Of a model that cannot be built anew: of each module.

    Args:
        model: the network.
        modules: its modules by name.
    """
    base = base_model(model)
    made = _built(base)
    within = next((f"{name}." for name, module in model.named_modules() if module is base), ".")
    parts = [] if made is None else made.named_modules(prefix=within[:-1])
    expected = {plain_name(name): module for name, module in parts}
    put_in = {id(module) for _, module in foreign(model, modules)}
    agreeing: dict[tuple[int, int], bool] = {}
    entries = []
    for long_name, module in modules:
        if "_orig_mod" in module._modules:
            continue  # of `torch.compile`: what is within has its name
        name = plain_name(long_name)
        entry = _difference(module, expected.get(name), full=id(module) not in put_in)
        entry += _other_config(module, expected.get(name), agreeing)
        if entry:
            entries.append([name, *entry])
    return entries


def state_of(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside tensors and the modules within: numbers, flags, words, and
    functions in place of methods, without what is of dropout and what is None. For every call: a
    getter of `nn.Module` would take longer than all of it."""
    kept = vars(module)
    own = kept.keys() - _PASSED_OVER
    if not own or isinstance(module, _DROPOUT):
        return {}
    if isinstance(module, PreTrainedModel):
        own = {key for key in own if key[0] != "_"}  # how to split, save and load it
    state: dict[str, Any] = {}
    for key in sorted(own):
        value = kept[key]
        if value is None or isinstance(value, PreTrainedConfig) or _of_dropout(key):
            continue
        if type(value) in _SIMPLE:
            state[key] = value
            continue
        plain = function_on(module, key, value) if callable(value) else plain_value(value)
        if plain is not None and plain is not OTHER:
            state[key] = plain
    return state


def _difference(module: nn.Module, made: nn.Module | None, *, full: bool) -> list[Any]:
    """Class and state of a module; nothing where both are those of the one that was built.

    Args:
        full: whether plain attributes count; else functions on it alone: `added_state` has others.
    """
    state = state_of(module)
    if not full:
        state = {key: value for key, value in state.items() if _over_a_method(module, key)}
    if made is None and isinstance(module, _DROPOUT | nn.Identity):
        return []
    if made is None:
        return [_kind(module), state] if full or state else []
    found = _changes(module, state, state_of(made)) if full else state
    if type(module) is type(made):
        return ["", found] if found else []
    alike = _kind(module) == _kind(made)  # two classes of one name
    return [unsaid(type(module)) if alike else _kind(module), found]


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _over_a_method(module: nn.Module, key: str) -> bool:
    own = inspect.getattr_static(type(module), key, None)
    return callable(own) and callable(vars(module)[key])


def _changes(
    module: nn.Module, state: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in sorted({*state, *expected}):
        if key not in expected and key.startswith("_"):
            continue  # notes of libraries
        if key not in state:
            value = vars(module).get(key)
            changes[key] = None if value is None else type(value).__name__
        elif key not in expected or state[key] != expected[key]:
            changes[key] = state[key]
    return changes


def _other_config(
    module: nn.Module, made: nn.Module | None, agreeing: dict[tuple[int, int], bool]
) -> list[Any]:
    """The config of a module where it is not that of the one that was built."""
    ours, theirs = vars(module).get("config"), made and vars(made).get("config")
    if not isinstance(ours, PreTrainedConfig) or not isinstance(theirs, PreTrainedConfig):
        return []
    pair = id(ours), id(theirs)
    if pair not in agreeing:
        agreeing[pair] = _meaning(ours) == _meaning(theirs)
    return [] if agreeing[pair] else [_meaning(ours)]


def _meaning(config: PreTrainedConfig) -> dict[str, Any]:
    return meaning(json.loads(config.to_json_string(use_diff=True)))


def _built(model: nn.Module) -> nn.Module | None:
    """A model of the same class and config, without memory for tensors."""
    if not isinstance(model, PreTrainedModel):
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            made: nn.Module = type(model)(copy.deepcopy(model.config))
        except Exception:  # noqa: BLE001 - whatever a constructor raises: it takes others
            return None
    return made
