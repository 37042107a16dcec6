"""Refusal of models that take more than token ids: equal ids would not mean equal keys and values.

What a model takes is read from the signature of its `forward` and from the models within it, not
from its name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from transformers import PreTrainedModel

from lexico_proto.errors import Unsupported

_OF_TEXT: Final = frozenset(
    (
        "self",
        "input_ids",
        "inputs_embeds",  # every model has it; `offload` says whose duty it is
        "attention_mask",
        "position_ids",
        "cache_position",
        "token_type_ids",
        "head_mask",
        "labels",
        "cache",
        "past_key_values",
        "logits_to_keep",
    )
)
"""Tensors that a `forward` takes of text alone."""

_CROSS_ATTENTION: Final = frozenset(("encoder_hidden_states", "encoder_attention_mask"))
"""In the signatures of decoders that have no cross-attention unless their config says so."""

_OF_ENCODERS: Final = frozenset(
    (
        "decoder_input_ids",
        "decoder_inputs_embeds",
        "encoder_hidden_states",
        "encoder_outputs",
    )
)
"""Inputs of models whose cache holds another model's output too."""

_NO_TENSOR: Final = frozenset(("bool", "int", "float", "str", "None", "Optional", "Union"))
"""Words of the annotations of settings, such as `output_attentions`."""


def plain_model(model: nn.Module) -> nn.Module:
    """The model within `torch.compile` or a parallel wrapper of PyTorch, or the model itself."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A module's or tensor's name, where `torch.compile` wraps a part of the model."""
    return f"{name}.".replace("_orig_mod.", "")[:-1]


def base_model(model: nn.Module) -> nn.Module:
    """The model below the wrappers of `torch.compile` and PEFT."""
    model = plain_model(model)
    below = getattr(model, "get_base_model", None)
    return plain_model(below()) if callable(below) else model


def refuse_other_inputs(model: nn.Module, *, digests: bool = False) -> None:
    """Raises on a model to which something else than token ids may be given.

    Args:
        model: the model.
        digests: the caller gives digests of what else the model is given.

    Raises:
        Unsupported: `forward` takes images, sound or another model's output; a model within takes
            them; or soft prompts stand before the tokens. With digests: it has an encoder whose
            output its cache would hold too, or such soft prompts.
    """
    base = base_model(model)
    others = other_inputs(base)
    if digests and _OF_ENCODERS & set(others):
        raise Unsupported(f"{type(base).__name__} has an encoder: its cache is not covered")
    if others and not digests:
        raise Unsupported(
            f"{type(base).__name__} takes {', '.join(others)} beside token ids, which page keys "
            f"do not cover{_way_out(base)}"
        )
    configs = getattr(plain_model(model), "peft_config", None)
    for name, config in configs.items() if isinstance(configs, Mapping) else ():
        if getattr(config, "is_prompt_learning", False):
            raise Unsupported(
                f"adapter {name!r} puts a soft prompt before the tokens, which page keys do not "
                "cover: adapters that change weights, as LoRA does, are covered"
            )


def other_inputs(model: nn.Module) -> list[str]:
    """Names of inputs beside those of text."""
    config = getattr(model, "config", None)
    known = _OF_TEXT
    if not getattr(config, "add_cross_attention", True):
        known |= _CROSS_ATTENTION
    others = [
        parameter.name
        for parameter in inspect.signature(type(model).forward).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in known
        and not _is_setting(parameter)
    ]
    within = {
        module.main_input_name for module in model.modules() if isinstance(module, PreTrainedModel)
    }
    return others or sorted(within - {"input_ids"})


def _is_setting(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return False
    said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return set(re.findall(r"\w+", said)) - {"typing"} <= _NO_TENSOR


def _way_out(model: Any) -> str:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if decoder is model or not isinstance(decoder, PreTrainedModel) or other_inputs(decoder):
        return ""
    return (
        ": for prompts of text alone, give its text decoder, "
        "HuggingFaceCache(client, model.get_decoder()), else HuggingFaceCache(client, model, "
        "digests=True) and inputs= with each call"
    )
