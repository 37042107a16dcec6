"""A real vLLM engine whose cache is in FP8: what one process stored, another loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lexico_client import Client
from lexico_codec.presets import codec_named
from lexico_codec.sets.choose import choose
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import CLIENT_MISSES, ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS
from tests.support.client_fixtures import PATIENT, Landing, first_pages
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Nursery
from tests.support.vllm_service import EngineService
from tests.vllm.conftest import LOADED
from tests.vllm.test_tier import settle, transfer

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(), reason="vLLM's CPU attention has FP8 with AVX-512 alone"
)


class Stored(NamedTuple):
    """What an engine computed, and stored lossless."""

    kind: str
    """`kv_cache_dtype`."""
    spec: CacheSpec
    tokens: list[list[int]]
    """That the engine generated, and one without us as well."""


@pytest.fixture(scope="module", params=["fp8", "fp8_e5m2"])
def stored(
    request: pytest.FixtureRequest,
    nursery: Nursery,
    service: EngineService,
    prompts: Prompts,
    spec: CacheSpec,
) -> Stored:
    kind = request.param
    with nursery.engine(kv_cache_dtype=kind) as engine:
        plain = [engine.generate(ids).tokens[0] for ids in prompts.apart]
    with nursery.engine({**service.settings, "codec": "lossless"}, kv_cache_dtype=kind) as engine:
        found = [engine.generate(ids) for ids in prompts.apart]
        engine.settle()
        assert [each.tokens[0] for each in found] == plain
        assert engine.counted(ENGINE_PAGES.name)["sent"] == 9 * len(found)
    dtype = "float8_e5m2" if kind == "fp8_e5m2" else "float8_e4m3fn"
    geometry = replace(spec.geometry, dtype=dtype)
    return Stored(kind, replace(spec, geometry=geometry, group_layers=0), plain)


def test_another_process_loads_what_one_stored(
    nursery: Nursery, service: EngineService, prompts: Prompts, stored: Stored
) -> None:
    settings = {**service.settings, "codec": "lossless"}
    with nursery.engine(settings, kv_cache_dtype=stored.kind) as engine:
        found = [engine.generate(ids) for ids in prompts.apart]
        assert [each.tokens[0] for each in found] == stored.tokens
        assert [each.cached[0] for each in found] == [LOADED] * len(found)
        assert engine.counted(ENGINE_REQUESTS.name) == {"hit": len(found)}
        assert engine.counted(ENGINE_TOKENS.name)["loaded"] == LOADED * len(found)
        assert not any(engine.counted(CLIENT_MISSES.name).values())


def test_pages_in_the_store_are_the_models_keys_and_values_rounded(
    service: EngineService, prompts: Prompts, model: Path, stored: Stored
) -> None:
    """The first layer's, which no attention came before, to one unit in the last place: vLLM's CPU
    kernel cuts off, others round to the nearest."""
    ids = prompts.apart[0]
    unit = torch.finfo(stored.spec.geometry.torch_dtype).eps
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        layer = network(torch.tensor([ids]), use_cache=True).past_key_values.layers[0]
    found = loaded(service, stored.spec, ids)[0]
    for part, whole in zip(found, (layer.keys, layer.values), strict=True):
        exact = whole[0, :, :LOADED].transpose(0, 1)
        torch.testing.assert_close(part.float(), exact, rtol=unit, atol=unit / 64)


def test_engines_with_other_caches_find_nothing(
    nursery: Nursery, service: EngineService, prompts: Prompts, plain: list[list[int]]
) -> None:
    """Of the engine's own dtype: pages of one are never taken for those of the other."""
    with nursery.engine({**service.settings, "codec": "lossless", "offload": None}) as engine:
        found = engine.generate(prompts.apart[0])
        assert (found.tokens[0], found.cached[0]) == (plain[0], 0)
        assert engine.counted(ENGINE_REQUESTS.name) == {"miss": 1}


def test_the_models_set_serves(
    nursery: Nursery, service: EngineService, prompts: Prompts, stored: Stored
) -> None:
    """Lossy pages come to the same keys and values, as near as the preset has it."""
    ids, settings = prompts.apart[1], {**service.settings, "codec": "near"}
    codec, dictionary = choose(codec_named("near"), None, stored.spec.geometry, "near")
    assert isinstance(dictionary, DictionarySet)
    spec = replace(stored.spec, codec=codec, dictionary=dictionary.digest, group_layers=0)
    with nursery.engine(settings, kv_cache_dtype=stored.kind) as engine:
        engine.generate(ids)
        engine.settle()
        assert engine.counted(ENGINE_PAGES.name)["sent"] == 9
        engine.reset()
        found = engine.generate(ids)
        assert found.cached[0] > 0
        assert engine.counted(ENGINE_REQUESTS.name)["hit"] == 1
    exact, near = (loaded(service, each, ids) for each in (stored.spec, spec))
    off = [
        (a.double() - b.double()).norm() / b.double().norm()
        for a, b in zip(near, exact, strict=True)
    ]
    assert 0 < float(torch.stack(off).max()) < 0.7


def test_the_tier_shares_too(
    nursery: Nursery, fresh: EngineService, prompts: Prompts, stored: Stored
) -> None:
    """vLLM's own offloading, whose chunks are bytes."""
    options = {"kv_transfer_config": transfer(fresh), "kv_cache_dtype": stored.kind}
    with nursery.engine(**options) as engine:
        assert [engine.generate(ids).tokens[0] for ids in prompts.apart] == stored.tokens
        settle(engine)
        assert engine.counted(ENGINE_PAGES.name)["sent"] == 9 * len(prompts.apart)
    with nursery.engine(**options) as engine:
        found = [engine.generate(ids) for ids in prompts.apart]
        assert [each.tokens[0] for each in found] == stored.tokens
        assert [each.cached[0] for each in found] == [LOADED] * len(found)


def loaded(service: EngineService, spec: CacheSpec, ids: list[int]) -> list[Tensor]:
    """Nine pages of a prompt, `[2, tokens, kv_heads, head_dim]` of each layer."""
    landing = Landing(spec)
    with Client(reload=service.settings["reload"], timeouts=PATIENT) as client:
        assert client.load(spec, ids, landing).tokens == LOADED
    return list(first_pages(landing.cache, spec, 9))
