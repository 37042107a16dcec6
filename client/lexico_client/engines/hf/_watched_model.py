"""What goes into a model beside a reloaded cache, looked at before it is computed.

transformers takes from `input_ids` what follows the cache, whatever the cache holds: a hit that is
given with another prompt, or a second time, makes other answers, and nothing is said. So a model
whose caches are loaded has its `generate` and its forward passes looked at. Caches that were not
loaded are none of our business, and pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from lexico_client.engines.hf._beside_ids import (
    Flag,
    cast_to,
    follow,
    others,
    plain,
    sees_all,
)
from lexico_client.engines.hf._coded_cache import CodedCache
from lexico_client.engines.hf._fed_tokens import grow_fed
from lexico_client.engines.hf._held_tokens import UNKNOWN, HeldTokens, tokens_of
from lexico_client.engines.hf._identity import check_model, is_for, quick_look
from lexico_client.engines.hf._plain_models import base_model
from lexico_proto.errors import InvalidInput, ShapeMismatch, Unsupported

_KEYWORDS: Final = ("cache", "past_key_values")
_OWN_CACHES: Final = "leave it out, or leave **hit.inputs out"
_REFUSED: Final = {
    "cache_implementation": f"makes a cache of its own: {_OWN_CACHES}",
    "custom_generate": f"does what it likes with a cache: {_OWN_CACHES}",
    "penalty_alpha": f"searches contrastively, with code from elsewhere: {_OWN_CACHES}",
    "use_mtp": f"drafts from hidden states of the whole prompt: {_OWN_CACHES}",
    "speculation_type": f"drafts from hidden states of the whole prompt: {_OWN_CACHES}",
}
"""Arguments of `generate`, and why they do not go together with a reloaded cache."""
_LOOKED_THROUGH: Final = 16
"""Tokens of a pass, from which on the model's identity is asked for: milliseconds."""
_ASSISTANTS: Final = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
_DEFAULTS: Final = (None, False, "hybrid")
"""Values that change nothing: the last is of configs that earlier transformers wrote."""


def watch(model: nn.Module) -> None:
    """Has every later use of the model looked at. Once is enough; wrappers may follow or go.

    Copies and children of the process keep it. It adds microseconds to a forward pass, and
    milliseconds to one of many tokens with a cache that a load made.
    """
    base: Any = base_model(model)
    if any(hook is before_forward for hook in base._forward_pre_hooks.values()):
        return
    base.register_forward_pre_hook(before_forward, with_kwargs=True)
    if hasattr(base, "generate"):
        base.generate = MethodType(generate, base)


def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """`generate` of the model's class, once it is sure that it gives the right tokens.

    Raises:
        InvalidInput: the cache holds another prompt, or is in use.
        Unsupported: an argument that does not go together with a reloaded cache.
    """
    given = type(self).generate
    cache = _cache_in(kwargs)
    held = tokens_of(cache)
    if held is None:
        return given(self, inputs, *args, **kwargs)
    with held.in_use():
        length = int(cache.get_seq_length())
        _check_settings(settings_of(self, args, kwargs), cache)
        held.begun, held.given, held.used = False, 0, True
        if length:
            ids = kwargs.get("input_ids") if inputs is None else inputs
            if not isinstance(ids, Tensor) or ids.ndim != 2 or "inputs_embeds" in kwargs:
                raise InvalidInput("generate with a reloaded cache needs input_ids, [1, tokens]")
            if not _is_rest(kwargs, ids, length):
                _check_prompt(held, cache, ids, length)
        return given(self, inputs, *args, **kwargs)


def before_forward(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a forward pass of the model: a hook of PyTorch.

    Raises:
        InvalidInput: tokens or positions that are not those after the cache, padding, a mask with
            holes, inputs that the load was not told of, or a cache of another model.
        ShapeMismatch: another number of sequences than the cache holds.
        Unsupported: `torch.autocast` has the model compute in another type than it has.
    """
    if torch.compiler.is_compiling():
        return None
    named = kwargs if not args else _named(module, args) | kwargs
    cache = _cache_in(named)
    held = tokens_of(cache)
    if held is None:
        noted = grow_fed(cache, named)
        return None if noted is None else ((), noted)
    ids, length, same = named.get("input_ids"), int(cache.get_seq_length()), False
    cast = cast_to(module.dtype, module.device)
    if not isinstance(ids, Tensor):
        ids = None
    elif length:
        if not held.begun:
            _look(held, module)
            check_model(cache, module)
            if cast is not None:
                raise Unsupported(cast_words(cast, module))
            same = True
            # Assisted generation feeds the whole prompt, however much of it the cache holds.
            if held.given and ids.shape[1] >= held.given:
                ids = ids[:, length:]
                named = named | {"input_ids": ids}
            elif held.prompt is not None:
                _check_rest(held.prompt[length:], ids, length)
            _check_beside(held, named, ids.shape[1], length)
            named = _with_positions(named, ids.shape[1])
        _widen(cache, ids.shape[0])
    alone: Flag = ids is not None and held.whole and cast is None
    if alone and ids is not None and not same:
        alone = _same_model(held, cache, module, ids.shape[1])
    held.begun, held.prompt, held.used = True, None, True
    if ids is not None and alone:
        alone = plain(named, ids.shape[1], length, told=held.told)
    held.grow(length, ids, alone)
    return (), named


def cast_words(cast: torch.dtype, model: Any) -> str:
    """Why nothing is shared under `torch.autocast`."""
    return (
        f"torch.autocast makes keys and values of {cast}, and the model's are of {model.dtype}: "
        f"load the model with dtype={cast}, or leave autocast out"
    )


def _same_model(held: HeldTokens, cache: Any, module: nn.Module, tokens: int) -> bool:
    """Whether a pass computes with the weights and adapters that the cache was loaded for.

    A pass of a few tokens behind others, as each of an answer is, is asked no more than whether
    anything changed since the last time.
    """
    few = held.begun and tokens < _LOOKED_THROUGH
    if few and held.look is not None and held.look() == held.seen:
        return True
    _look(held, module)
    return is_for(cache, module)


def _look(held: HeldTokens, module: nn.Module) -> None:
    """Notes what tells whether the model changes. Before its identity is asked for, so that no
    change falls between the two."""
    held.look = quick_look(module)
    held.seen = held.look()


def _named(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments of `forward` by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False))


def _cache_in(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[word] for word in _KEYWORDS if kwargs.get(word) is not None), None)


def settings_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[str], Any]:
    """What `generate` goes by: its arguments, else the config that it is given, else, for what is
    None there, the model's."""
    given = kwargs.get("generation_config", args[0] if args else None)
    configs = (given, getattr(model, "generation_config", None))

    def setting(name: str) -> Any:
        if name in kwargs:
            return kwargs[name]
        said = (getattr(config, name, None) for config in configs)
        return next((value for value in said if value is not None), None)

    return setting


def _check_settings(setting: Callable[[str], Any], cache: Any) -> None:
    """Refuses what makes `generate` go about its cache in another way."""
    for name, why in _REFUSED.items():
        if setting(name) not in _DEFAULTS:
            raise Unsupported(f"generate({name}=...) {why}")
    if setting("use_cache") is False:
        raise Unsupported("generate(use_cache=False) with a reloaded cache: leave one of them out")
    assisted = any(setting(name) is not None for name in _ASSISTANTS)
    if assisted and isinstance(cache, CodedCache) and cache.coded_tokens:
        raise Unsupported("assisted generation over codes: take the cache of load()")


def _is_rest(kwargs: dict[str, Any], ids: Tensor, length: int) -> bool:
    """Whether `generate` was given the tokens after the cache alone: then the mask is of all."""
    mask = kwargs.get("attention_mask")
    return isinstance(mask, Tensor) and mask.shape[-1] == ids.shape[1] + length


def _check_prompt(held: HeldTokens, cache: Any, ids: Tensor, length: int) -> None:
    """Whether a prompt goes on from what the cache holds; one that ends there, or before, has the
    cache cropped: its last token is to be computed."""
    known = held.known(length)
    if len(known) < length:
        raise InvalidInput(
            f"which tokens this cache has grown by is not known ({UNKNOWN}): go on with "
            "model(...), or give **hit.inputs again, which begins anew"
        )
    count = min(length, ids.shape[1])
    if not bool((ids[:, :count].to("cpu", torch.int64) == known[:count]).all()):
        raise InvalidInput(
            "this prompt does not begin with the tokens that the cache holds: load() it, or give "
            "**hit.inputs again if an answer has been added to the cache since"
        )
    if count == ids.shape[1]:
        cache.crop(count - 1 - length)
    held.prompt, held.given = None, ids.shape[1]


def _check_rest(rest: Tensor, ids: Tensor, length: int) -> None:
    count = min(len(rest), ids.shape[1])
    if not bool((ids[:, :count].to("cpu", torch.int64) == rest[:count]).all()):
        raise InvalidInput(
            f"the cache holds the first {length} tokens of the prompt that it was loaded for, and "
            "these do not follow: give the model input_ids[:, hit.tokens:]"
        )


def _check_beside(held: HeldTokens, inputs: dict[str, Any], tokens: int, length: int) -> None:
    """Refuses what would have made other keys and values of the prefix that was loaded."""
    follows = follow(inputs.get("position_ids"), tokens, length)
    if bool(follows) and bool(plain(inputs, tokens, length, told=held.told)):
        return
    if not bool(follows):
        raise InvalidInput(
            f"position_ids: the cache holds positions 0 to {length - 1}, without padding, so the "
            f"next token has position {length}; leave position_ids out, or padding"
        )
    if not bool(sees_all(inputs.get("attention_mask"), tokens, length)):
        raise InvalidInput(
            f"attention_mask: the cache holds {length} tokens without padding, and a mask of ones "
            f"for all {length + tokens} goes with it: leave padding and holes out, or the mask; a "
            "Session takes padded batches"
        )
    named = ", ".join(others(inputs)) or "cache_position or token types"
    raise InvalidInput(
        f"{named}: the cache was loaded for token ids alone: leave it out, or **hit.inputs"
    )


def _with_positions(kwargs: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The arguments with the positions of these tokens alone."""
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor):
        return kwargs
    return kwargs | {"position_ids": positions[..., positions.shape[-1] - tokens :]}


def _widen(cache: Any, rows: int) -> None:
    """Repeats the one sequence that was loaded for each that the model is to continue: beams,
    several answers, several questions about one text."""
    filled = [layer for layer in cache.layers if layer.get_seq_length()]
    held = {int(layer.keys.shape[0]) for layer in filled if isinstance(layer.keys, Tensor)}
    if held == {1} and rows > 1:
        cache.batch_repeat_interleave(rows)
    elif held - {1, rows}:
        _refuse_rows(held, rows)


def _refuse_rows(held: set[int], rows: int) -> NoReturn:
    raise ShapeMismatch(
        f"{rows} sequences with a cache of {', '.join(map(str, sorted(held)))}: give **hit.inputs "
        "again, which holds one"
    )
