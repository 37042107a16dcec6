"""vLLM's own tiering manager with our secondary tier and a lossy codec, in whole engines."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lexico_client import AsyncClient
from lexico_client.engines._apart import PagesApart
from lexico_codec.memory import CacheMemory
from lexico_codec.presets import codec_named
from lexico_codec.sets.choose import choose
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_STAGED, ENGINE_TOKENS
from tests.support.client_fixtures import PATIENT
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Nursery
from tests.support.vllm_service import EngineService
from tests.vllm.conftest import LOADED
from tests.vllm.test_tier import CHUNK, SCHEME, chunk_hashes, settle, transfer

PRESET = "near"


@pytest.fixture(scope="module")
def computed(model: Path, prompts: Prompts) -> Tensor:
    """`[layers, 2, tokens, kv_heads, head_dim]`, keys after RoPE: what Hugging Face computes."""
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        ids = torch.tensor([prompts.apart[0]])
        layers = network(ids, use_cache=True).past_key_values.layers
    return torch.stack([torch.stack([each.keys[0], each.values[0]]) for each in layers]).transpose(
        2, 3
    )


def test_chunks_are_coded_and_another_process_loads_them(
    nursery: Nursery,
    fresh: EngineService,
    spec: CacheSpec,
    prompts: Prompts,
    plain: list[list[int]],
    computed: Tensor,
) -> None:
    """The built-in set is that of pages at known positions: the codec finds where a chunk lies."""
    coding = {"codec": PRESET, "without_set": "refuse"}
    config = transfer(fresh)
    config["kv_connector_extra_config"]["secondary_tiers"][0].update(coding)
    ids = prompts.apart[0]
    with nursery.engine(kv_transfer_config=config) as engine:
        assert engine.generate(ids).tokens[0] == plain[0]
        settle(engine)
        assert engine.counted(ENGINE_PAGES.name)["sent"] == LOADED // CHUNK
        assert engine.counted(ENGINE_STAGED.name) == {"": 0}
    assert _error_of_what_is_stored(fresh, spec, ids, computed) < 0.5

    found = []
    for _ in range(2):
        with nursery.engine(kv_transfer_config=config) as engine:
            answer = engine.generate(ids)
            assert answer.cached == [LOADED]
            tokens = engine.counted(ENGINE_TOKENS.name)
            assert (tokens["loaded"], tokens.get("lost", 0)) == (LOADED, 0)
            found.append(answer.tokens[0])
            places = range(len(plain[0]))
            nexts = [engine.generate(ids + plain[0][:at], max_tokens=1).tokens[0] for at in places]
    assert found[0] == found[1]
    agree = sum(a == [b] for a, b in zip(nexts, plain[0], strict=True))
    assert agree > len(plain[0]) * 3 // 4


def _error_of_what_is_stored(
    service: EngineService, spec: CacheSpec, ids: list[int], computed: Tensor
) -> float:
    """Mean relative error of the chunks in the store; those of the codec are not 0."""
    asked = codec_named(PRESET).without_positions()
    codec, made = choose(asked, None, spec.whole_geometry)
    assert isinstance(made, DictionarySet)
    base = replace(spec, page_tokens=CHUNK, codec=codec, group_layers=0, dictionary=made.digest)
    geometry, errors = base.geometry, []
    room = torch.empty(geometry.layers, 2, CHUNK, geometry.kv_heads, geometry.head_dim)

    async def load(page_hash: bytes) -> None:
        async with AsyncClient(
            reload=service.settings["reload"],
            offload=service.settings["offload"],
            timeouts=PATIENT,
        ) as client:
            memory = CacheMemory.over(room)
            found = await PagesApart(client, SCHEME).load(base, page_hash, memory, 60.0)
            assert found.pages == 1, found.reason

    for page, page_hash in enumerate(chunk_hashes(ids)):
        asyncio.run(load(page_hash))
        expected = computed[:, :, page * CHUNK : (page + 1) * CHUNK]
        errors.append(float((room - expected).norm() / expected.norm()))
    assert min(errors) > 1e-3  # a lossless chunk would be nearer
    return sum(errors) / len(errors)
