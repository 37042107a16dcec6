"""A tiny model with a tokenizer of characters, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}


def save_tiny(folder: Path) -> Path:
    """Makes the folder: two layers, two KV heads of 8 components."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).eval().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of 64 characters."""
    vocabulary = {chr(64 + code): code for code in range(64)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="@"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="@")


def letters(count: int, seed: int = 0) -> str:
    """A text of as many tokens."""
    drawn = torch.randint(65, 127, (count,), generator=torch.Generator().manual_seed(seed))
    return "".join(map(chr, drawn.tolist()))
