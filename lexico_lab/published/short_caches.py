"""What an eviction leaves of a cache, and predictions after it.

Bytes: two float16 vectors for each sink, and for every kept token of a head two vectors, float16 or
`lexico`'s, and an index of 2; 2 more a head for their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.caches import cache_of

if TYPE_CHECKING:
    from transformers import DynamicCache

INDEX_BYTES: Final = 2
CODED_BYTES: Final = 3 * 8 + 2  # a vector of `eviction.CODER`
_ATTENTION: Final = "lexico_lab_evicted"


@dataclass(frozen=True, eq=False)
class Kept:
    """What an eviction leaves of a cache."""

    cache: DynamicCache
    """Layers differ in length."""
    visible: list[Tensor]
    """A layer's `[kv_heads, tokens]` bool: False where a head keeps fewer than the longest."""
    size: int
    """Bytes that would lie in the store, sinks included, the tail not."""


def shorten(states: Tensor, kept: Tensor, stored: slice, coded: bool = False) -> Kept:
    """The cache of the kept tokens, stored ones in float16.

    Args:
        states: `[layers, 2, kv_heads, tokens, head_dim]` of the prefix, exact or as they come back
            from `eviction.CODER`.
        kept: `[layers, kv_heads, tokens of stored]`, from `eviction.select`.
        stored: the tokens that may go; those before are sinks, those after the tail.
        coded: whether the states come back from `eviction.CODER`.
    """
    layers, _, heads, tokens, dim = states.shape
    rounded = states.clone()
    rounded[:, :, :, : stored.stop] = rounded[:, :, :, : stored.stop].half().to(states.dtype)
    whole = torch.ones(layers, heads, tokens, dtype=torch.bool)
    whole[:, :, stored] = kept
    short, visible = cache_of(), []
    for index, (layer, stays) in enumerate(zip(rounded, whole, strict=True)):
        longest = int(stays.sum(1).max())
        order = stays.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        visible.append(stays.gather(1, order))
        picked = order[None, :, :, None].expand(2, -1, -1, dim)
        keys, values = layer.gather(2, picked)[:, None]
        short.update(keys, values, index)
    sinks = layers * heads * stored.start * 2 * 2 * dim
    numbers = layers * heads * INDEX_BYTES
    token = 2 * (CODED_BYTES if coded else 2 * dim) + INDEX_BYTES
    return Kept(short, visible, sinks + numbers + int(kept.sum()) * token)


@torch.inference_mode()
def continued(model: Any, kept: Kept, ids: Sequence[int], first: int) -> Tensor:
    """Logits `[tokens, vocabulary]` of `ids`, the first at position `first`, after a short cache.

    The cache grows.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    with implementation(model, _ATTENTION):  # one that needs no mask of equal layers and heads
        logits: Tensor = model(
            torch.tensor([list(ids)]),
            **cache_inputs(model, kept.cache),
            position_ids=torch.arange(first, first + len(ids))[None],
            visible=kept.visible,
        ).logits[0]
    return logits


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,  # in its place where kvpress has wrapped this
    *,
    scaling: float,
    visible: list[Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """New tokens see what their head keeps, and one another causally."""
    heads, new = query.shape[1:3]
    past = visible[module.layer_idx]  # [kv_heads, past]
    causal = torch.ones(new, new, dtype=torch.bool).tril().expand(len(past), -1, -1)
    mask = torch.cat((past[:, None].expand(-1, new, -1), causal), dim=2)  # [kv_heads, new, all]
    mask = mask.repeat_interleave(heads // len(past), dim=0)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """The model with another implementation of attention."""
    former = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(former)
