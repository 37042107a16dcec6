"""Small models that attend over codes, and prompt caches of theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lexico_client import Client
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from tests.support.dictionaries import random_set

LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM, PAGE_TOKENS, SPARSITY = 3, 6, 2, 16, 8, 3
SINKS = 4
DICTIONARY = random_set(LAYERS, HEAD_DIM, kv_heads=KV_HEADS)
TOLERANCE: dict[str, Any] = {"atol": 2e-5, "rtol": 2e-5}
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": Q_HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.15,  # so that attention prefers some tokens to others
    "attn_implementation": "lexico_codes",
}


def llama(**changes: Any) -> Any:
    """Three layers, three query heads a KV head."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).train(False)


def qwen2() -> Any:
    """The same with biases."""
    torch.manual_seed(1)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=False)).train(False)


def prompt(tokens: int, seed: int = 3) -> Tensor:
    """Random token ids, `[1, tokens]`."""
    return torch.randint(0, 97, (1, tokens), generator=torch.Generator().manual_seed(seed))


def shared_of(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    """Codec lexico over a random dictionary set, pages of 8 tokens."""
    arguments: dict[str, Any] = {
        "codec": "lexico",
        "codec_config": {"sparsity": SPARSITY},
        "dictionary": DICTIONARY,
        "page_tokens": PAGE_TOKENS,
        "recent_tokens": 1,
    }
    return HuggingFaceCache(client, model, **arguments | changes)


@torch.inference_mode()
def offloaded(client: Client, model: Any, ids: Tensor, **changes: Any) -> HuggingFaceCache:
    """`shared_of`, once the full pages of a prompt are stored."""
    shared, cache = shared_of(client, model, **changes), DynamicCache(config=model.config)
    model(ids, **cache_inputs(model, cache))
    shared.offload(ids, cache)
    return shared


def generated(model: Any, ids: Tensor, cache: Any = None, **changes: Any) -> Any:
    """What 12 greedy steps give, with logits."""
    arguments: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        **cache_inputs(model, cache),
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    return model.generate(ids, **arguments | changes)


def layers_of(cache: Any) -> list[Any]:
    """A cache's layers, whatever they are."""
    return list(cache.layers)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal tokens from equal logits."""
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), **TOLERANCE)
    assert torch.equal(ours.sequences, theirs.sequences)
