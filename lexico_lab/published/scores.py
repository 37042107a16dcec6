"""Scores of tokens for `eviction.select`, by NVIDIA's kvpress 0.5.5 (Apache-2.0).

It is no dependency of the project, and is imported when scores are asked for. It is called
directly: its own hooks ask for `cache_position`, which transformers 5.23 does not pass.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from lexico_lab.caches import cache_of
from lexico_lab.published.eviction import Eviction
from lexico_lab.published.short_caches import implementation

ABSENT: Final = "kvpress is not installed; in the project's repository: make .venv/evict"
INSTRUCTION: Final = (
    "\n\nRepeat the previous context exactly.\n"  # KVzip's, without a chat template
)


def available() -> bool:
    """Whether kvpress is installed."""
    return find_spec("kvpress") is not None


def refusal(model: Any) -> str:
    """Why evictions cannot run on a model; empty where they can."""
    if not available():
        return ABSENT
    try:
        supported = _kvpress().presses.base_press.SUPPORTED_MODELS
    except (ImportError, AttributeError, RuntimeError) as error:  # the last is transformers'
        return f"kvpress cannot be imported ({error})"
    if isinstance(model, supported):
        return ""
    names = ", ".join(one.__name__ for one in supported)
    return f"kvpress does not know {type(model).__name__}, but {names}"


def scores_of(
    model: Any,
    ids: Sequence[int],
    states: Tensor,
    chosen: Sequence[Eviction],
    stored: slice,
    instruction: Sequence[int],
) -> dict[str, Tensor]:
    """What `eviction.select` takes, `[layers, kv_heads, tokens of stored]`, by `score_key`.

    Args:
        model: decoder with RoPE of a kind that kvpress knows.
        ids: of the prefix.
        states: `[layers, 2, kv_heads, tokens, head_dim]` of the prefix, exact.
        chosen: settings; all but those of KVzip share one pass of the model.
        stored: the tokens that may go.
        instruction: tokens that ask to repeat the prefix, for KVzip.
    """
    presses: dict[str, Any] = {}
    for one in chosen:
        if one.method != "kvzip" and score_key(one) not in presses:
            presses[score_key(one)] = _press(one, stored, len(ids))
    found = _scores(model, ids, presses) if presses else {}
    if any(one.method == "kvzip" for one in chosen):
        found["kvzip"] = repetition_scores(model, ids, states, instruction)
    return {key: of_all[:, :, stored] for key, of_all in found.items()}


def score_key(eviction: Eviction) -> str:
    """Evictions with the same key have the same scores."""
    if eviction.method in ("streamingllm", "compactor"):  # their scores depend on the share
        return f"{eviction.method} {eviction.fraction}"
    return "snapkv" if eviction.method in ("pyramidkv", "adakv") else eviction.method


def _kvpress() -> Any:
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # KVzip warns of its second pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns of its own imports
        import kvpress
    return kvpress


def _press(eviction: Eviction, stored: slice, tokens: int) -> Any:
    kvpress = _kvpress()
    gone = stored.stop - stored.start - eviction.count(stored)
    ratio = max(0.0, (gone - 0.5) / tokens)  # the half keeps kvpress's rounding off whole numbers
    match score_key(eviction).split()[0]:
        case "streamingllm":
            return kvpress.StreamingLLMPress(ratio)
        case "knorm":
            return kvpress.KnormPress()
        case "keydiff":
            return kvpress.KeyDiffPress()
        case "tova":
            return kvpress.TOVAPress()
        case "snapkv":
            return kvpress.SnapKVPress(window_size=tokens - stored.stop)
        case "expected_attention":
            return kvpress.ExpectedAttentionPress()
        case "compactor":
            return kvpress.CompactorPress(ratio)
    raise ValueError(f"no press for {eviction.method!r}")


@torch.inference_mode()
def _scores(model: Any, ids: Sequence[int], presses: dict[str, Any]) -> dict[str, Tensor]:
    """`[layers, kv_heads, tokens]` by each press, from one pass over the prefix."""
    scored: dict[str, list[Tensor]] = {name: [] for name in presses}

    def score(module: Any, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs[cache_keyword(module)].layers[module.layer_idx]
        hidden = kwargs["hidden_states"]
        for name, press in presses.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # Compactor sketches at random
                found = press.score(module, hidden, layer.keys, layer.values, output[1], kwargs)
            scored[name].append(found[0])

    with implementation(model, "sdpa"), _hooked(model, score):
        model(torch.tensor([list(ids)]), **cache_inputs(model, cache_of()), logits_to_keep=1)
    return {name: torch.stack(layers).float() for name, layers in scored.items()}


@torch.inference_mode()
def repetition_scores(
    model: Any, ids: Sequence[int], states: Tensor, instruction: Sequence[int]
) -> Tensor:
    """`[layers, kv_heads, tokens]` by KVzip, the prefix repeated in one chunk after its
    cache."""
    config = model.config
    press = _kvpress().KVzipPress()
    press.context_length = press.end_idx = len(ids)
    press.score_val = torch.zeros(config.num_hidden_layers, 1, config.num_key_value_heads, len(ids))

    def score(module: Any, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs[cache_keyword(module)].layers[module.layer_idx]
        press.score_kvzip(
            module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs
        )

    with implementation(model, "sdpa"), _hooked(model, score):
        model(
            torch.tensor([[*instruction, *ids]]),
            **cache_inputs(model, cache_of(states)),
            logits_to_keep=1,
        )
    found: Tensor = press.score_val[:, 0]
    return found


@contextmanager
def _hooked(model: Any, hook: Callable[..., None]) -> Iterator[None]:
    """Calls `hook` after every attention, its module with the `rotary_emb` that presses ask for."""
    modules = [layer.self_attn for layer in model.model.layers]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    for module in modules:
        module.rotary_emb = model.model.rotary_emb
    try:
        yield
    finally:
        for handle, module in zip(handles, modules, strict=True):
            handle.remove()
            del module.rotary_emb
