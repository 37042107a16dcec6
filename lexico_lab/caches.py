"""A model's cache as one tensor, and its predictions from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lexico_codec.hf_inputs import cache_inputs

if TYPE_CHECKING:
    from transformers import DynamicCache


def states_of(cache: DynamicCache) -> Tensor:
    """A copy of all keys and values, `[layers, 2, kv_heads, tokens, head_dim]`, keys first."""
    layers: list[Any] = list(cache.layers)
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in layers])


def cache_of(states: Tensor | None = None) -> DynamicCache:
    """A cache with such keys and values, which owns its memory; empty of None or no tokens."""
    from transformers import DynamicCache

    cache = DynamicCache()
    if states is not None and states.shape[3]:
        for index, layer in enumerate(states):
            cache.update(layer[0][None].clone(), layer[1][None].clone(), index)
    return cache


@torch.inference_mode()
def forward(model: Any, ids: Sequence[int], cache: DynamicCache, keep: int) -> Tensor:
    """Runs tokens on top of a cache, which grows by them.

    Returns:
        `[keep, vocabulary]` float32: log-probabilities of the token after each of the last `keep`.
    """
    output = model(
        torch.tensor([list(ids)], device=model.device),
        **cache_inputs(model, cache),
        use_cache=True,
        logits_to_keep=keep,
    )
    found: Tensor = output.logits[0, -keep:].float().log_softmax(-1)
    return found


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over positions of KL(reference || other) in nats, from log-probabilities."""
    mean = float((reference.exp() * (reference - other)).sum(-1).mean())
    return max(mean, 0.0)  # rounding may leave a KL of zero just below it; NaN stays


def negative_log_likelihood(predictions: Tensor, ids: Sequence[int]) -> float:
    """Mean over positions, in nats.

    Args:
        predictions: `[n, vocabulary]` log-probabilities.
        ids: the tokens that they are of; one less than n where the last is not known.
    """
    targets = torch.tensor(list(ids), device=predictions.device)[:, None]
    return float(-predictions[: len(targets)].gather(1, targets).mean())
