"""Tiny random models, a prompt for them, and their answers in every way that `generate` has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.3,  # so that answers depend on what is in the cache
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **GROUPED, use_sliding_window=False)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
}
TOKENS, PAGE_TOKENS, LOADED = 50, 8, 48


def tokens(count: int, seed: int = 3) -> Tensor:
    return torch.randint(0, 97, (1, count), generator=torch.Generator().manual_seed(seed))


IDS = tokens(TOKENS)


def made(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return MODELS[name]().train(False)


def answer(model: Any, ids: Tensor, inputs: dict[str, Any] | None = None, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False}
    torch.manual_seed(5)
    mask = torch.ones_like(ids)
    given: Tensor = model.generate(
        ids, **{"attention_mask": mask} | arguments | (inputs or {}) | changes
    )
    return given


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no mask": {"attention_mask": None},
    "sampled": {"do_sample": True, "top_k": 9},
    "beams": {"num_beams": 3},
    "beams that are returned": {"num_beams": 4, "num_return_sequences": 3},
    "several answers": {"do_sample": True, "num_return_sequences": 3},
    "beams that are sampled": {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": 96},
    "a penalty on the prompt": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "guidance": {"guidance_scale": 1.5},
}
