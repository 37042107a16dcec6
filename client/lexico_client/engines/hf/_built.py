"""What of a model's modules is not what its class builds of the config: an activation that was
replaced, an epsilon or a scaling that was rewritten. Neither tensors nor the config show it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lexico_client._config_meaning import is_dropout
from lexico_client.engines.hf._adapters import Modules
from lexico_client.engines.hf._plain_models import plain_name


def altered_modules(model: nn.Module, modules: Modules) -> list[list[Any]]:
    """Name, class and numbers of each module that is not as it was built, as plain JSON values.

    Nothing of modules that were not there, and of a model that cannot be built anew.

    Args:
        model: the network.
        modules: its modules by name.
    """
    made = _built(model)
    if made is None:
        return []
    expected = {name: said_by(module) for name, module in made.named_modules()}
    found = [(plain_name(name), said_by(module)) for name, module in modules]
    return [[name, *said] for name, said in found if said != expected.get(name, said)]


def said_by(module: nn.Module) -> list[Any]:
    """A module's class, and its numbers by name, without those of dropout. For every call: a
    getter of `nn.Module` would take longer than all of it."""
    kept = vars(module)
    numbers = [(key, value) for key, value in kept.items() if type(value) is float]
    if numbers:
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        numbers = [] if dropout else sorted(one for one in numbers if not is_dropout(one[0]))
    return [type(kept["_modules"].get("_orig_mod", module)).__name__, numbers]


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
