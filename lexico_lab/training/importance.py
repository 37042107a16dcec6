"""How much each cached vector matters to later queries, the weight that learning gives it.

An error in the key or value of token j reaches the output of query i in proportion to the attention
a_ij, so errors that are independent add up with Σ_i a_ij². Only queries far enough behind j count:
close ones see the exact vector, since nodes compute the newest tokens themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME: Final = "lexico-importance"
_EXACT_TOKENS: Final = 32
_QUERY_STRIDE: Final = 4  # every fourth query estimates the sum well and costs a quarter
_LARGEST: Final = 50.0  # no vector outweighs fifty average ones


@contextmanager
def recorded_importance(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Within the context each forward pass of one sequence notes `[kv_heads, tokens]` a layer.

    The model's outputs are those of its own scaled dot product attention. Layers whose attention
    does not go through the interface of transformers are missing from the dict.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found: dict[int, Tensor] = {}
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watch(
        module: torch.nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        scale = kwargs.get("scaling") or 1 / math.sqrt(query.shape[-1])
        layer: Any = getattr(module, "layer_idx", None)
        if layer is not None:
            found[layer] = attention_energy(query[0], key[0], scale)
        return attend(module, query, key, *args, **kwargs)

    AttentionInterface.register(_NAME, watch)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    former = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield found
    finally:
        model.set_attn_implementation(former)


def attention_energy(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Σ_i a_ij² over the queries i at least 32 tokens after j, summed over the heads of a group.

    Args:
        query: `[heads, T, m]`, rotated.
        key: `[kv_heads, T, m]`, rotated.
        scale: factor of the scores before the softmax.

    Returns:
        `[kv_heads, T]` float32, estimated from every fourth query.
    """
    groups, tokens, m = key.shape
    at = torch.arange(0, tokens, _QUERY_STRIDE, device=key.device)  # [Q]
    behind = at[:, None] - torch.arange(tokens, device=key.device)  # [Q, T]
    energy = key.new_zeros(groups, tokens, dtype=torch.float32)
    for group, queries in enumerate(query[:, at].view(groups, -1, len(at), m)):
        for rows in queries:
            scores = (rows @ key[group].T).float() * scale
            attention = scores.masked_fill_(behind < 0, -math.inf).softmax(1)
            energy[group] += attention.square_().mul_(behind >= _EXACT_TOKENS).sum(0)
    return energy * _QUERY_STRIDE


def training_weights(energy: Tensor) -> Tensor:
    """Weights with mean 1 from attention energies `[n]`: their square root, large ones clipped.

    The root is a middle way: with the energies themselves a per mille of the vectors, which get
    most of the attention, would be all that counts, and a dictionary would be fitted to noise.
    """
    root = energy.clamp_min(0).sqrt()
    mean = root.mean()
    if not bool(mean > 0):
        return torch.ones_like(root)
    clipped = (root / mean).clamp(1 / _LARGEST, _LARGEST)
    return clipped / clipped.mean()
