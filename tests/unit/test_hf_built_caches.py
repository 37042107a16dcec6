"""Caches that people build by hand of what a load brought."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._hits import Hit
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto import errors
from tests.support.client_fixtures import PATIENT

IDS = torch.randint(0, 97, (1, 50), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).train(False)


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8)
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(IDS, **cache_inputs(model, cache))
        shared.offload(IDS, cache)
        yield shared


@pytest.fixture
def hit(shared: HuggingFaceCache) -> Hit:
    hit = shared.load(IDS)
    assert hit.tokens == 48
    return hit


def built_of(layers: list[Any]) -> DynamicCache:
    made = DynamicCache()
    made.layers = list(layers)
    return made


def test_a_cache_that_is_built_of_a_hits_layers_is_known(
    model: Any, shared: HuggingFaceCache, hit: Hit
) -> None:
    """As it is, grown and cropped."""
    other = (IDS + 1) % 97
    for length in (0, 2, -8):
        made = built_of(copy.deepcopy(hit.cache).layers)
        if length > 0:
            with torch.inference_mode():
                model(IDS[:, hit.tokens :], **cache_inputs(model, made))
        elif length < 0:
            made.crop(length)
        with pytest.raises(errors.InvalidInput, match="from position 0 on"):
            shared.offload(other, made)
        assert shared.offload(IDS, made).tokens == (hit.tokens + length) // 8 * 8
    mixed = built_of([hit.cache.layers[0], *copy.deepcopy(hit.cache).layers[1:]])
    with pytest.raises(errors.InvalidInput, match="several loads"):
        shared.offload(IDS, mixed)


def test_of_tensors_of_a_hit_it_is_not_known_where_they_are_from(
    model: Any, shared: HuggingFaceCache, hit: Hit
) -> None:
    """Their tokens are the caller's duty, as with every cache that no load made."""
    layers: list[Any] = hit.cache.layers
    made = DynamicCache([(layer.keys, layer.values) for layer in layers])
    assert shared.offload((IDS + 1) % 97, made).tokens == hit.tokens // 8 * 8
