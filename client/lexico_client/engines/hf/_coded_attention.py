"""The attention implementation `lexico_codes` of Hugging Face models.

Over a `CodedCache` it attends to codes. With any other cache, or none, it is PyTorch's own, so that
a model may keep the setting.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from lexico_client.engines.hf._coded_layer import ATTENTION, CodedStates
from lexico_proto.errors import Unsupported

_REFUSED: Final = ("sliding_window", "softcap", "position_bias", "s_aux", "cache")
"""Arguments that some models give and that change which scores there are."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers calls it.

    Args:
        module: the layer.
        query: `[batch, q_heads, tokens, head_dim]`.
        key, value: `[batch, kv_heads, seen, head_dim]`, or what a `CodedCache` gave.
        attention_mask: as `mask` made it; None: each token sees all up to itself.
        dropout: 0 over codes.
        scaling: of the scores; None for `head_dim ** -0.5`.
        kwargs: what else the model gives.

    Returns:
        `[batch, tokens, q_heads, head_dim]`, and None in place of weights.

    Raises:
        Unsupported: over codes, whatever is not plain causal attention of one sequence.
    """
    if not isinstance(key, CodedStates) and not isinstance(value, CodedStates):
        mask = attention_mask
        if mask is None and _is_causal(module, kwargs):
            mask = _lower_right(query.shape[2], key.shape[2], query.device)
        attended, _ = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended, None
    if not isinstance(key, CodedStates) or not isinstance(value, CodedStates):
        raise Unsupported("attention over codes: keys and values are not of the same cache")
    _refuse(module, query, attention_mask, dropout, kwargs)
    step = key.step
    if value.step is not step:
        raise Unsupported("attention over codes: keys and values are not of the same step")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    attended = step.layer.attend(step, query[0], scale)
    return attended.to(query.dtype).transpose(0, 1)[None].contiguous(), None


def mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """None where every token sees all up to itself and nothing is padding, else a dense mask.

    Unlike the mask of sdpa, that holds for steps of several tokens after others too, as
    `attention` knows.

    Args:
        batch_size: sequences.
        kv_length, kv_offset: tokens that are seen, and which the first is.
        mask_function: who sees whom.
        attention_mask: `[batch, seen]`, False for padding.
        allow_is_causal_skip: False where the caller wants a tensor.
        kwargs: where the queries are, and what else transformers gives; see `sdpa_mask`.
    """
    plain = (
        allow_is_causal_skip
        and mask_function is causal_mask_function
        and not torch.compiler.is_compiling()
        and _end_of_queries(kwargs) == kv_length + kv_offset
        and (attention_mask is None or _all_seen(attention_mask, kv_length, kv_offset))
    )
    if plain:
        return None
    dense: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        # sdpa leaves masks away that `attention` would take for the plain causal one.
        allow_is_causal_skip=False,
        **kwargs,
    )
    return dense


def _end_of_queries(kwargs: dict[str, Any]) -> int:
    """The position after the last query."""
    positions = kwargs.get("cache_position")  # earlier transformers
    if positions is not None:
        return int(positions[-1]) + 1
    return int(kwargs["q_length"]) + int(kwargs.get("q_offset", 0))


def _all_seen(attention_mask: Tensor, kv_length: int, kv_offset: int) -> bool:
    seen = attention_mask[:, kv_offset : kv_offset + kv_length]
    return seen.shape[1] == kv_length and bool(seen.all())


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _lower_right(queries: int, seen: int, device: torch.device) -> Tensor | None:
    """The causal mask of the last tokens; None where sdpa does without."""
    if not 1 < queries < seen:
        return None
    return torch.ones(queries, seen, dtype=torch.bool, device=device).tril(seen - queries)


def _refuse(
    module: nn.Module,
    query: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> None:
    """Raises on what attention over codes does not do."""
    given = [name for name in _REFUSED if kwargs.get(name) is not None]
    if given:
        raise Unsupported(f"attention over codes with {', '.join(given)}: only plain attention")
    if attention_mask is not None:
        raise Unsupported(
            "attention over codes takes no mask: one sequence, without padding, and an "
            "attention_mask of ones or none"
        )
    if query.shape[0] != 1:
        raise Unsupported(f"attention over codes for {query.shape[0]} sequences: one at a time")
    if not _is_causal(module, kwargs):
        raise Unsupported("attention over codes is causal")
    if dropout or (torch.is_grad_enabled() and query.requires_grad):
        raise Unsupported(
            "attention over codes is for inference: no dropout, and under torch.no_grad()"
        )
    if kwargs.get("output_attentions"):
        raise Unsupported("attention over codes gives no attention weights")


def register() -> None:
    """Makes the implementation known to transformers, under its name."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, mask)
